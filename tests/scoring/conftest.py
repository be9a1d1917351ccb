"""A detector trained on traces of a tiny model, with its calibration."""

from dataclasses import dataclass
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
