"""A detector trained on traces of a tiny model, with its calibration."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from graphhalu.evaluation.training import train_detector
from graphhalu.extract.run import extract
from graphhalu.extract.settings import ExtractConfig
from graphhalu.labels.labels import Labels
from graphhalu.scoring.scorer import AnswerScorer
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import open_traces

N_QUESTIONS = 47


@dataclass(frozen=True)
class Trained:
    """A run, what it was trained on, and the model."""

    run: Path
    store: object
    model: Path


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scoring")
    model = save_tiny(folder / "tiny", "llama")
    questions = folder / "questions.tsv"
    lines = [f"What is {n} plus {n}?\t['{2 * n}']" for n in range(N_QUESTIONS)]
    questions.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = {
        "model": {"name": str(model), "threads": 1},
        "dataset": {"name": "triviaqa", "path": str(questions)},
        "generation": {"num_beams": 2, "max_new_tokens": 5, "keep_beams": 2},
        "batch_size": 16,
    }
    extract(ExtractConfig.model_validate(config), folder / "a.zarr")
    store = open_traces(folder / "a.zarr")
    values = np.array([len(trace.record.question) % 2 for trace in store], dtype=np.int8)
    values ^= np.arange(len(store), dtype=np.int8) % 3 == 0
    labels = Labels(
        trace_ids=tuple(trace.trace_id for trace in store),
        values=values.astype(np.int64),
        is_valid=np.ones(len(store), dtype=bool),
        reasons=("made up",) * len(store),
        labeller="parity",
    )
    run, _ = train_detector("sink-probe-heads", store, labels, runs=folder / "runs")
    return Trained(run, store, model)


@pytest.fixture(scope="session")
def scorer(trained):
    return AnswerScorer(trained.run, name=str(trained.model), threads=1)


@pytest.fixture(scope="session")
def live(tmp_path_factory):
    """A model, and detectors of answers and of tokens that were trained on what exists while it writes."""
    folder = tmp_path_factory.mktemp("live")
    model = save_tiny(folder / "tiny", "llama")
    questions = folder / "questions.csv"
    rows = [f'"What is {n} plus {n}?","{2 * n}",{n % 2}' for n in range(61)]
    questions.write_text("\n".join(["question,given,label", *rows]) + "\n", encoding="utf-8")
    config = {
        "model": {"name": str(model), "threads": 1},
        "dataset": {"name": str(questions)},
        "prompt": {"template": "direct", "chat": "auto"},
        "generation": {"answers": "given", "max_new_tokens": 11},
        "capture": {"keep": "streams", "rows": "answer", "hidden_tokens": "rows"},
    }
    extract(ExtractConfig.model_validate(config), folder / "a.zarr")
    store = open_traces(folder / "a.zarr")
    values = np.array([trace.record.given_label for trace in store], dtype=np.int64)
    labels = Labels(
        trace_ids=tuple(trace.trace_id for trace in store),
        values=values,
        is_valid=np.ones(len(store), dtype=bool),
        reasons=("",) * len(store),
        labeller="stated",
    )
    marked = tuple(np.full(trace.answer_length, value) for trace, value in zip(store, values, strict=True))
    answers, _ = train_detector("live-probe", store, labels, runs=folder / "runs")
    settings = {"windows": [1, 3]}
    of_tokens = replace(labels, tokens=marked)
    tokens, _ = train_detector("token-attention", store, of_tokens, runs=folder / "runs", settings=settings)
    where = {"name": str(model), "threads": 1}
    return {
        "answers": AnswerScorer(answers, **where),
        "tokens": AnswerScorer(tokens, **where),
        "model": model,
        "store": folder / "a.zarr",
    }
