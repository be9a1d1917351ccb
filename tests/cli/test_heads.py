"""The commands of heads on a tiny model: tables, files, and one clear text for each mistake."""

import json
from pathlib import Path

import numpy as np
import pytest

from graphhalu.cli.main import run
from graphhalu.heads.files import read_heads
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore

HAYSTACK = "A mill is old. It has a wheel. " * 9
NEEDLE = {"needle": "A fox ran.", "question": "Who?", "real_needle": "A fox"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model, texts, a store and a published file."""
    folder = tmp_path_factory.mktemp("cli")
    save_tiny(folder / "tiny", "llama")
    (folder / "hay.txt").write_text(HAYSTACK, encoding="utf-8")
    (folder / "needles.jsonl").write_text(json.dumps(NEEDLE), encoding="utf-8")
    (folder / "text.json").write_text("nonsense", encoding="utf-8")
    scores = {f"{layer}-{head}": [layer + head / 10] for layer in range(3) for head in range(6)}
    (folder / "published.json").write_text(json.dumps(scores), encoding="utf-8")
    (folder / "other.json").write_text(json.dumps({"0-1": [0.5], "0-0": [0.1]}), encoding="utf-8")
    traces, _ = planted_traces(19)
    store = TraceStore.create(folder / "s.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=tuple(ARRAYS))
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    return folder


@pytest.fixture(autouse=True)
def _here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")


def said(capsys, arguments, code=0):
    found = run(["heads", *arguments])
    printed = capsys.readouterr()
    assert found == code, printed.err
    return printed


TINY = ["--model", "tiny", "--threads", "1"]
TEXTS = ["--haystack", "hay.txt", "--needles", "needles.jsonl"]
SHORT = ["--lengths", "70", "--depths", "2", "--max-new-tokens", "5", "--chat", "off"]


def test_retrieval_heads_are_found_written_and_shown(capsys):
    arguments = ["retrieval", *TINY, *TEXTS, *SHORT, "--set", "gate=null", "--rule", "sum"]
    printed = said(capsys, arguments)
    for text in ("retrieval heads of tiny", "retrieval_mass heads", "95 % interval", "chance"):
        assert text in printed.out
    assert "written to data/heads/tiny_retrieval.json" in printed.err
    shown = json.loads(said(capsys, ["show", "data/heads/tiny_retrieval.json", "--json", "--top", "3"]).out)
    assert [table["role"] for table in shown["tables"]] == ["retrieval", "retrieval_mass"]
    assert len(shown["tables"][1]["heads"]) == 3
    assert shown["tables"][0]["settings"]["rule"] == "sum"


def test_pattern_heads_are_found(capsys):
    arguments = ["patterns", *TINY, "--period", "11", "--sequences", "2", "--out", "p.json"]
    assert "induction heads of tiny: 2 trials accepted" in said(capsys, arguments).out
    assert len(read_heads(Path("p.json"))) == 6


def test_reasoning_heads_come_with_their_contrast(capsys):
    arguments = ["reasoning", "s.zarr", "--set", "local_window=1", "--set", "n_sink=0"]
    text = said(capsys, arguments).out
    assert "reasoning heads of a model" in text
    assert "right - wrong" in text
    values = json.loads(said(capsys, [*arguments, "--num-traces", "9", "--json"]).out)
    first = values["tables"][1]
    assert first["n_accepted"] + sum(first["rejected"].values()) == 9
    assert {"contrast", "contrast_q"} <= set(first["heads"][0])
    assert values["file"] == "data/heads/s_reasoning.json"


def test_published_scores_are_shown_best_first(capsys):
    values = json.loads(said(capsys, ["show", "published.json", "--json"]).out)
    best = values["tables"][0]["heads"][0]
    assert (best["layer"], best["head"], best["mean"], best["chance"]) == (2, 5, 2.5, None)


def test_ablation_prints_both_differences(capsys):
    arguments = [
        "ablate",
        "published.json",
        *TINY,
        "--top-k",
        "2",
        "--task",
        "questions",
        "--chat",
        "off",
        "--num-samples",
        "2",
        "--draws",
        "1",
        "--set",
        "max_new_tokens=3",
    ]
    printed = said(capsys, arguments)
    assert "ablated - random" in printed.out
    assert "left out (the 2 highest means): L2H4, L2H5" in printed.out
    values = json.loads(said(capsys, [*arguments, "--json"]).out)
    assert np.isfinite(values["rows"][-1]["against_random"]["value"])


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["show", "none.json"], 2, "no file of heads at none.json"),
        (["show", "text.json"], 1, "not readable JSON"),
        (["show", "published.json", "--role", "sink"], 2, "no table of the role 'sink'"),
        (["show", "published.json", "--top", "0"], 2, "top"),
        (["retrieval", "--model", "smolm2"], 2, "Did you mean 'smollm2'"),
        (["retrieval", "--lengths", "a,b"], 2, "--lengths takes numbers"),
        (["retrieval", "--rule", "mean"], 2, "rule"),
        (["retrieval", "--gate", "101"], 2, "gate"),
        (["retrieval", "--set", "depth=3"], 2, "depth"),
        (["retrieval", *TINY, "--haystack", "none.txt", *SHORT], 2, "no data file at none.txt"),
        (["retrieval", *TINY, *TEXTS, "--lengths", "9999"], 2, "the context of"),
        (["retrieval", *TINY, *TEXTS, *SHORT], 1, "no trial of 2 counts"),
        (["reasoning", "none.zarr"], 1, "no trace store"),
        (["reasoning", "s.zarr", "--labeller", "mach"], 2, "Did you mean 'match'"),
        (["patterns", *TINY, "--period", "500"], 2, "Use a smaller --period"),
        (["ablate", "published.json", *TINY, "--top-k", "99"], 2, "99 heads were asked for"),
        (["ablate", "published.json", *TINY, "--top-k", "3", "--threshold", "1"], 2, "one of the"),
        (["ablate", "other.json", *TINY, "--top-k", "1"], 2, "the number of heads differ"),
    ],
)
def test_a_mistake_is_one_clear_text(arguments, code, text, capsys):
    printed = said(capsys, arguments, code).err
    assert text in printed
    assert "Traceback" not in printed
