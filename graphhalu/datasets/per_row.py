"""Data sets with one question a row: worldfacts, probes, NQ-open, FreshQA and HaluEval."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.datasets.base import DatasetCard, RowDataset, dataset_card, row_dataset
from graphhalu.datasets.files import open_file, read_rows, table_cells
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.rows import (
    Row,
    answers_field,
    choice_field,
    described,
    objects_field,
    text_field,
    text_id,
    texts_field,
    without_repeats,
    wrong_value,
)

_HEADER_LINES: Final = 5
"""Lines of a spreadsheet's own export that may stand before its header."""


def _worldfacts(row: Row) -> Question:
    """Short questions about settled facts."""
    return Question(
        question_id=text_field(row, "id"),
        text=text_field(row, "question"),
        answers=answers_field(row, "answers"),
        group_id=text_field(row, "group"),
        metadata={"relation": text_field(row, "relation")},
    )


def _probes(row: Row) -> Question:
    """Questions that provoke hallucination, in six categories.

    ``metadata`` holds the category, a note with the reason, and what the right answer does: it
    answers, or it refuses (corrects the question, says that nothing of this name exists, that it
    cannot be known, or that it does not know). ``input_label`` is 1 for false premises and
    invented entities: those questions state something that is not so.
    """
    expected, misleads = text_field(row, "expected"), row.values["input_label"]
    if expected not in {"answer", "refusal"}:
        raise wrong_value(row, "expected", "answer or refusal", expected)
    if type(misleads) is not int or misleads not in {0, 1}:
        raise wrong_value(row, "input_label", "0 or 1", misleads)
    return Question(
        question_id=text_field(row, "id"),
        text=text_field(row, "question"),
        answers=answers_field(row, "answers"),
        incorrect_answers=without_repeats(texts_field(row, "incorrect_answers")),
        input_label=misleads,
        metadata={name: text_field(row, name) for name in ("category", "expected", "note")},
    )


def _nq_open(row: Row, answers: str = "answer") -> Question:
    """Questions that people asked a search engine; nothing but the question is shown."""
    text = text_field(row, "question")
    return Question(text_id("nq_open", text), text, answers_field(row, answers))


def _nq_open_context(row: Row) -> Question:
    """The same questions with their gold Wikipedia passage as context; questions keep their ids.

    Reads the layout of "lost in the middle". Of several passages the first gold one is shown.
    Questions about the same article share a group.
    """
    passages = objects_field(row, "ctxs", expected="a list of passages")
    passage = next((each for each in passages if each.values.get("isgold") is True), None)
    if passage is None:
        raise wrong_value(row, "ctxs", "a list with a gold passage (isgold: true)", row.values["ctxs"])
    title = text_field(passage, "title")
    return replace(
        _nq_open(row, "answers"),
        group_id=f"article: {title}",
        context=text_field(passage, "text"),
        metadata={"title": title},
    )


class FreshQA(RowDataset):
    """Reads an export of the spreadsheet, with or without the warning before its header.

    ``input_label`` is 1 for a false premise. It speaks of the question, not of any answer. Ids
    come from the question's text, so the same question has the same id in every release; the
    ``id`` column changes between releases.
    """

    card: ClassVar[DatasetCard] = dataset_card("freshqa")

    def rows(self, path: Path | None) -> Iterator[Row]:
        """Rows of a file; those of a table stand below a header that may not be its first line."""
        file = None if path is None else open_file(path)
        if file is None or file.layout != "table":
            yield from super().rows(None) if file is None else read_rows(file)
            return
        table = table_cells(file, ",")
        top = list(islice(table, _HEADER_LINES))
        headers = (n for n, (_, cells) in enumerate(top) if set(self.card.columns) <= set(cells))
        place = next(headers, 0)
        names = top[place][1]
        for number, cells in chain(top[place + 1 :], table):
            if len(cells) != len(names):
                raise file.fault(number, f"expected {len(names)} cells, got {len(cells)}")
            if any(cell.strip() for cell in cells):
                yield Row(file.where(number), dict(zip(names, cells, strict=True)))

    def question(self, row: Row) -> Question:
        """The question of a row, with every answer that is there, ``answer_0`` among them."""
        text = text_field(row, "question")
        premise = choice_field(row, "false_premise", {"true": 1, "false": 0}, "TRUE or FALSE")
        others = described(row, (f"answer_{n}" for n in range(1, 10)))
        cells = Row(row.where, {"answers": list(others.values())})
        return Question(
            question_id=text_id("freshqa", text),
            text=text,
            answers=without_repeats([text_field(row, "answer_0"), *texts_field(cells, "answers")]),
            input_label=premise,
            metadata=described(row, ("fact_type", "num_hops", "effective_year", "split")),
        )


def _halueval_qa(row: Row) -> Question:
    """Both answers to each question as given answers, with the knowledge as context."""
    knowledge, text = text_field(row, "knowledge"), text_field(row, "question")
    right, wrong = text_field(row, "right_answer"), text_field(row, "hallucinated_answer")
    if right == wrong:
        raise wrong_value(row, "hallucinated_answer", "another text than right_answer", wrong)
    # columns of a merged file that say where a row comes from
    added = ("subset", "original_index", "nli_entailed")
    return Question(
        question_id=text_id("halueval_qa", f"{knowledge}\n{text}"),
        text=text,
        answers=(right,),
        context=knowledge,
        incorrect_answers=(wrong,),
        given=(GivenAnswer(right, False), GivenAnswer(wrong, True)),
        metadata={name: row.values[name] for name in added if row.values.get(name) is not None},
    )


def _halueval_qa_choice(row: Row) -> Question:
    """The same questions with both answers as options A and B; questions keep their ids.

    Which of them comes first depends on the question's id alone.
    """
    question = _halueval_qa(row)
    digest = hashlib.sha256(f"{question.question_id}\norder".encode()).digest()
    right_place = digest[0] % 2
    given = question.given[::-1] if right_place else question.given
    choices = tuple(answer.text for answer in given)
    return replace(question, choices=choices, correct_choices=(right_place,), given=given)


def _halueval_general(row: Row) -> Question:
    """User queries, each with a response of ChatGPT that people judged.

    Hallucinated parts are stated as texts. They become spans if each of them stands in the
    response exactly once; otherwise the response has none, so that no token is called right by
    mistake. The texts are kept in the metadata either way.
    """
    text, response = text_field(row, "user_query"), text_field(row, "chatgpt_response")
    is_wrong = choice_field(row, "hallucination", {"yes": True, "no": False}, "yes or no")
    has_parts = row.values.get("hallucination_spans") is not None
    parts = without_repeats(texts_field(row, "hallucination_spans") if has_parts else ())
    if parts and not is_wrong:
        raise wrong_value(row, "hallucination_spans", "empty where hallucination is no", list(parts))
    given = GivenAnswer(
        text=response,
        is_hallucinated=is_wrong,
        spans=spans_of(parts, response),
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


def spans_of(parts: Sequence[str], text: str) -> tuple[tuple[int, int], ...]:
    """Where each part stands in the text, in the order of the text.

    Returns:
        Half-open ranges of characters; none at all if a part does not stand there exactly once.
    """
    places = [(text.find(part), text.rfind(part), len(part)) for part in parts]
    if any(first < 0 or first != last for first, last, _ in places):
        return ()
    return tuple(sorted((start, start + length) for start, _, length in places))


Worldfacts = row_dataset("worldfacts", _worldfacts)
Probes = row_dataset("probes", _probes)
NQOpen = row_dataset("nq_open", _nq_open)
NQOpenContext = row_dataset("nq_open_context", _nq_open_context)
HaluEvalQA = row_dataset("halueval_qa", _halueval_qa)
HaluEvalQAChoice = row_dataset("halueval_qa_choice", _halueval_qa_choice)
HaluEvalGeneral = row_dataset("halueval_general", _halueval_general)
