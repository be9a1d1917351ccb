"""``graphhalu plan``: what an extraction costs, before anything is bought or begun."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.output import print_json, print_table, say

if TYPE_CHECKING:
    from graphhalu.extract.cost import ModelSize, Rates, Workload


def plan(
    model: Annotated[
        str | None, typer.Option(help="A model of known size, as llama2-7b. [default: llama2-7b]")
    ] = None,
    parameters: Annotated[
        float | None, typer.Option(help="Any dense model, by its parameters, as 7e9.")
    ] = None,
    questions: Annotated[float, typer.Option(min=1, help="Questions, as 1e5.")] = 1e5,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of a prompt.")] = 100,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Tokens of an answer.")] = 32,
    keep: Annotated[str, typer.Option(help="full, edges or streams.")] = "full",
    rows: Annotated[str, typer.Option(help="all, or answer: rows that produce it.")] = "all",
    beams: Annotated[int, typer.Option(min=1, help="Beams of the search.")] = 5,
    keep_beams: Annotated[int, typer.Option(min=1, help="Beams that become traces.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Questions answered together.")] = 16,
    weight_bytes: Annotated[
        float, typer.Option(min=0.1, help="Bytes of a weight: 4, 2, 1, or 0.5 with nf4.")
    ] = 2.0,
    teraflops: Annotated[
        float, typer.Option(min=1e-6, help="Sustained by a device in 1e12 operations a second.")
    ] = 100.0,
    bandwidth: Annotated[
        float, typer.Option(min=1e-6, help="Memory of a device in 1e9 bytes a second.")
    ] = 1000.0,
    disk: Annotated[
        float, typer.Option(min=1e-6, help="Compressed and written in 1e6 bytes a second.")
    ] = 500.0,
    devices: Annotated[int, typer.Option(min=1, help="Devices, each with the whole model.")] = 1,
    json: Annotated[bool, typer.Option("--json", help="Print the plan as JSON.")] = False,
) -> None:
    """Time, memory and disk of an extraction: arithmetic, at rates that you state."""
    from graphhalu.core.config import validate
    from graphhalu.extract.cost import Workload, assumed_rates
    from graphhalu.extract.settings import CaptureSettings

    capture = validate(CaptureSettings, {"keep": keep, "rows": rows}, source="the plan")
    if keep_beams > beams:
        from graphhalu.core.errors import UsageError

        message = f"a search of {beams} beams cannot keep {keep_beams} of them"
        raise UsageError(message)
    work = Workload(prompt_tokens, answer_tokens, beams, keep_beams, batch, weight_bytes, capture)
    rates = assumed_rates(teraflops * 1e12, bandwidth * 1e9, disk * 1e6)
    name, size = _size(model, parameters)
    values = _values(size, work, rates, questions, devices)
    if json:
        print_json({"model": name, "questions": questions, "devices": devices, **values})
        return
    _print(f"{name}, {questions:,.0f} questions", values, devices)
    say(
        f"Operations, memory and bytes are arithmetic; time assumes {teraflops:g} TFLOP/s and "
        f"{bandwidth:g} GB/s sustained by a device and {disk:g} MB/s written: state your own.\n"
        "What was measured, and how far this was off, stands in graphhalu/extract/COST.md."
    )


def _size(model: str | None, parameters: float | None) -> "tuple[str, ModelSize]":
    from graphhalu.core.errors import UsageError
    from graphhalu.core.registry import unknown_name
    from graphhalu.extract.cost import SIZES, ModelSize

    if model is not None and parameters is not None:
        message = "give a model or its parameters, not both"
        raise UsageError(message)
    if parameters is not None:
        return f"{parameters / 1e9:,.3g}B parameters", ModelSize.of_parameters(parameters)
    name = model or "llama2-7b"
    if name not in SIZES:
        raise unknown_name("model of known size (else use --parameters)", name, SIZES)
    return name, SIZES[name]


def _values(
    size: "ModelSize", work: "Workload", rates: "Rates", questions: float, devices: int
) -> dict[str, Any]:
    from graphhalu.extract.cost import question_cost, question_seconds

    cost = question_cost(size, work)
    seconds = question_seconds(cost, rates)
    return {
        "parameters": size.n_parameters,
        "tokens_a_trace": work.length,
        "flops_a_question": cost.generate_flops + cost.replay_flops,
        **{f"{part}_s_a_question": value for part, value in seconds._asdict().items()},
        "seconds_a_question": seconds.total,
        "bytes_a_question": cost.stored_bytes,
        "memory_bytes": cost.memory_bytes,
        "weights_bytes": cost.weights_bytes,
        "device_hours": questions * seconds.total / 3600,
        "days": questions * seconds.total / 86_400 / devices,
        "bytes": questions * cost.stored_bytes,
    }


def _print(title: str, values: dict[str, Any], devices: int) -> None:
    rows = [
        ["parameters", f"{values['parameters'] / 1e9:,.2f} billion", ""],
        ["operations", f"{values['flops_a_question']:.2e}", ""],
        *(
            [f"time: {part}", f"{values[f'{part}_s_a_question']:.3g} s", ""]
            for part in ("generate", "replay", "store")
        ),
        [
            f"time, {devices} device{'s' * (devices > 1)}",
            f"{values['seconds_a_question']:.3g} s",
            f"{values['days']:,.2f} days ({values['device_hours']:,.1f} device hours)",
        ],
        ["disk", f"{values['bytes_a_question'] / 1e6:,.2f} MB", f"{values['bytes'] / 1e12:,.3f} TB"],
        [
            "memory of a device",
            f"{values['memory_bytes'] / 1e9:,.1f} GB",
            f"of it weights {values['weights_bytes'] / 1e9:,.1f} GB",
        ],
    ]
    print_table(["", "a question", "all"], rows, title=title)
