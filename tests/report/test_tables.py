import re
from dataclasses import replace
from typing import get_args

import pyarrow as pa
import pytest
from rich.console import Console

from graphhalu.detectors.base import Input
from graphhalu.report.comparison import _INPUT_LETTERS, terminal_table
from graphhalu.report.tables import cell, short_text


def printed(result, width):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    with console.file:
        console.print(terminal_table(result))
    return console.export_text()


@pytest.fixture
def result(make, row, failed_row):
    rows = [
        row("length", 0.601, is_control=True, is_supervised=False, inputs=("length",)),
        failed_row("topology"),
        row("gat", 0.851),
        row("partial", 0.9, coverage=0.667, auroc_invalid_at_median=0.7),
    ]
    return make({}, rows=rows)


def test_rows_are_sorted_by_auroc_over_all_traces_and_failures_come_last(result):
    text = printed(result, 150)
    places = [text.index(f" {name} ") for name in ("gat", "partial", "length", "topology")]
    assert places == sorted(places)


def test_a_row_says_everything_in_the_order_of_the_columns(result):
    lines = printed(result, 150).splitlines()
    head = next(line.split() for line in lines if "AUPRC" in line and "TPR" in line)
    assert head == ["detector", "in", "AUROC", "AUPRC", "TPR@5%FPR", "cov.", "fit", "s", "ms"]
    place = next(n for n, line in enumerate(lines) if line.startswith(" gat "))
    assert lines[place].split() == ["gat", "AH", "0.851", "0.851", "0.851", "100%", "1.23", "12"]
    assert lines[place + 1].split() == ["[.801,.901]"] * 3


def test_the_terminal_shows_intervals_in_brackets_and_not_as_markup(result):
    text = printed(result, 150)
    assert "[.801,.901]" in text
    assert "[low, high]: 95% bootstrap over questions" in text


@pytest.mark.parametrize(("n_kept", "is_warned"), [(29, True), (30, False)])
def test_few_tested_answers_are_said_below_the_table(make, n_kept, is_warned):
    whole = make({"gat": 0.5})
    samples = whole.samples.to_pylist()
    kept = [each for each in samples if each["label"] == 1][:n_kept]
    kept += [each for each in samples if each["label"] == 0]
    few = replace(whole, samples=pa.Table.from_pylist(kept, schema=whole.samples.schema))
    text = " ".join(printed(few, 150).split())
    assert ("Only 29 hallucinated answers are tested" in text) == is_warned


def test_a_detector_name_in_brackets_is_shown_as_it_is(make, row):
    assert "[red]x[/red]" in printed(make({}, rows=[row("[red]x[/red]", 0.7)]), 150)


@pytest.mark.parametrize("width", [80, 150])
def test_every_interval_stands_below_its_value_however_wide_the_terminal_is(result, width):
    lines = printed(result, width).splitlines()
    below = [n for n, text in enumerate(lines) if re.match(r"\s+\[\.", text)]
    assert len(below) == 3  # one line a detector that has metrics
    for number in below:
        assert lines[number].count("[.") == 3
        assert "[" not in lines[number - 1]


def test_a_value_of_one_keeps_its_one(make, row):
    text = printed(make({}, rows=[row("oracle", 1.0)]), 150)
    assert " 1.000 " in text
    assert "[.950,1.050]" in text


def test_the_caption_states_size_prevalence_labels_and_what_was_left_out(result):
    text = " ".join(printed(result, 150).split())  # it is as wide as the table
    assert "97 traces of 83 questions" in text
    assert re.search(r"prevalence \d+\.\d%", text)
    assert "'alias'" in text
    assert "11 without a valid one left out" in text


def test_controls_are_marked_and_the_mark_is_explained(result):
    text = printed(result, 150)
    assert "length °" in text
    assert "gat °" not in text
    assert "° control" in text


def test_a_failure_has_no_numbers_and_its_reason_below(result):
    text = printed(result, 150)
    assert "failed" in text
    assert "topology failed: NotEnoughDataError: too few" in text
    row = next(line for line in text.splitlines() if line.startswith(" topology "))
    assert row.split() == ["topology", "AH", "failed", "-", "-", "-", "-", "-"]


def test_incomplete_coverage_is_shown_with_the_auroc_over_all_traces(result):
    text = printed(result, 150)
    assert "67%" in text
    assert "partial: AUROC 0.700 over all traces" in text


def test_a_narrow_terminal_gives_inputs_as_letters_and_their_meaning(result):
    text = printed(result, 80)
    assert re.search(r"^ gat\s+AH\s", text, re.MULTILINE)
    assert re.search(r"^ length °\s+N\s", text, re.MULTILINE)
    assert "A attention, H hidden, P likelihood, T text, N length" in text


def test_every_input_that_a_detector_may_name_has_a_letter():
    assert set(_INPUT_LETTERS) == set(get_args(Input))
    assert len(set(_INPUT_LETTERS.values())) == len(_INPUT_LETTERS)


def test_a_name_of_eighteen_letters_stays_on_one_line_of_80_columns(make, row):
    assert "attn-logdet-heads °" in printed(
        make({}, rows=[row("attn-logdet-heads", 0.7, is_control=True)]), 80
    )


def test_a_narrow_terminal_breaks_no_interval_and_loses_no_column(result):
    text = printed(result, 80)
    assert "[.801,.901]" in text
    assert " ms" in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "<0.01"), (0.5, "0.50"), (9.876, "9.88"), (12345.6, "12,346")]
)
def test_costs_are_short_and_never_in_exponents(seconds, text):
    assert short_text(seconds) == cell(seconds, "short").text == text
