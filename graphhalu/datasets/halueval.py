"""HaluEval: a right and a hallucinated answer to each question, and judged ChatGPT responses."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, Final

from graphhalu.datasets.base import DatasetCard, RowDataset, dataset_card
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.rows import (
    Row,
    described,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)

_ADDED: Final = ("subset", "original_index", "nli_entailed")
"""Columns of a merged file that say where a row comes from."""

_VERDICTS: Final = {"yes": True, "no": False}


class HaluEvalQA(RowDataset):
    """Both answers to each question as given answers, with the knowledge as context."""

    card: ClassVar[DatasetCard] = dataset_card("halueval_qa")
    layout: ClassVar[str] = (
        "HaluEval's qa layout (knowledge, question, right_answer, hallucinated_answer), published "
        "or from the hub"
    )
    columns: ClassVar[tuple[str, ...]] = ("knowledge", "question", "right_answer", "hallucinated_answer")

    def question(self, row: Row) -> Question:
        """The question of a row with both answers as given answers."""
        knowledge, text = text_field(row, "knowledge"), text_field(row, "question")
        right, wrong = text_field(row, "right_answer"), text_field(row, "hallucinated_answer")
        if right == wrong:
            expected = "another text than right_answer"
            raise wrong_value(row, "hallucinated_answer", expected, wrong)
        added = {name: row.values[name] for name in _ADDED if row.values.get(name) is not None}
        return Question(
            question_id=text_id("halueval_qa", f"{knowledge}\n{text}"),
            text=text,
            answers=(right,),
            context=knowledge,
            incorrect_answers=(wrong,),
            given=(GivenAnswer(right, False), GivenAnswer(wrong, True)),
            metadata=added,
        )


class HaluEvalQAChoice(HaluEvalQA):
    """The same questions with both answers as options A and B; questions keep their ids.

    Which of them comes first depends on the question's id alone.
    """

    card: ClassVar[DatasetCard] = dataset_card("halueval_qa_choice")

    def question(self, row: Row) -> Question:
        """The question of a row with both answers as options."""
        question = super().question(row)
        digest = hashlib.sha256(f"{question.question_id}\norder".encode()).digest()
        is_right_first = digest[0] % 2 == 0
        given = question.given if is_right_first else question.given[::-1]
        return replace(
            question,
            choices=tuple(answer.text for answer in given),
            correct_choices=(0,) if is_right_first else (1,),
            given=given,
        )


class HaluEvalGeneral(RowDataset):
    """User queries, each with a response of ChatGPT that people judged.

    Hallucinated parts are stated as texts. They become spans if each of them stands in the
    response exactly once; otherwise the response has none, so that no token is called right by
    mistake. The texts are kept in the metadata either way.
    """

    card: ClassVar[DatasetCard] = dataset_card("halueval_general")
    layout: ClassVar[str] = (
        "HaluEval's general layout (user_query, chatgpt_response, hallucination: yes or no), "
        "published or from the hub"
    )
    columns: ClassVar[tuple[str, ...]] = ("user_query", "chatgpt_response", "hallucination")

    def question(self, row: Row) -> Question:
        """The query of a row with its response as given answer."""
        text, response = text_field(row, "user_query"), text_field(row, "chatgpt_response")
        verdict = text_field(row, "hallucination").lower()
        if verdict not in _VERDICTS:
            raise wrong_value(row, "hallucination", "yes or no", row.values["hallucination"])
        parts = without_repeats(_parts(row))
        if parts and not _VERDICTS[verdict]:
            expected = "empty where hallucination is no"
            raise wrong_value(row, "hallucination_spans", expected, list(parts))
        given = GivenAnswer(
            text=response,
            is_hallucinated=_VERDICTS[verdict],
            spans=located(parts, response),
            source="ChatGPT",
            metadata={"hallucination_spans": list(parts)} if parts else {},
        )
        return Question(
            question_id=text_id("halueval_general", text),
            text=text,
            answers=(),
            given=(given,),
            metadata=described(row, ["ID"]),
        )


def located(parts: Sequence[str], text: str) -> tuple[tuple[int, int], ...]:
    """Where each part stands in the text, in the order of the text.

    Returns:
        Half-open ranges of characters; none at all if a part does not stand there exactly once.
    """
    places = [(text.find(part), text.rfind(part), len(part)) for part in parts]
    if any(first < 0 or first != last for first, last, _ in places):
        return ()
    return tuple(sorted((start, start + length) for start, _, length in places))


def _parts(row: Row) -> tuple[str, ...]:
    named = row.values.get("hallucination_spans") is not None
    return texts_field(row, "hallucination_spans") if named else ()
