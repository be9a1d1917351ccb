"""Figures and page of the sink study: every figure in two forms, one page without a network."""

import re

import numpy as np
import pytest

from graphhalu.cli.main import run
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.report.sinks import scaling_figure, shown_findings, sinks_page
from graphhalu.report.tables import count_text
from graphhalu.studies.sinks.analyze import analyze
from graphhalu.studies.sinks.records import SinkRecord, SinkRun, run_name, write_run
from graphhalu.studies.sinks.settings import AnalyzeConfig

N = 48
MODELS = ("sink", "heads", "entropy", "entropy+sink")
NAMES = ("shift", "effects", "accuracy", "models", "heads", "depth", "scaling")


def made(model, seed, **changes):
    rng = np.random.default_rng(seed)
    records = []
    for i in range(N):
        by_head = rng.uniform(0.2, 0.6, size=(5, 3)) + 0.3 * (i % 2) * np.eye(5, 3)
        records.append(
            SinkRecord(
                idx=i,
                task="<b>quiz</b>",
                model=model,
                target="A",
                pred="A",
                labels={"hallucinated": i % 2, "input": None},
                entropy=float(rng.uniform(0, 2)),
                sink_mass=float(by_head.mean()),
                by_head=by_head,
                is_seen=np.ones(5, dtype=bool),
                seq_len=int(rng.integers(20, 90)),
                sink_tokens=changes.get("k", 4),
                query_mode="last",
                chat_mode="off",
                meta={"question_id": f"q{i}"},
            )
        )
    return SinkRun(tuple(records), {}, run_name("quiz", model, changes.get("k", 4), "last"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A written analysis of two models, one of them with two windows."""
    folder = tmp_path_factory.mktemp("sinks")
    for run_ in (made("a/x-1B", 0), made("a/y-7B", 1), made("a/y-7B", 2, k=1)):
        write_run(folder / "records", run_)
    config = AnalyzeConfig(n_resamples=100, n_permutations=100, fold_seeds=(0,), models=MODELS)
    result = analyze([folder / "records"], config)
    result.write(folder)
    return folder, result


def test_plot_writes_every_figure_as_png_and_svg_and_one_page(folder, tmp_path, capsys):
    assert run(["sinks", "plot", str(folder[0]), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in NAMES:
        for suffix in ("png", "svg"):
            path = tmp_path / f"sinks-{name}.{suffix}"
            assert path.stat().st_size > 2000
            assert str(path) in printed.replace("\n", "")
    html = (tmp_path / "sinks.html").read_text()
    assert html.count("<svg") == len(NAMES)
    assert "&lt;b&gt;quiz" in html
    assert "<b>quiz" not in html
    assert not re.search(r"(src|href)=\"https?:", html)
    assert (tmp_path / "sinks.md").read_text().startswith("# Sink mass against hallucination")


def test_figures_show_the_largest_window_unless_another_is_asked_for(folder):
    result = folder[1]
    assert [each.name for each in shown_findings(result)] == ["x-1B", "y-7B"]
    assert len(shown_findings(result, sink_tokens=1)) == 1
    with pytest.raises(UsageError, match="there are K 1 last, K 4 last"):
        shown_findings(result, sink_tokens=3)


def test_a_name_has_no_place_for_what_a_run_lacks(folder):
    first, second, *_ = (run for run in folder[1].runs if run.sink_tokens == 4)
    runs = (first, second.model_copy(update={"quantization": "nf4"}))
    names = [each.name for each in shown_findings(folder[1].model_copy(update={"runs": runs}))]
    assert names == ["x-1B", "y-7B, nf4"]


def test_the_headline_counts_and_tables_hold_every_run(folder):
    page = sinks_page(folder[1])
    assert "of 2 comparisons" in page.headline[0]
    rows = {t.name: len(t.rows) for section in page.sections for t in section.tables}
    assert rows["table-runs"] == rows["table-shift"] == 3
    assert rows["table-scaling"] == 2
    assert rows["table-sensitivity"] == 1


def test_what_cannot_be_drawn_is_an_error_that_says_why(folder):
    result = folder[1]
    with pytest.raises(NotEnoughDataError, match="two models"):
        scaling_figure(())
    changes = {"findings": (), "left_out": {"input": "too few"}}
    nothing = result.model_copy(update={"runs": tuple(run.model_copy(update=changes) for run in result.runs)})
    with pytest.raises(NotEnoughDataError, match="too few"):
        shown_findings(nothing)


def test_sizes_are_written_as_people_write_them():
    assert [count_text(n) for n in (134_515_008.0, 1.1e9, 7e9, 900.0)] == ["135M", "1.1B", "7B", "900"]
