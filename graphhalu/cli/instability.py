"""Inter-head instability: do heads disagree on the system prompt under attack?"""

import sys
from collections import Counter
from pathlib import Path

import typer

from graphhalu.cli import library
from graphhalu.cli.options import Options, Place, command
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


@command("instability gather", settings=_GATHER, spec=_GATHER_MODEL)
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
