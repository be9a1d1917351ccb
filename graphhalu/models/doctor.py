"""Is everything in place: versions, devices, cache, and a model that passes its check?"""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from graphhalu.errors import GraphhaluError
from graphhalu.models.check import check_model
from graphhalu.models.gguf import cache_folder
from graphhalu.models.load import load_model
from graphhalu.models.spec import ModelSpec
from graphhalu.provenance import provenance


def examine(model: str, on_note: Callable[[str], None] = lambda _: None) -> dict[str, Any]:
    """Versions, devices, cache and the self-check of a model, as plain values.

    Args:
        model: Name of the model to load and check.
        on_note: Told before anything slow.
    """
    found = provenance()
    cache = cache_folder()
    on_note(f"loading {model} (the first time it is converted, which takes about a minute)")
    check = _check(model)
    existing = cache if cache.exists() else next(p for p in cache.parents if p.exists())
    return {
        "python": found["python"],
        "platform": found["platform"],
        "packages": found["packages"],
        "devices": {
            "cpu_cores": found["cpu_count"],
            "cpu_threads": torch.get_num_threads(),
            "gpus": [
                torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())
            ],
        },
        "cache": {
            "folder": str(cache),
            "free_gib": round(shutil.disk_usage(existing).free / 2**30, 1),
        },
        "model": check,
        "is_healthy": "error" not in check,
    }


def _check(model: str) -> dict[str, Any]:
    started = time.monotonic()
    try:
        loaded = load_model(ModelSpec(name=model))
        measured = asdict(check_model(loaded))
    except GraphhaluError as error:
        return {"name": model, "error": f"{type(error).__name__}: {error}"}
    seconds = round(time.monotonic() - started, 1)
    return {"name": model, "load_and_check_s": seconds, **measured}
