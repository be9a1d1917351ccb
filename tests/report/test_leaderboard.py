"""The leaderboard: figures made anew from the stored scores, whatever a file states."""

import json
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.cli.main import run
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.report.leaderboard import leaderboard_page
from graphhalu.testing.contracts.detectors import planted_data

STORE = {"configuration": {"model": {"name": "tiny"}, "dataset": {"name": "planted"}}}


@pytest.fixture(scope="module")
def results():
    data = planted_data(151)
    config = CompareConfig(seeds=(0,), n_folds=3, n_resamples=100)

    def of(*names):
        return compare(data.traces, data.labels, list(names), config=config, store=STORE)

    return {"a": of("sink-mass", "length"), "b": of("perplexity", "length")}


def rows_of(page):
    (section,) = page.sections
    return section.tables[0].rows


def cells(page):
    return [[str(cell) for cell in row] for row in rows_of(page)]


def test_results_on_the_same_answers_are_one_board(results):
    page = leaderboard_page(results)
    text = json.dumps(page.facts)
    assert '"stores": "1"' in text
    assert len(rows_of(page)) == 3  # length counts once


def test_the_first_row_is_the_best_and_no_control(results):
    headline, _ = leaderboard_page(results).headline
    scores = {}
    for result in results.values():
        for row in result.rows:
            chosen = result.samples.filter(np.array(result.samples["detector"].to_pylist()) == row.detector)
            scores[row.detector] = auroc(np.array(chosen["score"]), np.array(chosen["label"]))
    best = max((name for name in scores if name != "length"), key=scores.get)
    assert f"{best} on tiny planted" in headline


def test_figures_that_a_file_states_are_not_believed(results):
    lies = {}
    for name, result in results.items():
        rows = tuple(replace(row, metrics={}) for row in result.rows)
        lies[name] = replace(result, rows=rows)
    assert leaderboard_page(lies).headline == leaderboard_page(results).headline


def test_other_answers_are_another_board(results):
    data = planted_data(97)
    config = CompareConfig(seeds=(0,), n_folds=3, n_resamples=100)
    other = compare(data.traces, data.labels, ["length"], config=config, store=STORE)
    assert leaderboard_page({**results, "c": other}).facts["stores"] == "2"


def test_results_without_scores_are_refused(results):
    empty = replace(results["a"], rows=tuple(replace(row, failure="broke") for row in results["a"].rows))
    with pytest.raises(NotEnoughDataError, match="no result holds scores"):
        leaderboard_page({"a": empty})


def test_the_command_writes_one_page(results, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, result in results.items():
        (tmp_path / name).mkdir()
        result.write(tmp_path / name)
    assert run(["leaderboard", "a/result.json", "b", "--out", "board.html"]) == 0
    page = (tmp_path / "board.html").read_text(encoding="utf-8")
    assert "Leaderboard" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert run(["leaderboard", "a", "a"]) == 2
    assert "same folder name" in capsys.readouterr().err
