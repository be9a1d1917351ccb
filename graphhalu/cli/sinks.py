"""``graphhalu sinks``: does attention to the first tokens tell wrong answers from right ones?"""

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import typer

from graphhalu.cli.options import Options, command
from graphhalu.cli.output import Shown, progress_line
from graphhalu.core.errors import UsageError

if TYPE_CHECKING:
    from graphhalu.studies.sinks.analyze import SinksResult
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
        from graphhalu.studies.sinks.measure import measure_store

        _only_a_store(ablated)
        runs = measure_store(traces, folder, settings, labeller=labeller)
    else:
        from graphhalu.studies.sinks.measure import measure as run_measure

        with progress_line("sequences") as progress:
            runs = run_measure(settings, folder, ablate=ablated, on_progress=progress)
    listed = [
        {
            "path": str(run.path),
            "n_records": len(run.records),
            "n_usable": len(run.usable),
            "is_new": run.is_new,
            "cpu_s": float(run.meta.get("cpu_s", 0.0)),
        }
        for run in runs
    ]
    return Shown({"folder": str(folder), "runs": listed}, "sinks_measure")


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
    more = {"tables": _tables(result), "result": result, "folder": folder}
    return Shown({"file": str(path), **result.values()}, "sinks_analyze", more)


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
    from graphhalu.studies.sinks.analyze import SinksResult

    found = SinksResult.read(result)
    folder = out or (result if result.is_dir() else result.parent)
    written = write_sinks_report(found, folder, sink_tokens=k, query_mode=queries)
    figures = [str(path) for path in written.figures]
    return Shown({"page": str(written.html), "figures": figures}, "figures", {"html": written.html})


def _tables(result: "SinksResult") -> dict[str, list[dict[str, Any]]]:
    """Runs with their findings by the title of their table."""
    from graphhalu.studies.rows import find_row

    tables: dict[str, list[dict[str, Any]]] = {}
    for run in result.runs:
        name = run.model.rsplit("/", maxsplit=1)[-1]
        more = "" if run.quantization == "none" else f" {run.quantization}"
        for found in run.findings:
            title = f"{run.task}, label: {found.meaning}, K = {run.sink_tokens}, {run.query_mode}"
            probe = find_row(found.models, name="heads")
            gain = next((each.auroc for each in found.gains if each.model == "entropy+sink"), None)
            row = {"run": f"{name}{more}, chat {run.chat}", "found": found, "gain": gain}
            tables.setdefault(title, []).append({**row, "heads": probe and probe.auroc})
    return tables


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
        raise UsageError(
            f"--ablate {','.join(wrong)} runs a model, and --traces reads what one gave before\n"
            f"  Leave one of them out"
        )
