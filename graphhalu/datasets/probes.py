"""Probes: questions that provoke hallucination, in six categories, bundled with the package."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.bundled import bundled_file, bundled_places
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import (
    Row,
    require_columns,
    text_field,
    texts_field,
    without_repeats,
    wrong_value,
)

COLUMNS: Final = (
    "id", "category", "question", "answers", "incorrect_answers", "expected", "input_label",
    "note",
)  # fmt: skip
LAYOUT: Final = f"the layout of probes ({', '.join(COLUMNS)})"

EXPECTED: Final = ("answer", "refusal")
"""What the right answer does: it answers, or it corrects the question, says that nothing of this
name exists, that it cannot be known, or that it does not know."""

BUNDLED: Final = bundled_places("probes")


class Probes(Dataset):
    """Reads the bundled questions, or a file of the same layout.

    ``metadata`` holds the category, what is expected (:data:`EXPECTED`) and a note with the
    reason. ``input_label`` is 1 for false premises and invented entities: those questions state
    something that is not so.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="probes",
        task="answer a question that provokes hallucination, or decline where no answer is right",
        licence="Apache-2.0",
        source="data/probes, written for graphhalu",
        hub_id=None,
        hub_config=None,
        split="all",
        size=180,
        citation="graphhalu, data/probes/CARD.md",
        label_rule="match; a refusal is right where metadata['expected'] is 'refusal'",
        artefacts=(
            "The category decides most of the label: report each category by itself.",
            "Small models have one class: SmolLM2-135M answers none of the 180 right.",
            "The words of a question tell its category: invented names, 'my', 'how many'.",
            "A correction in words that are not listed counts as a hallucination.",
            "A number inside a computation can match by chance (multi_step).",
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        source = bundled_file(BUNDLED) if path is None else path
        return map(_question, read_rows(open_file(source)))


def _question(row: Row) -> Question:
    require_columns(row, *COLUMNS, expected=LAYOUT)
    answers = without_repeats(texts_field(row, "answers"))
    if not answers:
        raise wrong_value(row, "answers", "a list with at least one answer", row.values["answers"])
    expected, misleads = text_field(row, "expected"), row.values["input_label"]
    if expected not in EXPECTED:
        raise wrong_value(row, "expected", "answer or refusal", expected)
    if type(misleads) is not int or misleads not in {0, 1}:
        raise wrong_value(row, "input_label", "0 or 1", misleads)
    return Question(
        question_id=text_field(row, "id"),
        text=text_field(row, "question"),
        answers=answers,
        incorrect_answers=without_repeats(texts_field(row, "incorrect_answers")),
        input_label=misleads,
        metadata={name: text_field(row, name) for name in ("category", "expected", "note")},
    )
