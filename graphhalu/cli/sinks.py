"""``graphhalu sinks``: does attention to the first tokens tell wrong answers from right ones?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.output import print_json, print_table, progress_line, read_numbers, say

if TYPE_CHECKING:
    from graphhalu.studies.sinks.records import MeasuredRun
    from graphhalu.studies.sinks.result import Findings, RunResult, SinksResult

app = typer.Typer(
    help="Sink mass against hallucination: measure it, analyse it, draw it.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
_RUNS = Path("data/runs")


@app.command()
def measure(  # one parameter an option
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or GGUF file. [default: smollm2]")
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Data set, or your own file. [default: truthfulqa_mc]")
    ] = None,
    data_path: Annotated[
        Path | None, typer.Option(help="File or folder of the data set in a published layout.")
    ] = None,
    num_samples: Annotated[int | None, typer.Option(help="How many questions. [default: all]")] = None,
    traces: Annotated[
        Path | None, typer.Option(help="Read this trace store in place of running a model.")
    ] = None,
    labeller: Annotated[
        str | None, typer.Option(help="With --traces: rule of the label. [default: the data set's]")
    ] = None,
    k: Annotated[str | None, typer.Option("--k", help="Leading tokens that form the sink, as 1,4.")] = None,
    queries: Annotated[
        str | None, typer.Option(help="last, range (all after the sink), or last,range.")
    ] = None,
    query_start: Annotated[
        int | None, typer.Option(help="First query row that counts in the mode range.")
    ] = None,
    ablate: Annotated[str | None, typer.Option(help="Any of k, chat, quantization, with commas.")] = None,
    chat: Annotated[str | None, typer.Option(help="Chat template: off, on or auto.")] = None,
    template: Annotated[str | None, typer.Option(help="Prompt template.")] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    examples: Annotated[int | None, typer.Option(help="Most solved examples before a question.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none, int8 or nf4.")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: the free cores]")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML file; options given here win over it.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any field, as dataset.seed=3.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the records. [default: data/runs/sinks]")
    ] = None,
    json: Json = False,
) -> None:
    """Measure sink mass, and write records in the published layout.

    An interrupted run goes on where it stopped when the same command is run again.
    """
    from graphhalu.core.config import load_config, read_overrides
    from graphhalu.studies.sinks.settings import ABLATED_KS, SinkMeasureConfig

    ablated = _ablations(ablate)
    options: dict[str, Any] = {
        "model.name": model,
        "model.quantization": quantization,
        "model.dtype": dtype,
        "model.device": device,
        "model.threads": threads,
        "dataset.name": dataset,
        "dataset.path": data_path,
        "prompt.chat": chat,
        "prompt.template": template,
        "prompt.system": system,
        "num_samples": num_samples,
        "n_examples": examples,
        "query_start": query_start,
        "ks": read_numbers("--k", k) or (list(ABLATED_KS) if "k" in ablated else None),
        "modes": queries.split(",") if queries else None,
    }
    given = {key: value for key, value in options.items() if value is not None}
    settings = load_config(SinkMeasureConfig, config, {**read_overrides(set_ or []), **given})
    folder = out or _RUNS / "sinks"
    if traces is not None:
        from graphhalu.studies.sinks.stored import measure_store

        _only_a_store(ablated)
        runs = measure_store(traces, folder, settings, labeller=labeller)
    else:
        from graphhalu.studies.sinks.measure import measure as run_measure

        with progress_line("sequences") as progress:
            runs = run_measure(settings, folder, ablate=ablated, on_progress=progress.count)
    _show_measured(runs, folder, json)


@app.command()
def analyze(
    records: Annotated[
        list[Path] | None,
        typer.Argument(help="Files of records, or folders of them. [default: data/runs/sinks]"),
    ] = None,
    heads: Annotated[
        Path | None, typer.Option(help="Table of heads (heads patterns) to compare with.")
    ] = None,
    role: Annotated[str, typer.Option(help="Role of that table.")] = "induction",
    label: Annotated[
        str | None, typer.Option(help="hallucinated, input. [default: both, where they are]")
    ] = None,
    resamples: Annotated[int | None, typer.Option(help="Resamples of every interval.")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds of the folds, with commas. [default: 0,1,2]")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any field, n_top=20.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of sinks.json. [default: data/runs/sinks-<time>]")
    ] = None,
    json: Json = False,
) -> None:
    """Test the hypotheses: shift, prediction, beyond entropy, localisation; size, task, chat."""
    from graphhalu.core.config import load_config, read_overrides
    from graphhalu.evaluation.training import new_run_folder
    from graphhalu.studies.sinks.analyze import analyze as run_analysis
    from graphhalu.studies.sinks.settings import AnalyzeConfig

    given = {
        "heads": heads,
        "role": role,
        "n_resamples": resamples,
        "meanings": label.split(",") if label else None,
        "fold_seeds": read_numbers("--seeds", seeds),
    }
    known = {key: value for key, value in given.items() if value is not None}
    settings = load_config(AnalyzeConfig, None, {**read_overrides(set_ or []), **known})
    with progress_line("runs") as progress:
        result = run_analysis(records or [_RUNS / "sinks"], settings, on_progress=progress.count)
    folder = out or new_run_folder(_RUNS, "sinks")
    path = result.write(folder)
    if json:
        print_json({"file": str(path), **result.values()})
        return
    _print_result(result)
    say(f"everything is in {path}; figures:  graphhalu sinks plot {folder}")


@app.command()
def plot(
    result: Annotated[Path, typer.Argument(help="sinks.json, or its folder.")],
    k: Annotated[
        int | None, typer.Option("--k", help="Sink of the runs to draw. [default: the largest]")
    ] = None,
    queries: Annotated[
        str | None, typer.Option(help="Query mode of the runs to draw. [default: last]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of figures and page. [default: beside the result]")
    ] = None,
    json: Json = False,
) -> None:
    """Draw the figures as PNG and SVG, and one HTML page with tables."""
    from graphhalu.report.sinks_page import write_sinks_report
    from graphhalu.studies.sinks.result import read_sinks

    found = read_sinks(result)
    folder = out or (result if result.is_dir() else result.parent)
    written = write_sinks_report(found, folder, sink_tokens=k, query_mode=queries)
    if json:
        figures = [str(path) for path in written.figures]
        print_json({"page": str(written.html), "figures": figures})
        return
    for path in written.figures:
        print(path)
    print(written.html)


def _show_measured(runs: "list[MeasuredRun]", folder: Path, is_json: bool) -> None:
    if is_json:
        listed = [{**vars(run), "path": str(run.path)} for run in runs]
        print_json({"folder": str(folder), "runs": listed})
        return
    for run in runs:
        nan = run.n_records - run.n_usable
        faults = f", {nan} with NaN" if nan else ""
        print(f"{run.path}: {run.n_records} records{faults}{'' if run.is_new else ' (as before)'}")


def _print_result(result: "SinksResult") -> None:
    columns = ["run", "1 / 0", "Cohen's d [95 %]", "AUROC", "heads", "gain"]
    for title, rows in _rows(result).items():
        print_table(columns, rows, title=title)
    for run in result.runs:
        if run.n_usable < run.n_records:
            say(f"{run.name}: {run.n_usable} of {run.n_records} records are without NaN")
        for meaning, reason in run.left_out.items():
            if not run.findings:
                say(f"{run.name}, {meaning}: {reason}")
    for note in result.notes:
        say(note)
    say(
        "1 / 0: records with each label. heads: AUROC of the per-head probe. gain: AUROC that "
        "sink mass adds to entropy. * the interval excludes zero, or chance."
    )


def _rows(result: "SinksResult") -> dict[str, list[list[str]]]:
    rows: dict[str, list[list[str]]] = {}
    for run in result.runs:
        for found in run.findings:
            title = f"{run.task}, label: {found.meaning}, K = {run.sink_tokens}, {run.query_mode}"
            rows.setdefault(title, []).append(_row(run, found))
    return rows


def _row(run: "RunResult", found: "Findings") -> list[str]:
    name = run.model.rsplit("/", maxsplit=1)[-1]
    more = "" if run.quantization == "none" else f" {run.quantization}"
    probe = found.model("heads")
    gain = next((g.auroc for g in found.gains if g.model == "entropy+sink"), None)
    effect, auroc = found.shift.cohens_d, found.prediction.auroc
    interval = f"{effect.value:+.2f} [{effect.low:+.2f},{effect.high:+.2f}]"
    return [
        f"{name}{more}, chat {run.chat}",
        f"{found.n_positive}/{found.n_negative}",
        _short(interval, is_marked=effect.excludes_zero),
        _short(f"{auroc.value:.3f}", is_marked=not auroc.low <= 0.5 <= auroc.high),  # noqa: PLR2004
        "-" if probe is None else _short(f"{probe.auroc.value:.3f}", is_marked=probe.auroc.low > 0.5),  # noqa: PLR2004
        "-" if gain is None else _short(f"{gain.value:+.3f}", is_marked=gain.excludes_zero),
    ]


def _short(text: str, *, is_marked: bool) -> str:
    """Without the zero before the point, so that a table fits into 80 columns."""
    import re

    return re.sub(r"(?<!\d)0\.", ".", text) + ("*" if is_marked else "")


def _ablations(text: str | None) -> list[Any]:
    from typing import get_args

    from graphhalu.core.registry import unknown_name
    from graphhalu.studies.sinks.settings import Ablation

    names = [part.strip() for part in text.split(",")] if text else []
    known = get_args(Ablation)
    for name in names:
        if name not in known:
            raise unknown_name("ablation", name, known)
    return names


def _only_a_store(ablated: list[Any]) -> None:
    from graphhalu.core.errors import UsageError

    wrong = [name for name in ablated if name != "k"]
    if wrong:
        message = (
            f"--ablate {','.join(wrong)} runs a model, and --traces reads what one gave before\n"
            f"  Leave one of them out"
        )
        raise UsageError(message)
