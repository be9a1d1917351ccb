"""NQ-open: questions that people asked a search engine, with and without the gold passage."""

from typing import ClassVar

from graphhalu.datasets.base import DatasetCard, RowDataset, dataset_card
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import Row, answers_field, objects_field, text_field, text_id, wrong_value


class NQOpen(RowDataset):
    """Reads the published JSON Lines and the hub's rows; nothing but the question is shown."""

    card: ClassVar[DatasetCard] = dataset_card("nq_open")
    layout: ClassVar[str] = "NQ-open's layout (question, answer: a list), published or from the hub"
    columns: ClassVar[tuple[str, ...]] = ("question", "answer")

    def question(self, row: Row) -> Question:
        """The question of a row, shown alone."""
        text = text_field(row, "question")
        return Question(text_id("nq_open", text), text, answers_field(row, "answer"))


class NQOpenContext(RowDataset):
    """The same questions with their gold Wikipedia passage as context; questions keep their ids.

    Reads the layout of "lost in the middle". Of several passages the first gold one is shown.
    Questions about the same article share a group.
    """

    card: ClassVar[DatasetCard] = dataset_card("nq_open_context")
    layout: ClassVar[str] = (
        "the layout of NQ-open with passages (question, answers, ctxs: objects with title, text and isgold)"
    )
    columns: ClassVar[tuple[str, ...]] = ("question", "answers", "ctxs")

    def question(self, row: Row) -> Question:
        """The question of a row with its first gold passage."""
        text, passage = text_field(row, "question"), _gold_passage(row)
        title = text_field(passage, "title")
        return Question(
            question_id=text_id("nq_open", text),
            text=text,
            answers=answers_field(row, "answers"),
            group_id=f"article: {title}",
            context=text_field(passage, "text"),
            metadata={"title": title},
        )


def _gold_passage(row: Row) -> Row:
    for passage in objects_field(row, "ctxs", expected="a list of passages"):
        if passage.values.get("isgold") is True:
            return passage
    expected = "a list with a gold passage (isgold: true)"
    raise wrong_value(row, "ctxs", expected, row.values["ctxs"])
