"""Agreement of sampled answers: hand-computed cases, slow loops, and a planted disagreement."""

from dataclasses import replace
from math import log

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.linalg import expm, logm
from sklearn.metrics import roc_auc_score

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.base import ChosenTraces
from graphhalu.detectors.gnn.detectors import question_graph, sample_places
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.samples import (
    MEASURES,
    Answers,
    claimed_words,
    eccentricity,
    eigenvalue_sum,
    has_samples,
    kernel_entropy,
    lexical_dissimilarity,
    likeness,
    mean_distance,
    measured,
    selfcheck_ngram,
    semantic_entropy,
    sentence_sar,
    token_relevance,
    token_sar,
)
from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.labels.match import content_words
from graphhalu.traces.schema import TraceRecord
from tests.detectors.conftest import OF_SAMPLES, with_samples

QUESTION = "What is the capital of France?"


def record(answer: str, place: int = 1, score: float = -1.0) -> TraceRecord:
    made = TraceRecord(f"q#{place}", "q", "q", QUESTION, ("Paris",), answer, "", 2, 3 + place)
    return replace(made, beam_score=score, is_sample=place > 0)


def answers(*texts: str, own: str = "Paris") -> Answers:
    return Answers(record(own, 0), [record(text, place) for place, text in enumerate(texts, start=1)])


def test_answers_mean_the_same_where_they_claim_the_same_words_beside_the_question():
    for answer in ("The capital of France is Paris.", "paris"):
        assert claimed_words(record(answer)) == {"paris"}
    assert claimed_words(record("The capital of France.")) == frozenset()


def test_semantic_entropy_of_two_meanings_is_that_of_their_shares():
    found = semantic_entropy(answers("Paris", "It is Paris.", "Lyon", "The capital of France is Paris"))
    assert found == pytest.approx(-(0.75 * log(0.75) + 0.25 * log(0.25)))
    assert semantic_entropy(answers("Paris", "It is Paris.")) == 0
    assert semantic_entropy(answers("Paris", "Lyon", "Nice")) == pytest.approx(log(3))


def test_semantic_entropy_equals_a_loop_over_pairs():
    texts = ["Paris", "Lyon", "in Paris", "Nice", "Lyon or Nice", "Nice or Lyon", "lyon", "no idea"]
    meanings: list[list[str]] = []
    for text in texts:
        for meaning in meanings:
            if claimed_words(record(meaning[0])) == claimed_words(record(text)):
                meaning.append(text)
                break
        else:
            meanings.append([text])
    total = sum(-len(each) / len(texts) * log(len(each) / len(texts)) for each in meanings)
    assert semantic_entropy(answers(*texts)) == pytest.approx(total)


def test_eigenvalues_count_meanings_that_are_wholly_alike_or_apart():
    assert eigenvalue_sum(answers("Paris", "Paris", "Paris")) == pytest.approx(1)
    assert eigenvalue_sum(answers("Paris", "Lyon", "Nice")) == pytest.approx(3)
    assert eigenvalue_sum(answers("Paris", "Lyon", "Paris", "Lyon", "Lyon")) == pytest.approx(2)


def test_eccentricity_is_nothing_for_one_meaning_and_grows_with_meanings():
    assert eccentricity(answers("Paris", "Paris", "Paris")) == pytest.approx(0)
    # two meanings, three and two samples: their coordinates are 1 / sqrt(3) and 1 / sqrt(2) on an axis each
    center = np.array([3 / 5 / np.sqrt(3), 2 / 5 / np.sqrt(2)])
    points = [np.array([1 / np.sqrt(3), 0])] * 3 + [np.array([0, 1 / np.sqrt(2)])] * 2
    expected = np.sqrt(sum(((point - center) ** 2).sum() for point in points))
    assert eccentricity(answers("Paris", "Paris", "Lyon", "Paris", "Lyon")) == pytest.approx(expected)


def test_kernel_entropy_of_two_samples_by_hand():
    # alike: the kernel is [[a, b], [b, a]], its unit-trace spectrum (1 +- b / a) / 2
    ratio = (1 - np.exp(-0.6)) / (1 + np.exp(-0.6))
    shares = np.array([1 + ratio, 1 - ratio]) / 2
    assert kernel_entropy(answers("Paris", "Paris")) == pytest.approx(-(shares * np.log(shares)).sum())
    assert kernel_entropy(answers("Paris", "Lyon")) == pytest.approx(log(2))


def test_kernel_entropy_equals_a_matrix_exponential():
    given = answers("Paris", "Lyon or Paris", "Lyon", "Nice", "Paris")
    weight = likeness(given.claims) * (1 - np.eye(5))
    kernel = expm(-0.3 * (np.diag(weight.sum(0)) - weight))
    for row in range(5):
        for column in range(5):
            weight[row, column] = kernel[row, column] / np.sqrt(kernel[row, row] * kernel[column, column]) / 5
    expected = -np.trace(weight @ logm(weight)).real
    assert kernel_entropy(given) == pytest.approx(expected)


def test_selfcheck_counts_words_of_samples_and_answer():
    given = answers("it is Lyon", "Lyon", own="Paris it is")
    counts, total = {"paris": 1, "it": 2, "is": 2, "lyon": 2}, 7 + 4
    expected = np.mean([-log((counts[word] + 1) / total) for word in ("paris", "it", "is")])
    assert selfcheck_ngram(given) == pytest.approx(expected)


def test_a_token_is_relevant_as_far_as_what_is_said_changes_without_it():
    made = replace(record("Lyon, of course"), answer_offsets=((0, 4), (4, 8), (8, 15)))
    said = content_words(QUESTION) | {"lyon", "course"}
    expected = [1 / len(said), 0, 1 / len(said)]
    np.testing.assert_allclose(token_relevance(made), expected)


def test_token_sar_weighs_surprise_by_relevance(few_samples):
    alike = [trace for trace in few_samples.traces if trace.record.question_id == "q3"]
    samples, total = [trace for trace in alike if trace.record.is_sample], []
    for trace in samples:
        text, offsets = trace.record.answer, trace.record.answer_offsets
        question, weighed, weight = content_words(trace.record.question), 0.0, 0.0
        for at, (start, stop) in enumerate(offsets):
            whole, left = question | content_words(text), question | content_words(text[:start] + text[stop:])
            relevance = 1 - len(whole & left) / len(whole | left) if whole else 0
            weighed -= relevance * trace.stream("token_logprob")[trace.prompt_length + at]
            weight += relevance
        surprise = -trace.stream("token_logprob")[trace.prompt_length :]
        total.append(weighed / weight if weight else surprise.mean())
    found = token_sar(Answers(samples[0].record, [each.record for each in samples], samples))
    assert found == pytest.approx(np.mean(total))


def test_sentence_sar_raises_what_others_say_too():
    given = answers("Paris", "Lyon", "Paris")
    scores = [-1.0, -2.0, -0.5]
    samples = [replace(each, beam_score=score) for each, score in zip(given.samples, scores, strict=True)]
    p = np.exp(scores)
    raised = [p[0] + p[2] / 0.001, p[1], p[2] + p[0] / 0.001]
    assert sentence_sar(Answers(given.own, samples)) == pytest.approx(-np.mean(np.log(raised)))


GRAPH = {"n_folds": 2, "epochs": 40, "patience": 15, "hidden_size": 16, "nodes": ["span"]}


def test_the_question_graph_finds_agreement_and_without_messages_it_does_not(few_samples):
    data = few_samples
    aurocs = []
    for name in ("question-gat", "question-alone"):
        kind = DETECTORS.get(name)
        detector = kind(**kind.settings(seed=0, **GRAPH)).fit(data.traces, data.labels, data.split)
        aurocs.append(roc_auc_score(data.test_labels, detector.score(data.test_traces).values))
    assert aurocs[0] > 0.95
    assert aurocs[1] < 0.95


def test_a_question_graph_is_that_of_a_loop(few_samples):
    traces = [trace for trace in few_samples.traces if trace.record.question_id in ("q3", "q4")]
    made = AttentionGraphs(traces, view="multiplex", layers=(1, 2), nodes=("span",))
    own = next(place for place, trace in enumerate(traces) if not trace.record.is_sample)
    data = made[own]
    found = question_graph(data, traces=traces, pool=made, samples=sample_places(traces))
    samples = [
        place
        for place, trace in enumerate(traces)
        if trace.record.is_sample and trace.record.question_id == traces[own].record.question_id
    ]
    assert len(samples) == 4
    n_heads, claims = data.edge_attr.shape[1], claimed_words(traces[own].record)
    edges = [(*pair, 0.0, 0.0) for pair in data.edge_index.T.tolist()]
    n_nodes, start = data.num_nodes, traces[own].prompt_length
    for place in samples:
        trace, sample = traces[place], made[place]
        shift = n_nodes - trace.prompt_length
        within = [pair for pair in sample.edge_index.T.tolist() if min(pair) >= trace.prompt_length]
        edges += [(key + shift, query + shift, 0.0, 0.0) for key, query in within]
        for key in range(trace.prompt_length, trace.length):
            for query in range(start, traces[own].length):
                if trace.token_ids[key] == traces[own].token_ids[query]:
                    edges.append((key + shift, query, 1.0, 0.0))
        alike = float(likeness([claims, claimed_words(trace.record)])[0, 1])
        edges.append((trace.length - 1 + shift, traces[own].length - 1, 0.0, pytest.approx(alike)))
        n_nodes += trace.answer_length
    assert found.num_nodes == n_nodes
    got = [
        (*pair, *more)
        for pair, more in zip(found.edge_index.T.tolist(), found.edge_attr[:, n_heads:].tolist(), strict=True)
    ]
    assert got == edges
    assert found.x[:, -2].tolist() == [0.0] * data.num_nodes + [1.0] * (n_nodes - data.num_nodes)
    assert not found.is_readout[data.num_nodes :].any()


def test_the_stack_reads_samples_where_there_are_some(few, few_samples):
    assert has_samples(few_samples.traces)
    assert not has_samples(few.traces)
    kind = DETECTORS.get("graphhalu")
    settings = {"n_folds": 2, "epochs": 1, "hidden_size": 8}
    for data, expected in (
        (few, {"probe", "graph"}),
        (few_samples, {"probe", "graph", "question", "samples"}),
    ):
        detector = kind(**kind.settings(seed=0, **settings)).fit(data.traces, data.labels, data.split)
        assert set(detector.weights()) == expected
        assert detector.compares == ("samples" if "samples" in expected else None)
        assert detector.score(data.test_traces).is_valid.all()
    only = kind(**kind.settings(parts=["samples"]))
    with pytest.raises(NotEnoughDataError, match="--samples 10"):
        only.fit(few.traces, few.labels, few.split)


def test_likeness_is_the_share_of_words_that_both_claim():
    claims = [frozenset("ab"), frozenset("bc"), frozenset(), frozenset()]
    expected = [[1, 1 / 3, 0, 0], [1 / 3, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    np.testing.assert_allclose(likeness(claims), expected)
    assert mean_distance(answers("Paris", "Lyon")) == pytest.approx(0.5)


def test_lexical_dissimilarity_is_one_minus_the_mean_rouge_of_all_pairs():
    texts = ["Paris is the capital", "the capital is Paris", "I think Lyon"]
    scorer = RougeScorer(["rougeL"])
    values = [scorer.score(texts[i], texts[j])["rougeL"].fmeasure for i in range(3) for j in range(i + 1, 3)]
    assert lexical_dissimilarity(answers(*texts)) == pytest.approx(1 - np.mean(values))


def test_measures_of_the_answer_itself_look_at_what_it_claims():
    given = answers("Paris", "Lyon", "Lyon", own="The capital of France is Lyon.")
    assert MEASURES["share-against"](given) == pytest.approx(1 / 3)
    assert MEASURES["distance-to-answer"](given) == pytest.approx(1 / 3)
    spread = Answers(given.own, [record("a", 1, -1.0), record("b", 2, -3.0)])
    assert MEASURES["score-mean"](spread) == -2.0
    assert MEASURES["score-spread"](spread) == 1.0
    assert MEASURES["length-spread"](spread) == 0.5


NUMBERS = sorted(OF_SAMPLES - {"question-gat", "question-alone"})


@pytest.mark.parametrize("name", NUMBERS)
def test_a_detector_of_samples_finds_hallucinations_whose_samples_disagree(name, few_samples):
    data = few_samples
    detector = DETECTORS.get(name)().fit(data.traces, data.labels, data.split)
    scores = detector.score(data.test_traces)
    assert scores.is_valid.all()
    assert roc_auc_score(data.test_labels, scores.values) > 0.95


@pytest.mark.parametrize("name", NUMBERS)
def test_samples_that_agree_alike_tell_nothing(name, few):
    data = with_samples(few, share=0.0)
    detector = DETECTORS.get(name)().fit(data.traces, data.labels, data.split)
    values = detector.score(data.test_traces).values
    assert abs(roc_auc_score(data.test_labels, values) - 0.5) < 0.4


def test_a_question_without_two_samples_has_no_score_and_says_how_to_get_one(few, few_samples):
    with pytest.raises(NotEnoughDataError, match="--samples"):
        DETECTORS.get("semantic-entropy")().fit(few.traces, few.labels, few.split)
    one = [t for t in few_samples.traces if t.record.beam_index <= 1]
    assert np.isnan(measured(one, ("semantic-entropy",))).all()


def test_a_sample_is_not_compared_with_itself(few_samples):
    places = [i for i, t in enumerate(few_samples.traces) if t.record.question_id == "q3"]
    chosen = ChosenTraces(few_samples.traces, tuple(places))
    found = measured(chosen, ("share-against",))
    own = [t for t in chosen if not t.record.is_sample]
    assert len(own) == 1
    assert np.isfinite(found).all()
    without = [t for t in chosen if t.record.beam_index != 1]
    expected = np.mean([claimed_words(t.record) != claimed_words(chosen[1].record) for t in without[1:]])
    assert found[1, 0] == pytest.approx(expected)


def test_words_beside_a_question_do_not_change_with_its_case():
    upper = replace(record("PARIS"), question=QUESTION.upper())
    assert claimed_words(upper) == {"paris"}


def test_a_comparison_of_all_leaves_them_out_where_there_are_no_samples(few, few_samples, monkeypatch):
    names = ["length", "semantic-entropy"]
    monkeypatch.setattr("graphhalu.evaluation.settings.detector_names", lambda level: names)
    config = CompareConfig(quick=True, seeds=(0,), n_resamples=100)
    found = [compare(data.traces, data.labels, config=config) for data in (few, few_samples)]
    assert [[row.detector for row in result.rows] for result in found] == [["length"], names]
    named = compare(few.traces, few.labels, names, config=config)
    assert "--samples" in named.row("semantic-entropy").failure
