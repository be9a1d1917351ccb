"""``graphhalu extract``: answers, hidden states and attention into a store; ``plan``: its cost."""

from pathlib import Path

from graphhalu.cli import library
from graphhalu.cli.options import RAY, Options, command
from graphhalu.cli.output import ProgressLine, Shown

_EXTRACT = Options(
    "ExtractConfig",
    "model=model.name dataset=dataset.name data_path=dataset.path beams=generation.num_beams "
    "system_file=prompt.system@file model.* dataset.fields dataset.seed prompt.* generation.* capture.* "
    "num_samples batch_size",
    file=True,
)
_PLAN = Options(
    "PlanSettings", "keep_beams=work.kept_beams * work.* work.capture.keep work.capture.rows", overrides=False
)


@command("extract", config=_EXTRACT, engine=RAY)
def extract(
    config: "library.ExtractConfig",
    engine: "library.Executor | None",
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
    from graphhalu.extract import run

    share = None if shard is None else run.Shard.parse(shard)
    summary = run.extract(config, out, engine=engine, shard=share, on_progress=ProgressLine("questions"))
    return Shown(summary.values(), "extract", then=summary.failure)


@command("plan", settings=_PLAN)
def plan(settings: "library.PlanSettings") -> Shown:
    """Time, memory and disk of an extraction: arithmetic, at rates that you state."""
    return Shown(library.planned_cost(settings), "plan", {"rates": settings})
