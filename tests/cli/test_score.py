import os
from pathlib import Path

import pytest

from graphhalu.cli.main import run
from graphhalu.cli.score import newest_run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one question, or a file of them"),
        (["What?", "--input", "a.jsonl", "--output", "b.jsonl"], "give one question"),
        (["--input", "a.jsonl"], "--input and --output go together"),
        (["What?", "--fields", "question=Q"], "--fields names the columns of --input"),
        (["What?", "--threshold", "2"], "less than or equal to 1"),
        (["What?", "--detector", "nowhere"], "no saved detector"),
    ],
)
def test_a_fault_of_the_user_is_one_line_and_exit_code_2(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["score", *arguments]) == 2
    assert said in capsys.readouterr().err


def saved_run(name, text, age_s):
    folder = Path("data/runs") / name / "detector"
    folder.mkdir(parents=True)
    (folder / "detector.json").write_text(text, encoding="utf-8")
    os.utime(folder / "detector.json", (1_000_000 - age_s,) * 2)
    return folder.parent


WHOLE = '{"format": "graphhalu-detector", "format_version": 1, "name": "length"}'


def test_a_newest_run_that_cannot_be_read_is_passed_over_and_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_run("oldest", WHOLE, 30)
    whole = saved_run("older", WHOLE, 20)
    broken = saved_run("broken", WHOLE[:-5], 10)
    assert newest_run() == whole
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"passed over {broken}, which cannot be read: ")


def test_the_newest_run_of_a_class_of_ones_own_is_taken_where_the_class_is_named(
    capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    own = saved_run("own", WHOLE.replace('"length"', '"Gine", "class": "gine:Gine"'), 20)
    other = saved_run("other", WHOLE.replace('"length"', '"Gat", "class": "nets:Gat"'), 10)
    assert newest_run() is None
    assert capsys.readouterr().err.splitlines() == [
        f"passed over {other}, of a class that is not registered: --detector-class 'nets:Gat'",
        f"passed over {own}, of a class that is not registered: --detector-class 'gine:Gine'",
    ]
    assert newest_run("gine:Gine") == own
    saved_run("registered", WHOLE, 0)
    assert newest_run("gine:Gine") == own


def test_a_run_that_cannot_be_read_is_no_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved_run("broken", "{", 10)
    assert newest_run() is None
    assert "passed over data/runs/broken" in capsys.readouterr().err
