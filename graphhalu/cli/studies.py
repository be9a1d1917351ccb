"""Studies: inter-head instability under attack, and sink mass against hallucination."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import typer

from graphhalu.cli import library
from graphhalu.cli.options import Options, Place, command, read_list
from graphhalu.cli.output import ProgressLine, Shown, file_word
from graphhalu.core.errors import UsageError

DETECTED = 3
"""Exit code of ``detect --fail-on-detect`` when a prompt is called an attack."""

_GATHER = Options(
    "GatherSettings",
    "system=system@file system_text=system denominator max_new_tokens iterations temperature chat",
    set_wins=True,
)
_CALIBRATE = Options(
    "CalibrateSettings", "folds=n_folds spread starts lengths mid_high tail_cut seeds", set_wins=True
)
_GATHER_MODEL = Options("ModelSpec", "model=name device threads quantization", overrides=False)
_DETECT_MODEL = Options("ModelSpec", "device threads", overrides=False)
_DETECT = Options(
    "DetectSettings", "method fpr system=system@file system_text=system max_new_tokens", overrides=False
)


@command(
    "instability gather",
    about="Inter-head instability: do heads disagree on the system prompt under attack?",
    settings=_GATHER,
    spec=_GATHER_MODEL,
)
def gather(
    settings: "library.GatherSettings",
    spec: "library.ModelSpec",
    *,
    attacks: Place = None,
    benign: Place = None,
    prompts: Place = None,
    out: Place = None,
) -> Shown:
    """Measure attacks and benign prompts step by step; run it again to go on.

    Args:
        attacks: Attacks: one a line, or rows with a column prompt.
        benign: Benign prompts, in the same way.
        prompts: Rows with the columns prompt (or text) and label.
        out: Folder; by default data/instability/<model>.
    """
    library.require_system(settings.system)
    asked = _prompts(attacks, benign, prompts)
    loaded = library.load_checked(spec)
    folder = out or Path("data/instability") / file_word(str(loaded.identity["name"]))
    measured = library.gather(loaded, settings, asked, folder, ProgressLine("prompts"))
    records = [each.record for each in measured.read()]
    n, labels = len(records), Counter(record.label for record in records)
    values = {"folder": folder, "n_prompts": n, "n_attack": labels[1], "n_benign": labels[0]}
    values["n_failed"] = sum(record.failure is not None for record in records)
    values["n_finished"] = sum(record.is_finished for record in records)
    values["mean_answer_tokens"] = sum(record.n_answer for record in records) / n
    return Shown(values, "instability_gather", {"records": records})


@command("instability calibrate", settings=_CALIBRATE)
def calibrate(
    settings: "library.CalibrateSettings", folder: Path, *, heads: Place = None, out: Place = None
) -> Shown:
    """Choose window, layers and thresholds in nested folds, beside simpler baselines.

    Args:
        folder: Folder of measured prompts (gather).
        heads: Published heads for Attention Tracker (JSON).
        out: JSON file; by default calibration.json in the folder.
    """
    given = () if heads is None else library.read_important_heads(heads)
    measured = library.SeriesFolder.open(folder)
    found = library.calibrate(measured, settings, given=given, on_progress=ProgressLine("methods"))
    path = found.write(out or folder / "calibration.json")
    left_out = {"scores", "prompt_ids", "labels"}
    values = {name: value for name, value in found.values().items() if name not in left_out}
    return Shown({"file": path, **values}, "instability_calibrate", {"found": found})


@command("instability detect", spec=_DETECT_MODEL, settings=_DETECT)
def detect(
    spec: "library.ModelSpec",
    settings: "library.DetectSettings",
    prompt: str | None = None,
    *,
    file: Place = None,
    calibration: Path = Path("calibration.json"),
    model: str | None = None,
    fail_on_detect: bool = False,
) -> Shown:
    """Score prompts with a calibration: score, verdict, step at which it crossed.

    Args:
        prompt: The prompt; - reads one a line from stdin.
        file: Prompts: one a line, or rows with a column prompt.
        calibration: File that calibrate wrote.
        model: The model; by default that of the calibration.
        fail_on_detect: Exit 3 if a prompt is called an attack, 1 if none is but one has no score.
    """
    asked = _asked(prompt, file)
    known = library.Calibration.read(calibration)
    known.threshold(settings.method, settings.fpr)
    stored = known.identity.quantization
    quantization = "none" if stored is None or stored.startswith("stored") else stored
    update = {"name": model or known.identity.model, "quantization": quantization}
    loaded = library.load_checked(spec.model_copy(update=update))
    detector = library.PromptDetector(loaded, known, settings)
    verdicts = [verdict.model_dump() for verdict in detector.score(asked, ProgressLine("prompts"))]
    values = {"method": settings.method, "threshold": detector.threshold, "prompts": verdicts}
    is_found, is_unknown = (any(each["is_attack"] is kind for each in verdicts) for kind in (True, None))
    code = (DETECTED if is_found else int(is_unknown)) if fail_on_detect else 0
    return Shown(values, "instability_detect", then=typer.Exit(code) if code else None)


@command("instability plot")
def plot(folder: Path, *, calibration: Place = None, out: Place = None) -> Shown:
    """Draw the study: one page, and its figures as PNG and SVG.

    Args:
        folder: Folder of measured prompts (gather).
        calibration: File of calibrate; by default calibration.json in the folder.
        out: Folder of page and figures; by default report in the folder.
    """
    known = library.Calibration.read(calibration or folder / "calibration.json")
    files = library.write_study(library.SeriesFolder.open(folder), known, out or folder / "report")
    return Shown({"html": files.html, "figures": files.figures}, "figures")


def _prompts(attacks: Path | None, benign: Path | None, both: Path | None) -> "list[library.PromptRecord]":
    if both is not None and attacks is None and benign is None:
        return library.read_prompts(both, None)
    if both is not None or attacks is None or benign is None:
        raise UsageError("expected --attacks FILE and --benign FILE, or --prompts FILE with a column label")
    return [*library.read_prompts(attacks, library.ATTACK), *library.read_prompts(benign, library.BENIGN)]


def _asked(prompt: str | None, file: Path | None) -> "list[library.PromptRecord]":
    """Prompts of the command line, of a file, or of stdin."""
    if (prompt is None) == (file is None):
        raise UsageError("expected a prompt, or --file FILE, or - to read prompts from stdin")
    if file is not None:
        found = library.read_texts(file)
    else:
        texts = sys.stdin.read().split("\n") if prompt == "-" else [prompt or ""]
        found = [text.strip() for text in texts if text.strip()]
    if not found:
        raise UsageError("stdin holds no prompt" if prompt == "-" else "the prompt is empty")
    return library.numbered((text, None) for text in found)


_RECORDS = Path("data/runs/sinks")
_MEASURE = Options(
    "SinkMeasureConfig",
    "model=model.name dataset=dataset.name data_path=dataset.path k=ks queries=modes examples=n_examples "
    "model.quantization model.dtype model.device model.threads prompt.* num_samples query_start",
    file=True,
)
_ANALYZE = Options("AnalyzeConfig", "label=meanings resamples=n_resamples seeds=fold_seeds heads role")


@command(
    "sinks measure",
    about="Sink mass against hallucination: measure it, analyse it, draw it.",
    settings=_MEASURE,
)
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
def plot_sinks(result: Path, *, k: int | None = None, queries: str | None = None, out: Place = None) -> Shown:
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
