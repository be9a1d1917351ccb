"""``graphhalu sinks``: does attention to the first tokens tell wrong answers from right ones?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from graphhalu.cli.options import Options, command
from graphhalu.cli.output import Shown, cell, print_rows, progress_line, say
from graphhalu.core.errors import UsageError

if TYPE_CHECKING:
    from graphhalu.studies.sinks.records import MeasuredRun
    from graphhalu.studies.sinks.result import Findings, RunResult, SinksResult
    from graphhalu.studies.sinks.settings import AnalyzeConfig, SinkMeasureConfig

app = typer.Typer(
    help="Sink mass against hallucination: measure it, analyse it, draw it.", no_args_is_help=True
)

_RUNS = Path("data/runs")
_MEASURE = Options(
    "graphhalu.studies.sinks.settings:SinkMeasureConfig",
    *("model.quantization", "model.dtype", "model.device", "model.threads"),
    *("prompt.*", "num_samples", "query_start"),
    file=True,
    model="model.name",
    dataset="dataset.name",
    data_path="dataset.path",
    k="ks",
    queries="modes",
    examples="n_examples",
)
_ANALYZE = Options(
    "graphhalu.studies.sinks.settings:AnalyzeConfig",
    *("heads", "role"),
    label="meanings",
    resamples="n_resamples",
    seeds="fold_seeds",
)


@command(app, settings=_MEASURE)
def measure(
    settings: "SinkMeasureConfig",
    *,
    traces: Path | None = None,
    labeller: str | None = None,
    ablate: str | None = None,
    out: Path | None = None,
) -> Shown:
    """Measure sink mass, and write records in the published layout.

    An interrupted run goes on where it stopped when the same command is run again.

    Args:
        traces: Read this trace store in place of running a model.
        labeller: With --traces: rule of the label; by default that of the data set.
        ablate: Any of k, chat, quantization, with commas.
        out: Folder of the records; by default data/runs/sinks.
    """
    from graphhalu.studies.sinks.settings import ABLATED_KS

    ablated = _ablations(ablate)
    if "k" in ablated and "ks" not in settings.model_fields_set:
        settings = settings.model_copy(update={"ks": ABLATED_KS})
    folder = out or _RUNS / "sinks"
    if traces is not None:
        from graphhalu.studies.sinks.stored import measure_store

        _only_a_store(ablated)
        runs = measure_store(traces, folder, settings, labeller=labeller)
    else:
        from graphhalu.studies.sinks.measure import measure as run_measure

        with progress_line("sequences") as progress:
            runs = run_measure(settings, folder, ablate=ablated, on_progress=progress)
    listed = [{**vars(run), "path": str(run.path)} for run in runs]
    return Shown({"folder": str(folder), "runs": listed}, lambda: _print_measured(runs))


@command(app, settings=_ANALYZE)
def analyze(
    settings: "AnalyzeConfig", records: list[Path] | None = None, *, out: Path | None = None
) -> Shown:
    """Test the hypotheses: shift, prediction, beyond entropy, localisation; size, task, chat.

    Args:
        records: Files of records, or folders of them; by default data/runs/sinks.
        out: Folder of sinks.json; by default data/runs/sinks-<time>.
    """
    from graphhalu.evaluation.training import new_run_folder
    from graphhalu.studies.sinks.analyze import analyze as run_analysis

    with progress_line("runs") as progress:
        result = run_analysis(records or [_RUNS / "sinks"], settings, on_progress=progress)
    folder = out or new_run_folder(_RUNS, "sinks")
    path = result.write(folder)
    note = f"everything is in {path}; figures:  graphhalu sinks plot {folder}"
    return Shown({"file": str(path), **result.values()}, lambda: _print_result(result), note)


@command(app)
def plot(result: Path, *, k: int | None = None, queries: str | None = None, out: Path | None = None) -> Shown:
    """Draw the figures as PNG and SVG, and one HTML page with tables.

    Args:
        result: sinks.json, or its folder.
        k: Sink of the runs to draw; by default the largest.
        queries: Query mode of the runs to draw; by default last.
        out: Folder of figures and page; by default beside the result.
    """
    from graphhalu.report.sinks import write_sinks_report
    from graphhalu.studies.sinks.result import read_sinks

    found = read_sinks(result)
    folder = out or (result if result.is_dir() else result.parent)
    written = write_sinks_report(found, folder, sink_tokens=k, query_mode=queries)
    values = {"page": str(written.html), "figures": [str(path) for path in written.figures]}
    return Shown(values, lambda: print(*written.figures, written.html, sep="\n"))


def _print_measured(runs: "list[MeasuredRun]") -> None:
    for run in runs:
        nan = run.n_records - run.n_usable
        faults = f", {nan} with NaN" if nan else ""
        print(f"{run.path}: {run.n_records} records{faults}{'' if run.is_new else ' (as before)'}")


def _print_result(result: "SinksResult") -> None:
    tables: dict[str, list[tuple[RunResult, Findings]]] = {}
    for run in result.runs:
        for found in run.findings:
            title = f"{run.task}, label: {found.meaning}, K = {run.sink_tokens}, {run.query_mode}"
            tables.setdefault(title, []).append((run, found))
    for title, pairs in tables.items():
        rows = [_cells(run, found) for run, found in pairs]
        print_rows(rows, {column: f"{{{column}}}" for column in rows[0]}, title=title)
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


def _cells(run: "RunResult", found: "Findings") -> dict[str, str]:
    """One run and label; a star where the interval excludes zero, or chance."""
    name = run.model.rsplit("/", maxsplit=1)[-1]
    more = "" if run.quantization == "none" else f" {run.quantization}"
    probe = found.model("heads")
    heads = None if probe is None else probe.auroc
    gain = next((each.auroc for each in found.gains if each.model == "entropy+sink"), None)
    effect, auroc = found.shift.cohens_d, found.prediction.auroc
    chance = 0.5
    return {
        "run": f"{name}{more}, chat {run.chat}",
        "1 / 0": f"{found.n_positive}/{found.n_negative}",
        "Cohen's d [95 %]": _marked("{value:+.2f} [{low:+.2f},{high:+.2f}]", effect, effect.excludes_zero),
        "AUROC": _marked("{value:.3f}", auroc, not auroc.low <= chance <= auroc.high),
        "heads": _marked("{value:.3f}", heads, heads is not None and heads.low > chance),
        "gain": _marked("{value:+.3f}", gain, gain is not None and gain.excludes_zero),
    }


def _marked(template: str, value: Any, is_marked: bool) -> str:
    return cell(template, value, is_short=True) + "*" * is_marked


def _ablations(text: str | None) -> list[Any]:
    from graphhalu.core.registry import unknown_name
    from graphhalu.studies.sinks.settings import Ablation

    names = [part.strip() for part in text.split(",")] if text else []
    known = get_args(Ablation)
    for name in names:
        if name not in known:
            raise unknown_name("ablation", name, known)
    return names


def _only_a_store(ablated: list[Any]) -> None:
    wrong = [name for name in ablated if name != "k"]
    if wrong:
        message = (
            f"--ablate {','.join(wrong)} runs a model, and --traces reads what one gave before\n"
            f"  Leave one of them out"
        )
        raise UsageError(message)
