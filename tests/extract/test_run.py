"""The whole run on a tiny model: resume, extend, kill, refuse another configuration."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from graphhalu.axes import Span
from graphhalu.errors import StoreMismatchError, UsageError
from graphhalu.extract.run import extract
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import open_traces
from graphhalu.traces.verify import verify_store

N_QUESTIONS = 23


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """Questions in the DPR layout of TriviaQA."""
    path = tmp_path_factory.mktemp("data") / "questions.tsv"
    lines = [f"What is {n} plus {n}?\t['{2 * n}', 'number {2 * n}']" for n in range(N_QUESTIONS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def config(model_folder, data_path):
    def make(**changes):
        values = {
            "model": {"name": str(model_folder), "threads": 1},
            "dataset": {"name": "triviaqa", "path": str(data_path)},
            "generation": {"num_beams": 3, "max_new_tokens": 5},
            "batch_size": 3,
            "part_size": 4,
            **changes,
        }
        return ExtractConfig.model_validate(values)

    return make


def test_every_question_becomes_one_trace_or_one_failure(config, tmp_path):
    progress = []
    summary = extract(config(), tmp_path / "a.zarr", on_progress=progress.append)
    store = open_traces(tmp_path / "a.zarr")
    named = [record.question_id for record in store.records]
    named += [failure["question_id"] for failure in store.failures]
    assert len(named) == len(set(named)) == N_QUESTIONS
    assert summary.n_new == N_QUESTIONS
    assert summary.n_traces == len(store)
    assert progress[-1].n_done == progress[-1].n_total == N_QUESTIONS
    assert verify_store(tmp_path / "a.zarr").problems == ()


def test_spans_partition_prompt_and_answer(config, tmp_path):
    extract(config(num_samples=5), tmp_path / "a.zarr")
    for trace in open_traces(tmp_path / "a.zarr"):
        assert (trace.is_answer == (np.arange(trace.length) >= trace.prompt_length)).all()
        assert trace.span_code[0] == Span.BOS
        assert Span.QUESTION in trace.span_code
        sums = trace.stream("span_mass").sum(-1)
        np.testing.assert_allclose(sums, 1, atol=4e-3)


def test_stored_attention_is_the_models_own_eager_attention(config, tmp_path):
    extract(config(num_samples=3), tmp_path / "a.zarr")
    loaded = load_model(config().model)
    loaded.model.set_attn_implementation("eager")
    for trace in open_traces(tmp_path / "a.zarr"):
        with torch.inference_mode():
            own = loaded.model(
                input_ids=torch.from_numpy(trace.token_ids.astype(np.int64))[None],
                output_attentions=True,
            ).attentions
        for layer in trace.shape.attention_layers:
            np.testing.assert_allclose(
                trace.attention(layer), own[layer][0].numpy(), rtol=2**-11, atol=1e-6
            )


def test_another_batch_size_gives_the_same_answers(config, tmp_path):
    extract(config(batch_size=1), tmp_path / "one.zarr")
    extract(config(batch_size=16), tmp_path / "many.zarr")
    one, many = open_traces(tmp_path / "one.zarr"), open_traces(tmp_path / "many.zarr")
    assert [r.answer for r in one.records] == [r.answer for r in many.records]
    for first, second in zip(one, many, strict=True):
        np.testing.assert_allclose(
            first.stream("attention"), second.stream("attention"), rtol=2e-3, atol=1e-5
        )


def test_a_smaller_run_is_extended_without_doing_anything_twice(config, tmp_path):
    first = extract(config(num_samples=7), tmp_path / "a.zarr")
    second = extract(config(), tmp_path / "a.zarr")
    again = extract(config(), tmp_path / "a.zarr")
    assert (first.n_new, second.n_new, again.n_new) == (7, N_QUESTIONS - 7, 0)
    assert len(open_traces(tmp_path / "a.zarr").done_question_ids()) == N_QUESTIONS


def test_all_kept_beams_of_a_question_share_its_group(config, tmp_path):
    changed = config(
        generation={"num_beams": 3, "max_new_tokens": 5, "keep_beams": 3}, num_samples=5
    )
    extract(changed, tmp_path / "a.zarr")
    records = open_traces(tmp_path / "a.zarr").records
    by_question = {}
    for record in records:
        by_question.setdefault(record.question_id, []).append(record)
    assert max(map(len, by_question.values())) == 3
    for beams in by_question.values():
        assert len({beam.group_id for beam in beams}) == 1
        scores = [beam.beam_score for beam in beams]
        assert scores == sorted(scores, reverse=True)


def test_another_configuration_is_refused_and_named(config, tmp_path):
    extract(config(num_samples=3), tmp_path / "a.zarr")
    changed = config(num_samples=3, generation={"num_beams": 2, "max_new_tokens": 5})
    with pytest.raises(StoreMismatchError, match=r"generation\.num_beams: 3 in the store, 2 asked"):
        extract(changed, tmp_path / "a.zarr")


def test_streams_alone_leave_the_matrices_out(config, tmp_path):
    changed = config(num_samples=3, capture={"keep": "streams", "hidden_layers": "none"})
    extract(changed, tmp_path / "a.zarr")
    store = open_traces(tmp_path / "a.zarr")
    assert "attention" not in store.arrays
    assert "hidden" not in store.arrays
    assert store[0].stream("span_mass").shape[0] == store.shape.n_layers


def test_a_question_longer_than_the_context_is_a_failure_with_the_lengths(config, tmp_path):
    path = tmp_path / "long.tsv"
    path.write_text(f"Who {'very ' * 40}old?\t['x']\nWho?\t['y']\n", encoding="utf-8")
    values = config().model_dump()
    values["dataset"]["path"] = str(path)
    summary = extract(ExtractConfig.model_validate(values), tmp_path / "a.zarr")
    reasons = " ".join(summary.failures)
    assert "context has 128" in reasons


def test_a_layer_that_the_model_does_not_have_is_refused(config, tmp_path):
    changed = config(capture={"layers": [1, 99]})
    with pytest.raises(UsageError, match="from 0 to 2"):
        extract(changed, tmp_path / "a.zarr")


def test_killed_at_random_moments_the_store_holds_every_question_once(
    config, tmp_path, model_folder, data_path
):
    expected = extract(config(), tmp_path / "whole.zarr").n_traces
    target = tmp_path / "killed.zarr"
    command = [
        sys.executable, "-m", "graphhalu", "extract", "--model", str(model_folder),
        "--threads", "1", "--dataset", "triviaqa", "--data-path", str(data_path), "--beams", "3",
        "--max-new-tokens", "5", "--batch-size", "3", "--set", "part_size=4",
        "--out", str(target),
    ]  # fmt: skip
    kills = 0
    for round_ in range(3):
        parts = len(list(target.glob("parts/0*")))
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        # at least one more part must be there before the kill: progress is forced
        while len(list(target.glob("parts/0*"))) <= parts and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.002 * (round_ + 1))
        if process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["n_traces"] == expected
    killed, whole = open_traces(target), open_traces(tmp_path / "whole.zarr")
    assert killed.trace_ids == whole.trace_ids
    assert [r.answer for r in killed.records] == [r.answer for r in whole.records]
    assert verify_store(target).problems == ()
    assert not list(Path(target).glob(".writing/*"))
