"""Data sets bundled with the package: ``worldfacts`` and ``probes``."""

from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.base import DatasetCard, RowDataset, dataset_card
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import Row, answers_field, text_field, texts_field, without_repeats, wrong_value

EXPECTED: Final = ("answer", "refusal")
"""What the right answer to a probe does: it answers, or it corrects the question, says that
nothing of this name exists, that it cannot be known, or that it does not know."""

_PACKAGE: Final = Path(__file__).resolve().parents[1]


class BundledDataset(RowDataset):
    """A data set whose questions come with the package; files of the same layout are read too."""

    def rows(self, path: Path | None) -> Iterator[Row]:
        """Rows of a file, or of the bundled one."""
        return super().rows(bundled_file(bundled_places(self.card.name)) if path is None else path)


class Worldfacts(BundledDataset):
    """Short questions about settled facts."""

    card: ClassVar[DatasetCard] = dataset_card("worldfacts")
    columns: ClassVar[tuple[str, ...]] = ("id", "question", "answers", "relation", "group")
    layout: ClassVar[str] = f"the layout of worldfacts ({', '.join(columns)})"

    def question(self, row: Row) -> Question:
        """The question of a row."""
        answers = answers_field(row, "answers")
        return Question(
            question_id=text_field(row, "id"),
            text=text_field(row, "question"),
            answers=answers,
            group_id=text_field(row, "group"),
            metadata={"relation": text_field(row, "relation")},
        )


class Probes(BundledDataset):
    """Questions that provoke hallucination, in six categories.

    ``metadata`` holds the category, what is expected (:data:`EXPECTED`) and a note with the
    reason. ``input_label`` is 1 for false premises and invented entities: those questions state
    something that is not so.
    """

    card: ClassVar[DatasetCard] = dataset_card("probes")
    columns: ClassVar[tuple[str, ...]] = (
        "id",
        "category",
        "question",
        "answers",
        "incorrect_answers",
        "expected",
        "input_label",
        "note",
    )
    layout: ClassVar[str] = f"the layout of probes ({', '.join(columns)})"

    def question(self, row: Row) -> Question:
        """The question of a row."""
        answers = answers_field(row, "answers")
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


def bundled_places(folder: str, name: str = "questions.jsonl") -> tuple[Path, ...]:
    """Where a file, by default questions, lies in an installed package, and in a checkout."""
    return (_PACKAGE / "_data" / folder / name, _PACKAGE.parent / "data" / folder / name)


def bundled_file(places: tuple[Path, ...]) -> Path:
    """The first of the places that holds a file.

    Raises:
        DataFileError: If none does; lists them.
    """
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        listed = "\n".join(f"  looked at {place}" for place in places)
        raise DataFileError(
            f"a bundled file is missing: expected {places[0].name}\n{listed}\n"
            f"  Install graphhalu again, or name a file of the same layout."
        )
    return found
