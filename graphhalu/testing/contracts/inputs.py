"""Contracts of features, labellers and data sets, and the conditions of all contract tests.

A broken condition is an :class:`AssertionError` that says which.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.question import Question
from graphhalu.features.base import Feature
from graphhalu.features.block import TraceBlock, block_of, blocks
from graphhalu.labels.labels import MEANINGS
from graphhalu.labels.planted import planted_traces
from graphhalu.labels.registry import LabelDecision, Labeller
from graphhalu.traces.schema import ARRAYS, TraceRecord
from graphhalu.traces.trace import Trace


def require(is_kept: bool, broken: str) -> None:
    """Raise an AssertionError unless a promise is kept."""
    if not is_kept:
        raise AssertionError(broken)


def require_known(what: str, found: Iterable[str], known: Iterable[str]) -> None:
    """Refuse unknown names."""
    unknown = sorted(set(found) - set(known))
    require(not unknown, f"{what} names {unknown}, expected some of: {', '.join(known)}")


def check_feature(feature: Feature, traces: Sequence[Trace] | None = None) -> None:
    """Run every check of a feature.

    Args:
        feature: Registered or not.
        traces: Two beams of each question, one after the other; by default planted ones.

    Raises:
        AssertionError: Says which promise is broken.
    """
    tried = planted_traces(10, traces_a_question=2)[0] if traces is None else traces
    for check in FEATURE_CHECKS:
        check(feature, tried)


def a_feature_is_described(feature: Feature, _: Sequence[Trace]) -> None:
    """It says what a user must know, and what it reads."""
    require(isinstance(feature, Feature), f"expected a Feature, got {feature!r}")
    require(feature.name == feature.name.lower(), f"expected lower case, got {feature.name!r}")
    for name in ("name", "summary", "formula", "source", "direction"):
        text = getattr(feature, name)
        require(text.strip() == text != "" and "\n" not in text, f"{name} must be one line of text")
    reads = {name for each in feature.reads for name in each.split(" | ")}
    require_known("reads", reads, ARRAYS)
    require(("k" in feature.parameters) == ("rank" in feature.axes), "an axis rank needs a k")
    is_matrix = bool(reads & {"attention", "hidden", "hidden_rows", "edge_key"})
    cost = "matrix" if is_matrix else "stream"
    require(feature.cost == cost, f"cost must be {cost!r}: it reads {sorted(reads)}")


def a_feature_of_a_question_alone_is_the_same(feature: Feature, traces: Sequence[Trace]) -> None:
    """What a question has alone are its rows of the block of many."""
    for placed in blocks(traces):
        whole = feature.values(placed.block)
        require(whole.dtype == np.float32, f"expected float32, got {whole.dtype}")
        require(not np.isinf(whole).any(), "a value that does not exist must be NaN")
        for first in range(0, len(placed.block), 2):
            beams = [traces[int(index)] for index in placed.indices[first : first + 2]]
            alone = feature.values(block_of(beams))
            there = _of_beams(feature, placed.block, whole, first)
            require(
                np.allclose(alone, there, rtol=1e-4, atol=1e-6, equal_nan=True),
                f"{feature.name} of a question depends on the other questions of the block",
            )


def a_feature_names_its_columns(feature: Feature, traces: Sequence[Trace]) -> None:
    """Each entry of each axis has a name of its own."""
    block = block_of(traces[:2])
    sizes = feature.values(block).shape[1:]
    labels = feature.labels(sizes, block.shape)
    for axis, size, names in zip(feature.axes, sizes, labels, strict=True):
        require(len(set(names)) == size, f"axis {axis} of {size} entries has the names {names}")


def a_feature_has_values(feature: Feature, traces: Sequence[Trace]) -> None:
    """Some trace has a value."""
    is_known = np.isfinite(feature.values(block_of(traces)))
    require(bool(is_known.any()), f"{feature.name} has no value for any trace")


FEATURE_CHECKS: Final[tuple[Callable[[Feature, Sequence[Trace]], None], ...]] = (
    a_feature_is_described,
    a_feature_of_a_question_alone_is_the_same,
    a_feature_names_its_columns,
    a_feature_has_values,
)
"""Every promise of a feature."""


def check_labeller(labeller: Labeller, records: Sequence[TraceRecord] = ()) -> None:
    """Refuse a labeller that says nothing of itself, raises, or depends on the other answers.

    Args:
        labeller: With its settings.
        records: Answers to try beside the odd ones that every labeller meets.

    Raises:
        AssertionError: Says which promise is broken.
    """
    name: Any = labeller.name  # whatever a plug-in says
    require(isinstance(name, str) and bool(name), "a labeller needs a name")
    require(labeller.meaning in MEANINGS, f"meaning must be one of {', '.join(MEANINGS)}")
    settings = labeller.settings()
    plain = json.loads(json.dumps(settings, allow_nan=False))
    require(plain == settings, f"settings must be plain JSON values, got {settings}")
    tried = [*records, *_odd_records()]
    together = labeller.label_all(tried)
    require(len(together) == len(tried), f"{len(together)} decisions of {len(tried)} answers")
    for record, decision in zip(tried, together, strict=True):
        _check_decision(decision)
        alone = labeller.label(record)
        require(alone == decision, f"{record.answer!r} alone gave {alone}, together {decision}")


def check_dataset(dataset_class: type[Dataset], path: Path | None = None) -> None:
    """Refuse a data set without a card, or with questions that cannot be asked.

    Args:
        dataset_class: The class under test.
        path: What it reads; ``None`` for bundled questions.

    Raises:
        AssertionError: Says which promise is broken.
    """
    check_dataset_card(dataset_class.card)
    questions = list(dataset_class().read(path))
    require(list(dataset_class().read(path)) == questions, "the same file gave other questions")
    ids = [question.question_id for question in questions]
    require(len(set(ids)) == len(ids) > 0, "expected questions, each with an id of its own")
    check_questions(questions)


def check_dataset_card(card: DatasetCard) -> None:
    """Refuse a card that leaves out what a user must know."""
    require(isinstance(card, DatasetCard), f"expected a DatasetCard, got {card!r}")
    for name in ("name", "task", "licence", "source", "split", "citation", "label_rule"):
        require(bool(getattr(card, name).strip()), f"the card lacks {name}")
    require(card.size > 0, f"size must be a number of questions, got {card.size}")
    require(all(text.strip() for text in card.artefacts), "an artefact is an empty text")
    require((card.hub_id is None) <= (card.hub_config is None), "a hub_config needs a hub_id")


def check_questions(questions: Iterable[Question]) -> None:
    """Refuse questions with empty texts, or with choices and spans that do not fit."""
    for question in questions:
        what = f"question {question.question_id!r}"
        texts = (question.text, *question.answers, *question.incorrect_answers)
        require(all(text == text.strip() != "" for text in texts), f"{what} has an empty text")
        for answers in (question.answers, question.incorrect_answers):
            is_once = len(set(answers)) == len(answers) or bool(question.choices)
            require(is_once, f"{what} has an answer twice")
        is_answered = bool(question.answers or question.given) or question.input_label == 1
        require(is_answered, f"{what} has no answer")
        require(question.context is None or bool(question.context.strip()), f"{what}: context")
        require(question.input_label in {None, 0, 1}, f"{what}: input_label")
        json.dumps(dict(question.metadata), allow_nan=False)
        _check_choices(question, what)


def _check_choices(question: Question, what: str) -> None:
    right, n_choices = question.correct_choices, len(question.choices)
    require(bool(right) == bool(n_choices), f"{what}: choices need a correct one")
    require(set(right) <= set(range(n_choices)), f"{what}: a correct choice is none")
    require(n_choices != 1, f"{what} has one choice")
    require(len(set(right)) == len(right) < max(n_choices, 1), f"{what}: correct_choices")
    is_shown = all(each.text and (each.correct_choices or each.answers) for each in question.examples)
    require(is_shown, f"{what} has an empty example")
    for answer in question.given:
        require(bool(answer.text.strip()), f"{what} has an empty given answer")
        inside = all(0 <= start < stop <= len(answer.text) for start, stop in answer.spans)
        require(inside, f"{what}: a span lies outside its answer")


def _check_decision(decision: LabelDecision) -> None:
    require(isinstance(decision, LabelDecision), f"expected a LabelDecision, got {decision!r}")
    require(decision.value in {0, 1}, f"a label is 0 or 1, got {decision.value!r}")
    require(decision.is_valid or decision.value == 0, "a label that is not valid has the value 0")
    require(bool(decision.reason.strip()), "a decision needs a reason")


def _odd_records() -> list[TraceRecord]:
    """Answers that a rule meets sooner or later, with and without gold answers."""
    answers = ("Paris", "Lyon", "", " \n", "I do not know.", "It is not Paris.", "巴黎", "3" * 999)
    golds: tuple[tuple[str, ...], ...] = (("Paris", "City of Paris"), ())
    pairs = [(answer, gold) for gold in golds for answer in answers]
    return [
        TraceRecord(f"q{n}#0", f"q{n}", f"q{n}", "What?", gold, answer, "What?", 2, 3)
        for n, (answer, gold) in enumerate(pairs)
    ]


def _of_beams(
    feature: Feature, block: TraceBlock, values: Float[np.ndarray, "item *axes"], first: int
) -> Float[np.ndarray, "beam *axes"]:
    if feature.level == "trace":
        return values[first : first + 2]
    offsets = block.rows.offsets
    return values[offsets[first] : offsets[min(first + 2, len(offsets) - 1)]]
