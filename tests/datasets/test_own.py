import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphhalu.core.errors import DataFileError, UnknownNameError, UsageError
from graphhalu.datasets.own import read_fields, read_own
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.registry import load_questions, own_path

ROWS = [
    {"question": "Who sat?", "answers": ["Cy", "Cyrus, jr."], "context": "Cy sat."},
    {"question": "Who „ran“,\nin Łódź?", "answers": ["Di"], "context": ""},
]


def saved(tmp_path: Path, content: bytes | str, name: str = "my.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def lines(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    return saved(tmp_path, "\n".join(json.dumps(row) for row in rows), "my.jsonl")


def read(path: Path, **fields: str) -> list[Question]:
    return list(read_own(path, fields))


def one(tmp_path: Path, row: dict[str, Any], **fields: str) -> Question:
    (question,) = read(lines(tmp_path, {"question": "Who?", **row}), **fields)
    return question


def write(path: Path, layout: str) -> Path:
    if layout == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif layout in {"csv", "tsv"}:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            mark = "\t" if layout == "tsv" else ","
            writer = csv.writer(file, delimiter=mark, lineterminator="\r\n")
            writer.writerow(["Question", "Answers", "Context"])
            for row in ROWS:
                answers = json.dumps(row["answers"]) if layout == "csv" else str(row["answers"])
                writer.writerow([row["question"], answers, row["context"]])
    else:
        text = json.dumps(ROWS) if layout == "json" else "\n\n".join(map(json.dumps, ROWS))
        path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("layout", ["csv", "tsv", "json", "jsonl", "parquet"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_layout_gives_the_same_questions(layout: str, packed: bool, tmp_path: Path) -> None:
    path = write(tmp_path / f"my.{layout}", layout)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    first, second = read(path)
    assert (first.text, first.answers, first.context) == ("Who sat?", ("Cy", "Cyrus, jr."), "Cy sat.")
    assert (second.text, second.answers, second.context) == (ROWS[1]["question"], ("Di",), None)
    assert first.question_id == read(write(tmp_path / "other", "jsonl"))[0].question_id


def test_without_an_id_the_same_text_has_the_same_id_everywhere(tmp_path: Path) -> None:
    first, second, third = read(
        lines(
            tmp_path,
            {"question": "Who?", "answers": ["x"]},
            {"question": "Who?", "context": "Ann."},
            {"question": "Who?", "context": "Bo."},
        )
    )
    assert first.question_id == one(tmp_path, {"id": None, "answers": ["y"]}, id="").question_id
    assert len({first.question_id, second.question_id, third.question_id}) == 3
    assert first.group_id == first.question_id


def test_ids_groups_and_system_prompts_are_read(tmp_path: Path) -> None:
    question = one(tmp_path, {"ID": 17, "Group ID": "g", "system-prompt": "Be brief."})
    assert (question.question_id, question.group_id) == ("17", "g")
    assert question.system == "Be brief."
    assert one(tmp_path, {"id": "a", "group": None}).group_id == "a"


def test_a_row_without_its_id_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "A?", "id": 1}, {"question": "B?"})
    with pytest.raises(DataFileError, match="row 2: id must be a text that is not empty, got None"):
        read(path)


def test_an_id_that_stands_twice_is_refused_with_both_questions(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "A?", "id": 1}, {"question": "B?", "id": "1"})
    with pytest.raises(DataFileError, match=r"'1' stands twice(?s:.*)'A\?'(?s:.*)'B\?'"):
        load_questions(str(path))


@pytest.mark.parametrize("name", ["answer", "Ideal", "Correct Answers", "right-answer", "gold"])
def test_usual_names_of_columns_are_known(name: str, tmp_path: Path) -> None:
    assert one(tmp_path, {name: "Cy"}).answers == ("Cy",)


def test_the_own_name_of_a_field_wins_over_usual_ones(tmp_path: Path) -> None:
    question = one(tmp_path, {"answers": "Cy", "answer": "Di", "best answer": "Ed"})
    assert question.answers == ("Cy",)


def test_a_column_that_holds_no_field_is_metadata_if_it_is_short(tmp_path: Path) -> None:
    extra = {"category": "dates", "n": 3, "long": "x" * 201, "list": ["x"], "none": None}
    assert one(tmp_path, extra).metadata == {"category": "dates", "n": 3}


def test_a_question_without_answers_is_usable(tmp_path: Path) -> None:
    question = one(tmp_path, {})
    assert (question.answers, question.choices, question.given) == ((), (), ())
    assert one(tmp_path, {"answers": None}).answers == ()


def test_columns_that_only_later_rows_have_are_found(tmp_path: Path) -> None:
    _, second = read(lines(tmp_path, {"question": "A?"}, {"question": "B?", "context": "Bo."}))
    assert second.context == "Bo."


def test_named_columns_win_and_may_state_a_separator(tmp_path: Path) -> None:
    row = {"answers": "no", "a:b": "Cy|Di", "query": "no"}
    assert one(tmp_path, row, answers="a:b:|").answers == ("Cy", "Di")
    assert one(tmp_path, row, answers="a:b").answers == ("Cy|Di",)
    assert one(tmp_path, {"x": "Cy:Di"}, answers="x::").answers == ("Cy", "Di")
    assert one(tmp_path, {"x": "Cy\tDi"}, answers="x:tab").answers == ("Cy", "Di")
    assert one(tmp_path, {"x": "Cy\nDi"}, answers="x:newline").answers == ("Cy", "Di")
    assert one(tmp_path, row, answers="").answers == ()
    assert one(tmp_path, row, question="query").text == "no"


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"answers": "gold"}, r"no column 'gold' for the field 'answers'; found: question, x"),
        ({"answers": "gold:;"}, "no column 'gold:;' for the field 'answers'"),
        ({"context": "x:;"}, "the field 'context' holds no list, so 'x:;' cannot state"),
        ({"correct": "x"}, "the field 'correct' needs 'choices' too"),
        ({"label": "x"}, "the field 'label' needs 'given' too"),
    ],
)
def test_a_named_column_that_cannot_be_used_is_refused_with_the_columns_that_are_there(
    fields: dict[str, str], complaint: str, tmp_path: Path
) -> None:
    path = lines(tmp_path, {"question": "Who?", "x": "Cy"})
    with pytest.raises(UsageError, match=rf"{complaint}(?s:.*)--fields"):
        read(path, **fields)


def test_an_ambiguous_column_is_refused_with_the_way_out(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "Who?", "best_answer": "Cy", "Gold": "Di"})
    with pytest.raises(
        UsageError, match=r"several columns can be the field 'answers': best_answer, Gold; found:"
    ):
        read(path)
    assert read(path, answers="Gold")[0].answers == ("Di",)
    assert read(path, answers="")[0].answers == ()


def test_a_file_without_a_question_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = saved(tmp_path, "text,y\nWho?,1\n")
    with pytest.raises(
        DataFileError,
        match=r"my\.csv, row 2: expected a column for the question \(question, query, prompt, "
        r"input\); found: text, y\n  Name it:  --fields question=COLUMN",
    ):
        read(path)
    assert read(path, question="text")[0].text == "Who?"


@pytest.mark.parametrize("value", ["", None, " "])
def test_an_empty_question_is_named(value: object, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 2: question must be a text that is not empty"):
        read(lines(tmp_path, {"question": "A?"}, {"question": value}))


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, "question,answers\nA?,['x']\nB?,['x' 'y']\n")
    with pytest.raises(DataFileError, match="row 3: answers must be a list"):
        read(path)


@pytest.mark.parametrize(
    ("extra", "correct", "answers"),
    [
        ({"correct": "B"}, (1,), ("7",)),
        ({"correct": 2}, (2,), ("1",)),
        ({"answer": "C"}, (2,), ("1",)),
        ({"answer": "7"}, (1,), ("7",)),
        ({"answer": 0}, (0,), ("3",)),
        ({"correct": ["A", "C"], "answers": ["odd", "small"]}, (0, 2), ("odd", "small")),
        ({"answer": None}, (), ()),
        ({}, (), ()),
    ],
)
def test_choices_have_their_right_ones_from_either_field(
    extra: dict[str, Any], correct: tuple[int, ...], answers: tuple[str, ...], tmp_path: Path
) -> None:
    question = one(tmp_path, {"options": ["3", "7", "1"], **extra})
    assert question.choices == ("3", "7", "1")
    assert (question.correct_choices, question.answers) == (correct, answers)


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ({"choices": ["a"]}, "choices must be 2 to 26 different options"),
        ({"choices": ["a", "b", "a"]}, "choices must be 2 to 26 different options"),
        ({"choices": [str(n) for n in range(27)]}, "choices must be 2 to 26 different options"),
        ({"choices": ["a", "b"], "correct": "C"}, "correct must be the letter, the number from 0"),
        ({"choices": ["a", "b"], "answer": "Di"}, "answer must be the letter, the number from 0"),
        ({"choices": ["a", "b"], "correct": ["A", "B"]}, "correct must be some of the choices"),
    ],
)
def test_choices_that_cannot_be_asked_are_named(
    extra: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataFileError, match=f"row 1: {complaint}"):
        one(tmp_path, extra)


def test_given_answers_have_their_labels(tmp_path: Path) -> None:
    question = one(tmp_path, {"response": ["Cy", "Di", "Ed"], "labels": [0, 1, None]})
    assert question.given == (GivenAnswer("Cy", False), GivenAnswer("Di", True), GivenAnswer("Ed", None))
    assert one(tmp_path, {"given": ["Cy", "Di"]}).given == (GivenAnswer("Cy"), GivenAnswer("Di"))
    stated = one(tmp_path, {"g": "Cy;Di", "l": "0;1"}, given="g:;", label="l:;").given
    assert stated == (GivenAnswer("Cy", False), GivenAnswer("Di", True))


def test_a_text_with_one_label_is_one_answer_also_in_brackets(tmp_path: Path) -> None:
    question = one(tmp_path, {"response": "[1, 2]", "hallucinated": True})
    assert question.given == (GivenAnswer("[1, 2]", True),)


@pytest.mark.parametrize(
    ("extra", "complaint"),
    [
        ({"given": ["Cy", "Di"], "label": [1]}, "label must be one label for each of 2 given"),
        ({"given": ["Cy", "", "Di"], "label": [1, 0, 1]}, "label must be one label for each of 2"),
        ({"given": None, "label": 1}, "label must be one label for each of 0 given"),
        ({"given": "Cy", "label": "perhaps"}, "label must be 1, true, yes or hallucinated"),
    ],
)
def test_labels_that_do_not_fit_are_named(extra: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=f"row 1: {complaint}"):
        one(tmp_path, extra)


def test_rows_that_differ_in_their_given_answer_are_one_question(tmp_path: Path) -> None:
    rows = [
        {"question": "Who?", "response": "Cy", "label": 0, "model": "a", "year": 2020},
        {"question": "What?", "response": "Ink", "label": 0, "model": "a", "year": 2020},
        {"question": "Who?", "response": "Di", "label": 1, "model": "b", "year": 2020},
    ]
    first, second = read(lines(tmp_path, *rows))
    assert [(answer.text, answer.is_hallucinated) for answer in first.given] == [("Cy", False), ("Di", True)]
    assert [answer.metadata["model"] for answer in first.given] == ["a", "b"]
    assert first.metadata == {"year": 2020}
    assert second.text == "What?"


def test_rows_of_the_same_question_without_given_answers_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "Who?"}, {"question": "Who?", "x": 1})
    with pytest.raises(DataFileError, match="stands twice"):
        load_questions(str(path))


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("question=Q", {"question": "Q"}),
        (" question = My Q , answers=A:; ", {"question": "My Q", "answers": "A:;"}),
        ('answers="Gold, all",context=', {"answers": "Gold, all", "context": ""}),
        ('"answers=Gold, all":|', {"answers": "Gold, all:|"}),
        ('answers=A:",",id=n', {"answers": "A:,", "id": "n"}),
        ("answers=a=b", {"answers": "a=b"}),
        ("", {}),
        ("id=n,,", {"id": "n"}),
    ],
)
def test_fields_are_read_from_one_text(text: str, fields: dict[str, str]) -> None:
    assert read_fields(text) == fields


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("question", "expects FIELD=COLUMN,FIELD=COLUMN, got 'question'"),
        ("id=n,id=m", "names 'id' twice, as 'n' and 'm'"),
        ('answers="A', "a quote that is not closed"),
    ],
)
def test_fields_that_cannot_be_read_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        read_fields(text)


def test_an_unknown_field_is_refused_by_the_reader_too(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'context'"):
        read(lines(tmp_path, {"question": "Who?"}), contexts="x")


@pytest.mark.parametrize(
    "name", ["my.jsonl", "MY.CSV", "my.tsv.gz", "my.parquet", "my.ndjson", "data/mine", "./triviaqa"]
)
def test_a_name_that_looks_like_a_path_is_one(name: str) -> None:
    assert own_path(name) == Path(name)


def test_a_name_in_the_registry_is_no_path_even_if_there_is_such_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("triviaqa", "mine"):
        saved(tmp_path, "question\nWho?\n", name)
    assert own_path("triviaqa") is None
    assert own_path("other") is None
    assert own_path("mine") == Path("mine")


def test_an_own_file_is_loaded_by_its_path_with_fields(tmp_path: Path) -> None:
    path = saved(tmp_path, "q,gold\nWho sat?,Cy;Di\nWho ran?,\n", "my.csv")
    fields = {"question": "q", "answers": "gold:;"}
    questions = load_questions(str(path), fields=fields)
    assert {q.text: q.answers for q in questions} == {"Who sat?": ("Cy", "Di"), "Who ran?": ()}
    assert load_questions(str(path), fields=fields, num_samples=1) == questions[:1]


def test_a_missing_own_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no data file at .*absent\.jsonl"):
        load_questions(str(tmp_path / "absent.jsonl"))


def test_a_header_alone_holds_no_question(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"my\.csv holds no question"):
        load_questions(str(saved(tmp_path, "question,answers\n")))


def test_two_files_are_refused(tmp_path: Path) -> None:
    path = lines(tmp_path, {"question": "Who?"})
    with pytest.raises(UsageError, match=r"two files are named: .*my\.jsonl as the data set"):
        load_questions(str(path), path)


def test_fields_belong_to_an_own_file_only() -> None:
    with pytest.raises(UsageError, match="'worldfacts' is a data set"):
        load_questions("worldfacts", fields={"question": "Q"})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty; expected questions"),
        (b'{"question": "A?"}\n{"question": "B?"', "row 2: expected JSON, got a bad line"),
        ("question\nWho was Gödel?\n".encode("latin-1"), "row 2: expected UTF-8 text"),
        (b"question,answers\nA?,x\nB?\n", "row 3: expected 2 cells"),
        (gzip.compress(b"question\nA?\n" * 97, mtime=0)[:40], "gzip data is cut off or damaged"),
    ],
)
def test_a_damaged_own_file_is_named_with_its_row(content: bytes, complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=complaint):
        read(saved(tmp_path, content))
