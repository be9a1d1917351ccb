"""What ranks answers without a detector: signals, categories, similar questions, power."""

from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.documents import read_document, write_document
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.splits import grouped_folds
from graphhalu.detectors.category import question_categories
from graphhalu.evaluation.audit import (
    AUDIT_FILE,
    KIND,
    SIGNALS,
    Audit,
    Signal,
    audit,
    cross_fitted_rate,
    similar_questions,
    smallest_difference,
)
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.result import TEXTS
from graphhalu.evaluation.significance import auroc_influence
from graphhalu.labels.labels import Labels
from graphhalu.traces.schema import TraceRecord

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty", "knoll")


def record(index: int, *, n_tokens: int = 5, answer: str = "it is so", **more) -> TraceRecord:
    generator = np.random.default_rng(index)
    question = f"{' '.join(generator.choice(WORDS, 6))} {index * 7919}?"
    return TraceRecord(
        trace_id=f"q{index}#0",
        question_id=f"q{index}",
        group_id=f"q{index}",
        question=question,
        answers=("gold",),
        answer=answer,
        prompt=question,
        prompt_length=11,
        length=11 + n_tokens,
        **more,
    )


def labels_of(values: np.ndarray, is_valid: np.ndarray | None = None) -> Labels:
    n = len(values)
    valid = np.ones(n, dtype=bool) if is_valid is None else is_valid
    reasons = tuple("alias" if value == 0 else "no alias" for value in values.tolist())
    names = tuple(f"q{index}#0" for index in range(n))
    return Labels(names, values.astype(np.int8), valid, reasons, "match")


def groups_of(n: int) -> np.ndarray:
    return np.array([f"q{index}" for index in range(n)])


def run(records: list[TraceRecord], values: np.ndarray, **more) -> Audit:
    return audit(records, labels_of(values), groups_of(len(records)), store={}, n_resamples=200, **more)


def test_a_planted_length_is_named_first():
    generator = np.random.default_rng(3)
    values = generator.integers(0, 2, 211)
    records = [record(i, n_tokens=int(5 + 3 * v + generator.integers(0, 4))) for i, v in enumerate(values)]
    found = run(records, values)
    assert found.signals[0].name == "answer length"
    assert found.signals[0].auroc.value > 0.9
    assert "length" in found.signals[0].advice
    others = [each for each in found.signals if each.name != "answer length"]
    assert max(each.distance for each in others) < 0.15


def test_a_planted_category_is_named_first():
    generator = np.random.default_rng(5)
    category = generator.integers(0, 13, 307)
    rates = np.linspace(0.05, 0.95, 13)
    values = (generator.random(307) < rates[category]).astype(int)
    records = [record(i, metadata={"relation": f"r{c}"}) for i, c in enumerate(category.tolist())]
    found = run(records, values)
    assert found.signals[0].name == "category prior"
    assert found.signals[0].auroc.value > 0.75
    assert found.categories == {"rule": "the data set", "n": 13}


def test_the_rate_of_a_category_never_sees_the_traces_own_fold():
    values = np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 1, 0, 1, 1, 0])
    categories = np.array(list("aab" * 7 + "ab"))
    groups = groups_of(23)
    rates = cross_fitted_rate(values, categories, groups, seed=2)
    for fold in grouped_folds(values, groups, n_folds=10, seed=2):
        rest = np.setdiff1d(np.arange(23), fold.test)
        for index in fold.test.tolist():
            same = rest[categories[rest] == categories[index]]
            expected = (values[same].sum() + values.mean()) / (len(same) + 1)
            assert rates[index] == pytest.approx(expected)


def test_a_category_without_signal_ranks_at_chance_and_not_below():
    generator = np.random.default_rng(7)
    aurocs = []
    for seed in range(20):
        values, category = generator.integers(0, 2, 331), generator.integers(0, 31, 331)
        rates = cross_fitted_rate(values, category, groups_of(331), seed=seed)
        above = rates[values == 1][:, None] - rates[values == 0][None, :]
        aurocs.append(((above > 0) + (above == 0) / 2).mean())
    assert abs(np.mean(aurocs) - 0.5) < 0.03


def test_the_first_field_that_serves_names_the_categories():
    def of(metadata: list[dict], **more):
        records = [record(i, metadata=each) for i, each in enumerate(metadata)]
        return question_categories(records, groups_of(len(records)), **more)

    n = 40
    titles = [{"title": f"t{i}", "relation": f"r{i % 7}"} for i in range(n)]
    assert of(titles).names[0] == "r0"
    assert of(titles).n == 7
    assert of(titles, field="title").n == n
    assert of([{"title": f"t{i}"} for i in range(n)]) is None  # a title a question
    assert of([{}, *titles[1:]]) is None  # one says nothing
    assert of(titles, field="none") is None
    clusters = of([{} for _ in range(n)], field="words")
    assert 1 < clusters.n <= 20
    assert "clusters" in clusters.rule
    with pytest.raises(UsageError, match=r"1 of 40 traces have no field 'relation'; there are relation, ti"):
        of([{"title": "t"}, *titles[1:]], field="relation")


def test_a_group_has_one_category():
    records = [record(i, metadata={"relation": name}) for i, name in enumerate("aabbb")]
    found = question_categories(records, np.array(["g", "g", "g", "h", "h"]), "relation")
    assert found.names.tolist() == ["a", "a", "a", "b", "b"]


def test_similar_questions_are_found_across_groups_only():
    texts = ["What is the capital of France?", "What is the capital of France", "Who painted Guernica?"]
    records = [replace(record(i), question=text) for i, text in enumerate([*texts, texts[0]])]
    groups = np.array(["a", "b", "c", "a"])
    assert similar_questions(records, groups) == [(0, 1)]
    assert similar_questions(records, groups, threshold=1.5) == []


def test_similar_questions_are_counted_and_looked_for_in_training():
    values = np.tile([0, 1], 30)
    records = [replace(record(i // 2), trace_id=f"q{i}#0") for i in range(60)]  # every question twice
    found = run(records, values)
    assert found.duplicates["n_pairs"] == 30
    assert found.duplicates["share"] == 1
    assert 0 < found.overlap <= 1


def test_the_smallest_difference_is_the_formula_over_simulated_scores():
    values, groups = np.tile([0, 1, 1], 41), np.repeat(groups_of(41), 3)
    first = smallest_difference(values, groups, seed=1)
    more = smallest_difference(np.tile(values, 4), np.repeat(groups_of(164), 3), seed=1)
    assert first / more == pytest.approx(2, rel=0.15)  # four times the questions, half the error
    generator, errors = np.random.default_rng(1), []
    for _ in range(20):
        shared, own = generator.normal(size=123), generator.normal(size=(2, 123))
        scores = np.sqrt(0.8) * shared + np.sqrt(0.2) * own + 0.9538725524 * values
        influence = auroc_influence(scores[0], values) - auroc_influence(scores[1], values)
        errors.append(np.sqrt(sum(influence[groups == name].sum() ** 2 for name in np.unique(groups))))
    assert first == pytest.approx((1.959964 + 0.8416212) * np.mean(errors), rel=1e-5)


def test_labels_that_are_not_valid_take_no_part():
    values = np.tile([0, 1], 50)
    is_valid = np.arange(100) >= 20
    records = [record(index) for index in range(100)]
    labels = labels_of(values, is_valid)
    found = audit(records, labels, groups_of(100), store={}, n_resamples=100)
    assert (found.n_traces, found.n_valid, found.n_groups, found.n_hallucinated) == (100, 80, 80, 40)
    assert found.kinds == {"right": 50, "wrong": 50}


def test_one_class_is_refused_in_one_line():
    with pytest.raises(NotEnoughDataError, match="needs right and hallucinated answers, got 0 hallucinated"):
        run([record(index) for index in range(20)], np.zeros(20, dtype=int))


def test_a_signal_without_an_interval_is_not_beyond_chance():
    assert not Signal("a", "", Estimate(0.9), "").is_clear
    assert not Signal("a", "", Estimate(0.6, 0.45, 0.7, 200), "").is_clear
    assert Signal("a", "", Estimate(0.6, 0.55, 0.7, 200), "").is_clear
    assert Signal("a", "", Estimate(0.3, 0.2, 0.4, 200), "").is_clear


def test_every_signal_has_a_meaning_and_advice():
    assert SIGNALS
    assert set(TEXTS["audit"]["signals"]) == set(SIGNALS)


def test_an_audit_is_read_back_as_it_was_written(tmp_path):
    found = run([record(index) for index in range(60)], np.tile([0, 1, 1], 20))
    path = write_document(tmp_path / AUDIT_FILE, found, KIND)
    assert read_document(path, Audit, KIND) == found
