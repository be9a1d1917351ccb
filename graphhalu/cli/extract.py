"""``graphhalu extract``: answers, hidden states and attention into a store; ``plan``: its cost."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graphhalu.cli.options import RAY, Options, command
from graphhalu.cli.output import Shown, progress_line

if TYPE_CHECKING:
    from graphhalu.cli.ray import RayOptions
    from graphhalu.extract.cost import PlanSettings
    from graphhalu.extract.run import ExtractSummary
    from graphhalu.extract.settings import ExtractConfig

app = typer.Typer()
_FILE_ENDING = re.compile(r"(?:\.(?:gguf|jsonl?|csv|tsv|parquet|txt))?(?:\.gz)?$", re.IGNORECASE)
_EXTRACT = Options(
    "graphhalu.extract.settings:ExtractConfig",
    *("model.*", "dataset.fields", "dataset.seed", "prompt.*", "generation.*", "capture.*"),
    *("num_samples", "batch_size"),
    file=True,
    model="model.name",
    dataset="dataset.name",
    data_path="dataset.path",
    beams="generation.num_beams",
    system_file="prompt.system@file",
)
_PLAN = Options(
    "graphhalu.extract.cost:PlanSettings",
    *("*", "work.*", "work.capture.keep", "work.capture.rows"),
    overrides=False,
    keep_beams="work.kept_beams",
)


@command(app, settings=_EXTRACT, ray=RAY)
def extract(
    settings: "ExtractConfig",
    ray: "RayOptions",
    *,
    out: Path | None = None,
    shard: str | None = None,
    resume: bool = False,  # noqa: ARG001 - always so; the option lets a script say it
) -> Shown:
    """Answer questions by beam search and store attention and hidden states.

    An interrupted run goes on where it stopped when the same command is run again.

    Args:
        out: The store; by default data/traces/<model>_<dataset>.zarr.
        shard: Do the i-th of N shares, as 3/10, beside processes that do the others.
        resume: Go on with an existing store (always done).
    """
    from graphhalu.core.errors import WorkerError
    from graphhalu.extract.run import Shard
    from graphhalu.extract.run import extract as run_extraction

    target = out or default_store(settings.model.name, settings.dataset.name)
    share = None if shard is None else Shard.parse(shard)
    with progress_line("questions") as progress:
        summary = run_extraction(settings, target, engine=ray.engine(), shard=share, on_progress=progress)
    lost = summary.quarantined
    message = (
        f"{len(lost)} questions are not done: {'; '.join(sorted(set(lost.values())))}\n"
        f"  Run the same command again to try them, or do them with more memory a worker: {', '.join(lost)}"
    )
    return Shown(summary_values(summary), "extract", then=WorkerError(message) if lost else None)


def default_store(model: str, dataset: str) -> Path:
    """Where the traces of a model and a data set go when nothing is said."""
    names = [name.strip("/").rsplit("/", maxsplit=1)[-1] for name in (model, dataset)]
    return Path("data/traces") / f"{'_'.join(_FILE_ENDING.sub('', name) for name in names)}.zarr"


def summary_values(summary: "ExtractSummary") -> dict[str, Any]:
    """The summary as plain values."""
    values = asdict(summary) | {"bytes": summary.n_bytes}
    values["seconds_a_question"] = summary.seconds / summary.n_new if summary.n_new else None
    values["bytes_a_trace"] = summary.n_bytes / summary.n_traces if summary.n_traces else None
    return {"store": values.pop("store_path"), "set_aside": values.pop("quarantined"), **values}


@command(app, settings=_PLAN)
def plan(settings: "PlanSettings") -> Shown:
    """Time, memory and disk of an extraction: arithmetic, at rates that you state."""
    from graphhalu.extract.cost import planned_cost

    return Shown(planned_cost(settings), "plan", {"rates": settings})
