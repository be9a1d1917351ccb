"""Pages from a file of words: texts are filled, and tables show what their columns name."""

from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.report import page
from graphhalu.report.page import Cell, PageText, cell

WORDS = """
sections:
  plain: A title
  long:
    title: Another
    paragraphs: ["{n} runs"]
figures:
  drawn: [Drawing, "Shows {n}\\n  things."]
tables:
  named:
    title: With columns
    low: [p]
    notes: ["of {n}", "{more}"]
    columns:
      who: row.name
      d: row.effect +.2f
      p: row.p p
      other: more.p .1f
  bare:
    title: Without
"""


@pytest.fixture
def text(tmp_path, monkeypatch):
    (tmp_path / "example.yaml").write_text(WORDS)
    monkeypatch.setattr(page, "TEXT", tmp_path)
    return PageText("example", n=7, more="a\nb")


def test_titles_paragraphs_and_captions_are_those_of_the_file_with_values_filled_in(text):
    section = text.section("long", figures={"drawn": Figure()}, paragraphs=["and {n} as it is"])
    assert (section.title, section.paragraphs) == ("Another", ("7 runs", "and {n} as it is"))
    assert section.figures[0].caption == "Shows 7 things."
    assert text.section("plain").title == "A title"


def test_a_column_shows_the_value_at_its_path_in_its_format(text):
    rows = [
        {"row": SimpleNamespace(name="a", effect=Estimate(0.5, -1.0, 2.0), p=0.0001), "more": None},
        {"row": SimpleNamespace(name="b", effect=None, p=float("nan")), "more": None},
    ]
    table = text.section("plain", tables={"named": rows}).tables[0]
    assert [column.name for column in table.columns] == ["who", "d", "p", "other"]
    assert [column.is_number for column in table.columns] == [False, True, True, False]
    assert [column.is_better_low for column in table.columns] == [False, False, True, False]
    assert table.rows[0] == (
        Cell("a"),
        Cell("+0.50", "[-1.00, +2.00]", 0.5),
        Cell("<0.001", value=0.0001),
        Cell("-"),
    )
    assert [each.text for each in table.rows[1]] == ["b", "-", "-", "-"]
    assert table.notes == ("of 7", "a", "b")


def test_a_table_without_columns_shows_its_rows_and_one_without_rows_is_left_out(text):
    section = text.section("plain", tables={"bare": [{"x": "1", "y": Cell("2")}], "named": []})
    assert len(section.tables) == 1
    assert section.tables[0].rows == ((Cell("1"), Cell("2")),)


def test_numbers_and_p_values_are_cells_that_sort():
    assert cell(3, "d") == Cell("3", value=3)
    assert cell(0.25, "p") == Cell("0.250", value=0.25)
    assert cell(None, "p") == Cell("-")
