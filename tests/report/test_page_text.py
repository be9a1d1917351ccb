"""Pages from a file of texts: texts are filled, and tables show what their columns name."""

from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.evaluation.result import MetricValue
from graphhalu.report import page
from graphhalu.report.page import Section, sections
from graphhalu.report.tables import Cell, cell, make_table

WORDS = """
sections:
  plain: {title: A title, tables: [named, bare]}
  long:
    title: Another
    paragraphs: ["{n} runs"]
    figures: [drawn, missing]
  lead:
    title: Only with tables
    lead: ["Of them {n}"]
    tables: [bare]
  given:
  bare-title: Title
figures:
  drawn: [Drawing, "Shows {n}\\n  things."]
  missing: [Other, caption]
tables:
  named:
    title: With columns of {n}
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
def made(tmp_path, monkeypatch):
    (tmp_path / "example.yaml").write_text(WORDS)
    monkeypatch.setattr(page, "TEXT", tmp_path)

    def make(**given):
        return {each.name: each for each in sections("example", n=7, more="a\nb", **given)}

    return make


def no_figure():
    raise NotEnoughDataError("nothing to draw")


def test_titles_paragraphs_and_captions_are_those_of_the_file_with_values_filled_in(made):
    figures = {"drawn": Figure, "missing": no_figure}
    section = made(figures=figures, paragraphs={"long": ["and {n} as it is"]})["long"]
    said = ("7 runs", "and {n} as it is", "Other is not shown: nothing to draw.")
    assert (section.title, section.paragraphs) == ("Another", said)
    assert section.figures[0].caption == "Shows 7 things."


def test_sections_without_content_are_left_out_and_finished_ones_are_taken(made):
    finished = Section("given", "Finished")
    assert list(made()) == ["long"]
    found = made(tables={"bare": [{"x": "1"}]}, ready={"given": [finished]})
    assert list(found) == ["plain", "long", "lead", "given"]
    assert found["lead"].paragraphs == ("Of them 7",)
    assert found["given"] is finished


def test_a_column_shows_the_value_at_its_path_in_its_format(made):
    rows = [
        {"row": SimpleNamespace(name="a", effect=Estimate(0.5, -1.0, 2.0), p=0.0001), "more": None},
        {"row": SimpleNamespace(name="b", effect=None, p=float("nan")), "more": None},
    ]
    table = made(tables={"named": rows})["plain"].tables[0]
    assert table.heads == ["who", "d", "p", "other"]
    assert [column.is_number for column in table.columns] == [False, True, True, False]
    assert [column.is_better_low for column in table.columns] == [False, False, True, False]
    assert table.rows[0] == (
        Cell("a"),
        Cell("+0.50", "[-1.00, +2.00]", 0.5),
        Cell("<0.001", value=0.0001),
        Cell("-"),
    )
    assert [each.text for each in table.rows[1]] == ["b", "-", "-", "-"]
    assert (table.title, table.notes) == ("With columns of 7", ("of 7", "a", "b"))


def test_a_table_without_columns_shows_its_rows_and_one_without_rows_is_left_out(made):
    section = made(tables={"bare": [{"x": "1", "y": Cell("2")}], "named": []})["plain"]
    assert len(section.tables) == 1
    assert section.tables[0].rows == ((Cell("1"), Cell("2")),)


def test_names_of_a_table_with_blanks_are_no_formats():
    table = make_table("x", {"title": "T"}, [{"TPR at 5 % FPR": 0.25}])
    assert (table.heads, table.rows) == (["TPR at 5 % FPR"], ((Cell("0.250", value=0.25),),))


def test_values_of_every_kind_are_cells_that_sort():
    assert cell(3) == cell(3, "d") == Cell("3", value=3)
    assert cell(0.25, "p") == Cell("0.250", value=0.25)
    assert cell(None, "p") == Cell("-")
    assert [cell(each).text for each in (True, False, ("a", "b"), ())] == ["yes", "no", "a, b", "-"]
    assert cell(2048, "bytes") == Cell("2.0 KiB", value=2048)
    metric = MetricValue(0.5, 0.4, 0.6, 10, None, None)
    assert cell(metric) == Cell("0.500", "[.400, .600]", 0.5)
