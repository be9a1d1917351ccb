"""Tables of heads with known scores, and a tiny model that is loaded as a real one."""

import numpy as np
import pytest

from graphhalu.heads.table import HeadTable
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import save_tiny

N_TRIALS, N_LAYERS, N_HEADS = 11, 5, 3


def make_table(scores, role="tested", groups=None, **more):
    n_trials, n_layers, n_heads = scores.shape
    names = [f"t{i}" for i in range(n_trials)]
    return HeadTable(
        role=role,
        layers=more.pop("layers", tuple(range(n_layers))),
        trials=tuple(zip(names, groups or names, strict=True)),
        scores=scores,
        chance=more.pop("chance", np.full((n_layers, n_heads), 0.125)),
        rejected=(("t99", "too short"),),
        model=more.pop("model", {"name": "tiny"}),
        **more,
    )


@pytest.fixture
def scores():
    return np.random.default_rng(7).uniform(size=(N_TRIALS, N_LAYERS, N_HEADS))


@pytest.fixture
def table(scores):
    return make_table(scores)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("heads") / "tiny", "llama")
    return load_model(ModelSpec(name=str(folder), threads=1))


@pytest.fixture(scope="session")
def tiny_windowed(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("heads") / "windowed", "gemma3_text")
    return load_model(ModelSpec(name=str(folder), threads=1))
