"""``graphhalu extract``: answers, hidden states and attention into a trace store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.output import duration, megabytes, print_json, progress_line, say

if TYPE_CHECKING:
    from graphhalu.extract.run import ExtractSummary


def extract(  # one parameter an option
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or GGUF file. [default: smollm2]")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Name of a data set. [default: worldfacts]")
    ] = None,
    data_path: Annotated[
        Path | None, typer.Option(help="File of the data set in a published layout.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(help="How many questions; a store can be extended later.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The store. [default: data/traces/<model>_<dataset>.zarr]")
    ] = None,
    quantization: Annotated[str | None, typer.Option(help="none, int8 or nf4.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads. [default: the free cores]")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    beams: Annotated[int | None, typer.Option(help="Beams of the search. [default: 5]")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer in tokens. [default: 64]")
    ] = None,
    keep_beams: Annotated[
        int | None, typer.Option(help="Final beams that become traces. [default: 1]")
    ] = None,
    keep: Annotated[
        str | None, typer.Option(help="full: all attention; streams: reductions only.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Attention layers to keep, as 3,5,8. [default: all]")
    ] = None,
    hidden_layers: Annotated[
        str | None, typer.Option(help="Hidden states to keep: all, none, or 0,10,20.")
    ] = None,
    chat: Annotated[str | None, typer.Option(help="Chat template: off, on or auto.")] = None,
    template: Annotated[str | None, typer.Option(help="Name of the prompt template.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt of chat templates.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Questions answered at a time. [default: 32]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the order of questions.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="YAML file; options given here win over it.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any field, as generation.num_beams=3.")
    ] = None,
    resume: Annotated[  # noqa: ARG001 - always so; the option lets a script say it
        bool, typer.Option("--resume", help="Go on with an existing store (always done).")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Answer questions by beam search and store attention and hidden states.

    An interrupted run goes on where it stopped when the same command is run again.
    """
    from graphhalu.config import load_config, read_overrides
    from graphhalu.extract.run import extract as run_extraction
    from graphhalu.extract.settings import ExtractConfig

    options = {
        "model.name": model, "model.quantization": quantization, "model.dtype": dtype,
        "model.device": device, "model.threads": threads, "model.revision": revision,
        "dataset.name": dataset, "dataset.path": data_path, "dataset.seed": seed,
        "generation.num_beams": beams, "generation.max_new_tokens": max_new_tokens,
        "generation.keep_beams": keep_beams, "capture.keep": keep,
        "capture.layers": None if layers == "all" else _numbers(layers),
        "capture.hidden_layers": _numbers(hidden_layers),
        "prompt.chat": chat, "prompt.template": template, "prompt.system": system,
        "num_samples": num_samples, "batch_size": batch_size,
    }  # fmt: skip
    given = {key: value for key, value in options.items() if value is not None}
    settings = load_config(ExtractConfig, config, {**read_overrides(set_ or []), **given})
    target = out or default_store(settings.model.name, settings.dataset.name)
    with progress_line("questions") as progress:
        summary = run_extraction(settings, target, on_progress=progress, on_note=say)
    if json:
        print_json(summary_values(summary))
    else:
        _print_summary(summary)


def default_store(model: str, dataset: str) -> Path:
    """Where the traces of a model and a data set go when nothing is said."""
    names = [Path(name).stem if Path(name).suffix else name for name in (model, dataset)]
    plain = "_".join(name.strip("/").rsplit("/", maxsplit=1)[-1] for name in names)
    return Path("data/traces") / f"{plain}.zarr"


def summary_values(summary: "ExtractSummary") -> dict[str, Any]:
    """The summary as plain values."""
    return {
        "store": str(summary.store_path),
        "n_asked": summary.n_asked,
        "n_new": summary.n_new,
        "n_traces": summary.n_traces,
        "failures": summary.failures,
        "seconds": summary.seconds,
        "seconds_a_question": summary.seconds / summary.n_new if summary.n_new else None,
        "load_seconds": summary.load_seconds,
        "shapes": summary.shapes,
        "bytes": summary.n_bytes,
        "bytes_a_trace": summary.n_bytes / summary.n_traces if summary.n_traces else None,
        "bytes_by_array": summary.bytes_by_array,
        "notes": list(summary.notes),
    }


def _print_summary(summary: "ExtractSummary") -> None:
    lines = [
        f"{summary.n_traces} traces in {summary.store_path}",
        f"  new in this run     {summary.n_new} questions in {duration(summary.seconds)}"
        + (f" ({summary.seconds / summary.n_new:.2f} s each)" if summary.n_new else ""),
        f"  model loaded in     {duration(summary.load_seconds)}",
    ]
    lines += [f"  {name:<19} {sizes} (median trace)" for name, sizes in summary.shapes.items()]
    if summary.n_traces:
        lines.append(
            f"  on disk             {megabytes(summary.n_bytes)}, "
            f"{megabytes(summary.n_bytes / summary.n_traces)} a trace"
        )
    lines += [f"  without a trace     {n}: {reason}" for reason, n in summary.failures.items()]
    print("\n".join(lines))


def _numbers(text: str | None) -> list[int] | str | None:
    if text is None or text in ("all", "none"):
        return text
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        from graphhalu.errors import UsageError

        message = f"layers are given as numbers with commas (3,5,8), got {text!r}"
        raise UsageError(message) from None
