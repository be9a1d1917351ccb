"""Sink mass against hallucination: measure it, analyse it, draw it."""

from pathlib import Path
from typing import Any, get_args

from graphhalu.cli import library
from graphhalu.cli.options import Options, Place, command, read_list
from graphhalu.cli.output import ProgressLine, Shown
from graphhalu.core.errors import UsageError

_RECORDS = Path("data/runs/sinks")
_MEASURE = Options(
    "SinkMeasureConfig",
    "model=model.name dataset=dataset.name data_path=dataset.path k=ks queries=modes examples=n_examples "
    "model.quantization model.dtype model.device model.threads prompt.* num_samples query_start",
    file=True,
)
_ANALYZE = Options("AnalyzeConfig", "label=meanings resamples=n_resamples seeds=fold_seeds heads role")


@command("sinks measure", settings=_MEASURE)
def measure(
    settings: "library.SinkMeasureConfig",
    *,
    traces: Place = None,
    labeller: str | None = None,
    ablate: str | None = None,
    out: Place = None,
) -> Shown:
    """Measure sink mass, and write records in the published layout.

    An interrupted run goes on where it stopped when the same command is run again.

    Args:
        traces: Read this trace store in place of running a model.
        labeller: With --traces: rule of the label; by default that of the data set.
        ablate: Any of k, chat, quantization, with commas.
        out: Folder of the records; by default data/runs/sinks.
    """
    ablated: list[Any] = read_list("--ablate", ablate, str) if ablate else []
    known = get_args(library.Ablation)
    for name in ablated:
        if name not in known:
            raise library.unknown_name("ablation", name, known)
    if "k" in ablated and "ks" not in settings.model_fields_set:
        settings = settings.model_copy(update={"ks": library.ABLATED_KS})
    folder, of_model = out or _RECORDS, [name for name in ablated if name != "k"]
    if traces is None:
        runs = library.measure_sinks(settings, folder, ablate=ablated, on_progress=ProgressLine("sequences"))
    elif of_model:
        fault = f"--ablate {','.join(of_model)} runs a model, and --traces reads what one gave before"
        raise UsageError(f"{fault}\n  Leave one of them out")
    else:
        runs = library.measure_store(traces, folder, settings, labeller=labeller)
    listed = []
    for run in runs:
        sizes = {"n_records": len(run.records), "n_usable": len(run.usable)}
        seconds = float(run.meta.get("cpu_s", 0.0))
        listed.append({"path": run.path, **sizes, "is_new": run.is_new, "cpu_s": seconds})
    return Shown({"folder": folder, "runs": listed}, "sinks_measure")


@command("sinks analyze", settings=_ANALYZE)
def analyze(
    settings: "library.AnalyzeConfig", records: list[Path] | None = None, *, out: Place = None
) -> Shown:
    """Test the hypotheses: shift, prediction, beyond entropy, localisation; size, task, chat.

    Args:
        records: Files of records, or folders of them; by default data/runs/sinks.
        out: Folder of sinks.json; by default data/runs/sinks-<time>.
    """
    result = library.analyze_sinks(records or [_RECORDS], settings, on_progress=ProgressLine("runs"))
    folder = library.run_folder("sinks", out, is_resumed=False)
    path = result.write(folder)
    return Shown({"file": path, **result.values()}, "sinks_analyze", {"result": result, "folder": folder})


@command("sinks plot")
def plot(result: Path, *, k: int | None = None, queries: str | None = None, out: Place = None) -> Shown:
    """Draw the figures as PNG and SVG, and one HTML page with tables.

    Args:
        result: sinks.json, or its folder.
        k: Sink of the runs to draw; by default the largest.
        queries: Query mode of the runs to draw; by default last.
        out: Folder of figures and page; by default beside the result.
    """
    found = library.SinksResult.read(result)
    folder = out or (result if result.is_dir() else result.parent)
    written = library.write_sinks_report(found, folder, sink_tokens=k, query_mode=queries)
    return Shown({"page": written.html, "figures": written.figures}, "figures", {"html": written.html})
