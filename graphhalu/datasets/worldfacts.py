"""Worldfacts: short questions about settled facts, bundled with the package."""

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

LAYOUT: Final = "the layout of worldfacts (id, question, answers, relation, group)"

BUNDLED: Final = bundled_places("worldfacts")


class Worldfacts(Dataset):
    """Reads the bundled questions, or a file of the same layout."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="worldfacts",
        task="answer a short question about a settled fact",
        licence="Apache-2.0",
        source="data/worldfacts, written for graphhalu",
        hub_id=None,
        hub_config=None,
        split="all",
        size=1690,
        citation="graphhalu, data/worldfacts/CARD.md",
        label_rule="match",
        artefacts=(
            "The relation tells much about how often a model is right.",
            "A surname counts as the person, so a wrong given name passes.",
            "Few wordings a relation: every question of one relation looks alike.",
            "Some relations have few answers (continents, languages), which a guess can hit.",
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        source = bundled_file(BUNDLED) if path is None else path
        return map(_question, read_rows(open_file(source)))


def _question(row: Row) -> Question:
    require_columns(row, "id", "question", "answers", "relation", "group", expected=LAYOUT)
    answers = without_repeats(texts_field(row, "answers"))
    if not answers:
        raise wrong_value(row, "answers", "a list with at least one answer", row.values["answers"])
    return Question(
        question_id=text_field(row, "id"),
        text=text_field(row, "question"),
        answers=answers,
        group_id=text_field(row, "group"),
        metadata={"relation": text_field(row, "relation")},
    )
