"""Cells, tables and templates of what commands print."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import graphhalu.cli
from graphhalu.cli.output import Shown, cell, grid, interval, table

FOLDER = Path(graphhalu.cli.__file__).parent


@pytest.mark.parametrize(
    ("template", "row", "text"),
    [
        ("{mean:.3f} ({count})", {"mean": 0.25, "count": 3}, "0.250 (3)"),
        ("{auroc.value:.2f}", SimpleNamespace(auroc=SimpleNamespace(value=0.5)), "0.50"),
        ("{auroc.value:.2f}", {"auroc": None}, "-"),
        ("{mean:.3f}", {"mean": float("nan")}, "-"),
        ("{is_control}", {"is_control": True}, "yes"),
        ("{passes:yes|NO|-}", {"passes": False}, "NO"),
        ("{is_attack:attack|benign|no score}", {"is_attack": None}, "no score"),
        ("{p:p}", {"p": 0.0004}, "<.001"),
        ("{p:p}", {"p": 0.25}, ".250"),
        ("{inputs}", {"inputs": ("attention", "hidden")}, "attention, hidden"),
        ("{n:bytes}", {"n": 3 * 2**20}, "3.0 MiB"),
        ("{text:9…}", {"text": "one two three"}, "one two…"),
    ],
)
def test_a_cell_is_filled_from_attributes_or_keys(template, row, text):
    assert cell(template, row) == text


def test_short_cells_lose_the_zero_before_the_point():
    row = {"a": SimpleNamespace(value=0.712, low=0.654, high=10.771)}
    assert cell(interval("a"), row, is_short=True) == ".712 [.654,10.771]"


def test_tables_show_markup_as_text_and_no_control_characters():
    text = table([{"name": "[bold]a\x1b[2J"}], {"name": "{name}"}, "t[1]")
    assert "[bold]a[2J" in text
    assert "t[1]" in text
    assert "\x1b[2J" not in text
    assert "3" in grid(["a", "b"], [["2", "3"]])


def test_what_is_below_the_line_goes_to_stderr_without_control_characters(capsys):
    values = {"html": "a\x1b[2J.html", "markdown": "folder/report.md", "figures": ["a", "b"]}
    Shown(values, "report").show(as_json=False)
    printed = capsys.readouterr()
    assert printed.out == "a[2J.html\n"
    assert printed.err == "report.md and 2 figures are beside it\n"


def test_a_line_of_dashes_in_a_value_stays_where_it_is(capsys):
    values = {
        "output": "a.jsonl",
        "n": 1,
        "n_called": 0,
        "n_failed": 1,
        "n_given": 0,
        "n_generated": 1,
        "n_warned": 0,
    }
    Shown(values, "score_file", {"failed": [{"row": 1, "failure": "first\n---\nlast"}]}).show(as_json=False)
    printed = capsys.readouterr()
    assert printed.out.endswith("no score in row 1: first\n---\nlast\n")
    assert printed.err == ""


def test_every_command_names_a_template_and_every_template_has_a_command():
    named = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "Shown":
                named.add(node.args[1].value)
    texts = {path.stem: path.read_text(encoding="utf-8") for path in (FOLDER / "text").glob("*.txt")}
    included = {name for text in texts.values() for name in re.findall(r'from "(\w+)\.txt"', text)}
    assert named
    assert named | included == set(texts)
