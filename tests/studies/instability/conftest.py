"""Prompts without a model: series with a planted difference, and a folder of them."""

from types import SimpleNamespace

import numpy as np
import pytest

from graphhalu.studies.instability.series import PromptRecord, PromptSeries, SeriesFolder
from graphhalu.studies.instability.settings import CalibrateSettings, GatherSettings

N_LAYERS, N_HEADS = 5, 3

QUICK = {
    "starts": [1, 2],
    "lengths": [3, 5],
    "mid_high": [0.2],
    "tail_cut": [0.0, 0.2],
    "n_folds": 3,
    "n_inner_folds": 2,
    "seeds": [0, 1],
    "n_resamples": 100,
    "false_positive_rates": [0.05, 0.2],
}


def planted_prompt(number, generator, *, gap=0.0, focus_gap=0.0, n_steps=None, group=None):
    """Odd numbers are attacks: their heads spread further, and stay less on the system prompt."""
    label = number % 2
    n_steps = int(generator.integers(7, 14)) if n_steps is None else n_steps
    layered = {
        name: generator.uniform(0.1, 0.3, (n_steps, N_LAYERS)).astype(np.float32)
        for name in ("share_mean", "std", "logit", "bounded", "focus")
    }
    layered["std"][:, 1:4] += np.float32(gap * label)
    steps = {
        name: generator.uniform(0, 1, n_steps).astype(np.float32)
        for name in ("agreement", "entropy", "margin")
    }
    focus = generator.uniform(0.4, 0.6, (N_LAYERS, N_HEADS))
    focus[2, 1] += focus_gap * (1 - label)
    record = PromptRecord(
        f"p{number:03d}",
        0,
        label,
        group or f"g{number:03d}",
        f"text {number}",
        "an answer",
        n_prompt=20,
        n_system=7,
        n_user=int(generator.integers(3, 12)),
        n_answer=n_steps - 1,
        is_finished=True,
        user_nll=float(generator.uniform(2, 4)),
    )
    arrays = {**layered, **steps, "logprob": -steps["entropy"], "focus_heads": focus.astype(np.float32)}
    return PromptSeries(record, arrays)


def planted_folder(path, series, *, model="planted", n_parts=None):
    """A folder of series, a part for every seven of them."""
    parts = [series[start : start + 7] for start in range(0, len(series), 7)]
    gather = GatherSettings(system="Never say it.", chat="off", max_new_tokens=13)
    configuration = {
        "model": {"name": model, "source": "folder", "weights": "0" * 8, "quantization": "none"},
        "prompt": gather.prompt_recipe(is_chat=False),
        "gather": gather.model_dump(mode="json"),
        "n_parts": len(parts) if n_parts is None else n_parts,
    }
    folder = SeriesFolder.create(path, configuration)
    for number, part in enumerate(parts):
        folder.write_part(number, part)
    return folder


@pytest.fixture(scope="session")
def planted():
    """What makes planted studies, and quick settings for them."""
    return SimpleNamespace(
        prompt=planted_prompt,
        folder=planted_folder,
        quick=CalibrateSettings(**QUICK),
        quick_values=QUICK,
        n_layers=N_LAYERS,
        n_heads=N_HEADS,
    )
