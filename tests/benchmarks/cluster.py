"""An extraction on two Ray nodes, one of which is lost half-way and replaced, against one process.

The two stores must be equal trace for trace, with the same attention bytes and the same files.
Both ways have one thread a worker. The quick form has two processes in place of the cluster, a
tiny model and no fault: it only shows that everything runs.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from graphhalu.engine.executors import ProcessExecutor
from graphhalu.extract.run import extract
from graphhalu.extract.settings import ExtractConfig
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import TraceStore, open_traces
from tests.faults.ray_cluster import ENVIRONMENT, loopback_cluster, workers

N_QUESTIONS = 400
PART_SIZE = 16
NEW_TOKENS = 16
PATIENCE_S = 4 * 3600.0


def figures(quick: bool) -> dict[str, Any]:
    """Seconds, their ratio, and how many traces are equal."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("GRAPHHALU_BENCH_FOLDER")) as name:
        folder = Path(name)
        config = _config(_tiny(folder) if quick else "smollm2", 12 if quick else N_QUESTIONS)
        started = time.monotonic()
        alone = extract(config, folder / "one.zarr")
        found = {"one_process_s": alone.seconds, "one_process_wall_s": time.monotonic() - started}
        started = time.monotonic()
        if quick:
            spread = extract(config, folder / "two.zarr", engine=ProcessExecutor(2))
            found |= {"two_workers_s": spread.seconds}
        else:
            found |= _on_a_cluster(config, folder)
        found["two_workers_wall_s"] = time.monotonic() - started
        found["speed_against_one_process"] = alone.seconds / found["two_workers_s"]
        return found | _compared(open_traces(folder / "one.zarr"), open_traces(folder / "two.zarr"))


def _config(model: str, n_questions: int) -> ExtractConfig:
    return ExtractConfig.model_validate(
        {
            "model": {"name": model, "threads": 1},
            "generation": {"max_new_tokens": NEW_TOKENS},
            "num_samples": n_questions,
            "batch_size": PART_SIZE,
            "part_size": PART_SIZE,
        }
    )


def _tiny(folder: Path) -> str:
    made = save_tiny(folder / "tiny")
    # one token a letter: the prompts of worldfacts are longer than the tiny model's context
    config = json.loads((made / "config.json").read_text())
    (made / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    return str(made)


def _on_a_cluster(config: ExtractConfig, folder: Path) -> dict[str, Any]:
    """The same through the command line, with a node killed at half of the parts."""
    store = folder / "two.zarr"
    n_half = N_QUESTIONS // PART_SIZE // 2
    with loopback_cluster(cpus=1, patience_s=float(PATIENCE_S)) as cluster:
        node = cluster.add_node(cpus=1)
        command = [
            sys.executable,
            "-m",
            "graphhalu",
            "extract",
            "--model",
            config.model.name,
            "--num-samples",
            str(config.num_samples),
            "--max-new-tokens",
            str(NEW_TOKENS),
            "--batch-size",
            str(PART_SIZE),
            "--set",
            f"part_size={PART_SIZE}",
            "--threads",
            "1",
            "--out",
            str(store),
            "--ray",
            cluster.address,
            "--ray-wait",
            str(PATIENCE_S),
            "--json",
        ]
        driver = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **ENVIRONMENT}
        )
        try:
            while len(list(store.glob("parts/[0-9]*"))) < n_half and driver.poll() is None:
                time.sleep(0.2)
            n_at_loss = len(list(store.glob("parts/[0-9]*")))
            lost = workers(node)
            cluster.lose_node()
            for process in lost:  # they end with their node, as they would with its machine
                with suppress(ProcessLookupError):
                    os.kill(process, 9)
            cluster.add_node(cpus=1)
            output, _ = driver.communicate(timeout=PATIENCE_S)
        finally:
            driver.kill()
    summary = json.loads(output)
    return {
        "two_workers_s": summary["seconds"],
        "parts_when_a_node_was_lost": n_at_loss,
        "workers_lost": len(lost),
        "questions_set_aside": len(summary["set_aside"]),
    }


def _compared(one: TraceStore, two: TraceStore) -> dict[str, int]:
    records = {record.trace_id: record for record in one.records}
    attention = {trace.trace_id: trace.arrays["attention"][:].tobytes() for trace in one}
    files = {part.folder.name: part.commit.files for part in one.parts}
    return {
        "traces_of_one_process": len(one),
        "traces_of_two_workers": len(two),
        "traces_equal": sum(records.get(r.trace_id) == r for r in two.records),
        "attention_equal": sum(
            attention.get(trace.trace_id) == trace.arrays["attention"][:].tobytes() for trace in two
        ),
        "parts_of_one_process": len(one.parts),
        "parts_with_equal_files": sum(files.get(part.folder.name) == part.commit.files for part in two.parts),
        "questions_done_twice": len(_done(two)) - len(set(_done(two))),
        "questions_lost": len(set(_done(one)) - set(_done(two))),
    }


def _done(store: TraceStore) -> list[str]:
    return [name for part in store.parts for name in part.commit.question_ids]
