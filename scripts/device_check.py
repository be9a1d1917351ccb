"""Checks on a real GPU, against the CPU of the same machine; see ``scripts/device_check``.

Each check gives figures or a failure; one that fails stops no other. Without a GPU only the versions and the
figures of the CPU are given, and the columns of the GPU stay empty.
"""

import argparse
import json
import platform
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import graphhalu
from graphhalu.detectors.registry import DETECTORS
from graphhalu.evaluation.settings import DetectorSpec
from graphhalu.extract import extraction as extraction_module
from graphhalu.extract.run import extract
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.testing.contracts.detectors import planted_data
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import TraceStore, open_traces

N_QUESTIONS = 48


def stored(folder: Path, name: str, device: str, **changes: Any) -> tuple[TraceStore, float]:
    """A store of some bundled questions, and the seconds that it took."""
    config = {
        "model": {"name": name, "device": device, "dtype": changes.pop("dtype", "float32")},
        "dataset": {"name": "worldfacts"},
        "generation": {"num_beams": 3, "max_new_tokens": 16},
        "num_samples": N_QUESTIONS,
        **changes,
    }
    config["model"]["quantization"] = config.pop("quantization", "none")
    started = time.perf_counter()
    extract(ExtractConfig.model_validate(config), folder)
    return open_traces(folder), time.perf_counter() - started


def exactness(name: str, device: str) -> dict[str, Any]:
    """Answers and attention of the GPU against those of the CPU, both in float32."""
    with tempfile.TemporaryDirectory() as place:
        if name == "tiny":
            name = str(save_tiny(Path(place) / "tiny", "llama"))
        there, _ = stored(Path(place) / "gpu", name, device)
        here, _ = stored(Path(place) / "cpu", name, "cpu")
        theirs = {trace.trace_id: trace for trace in there}
        same = [trace for trace in here if theirs[trace.trace_id].record.answer == trace.record.answer]
        differences = [
            float(np.abs(trace.attention(0) - theirs[trace.trace_id].attention(0)).max()) for trace in same
        ]
        return {
            "answers": len(here),
            "same_answers": len(same),
            "largest_attention_difference": max(differences, default=float("nan")),
        }


def four_bits(name: str, device: str) -> dict[str, Any]:
    """Whether a model loads, answers and is captured in 4 bits."""
    with tempfile.TemporaryDirectory() as place:
        store, seconds = stored(
            Path(place) / "nf4", name, device, quantization="nf4", dtype="auto", num_samples=8
        )
        return {"traces": len(store), "seconds": seconds}


def out_of_memory(name: str, device: str) -> dict[str, Any]:
    """Whether a batch for which memory runs out is done in halves; the allocator is given little."""
    before = extraction_module.batch_memory
    total = torch.cuda.get_device_properties(device).total_memory
    share = min(1.0, (torch.cuda.memory_reserved(device) + 1.5 * 2**30) / total)
    extraction_module.batch_memory = lambda _device: total  # batches far too large
    torch.cuda.set_per_process_memory_fraction(share, device)
    try:
        with tempfile.TemporaryDirectory() as place:
            store, _ = stored(Path(place) / "oom", name, device, num_samples=32, batch_size=32)
            return {"traces": len(store), "memory_gib": share * total / 2**30}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        extraction_module.batch_memory = before


def training(device: str) -> dict[str, Any]:
    """Two graph networks fitted there and on the CPU: seconds, and how far their scores differ."""
    data, found = planted_data(97), dict[str, Any]()
    for name in ("gcn", "gat"):
        scores = {}
        for accelerator in ("cpu", "gpu") if device != "cpu" else ("cpu",):
            settings = {"epochs": 10, "accelerator": accelerator, "dropout": 0.0, "n_folds": 2}
            detector = DetectorSpec(name, settings, factory=DETECTORS.get(name)).make(0)
            started = time.perf_counter()
            detector.fit(data.traces, data.labels, data.split)
            found[f"{name}_{accelerator}_seconds"] = time.perf_counter() - started
            scores[accelerator] = detector.score(data.traces).values
        if len(scores) > 1:
            found[f"{name}_largest_difference"] = float(np.abs(scores["cpu"] - scores["gpu"]).max())
    return found


class Busy:
    """Share of the time in which the GPU has work, as the driver says, a sample each 50 ms."""

    def __init__(self, device: str) -> None:
        self.device, self.samples, self._stop = device, list[int](), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            try:
                self.samples.append(torch.cuda.utilization(self.device))
            except (ModuleNotFoundError, RuntimeError):  # without the driver's own library
                return

    def __enter__(self) -> "Busy":  # noqa: PYI034
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def share(self) -> float | None:
        """From 0 to 1; ``None`` where the driver does not say."""
        return float(np.mean(self.samples)) / 100 if self.samples else None


def cost(name: str, device: str) -> dict[str, Any]:
    """Seconds and bytes of extraction beside plain ``generate`` of the same questions."""
    with tempfile.TemporaryDirectory() as place:
        stored(Path(place) / "warm", name, device, dtype="auto", num_samples=4)
        with Busy(device) as busy:
            store, seconds = stored(Path(place) / "full", name, device, dtype="auto")
        size = sum(path.stat().st_size for path in (Path(place) / "full").rglob("*") if path.is_file())
        loaded = load_model(ModelSpec(name=name, device=device))
        tokenizer, model = loaded.tokenizer, loaded.model
        tokenizer.padding_side = "left"
        prompts = [trace.record.prompt for trace in store]
        started = time.perf_counter()
        for first in range(0, len(prompts), 16):
            inputs = tokenizer(prompts[first : first + 16], return_tensors="pt", padding=True).to(
                model.device
            )
            model.generate(**inputs, num_beams=3, max_new_tokens=16, do_sample=False, pad_token_id=0)
        plain = time.perf_counter() - started
        return {
            "extraction_seconds": seconds,
            "generate_seconds": plain,
            "generate_over_extraction": plain / seconds,
            "megabytes": size / 2**20,
            "gpu_busy_share": busy.share,
        }


def tried(check: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of a check, or why it failed."""
    started = time.perf_counter()
    try:
        found = check()
    except Exception as error:  # noqa: BLE001 - one check stops no other
        found = {"failure": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {**found, "check_seconds": round(time.perf_counter() - started, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--model", default="smollm2")
    given = parser.parse_args()
    has_gpu = torch.cuda.is_available()
    device = "cuda" if has_gpu else "cpu"
    report: dict[str, Any] = {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "card": torch.cuda.get_device_name() if has_gpu else None,
        "python": platform.python_version(),
        "graphhalu": graphhalu.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if has_gpu:
        report["exactness_tiny"] = tried(lambda: exactness("tiny", device))
        report["exactness"] = tried(lambda: exactness(given.model, device))
        report["four_bits"] = tried(lambda: four_bits(given.model, device))
        report["out_of_memory"] = tried(lambda: out_of_memory(given.model, device))
    report["training"] = tried(lambda: training(device))
    report["cost"] = tried(lambda: cost(given.model, device))
    for name, value in report.items():
        rows = value.items() if isinstance(value, dict) else [("", value)]
        for key, each in rows:
            print(f"{name:<16} {key:<32} {each if not isinstance(each, float) else f'{each:.4g}'}")
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
