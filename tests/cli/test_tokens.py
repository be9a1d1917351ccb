import json

import numpy as np
import pytest

from graphhalu.cli.main import run
from graphhalu.detectors.saved import load_detector
from graphhalu.evaluation.calibration import read_calibration
from graphhalu.labels.planted import planted_token_traces
from graphhalu.traces.store import TraceStore, open_traces

ARRAYS = (
    "token_ids",
    "span_code",
    "token_logprob",
    "token_entropy",
    "top1_margin",
    "span_mass",
    "self_attention",
    "row_entropy",
    "sink_keys",
    "attention",
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    traces = planted_token_traces(40, seed=1)
    path = tmp_path_factory.mktemp("tokens") / "a.zarr"
    made = TraceStore.create(path, configuration={}, shape=traces[0].shape, arrays=ARRAYS)
    with made.writer() as writer:
        writer.write_part(0, traces, list(dict.fromkeys(t.record.question_id for t in traces)))
    return path


def test_the_table_tells_tokens_spans_and_what_to_know(store, tmp_path, capsys):
    command = ["tokens", str(store), "--detectors", "token-likelihood", "--seeds", "0"]
    command += ["--set", "n_resamples=100", "--out", str(tmp_path), "--threads", "1"]
    assert run([*command, "--save", "token-likelihood"]) == 0
    printed = capsys.readouterr()
    assert "40 answers to 20 contexts, 20 with 20 hallucinated spans" in printed.out
    for word in ("token-position*", "token-likelihood*", "hallucinated", "char F1", "at chance"):
        assert word in printed.out
    assert "…" not in printed.out
    assert "Off-policy: 40 of 40" in printed.err
    files = {"result.json", "table.csv", "scores.parquet", "detector"}
    assert files == {path.name for path in tmp_path.iterdir()}
    traces = open_traces(store)
    detector = load_detector(tmp_path / "detector", traces)
    calibration = read_calibration(tmp_path / "detector" / "calibration.json")
    assert np.isfinite(calibration.threshold)
    assert len(detector.score(traces[:1]).values) == traces[0].answer_length


def test_json_holds_every_metric(store, tmp_path, capsys):
    command = ["tokens", str(store), "--detectors", "token-overlap", "--seeds", "0", "--quick"]
    assert run([*command, "--set", "n_resamples=100", "--out", str(tmp_path), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["counts"]["n_traces"] == 40
    assert [row["detector"] for row in values["rows"]] == ["token-position", "token-overlap"]
    assert {"auroc", "char_f1", "answer_auroc_max"} <= values["rows"][0]["metrics"].keys()


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--detectors", "token-nothing", "token-position"),
        ("--save", "nothing", "no detector named"),
        ("--seeds", "0,x", "seeds"),
    ],
)
def test_a_wrong_word_is_told_in_one_line_with_code_2(store, tmp_path, capsys, option, value, told):
    assert run(["tokens", str(store), option, value, "--out", str(tmp_path / "r")]) == 2
    error = capsys.readouterr().err
    assert told in error
    assert "Traceback" not in error
