"""Options of commands that set fields of a configuration."""

import pytest

from graphhalu.cli.main import run
from graphhalu.cli.store import _EXTRACT


def test_columns_of_an_own_file_are_read_from_one_option():
    text = 'question=ask,answers=gold:;,context="a, b"'
    config = _EXTRACT.load({"fields": text, "dataset": "my.csv"})
    assert config.dataset.fields == {"question": "ask", "answers": "gold:;", "context": "a, b"}
    assert config.dataset.name == "my.csv"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("question", "--fields expects FIELD=COLUMN,FIELD=COLUMN, got 'question'"),
        ("quest=ask", "Did you mean 'question'?"),
        ("question=ask,question=gold", "--fields names 'question' twice"),
        ('answers="gold', "a quote that is not closed"),
    ],
)
def test_columns_that_cannot_be_read_are_one_line(fields, message, capsys):
    assert run(["extract", "--dataset", "my.csv", "--fields", fields]) == 2
    assert message in capsys.readouterr().err


def test_a_limit_of_a_list_is_told_with_its_option(capsys):
    assert run(["extract", "--layers", "1,two"]) == 2
    assert "--layers takes numbers with commas" in capsys.readouterr().err
