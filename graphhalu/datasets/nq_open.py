"""NQ-open: questions that people asked a search engine, with and without the gold passage."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.hub import hub_rows
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import (
    Row,
    require_columns,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)

LAYOUT: Final = "NQ-open's layout (question, answer: a list), published or from the hub"
CONTEXT_LAYOUT: Final = (
    "the layout of NQ-open with passages (question, answers, ctxs: objects with title, text and "
    "isgold)"
)


class NQOpen(Dataset):
    """Reads the published JSON Lines and the hub's rows; nothing but the question is shown."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="nq_open",
        task="answer a search engine's question from memory",
        licence="CC BY-SA 3.0",
        source="https://github.com/google-research-datasets/natural-questions",
        hub_id="google-research-datasets/nq_open",
        hub_config="nq_open",
        split="validation",
        size=3_610,
        citation="Kwiatkowski et al. 2019, TACL 7; Lee et al. 2019, arXiv:1906.00300",
        label_rule="match",
        artefacts=(
            "Answers are of 2018: 210 questions ask for something 'current', 'last' or 'next'.",
            "2,076 of 3,610 questions list one answer only: right answers in other words fail.",
            "Questions are lower case without a question mark.",
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        rows = hub_rows(self.card) if path is None else read_rows(open_file(path))
        return map(_closed_question, rows)


class NQOpenContext(Dataset):
    """The same questions with their gold Wikipedia passage as context; questions keep their ids.

    Reads the layout of "lost in the middle". Of several passages the first gold one is shown.
    Questions about the same article share a group.
    """

    card: ClassVar[DatasetCard] = replace(
        NQOpen.card,
        name="nq_open_context",
        task="answer a search engine's question from the passage that answers it",
        source="https://github.com/nelson-liu/lost-in-the-middle (nq-open-oracle.jsonl.gz)",
        hub_id=None,
        hub_config=None,
        split="oracle",
        size=2_655,
        citation=f"{NQOpen.card.citation}; Liu et al. 2023, arXiv:2307.03172",
        artefacts=(
            "Every passage holds an answer word for word: copying is always enough.",
            "2,655 of NQ-open's 3,610 questions: those whose passage could be aligned.",
            "345 questions share their article with another: an article is one group.",
            *NQOpen.card.artefacts[:1],
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        rows = hub_rows(self.card) if path is None else read_rows(open_file(path))
        return map(_context_question, rows)


def _closed_question(row: Row) -> Question:
    require_columns(row, "question", "answer", expected=LAYOUT)
    text = text_field(row, "question")
    return Question(text_id("nq_open", text), text, _answers(row, "answer"))


def _context_question(row: Row) -> Question:
    require_columns(row, "question", "answers", "ctxs", expected=CONTEXT_LAYOUT)
    text, passage = text_field(row, "question"), _gold_passage(row)
    title = text_field(passage, "title")
    return Question(
        question_id=text_id("nq_open", text),
        text=text,
        answers=_answers(row, "answers"),
        group_id=f"article: {title}",
        context=text_field(passage, "text"),
        metadata={"title": title},
    )


def _answers(row: Row, name: str) -> tuple[str, ...]:
    answers = without_repeats(texts_field(row, name))
    if not answers:
        raise wrong_value(row, name, "a list with at least one answer", row.values[name])
    return answers


def _gold_passage(row: Row) -> Row:
    passages = row.values["ctxs"]
    if not isinstance(passages, list) or not all(isinstance(item, dict) for item in passages):
        raise wrong_value(row, "ctxs", "a list of passages", passages)
    for number, passage in enumerate(passages, start=1):
        if passage.get("isgold") is True:
            return Row(f"{row.where}, ctxs {number}", passage)
    raise wrong_value(row, "ctxs", "a list with a gold passage (isgold: true)", passages)
