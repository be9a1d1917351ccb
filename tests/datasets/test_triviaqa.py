import ast
import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.question import Question
from graphhalu.datasets.reading import TriviaQA

REAL = Path(__file__).parents[2].parent / "shared/data/triviaqa"
needs_real_files = pytest.mark.skipif(
    not REAL.is_dir(), reason="../shared/data/triviaqa is not here; these are the published files"
)


def read(path: Path) -> list[Question]:
    return list(TriviaQA().read(path))


def hub_row(**changes: Any) -> dict[str, Any]:
    answer = {
        "value": "Paris",
        "aliases": ["Paree", "Paris", "巴黎"],
        "normalized_aliases": ["paree", "paris"],
        "normalized_value": "paris",
        "type": "WikipediaEntity",
    }
    return {"question": "Capital of France?", "question_id": "tc_2", "answer": answer} | changes


def saved(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "questions"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", ["jsonl", "json", "parquet"])
def test_hub_rows_are_read_from_every_file_format(layout: str, tmp_path: Path) -> None:
    path = tmp_path / "questions"
    rows = [hub_row(), hub_row(question_id="tc_3", question="Where is the Louvre?")]
    if layout == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        lines = "\n".join(json.dumps(row) for row in rows)
        path.write_text(lines if layout == "jsonl" else json.dumps(rows), encoding="utf-8")
    questions = read(path)
    assert [q.question_id for q in questions] == ["tc_2", "tc_3"]
    assert questions[0].answers == ("Paris", "Paree", "巴黎")


def test_normalised_aliases_stand_in_where_there_are_no_others(tmp_path: Path) -> None:
    answer = {"value": "Paris", "aliases": [], "normalized_aliases": ["paree"]}
    (question,) = read(saved(tmp_path, json.dumps(hub_row(answer=answer))))
    assert question.answers == ("Paris", "paree")


def test_human_answers_of_the_published_layout_are_kept(tmp_path: Path) -> None:
    answer = {"Value": "Paris", "Aliases": ["Paree"], "HumanAnswers": ["Paname"]}
    entry = {"Question": "Capital?", "QuestionId": "tc_5", "Answer": answer}
    (question,) = read(saved(tmp_path, json.dumps({"Data": [entry], "Version": 1.0})))
    assert (question.question_id, question.answers) == ("tc_5", ("Paris", "Paree", "Paname"))


def test_quotes_left_around_a_question_are_undone(tmp_path: Path) -> None:
    row = hub_row(question='"Who wrote ""Emma""?"')
    assert read(saved(tmp_path, json.dumps(row)))[0].text == 'Who wrote "Emma"?'


def test_a_question_that_begins_and_ends_with_a_quotation_stays(tmp_path: Path) -> None:
    row = hub_row(question='"Emma" or "Persuasion"')
    assert read(saved(tmp_path, json.dumps(row)))[0].text == '"Emma" or "Persuasion"'


def test_the_layout_of_dpr_is_read_with_csv_quotes(tmp_path: Path) -> None:
    lines = 'Who?\t[\'Ann\', "O\'Neill"]\nWhat "now"?\t"[\'x\', ""y\'s""]"\n'
    questions = read(saved(tmp_path, lines.replace('What "now"?', '"What ""now""?"')))
    assert [q.text for q in questions] == ["Who?", 'What "now"?']
    assert [q.answers for q in questions] == [("Ann", "O'Neill"), ("x", "y's")]


def test_ids_made_from_the_text_do_not_depend_on_the_place(tmp_path: Path) -> None:
    first = read(saved(tmp_path, "Who?\t['Ann']\nWhere?\t['Oslo']\n"))
    second = read(saved(tmp_path, "Where?\t['Oslo']\nWho?\t['Ann']\n"))
    assert [q.question_id for q in first] == [q.question_id for q in second][::-1]


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ("[1, 2]", "row 2: aliases must be a list of texts"),
        ("['x'", "row 2: aliases must be a Python list of texts"),
        ("[open('x')]", "row 2: aliases must be a Python list of texts"),
        ("[]", "row 2: aliases must be a list with at least one answer"),
        ("['x']\tmore", "row 2: expected question, tab and list of aliases, got 3 cells"),
    ],
)
def test_a_bad_row_of_dpr_is_named(cell: str, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=complaint):
        read(saved(tmp_path, f"Who?\t['Ann']\nWhat?\t{cell}\n"))


def test_a_file_of_another_data_set_is_refused_with_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"row 2: expected one of TriviaQA.*found: prompt, x"):
        read(saved(tmp_path, "prompt,x\n1,2\n"))


def test_the_split_without_answers_is_refused(tmp_path: Path) -> None:
    answer = {"value": "<unk>", "aliases": [], "normalized_aliases": []}
    with pytest.raises(DataFileError, match="row 1: the answer is hidden"):
        read(saved(tmp_path, json.dumps(hub_row(answer=answer))))


@needs_real_files
def test_all_8837_questions_of_the_dpr_file_are_read_with_every_alias() -> None:
    path = REAL / "topics.dpr.trivia.dev.txt.gz"
    questions = read(path)
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        cells = list(csv.reader(file, delimiter="\t"))
    assert len(questions) == len(cells) == 8837
    for question, (_, aliases) in zip(questions, cells, strict=True):
        assert set(question.answers) == {a.strip() for a in ast.literal_eval(aliases) if a.strip()}
    assert len({q.question_id for q in questions}) == 8837
    assert not any('""' in q.text for q in questions)


@needs_real_files
def test_all_318_questions_of_the_published_layout_are_read_with_every_alias() -> None:
    path = REAL / "qa/verified-wikipedia-dev.json"
    entries = json.loads(path.read_text(encoding="utf-8"))["Data"]
    questions = read(path)
    assert len(questions) == len(entries) == 318
    for question, entry in zip(questions, entries, strict=True):
        expected = {a.strip() for a in (entry["Answer"]["Value"], *entry["Answer"]["Aliases"])}
        assert expected <= set(question.answers)
        assert question.answers[0] == entry["Answer"]["Value"].strip()


@needs_real_files
def test_the_official_sample_is_read() -> None:
    (question,) = read(REAL / "samples/triviaqa_sample.json")
    assert question.question_id == "tc_33"
    assert question.answers[0] == "Sunset Boulevard"
    assert len(question.answers) == 5
