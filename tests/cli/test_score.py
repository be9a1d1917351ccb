import pytest

from graphhalu.cli.main import run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give one question, or a file of them"),
        (["What?", "--input", "a.jsonl", "--output", "b.jsonl"], "give one question"),
        (["--input", "a.jsonl"], "--input and --output go together"),
        (["What?"], "no trained detector"),
        (["What?", "--detector", "nowhere"], "no saved detector"),
    ],
)
def test_a_fault_of_the_user_is_one_line_and_exit_code_2(
    arguments, said, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(["score", *arguments]) == 2
    assert said in capsys.readouterr().err
