import json

import pytest

from graphhalu.core.errors import DataFileError, UnknownNameError, UsageError
from graphhalu.scoring import batch
from graphhalu.scoring.batch import read_asked, score_file

ROWS = [
    {"question": "What is 1 plus 2?"},
    {"question": "What is 1 plus 2?", "answer": "three", "id": "b"},
    {"question": "Which number is that?", "context": "Seven is a number.", "id": 7},
    {"question": "What is 1 plus 2?", "answer": "x" * 5000},
    {"question": "What is 5 plus 2?"},
]


@pytest.fixture
def asked(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return read_asked(path)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_row_gets_the_score_that_python_gives(asked, scorer, tmp_path):
    rows = score_file(scorer, asked, tmp_path / "out.jsonl")
    assert rows == lines_of(tmp_path / "out.jsonl")
    assert [row["row"] for row in rows] == list(range(5))
    assert [row["id"] for row in rows] == [None, "b", "7", None, None]
    assert rows[3]["score"] is None
    assert "context" in rows[3]["failure"]
    for place in (0, 1, 4):
        found = scorer.score(ROWS[place]["question"], ROWS[place].get("answer"))
        assert rows[place]["probability"] == pytest.approx(found.probability, abs=1e-5)


def test_a_run_goes_on_after_the_last_whole_line(asked, scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "BATCH", 1)
    path = tmp_path / "out.jsonl"
    whole = score_file(scorer, asked, path)
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:2]) + lines[2][:17], encoding="utf-8")
    done = []
    again = score_file(scorer, asked, path, lambda n, total: done.append((n, total)))
    assert done == [(3, 5), (4, 5), (5, 5)]
    assert again == lines_of(path)
    assert [row["score"] for row in again] == pytest.approx([row["score"] for row in whole])


def test_scores_of_other_questions_are_not_gone_on_with(asked, scorer, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text(json.dumps({"question": "Another?", "threshold": None}) + "\n")
    with pytest.raises(UsageError, match="line 1 holds a score of another question"):
        score_file(scorer, asked, path)
    assert path.read_text().startswith('{"question": "Another?"')


@pytest.mark.parametrize("text", ["{bad\n", "[1]\n"])
def test_an_output_that_is_no_output_is_refused(asked, scorer, tmp_path, text):
    path = tmp_path / "out.jsonl"
    path.write_text(text)
    with pytest.raises(DataFileError, match="line 1"):
        score_file(scorer, asked, path)


@pytest.mark.parametrize("row", [{"answer": "x"}, {"question": " "}, {"question": "What?", "answer": 3}])
def test_a_row_that_cannot_be_asked_is_named(tmp_path, row):
    path = tmp_path / "in.jsonl"
    path.write_text(json.dumps({"question": "Good?"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataFileError, match="row 2"):
        read_asked(path)


def file_of(tmp_path, rows):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_columns_of_any_name_are_read(tmp_path):
    path = file_of(tmp_path, [{"Q": "Who?", "said": "Me.", "passage": "It is me.", "n": 3}])
    fields = {"question": "Q", "answer": "said", "context": "passage", "id": "n"}
    (found,) = read_asked(path, fields)
    assert (found.text, found.given[0].text, found.context, found.question_id) == (
        "Who?",
        "Me.",
        "It is me.",
        "3",
    )


@pytest.mark.parametrize("name", ["response", "given", "Model Answer", "completion"])
def test_a_column_that_looks_like_answers_is_not_passed_over(tmp_path, name):
    path = file_of(tmp_path, [{"question": "Who?", name: "Me."}])
    with pytest.raises(UsageError, match="looks like answers") as told:
        read_asked(path)
    assert f"--fields answer={name}" in str(told.value)
    assert read_asked(path, {"answer": ""})[0].given == ()
    assert read_asked(path, {"answer": name})[0].given[0].text == "Me."


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path):
    path = file_of(tmp_path, [{"Q": "Who?"}])
    with pytest.raises(UsageError, match="no column 'question text'; found: Q"):
        read_asked(path, {"question": "question text"})
    with pytest.raises(UnknownNameError, match="'qestion'"):
        read_asked(path, {"qestion": "Q"})


def test_conversations_are_read_from_a_list_or_its_text(tmp_path):
    messages = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    messages.append({"role": "user", "content": "C"})
    rows = [{"messages": messages, "answer": "D"}, {"messages": json.dumps(messages), "answer": "D"}]
    first, second = read_asked(file_of(tmp_path, rows))
    assert first.turns == second.turns == (("user", "A"), ("assistant", "B"))
    assert first.text == second.text == "C"


@pytest.mark.parametrize("messages", ["[", "7", [1], [{"role": "assistant", "content": "x"}]])
def test_a_conversation_that_cannot_be_read_names_its_row(tmp_path, messages):
    with pytest.raises((DataFileError, UsageError), match=r"own.jsonl.*1"):
        read_asked(file_of(tmp_path, [{"messages": messages}]))
