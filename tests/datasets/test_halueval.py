import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.per_row import HaluEvalGeneral, HaluEvalQA, HaluEvalQAChoice, spans_of
from graphhalu.datasets.question import GivenAnswer, Question

QA = {
    "knowledge": " Ann and Bob Lee walked.Cy sat. ",
    "question": "Who sat?",
    "right_answer": "Cy",
    "hallucinated_answer": "Ann sat there.",
}
GENERAL = {
    "ID": "17",
    "user_query": "Name two days.",
    "chatgpt_response": "\nMonday, Mai and Tag.\n",
    "hallucination": "yes",
    "hallucination_spans": ["Tag", " Mai "],
}


def saved(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def qa(path: Path) -> list[Question]:
    return list(HaluEvalQA().read(path))


def choice(path: Path) -> list[Question]:
    return list(HaluEvalQAChoice().read(path))


def general(path: Path) -> list[Question]:
    return list(HaluEvalGeneral().read(path))


def test_both_answers_are_given_and_the_knowledge_is_the_context(tmp_path: Path) -> None:
    (question,) = qa(saved(tmp_path, QA))
    assert (question.text, question.context) == ("Who sat?", "Ann and Bob Lee walked.Cy sat.")
    assert (question.answers, question.incorrect_answers) == (("Cy",), ("Ann sat there.",))
    assert question.given == (GivenAnswer("Cy", False), GivenAnswer("Ann sat there.", True))
    assert question.choices == ()


def test_hub_rows_are_read_from_parquet_with_the_same_id(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([QA]), path)
    assert qa(path) == qa(saved(tmp_path, QA))


def test_the_id_comes_from_knowledge_and_question(tmp_path: Path) -> None:
    other = {**QA, "knowledge": "Cy sat."}
    same = {**QA, "right_answer": "It was Cy"}
    first, second, third = qa(saved(tmp_path, QA, other, same))
    assert first.question_id != second.question_id
    assert first.question_id == third.question_id


def test_what_a_merged_file_says_of_a_row_is_kept(tmp_path: Path) -> None:
    added = {"subset": "filtered", "original_index": None, "nli_entailed": False}
    (question,) = qa(saved(tmp_path, {**QA, **added}))
    assert question.metadata == {"subset": "filtered", "nli_entailed": False}


def test_both_answers_are_options_in_an_order_of_the_id_alone(tmp_path: Path) -> None:
    rows = [{**QA, "question": f"Who sat {n}?"} for n in range(97)]
    path = saved(tmp_path, *rows)
    questions = choice(path)
    for question, plain in zip(questions, qa(path), strict=True):
        (right,) = question.correct_choices
        assert question.choices[right] == "Cy"
        assert sorted(question.choices) == ["Ann sat there.", "Cy"]
        assert [answer.text for answer in question.given] == list(question.choices)
        assert [answer.is_hallucinated for answer in question.given] == [right == 1, right == 0]
        assert question.question_id == plain.question_id
    n_first = sum(question.correct_choices == (0,) for question in questions)
    assert 33 <= n_first <= 64
    assert choice(saved(tmp_path, *rows[::-1])) == questions[::-1]


@pytest.mark.parametrize("name", ["knowledge", "question", "right_answer", "hallucinated_answer"])
@pytest.mark.parametrize("value", ["", None, 7, ["Cy"]])
def test_a_qa_row_with_a_bad_value_is_named(name: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=f"row 2: {name} must be a text that is not empty"):
        qa(saved(tmp_path, QA, {**QA, name: value}))


def test_a_question_whose_answers_are_the_same_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 1: hallucinated_answer must be another text"):
        qa(saved(tmp_path, {**QA, "hallucinated_answer": " Cy"}))


def test_each_set_refuses_the_layout_of_the_other(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 1: expected HaluEval's qa layout"):
        qa(saved(tmp_path, GENERAL))
    with pytest.raises(DataFileError, match="row 1: expected HaluEval's general layout"):
        general(saved(tmp_path, QA))


def test_a_judged_response_is_given_with_its_parts_as_spans(tmp_path: Path) -> None:
    (question,) = general(saved(tmp_path, GENERAL))
    (given,) = question.given
    assert (question.text, question.answers) == ("Name two days.", ())
    assert question.metadata == {"ID": "17"}
    assert (given.text, given.is_hallucinated) == ("Monday, Mai and Tag.", True)
    assert given.spans == ((8, 11), (16, 19))
    assert given.source == "ChatGPT"
    assert given.metadata == {"hallucination_spans": ["Tag", "Mai"]}


@pytest.mark.parametrize("parts", [["Mai", "Incomplete answer"], ["Mai", "a"]])
def test_a_part_that_is_absent_or_stands_twice_leaves_all_spans_out(parts: list[str], tmp_path: Path) -> None:
    (question,) = general(saved(tmp_path, {**GENERAL, "hallucination_spans": parts}))
    (given,) = question.given
    assert (given.is_hallucinated, given.spans) == (True, ())
    assert given.metadata == {"hallucination_spans": parts}


def test_places_of_parts_are_found_once_and_in_order() -> None:
    assert spans_of(("defg", "ab"), "abcdefg") == ((0, 2), (3, 7))
    assert spans_of(("ab", "x"), "abcdefg") == ()
    assert spans_of(("ana",), "banana") == ()
    assert spans_of((), "abc") == ()


def test_a_response_called_right_has_no_part(tmp_path: Path) -> None:
    row = {**GENERAL, "hallucination": "No", "hallucination_spans": []}
    (question,) = general(saved(tmp_path, row))
    assert question.given == (GivenAnswer("Monday, Mai and Tag.", False, source="ChatGPT"),)
    with pytest.raises(DataFileError, match="row 1: hallucination_spans must be empty where"):
        general(saved(tmp_path, {**GENERAL, "hallucination": "no"}))


@pytest.mark.parametrize("parts", [None, [], "absent"])
def test_a_wrong_response_without_parts_is_read(parts: object, tmp_path: Path) -> None:
    row = {**GENERAL, "hallucination_spans": parts}
    if parts == "absent":
        del row["hallucination_spans"]
    (question,) = general(saved(tmp_path, row))
    assert (question.given[0].is_hallucinated, question.given[0].spans) == (True, ())


@pytest.mark.parametrize("verdict", ["maybe", "", None, True])
def test_a_verdict_that_is_neither_yes_nor_no_is_named(verdict: object, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 2: hallucination must be"):
        general(saved(tmp_path, GENERAL, {**GENERAL, "hallucination": verdict}))


@pytest.mark.parametrize(("file", "n_rows"), [("data/qa_data.json", 1000), ("qa_data_union.jsonl.gz", 6657)])
def test_every_published_question_is_read_and_length_separates_its_answers_as_the_card_says(
    file: str, n_rows: int, shared_data: Path
) -> None:
    questions = qa(shared_data / "halueval" / file)
    assert len(questions) == len({question.question_id for question in questions}) == n_rows
    given = [answer for question in questions for answer in question.given]
    lengths = [len(answer.text) for answer in given]
    auroc = roc_auc_score([answer.is_hallucinated for answer in given], lengths)
    assert auroc == pytest.approx(0.974, abs=0.003)


def test_nearly_every_longer_option_is_wrong_as_the_card_says(shared_data: Path) -> None:
    questions = choice(shared_data / "halueval/qa_data_union.jsonl.gz")
    longer = [len(q.choices[0]) > len(q.choices[1]) for q in questions]
    is_first = [q.correct_choices == (0,) for q in questions]
    wrong = sum(a != b for a, b in zip(longer, is_first, strict=True)) / len(questions)
    assert wrong == pytest.approx(0.97, abs=0.005)
    assert sum(is_first) / len(is_first) == pytest.approx(0.5, abs=0.02)
    assert sum(q.metadata["nli_entailed"] for q in questions) == 714


def test_every_published_response_is_read_with_its_label_and_exact_spans(shared_data: Path) -> None:
    path = shared_data / "halueval/data/general_data.json.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    questions = general(path)
    assert len(questions) == len(rows) == HaluEvalGeneral.card.size
    for question, row in zip(questions, rows, strict=True):
        (given,) = question.given
        assert given.text == row["chatgpt_response"].strip()
        assert given.is_hallucinated is (row["hallucination"] == "yes")
        stated = {part.strip() for part in row["hallucination_spans"]}
        assert {given.text[start:stop] for start, stop in given.spans} in (stated, set())
    assert sum(q.given[0].is_hallucinated is True for q in questions) == 815
    assert sum(bool(q.given[0].spans) for q in questions) == 694
