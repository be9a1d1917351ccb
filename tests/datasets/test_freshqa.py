import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.per_row import FreshQA
from graphhalu.datasets.question import Question

COLUMNS = (
    "id",
    "split",
    "question",
    "effective_year",
    "next_review",
    "false_premise",
    "num_hops",
    "fact_type",
    "source",
    *(f"answer_{n}" for n in range(10)),
    "note",
)
ROW = {
    "id": "7",
    "split": "TEST",
    "question": "When did Ann land on Mars?",
    "effective_year": "before 2022",
    "false_premise": "TRUE",
    "num_hops": "one-hop",
    "fact_type": "never-changing",
    "source": "x.org\ny.org",
    "answer_0": "Nobody has landed, \nyet. ",
    "answer_3": "Never.",
}
WARNING = ["WARNING: do not train on this table, and do not publish it,", *[""] * 19]
BLANK = [""] * 20


def as_table(*rows: dict[str, str], before: tuple[list[str], ...] = ()) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([*before, COLUMNS])
    writer.writerows([[row.get(name, "") for name in COLUMNS] for row in rows])
    return text.getvalue()


def saved(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "freshqa.csv"
    path.write_bytes(content.encode())
    return path


def read(path: Path) -> list[Question]:
    return list(FreshQA().read(path))


def test_every_filled_answer_is_kept_and_the_premise_is_a_label_of_the_question(tmp_path: Path) -> None:
    first, second = read(
        saved(tmp_path, as_table(ROW, {**ROW, "question": "Who?", "false_premise": "FALSE"}))
    )
    assert first.answers == ("Nobody has landed, \nyet.", "Never.")
    assert (first.input_label, second.input_label) == (1, 0)
    assert first.metadata == {
        "fact_type": "never-changing",
        "num_hops": "one-hop",
        "effective_year": "before 2022",
        "split": "TEST",
    }


@pytest.mark.parametrize("before", [(WARNING,), (WARNING, BLANK), (["A warning, in one cell"], [])])
def test_a_warning_before_the_header_changes_nothing(before: tuple[list[str], ...], tmp_path: Path) -> None:
    plain = read(saved(tmp_path, as_table(ROW)))
    assert read(saved(tmp_path, as_table(ROW, before=before))) == plain


def test_blank_rows_are_left_out(tmp_path: Path) -> None:
    assert len(read(saved(tmp_path, as_table(ROW, {}, {})))) == 1


def test_the_id_comes_from_the_text_alone(tmp_path: Path) -> None:
    (first,) = read(saved(tmp_path, as_table(ROW)))
    (second,) = read(saved(tmp_path, as_table({**ROW, "id": "531", "answer_0": "No."})))
    assert first.question_id == second.question_id


def test_rows_as_json_lines_are_read_too(tmp_path: Path) -> None:
    path = tmp_path / "freshqa.jsonl"
    path.write_text(json.dumps({**ROW, "false_premise": True}), encoding="utf-8")
    assert read(path) == read(saved(tmp_path, as_table(ROW)))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"false_premise": "maybe"}, "false_premise must be TRUE or FALSE, got 'maybe'"),
        ({"false_premise": ""}, "false_premise must be TRUE or FALSE, got ''"),
        ({"answer_0": " "}, "answer_0 must be a text that is not empty"),
        ({"question": ""}, "question must be a text that is not empty"),
    ],
)
def test_a_bad_row_is_named_by_its_line(change: dict[str, str], complaint: str, tmp_path: Path) -> None:
    # the good row spans lines 4 to 6: its source and its answer have two lines each
    path = saved(tmp_path, as_table(ROW, {**ROW, **change}, before=(WARNING, BLANK)))
    with pytest.raises(DataFileError, match=rf"row 7: {complaint}"):
        read(path)


def test_a_row_with_too_few_cells_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 2: expected 20 cells, got 2"):
        read(saved(tmp_path, f"{','.join(COLUMNS)}\r\n7,TEST\r\n"))


def test_a_table_without_the_premise_is_refused_with_its_columns(tmp_path: Path) -> None:
    content = as_table(ROW).replace("false_premise", "premise")
    with pytest.raises(DataFileError, match=r"row 2: expected FreshQA's table.*found: id, split"):
        read(saved(tmp_path, content))


def test_it_is_not_on_the_hub_and_the_way_out_is_named() -> None:
    with pytest.raises(UsageError, match=r"not read from the hub(?s:.*)freshllms(?s:.*)--data-path"):
        list(FreshQA().read(None))


@pytest.mark.parametrize(("name", "n_false"), [("freshqa.csv", 149), ("FreshQA_v12182024.csv", 148)])
def test_every_cell_of_a_published_release_is_read(name: str, n_false: int, shared_data: Path) -> None:
    path = shared_data / "freshqa" / name
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    questions = read(path)
    assert len(questions) == len(rows) == FreshQA.card.size
    for question, row in zip(questions, rows, strict=True):
        answers = [row[f"answer_{n}"].strip() for n in range(10)]
        assert question.text == row["question"].strip()
        assert set(question.answers) == set(filter(None, answers))
        assert question.answers[0] == answers[0]
    assert Counter(q.input_label for q in questions) == {1: n_false, 0: 600 - n_false}
    assert Counter(q.metadata["split"] for q in questions) == {"TEST": 500, "DEV": 100}


def test_the_two_releases_share_556_questions_by_id(shared_data: Path) -> None:
    new, old = (
        {q.question_id: q.text for q in read(shared_data / "freshqa" / name)}
        for name in ("freshqa.csv", "FreshQA_v12182024.csv")
    )
    shared = new.keys() & old.keys()
    assert len(shared) == len(set(new.values()) & set(old.values())) == 556
    assert all(new[name] == old[name] for name in shared)
