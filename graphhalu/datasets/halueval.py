"""HaluEval: a right and a hallucinated answer to each question, and judged ChatGPT responses."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.hub import hub_rows
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.rows import (
    Row,
    require_columns,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)

QA_LAYOUT: Final = (
    "HaluEval's qa layout (knowledge, question, right_answer, hallucinated_answer), published or "
    "from the hub"
)
GENERAL_LAYOUT: Final = (
    "HaluEval's general layout (user_query, chatgpt_response, hallucination: yes or no), "
    "published or from the hub"
)

_ADDED: Final = ("subset", "original_index", "nli_entailed")
"""Columns of a merged file that say where a row comes from."""

_VERDICTS: Final = {"yes": True, "no": False}


class HaluEvalQA(Dataset):
    """Both answers to each question as given answers, with the knowledge as context."""

    card: ClassVar[DatasetCard] = DatasetCard(
        name="halueval_qa",
        task="answer a question from a passage; a right and a wrong answer are given",
        licence="MIT",
        source="https://github.com/RUCAIBox/HaluEval (data/qa_data.json)",
        hub_id="pminervini/HaluEval",
        hub_config="qa",
        split="data",
        size=10_000,
        citation="Li et al. 2023, arXiv:2305.11747",
        label_rule="given",
        artefacts=(
            "Length alone separates the given answers: AUROC 0.97 in 6,657 rows (0.96 in print).",
            "Right answers are HotpotQA's short ones; ChatGPT wrote the wrong ones in sentences.",
            "714 of 6,657 wrong answers are entailed by their knowledge, says an NLI check.",
            "The knowledge is two passages without a space between them.",
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        rows = hub_rows(self.card) if path is None else read_rows(open_file(path))
        return map(_qa_question, rows)


class HaluEvalQAChoice(Dataset):
    """The same questions with both answers as options A and B; questions keep their ids.

    Which of them comes first depends on the question's id alone.
    """

    card: ClassVar[DatasetCard] = replace(
        HaluEvalQA.card,
        name="halueval_qa_choice",
        task="choose the right one of two answers to a question about a passage",
        label_rule="choice",
        artefacts=(
            "The longer option is wrong in 97 % of 6,657 questions; chance is 50 %.",
            "The published files name the right answer first: the order is drawn by question id.",
            *HaluEvalQA.card.artefacts[2:],
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        rows = hub_rows(self.card) if path is None else read_rows(open_file(path))
        return map(_choice_question, rows)


class HaluEvalGeneral(Dataset):
    """User queries, each with a response of ChatGPT that people judged.

    Hallucinated parts are stated as texts. They become spans if each of them stands in the
    response exactly once; otherwise the response has none, so that no token is called right by
    mistake. The texts are kept in the metadata either way.
    """

    card: ClassVar[DatasetCard] = DatasetCard(
        name="halueval_general",
        task="respond to a user's query; a judged response of ChatGPT is given",
        licence="MIT",
        source="https://github.com/RUCAIBox/HaluEval (data/general_data.json)",
        hub_id="pminervini/HaluEval",
        hub_config="general",
        split="data",
        size=4_507,
        citation="Li et al. 2023, arXiv:2305.11747",
        label_rule="given",
        artefacts=(
            "18 % of the responses are hallucinated (815 of 4,507).",
            "27 % of them speak of being an AI model or assistant, 11 % of the others do.",
            "694 of the 815 have spans; the others state none, a remark, or a text found twice.",
            "There is no gold answer: only the given responses have a label.",
            "One published ID stands twice, so question ids come from the query.",
        ),
    )

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        rows = hub_rows(self.card) if path is None else read_rows(open_file(path))
        return map(_general_question, rows)


def _qa_question(row: Row) -> Question:
    require_columns(
        row, "knowledge", "question", "right_answer", "hallucinated_answer", expected=QA_LAYOUT
    )
    knowledge, text = text_field(row, "knowledge"), text_field(row, "question")
    right, wrong = text_field(row, "right_answer"), text_field(row, "hallucinated_answer")
    if right == wrong:
        raise wrong_value(row, "hallucinated_answer", "another text than right_answer", wrong)
    return Question(
        question_id=text_id("halueval_qa", f"{knowledge}\n{text}"),
        text=text,
        answers=(right,),
        context=knowledge,
        incorrect_answers=(wrong,),
        given=(GivenAnswer(right, is_hallucinated=False), GivenAnswer(wrong, is_hallucinated=True)),
        metadata={name: row.values[name] for name in _ADDED if row.values.get(name) is not None},
    )


def _choice_question(row: Row) -> Question:
    question = _qa_question(row)
    digest = hashlib.sha256(f"{question.question_id}\norder".encode()).digest()
    is_right_first = digest[0] % 2 == 0
    given = question.given if is_right_first else question.given[::-1]
    return replace(
        question,
        choices=tuple(answer.text for answer in given),
        correct_choices=(0,) if is_right_first else (1,),
        given=given,
    )


def _general_question(row: Row) -> Question:
    require_columns(row, "user_query", "chatgpt_response", "hallucination", expected=GENERAL_LAYOUT)
    text, response = text_field(row, "user_query"), text_field(row, "chatgpt_response")
    is_hallucinated = _verdict(row)
    parts = without_repeats(_parts(row))
    if parts and not is_hallucinated:
        expected = "empty where hallucination is no"
        raise wrong_value(row, "hallucination_spans", expected, list(parts))
    given = GivenAnswer(
        text=response,
        is_hallucinated=is_hallucinated,
        spans=located(parts, response),
        source="ChatGPT",
        metadata={"hallucination_spans": list(parts)} if parts else {},
    )
    return Question(
        question_id=text_id("halueval_general", text),
        text=text,
        answers=(),
        given=(given,),
        metadata={"ID": row.values["ID"]} if row.values.get("ID") else {},
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


def _verdict(row: Row) -> bool:
    verdict = text_field(row, "hallucination").lower()
    if verdict not in _VERDICTS:
        raise wrong_value(row, "hallucination", "yes or no", row.values["hallucination"])
    return _VERDICTS[verdict]


def _parts(row: Row) -> tuple[str, ...]:
    named = row.values.get("hallucination_spans") is not None
    return texts_field(row, "hallucination_spans") if named else ()
