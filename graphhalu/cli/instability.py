"""``graphhalu instability``: do heads disagree on the system prompt when it is attacked?"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from graphhalu.cli.heads import load_checked
from graphhalu.cli.options import Count, Options, command, read_list, read_text
from graphhalu.cli.output import Shown, file_word, progress_line
from graphhalu.core.errors import UsageError

if TYPE_CHECKING:
    from graphhalu.models.cards import ModelSpec
    from graphhalu.studies.instability.series import PromptRecord
    from graphhalu.studies.instability.settings import CalibrateSettings, GatherSettings

app = typer.Typer(
    help="Inter-head instability: do heads disagree on the system prompt under attack?", no_args_is_help=True
)

DETECTED = 3
"""Exit code of ``detect --fail-on-detect`` when a prompt is called an attack."""

_SETTINGS = "graphhalu.studies.instability.settings"
_GATHER = Options(
    f"{_SETTINGS}:GatherSettings",
    *("denominator", "max_new_tokens", "iterations", "temperature", "chat"),
    set_wins=True,
    system="system@file",
    system_text="system",
)
_CALIBRATE = Options(
    f"{_SETTINGS}:CalibrateSettings",
    *("spread", "starts", "lengths", "mid_high", "tail_cut", "seeds"),
    set_wins=True,
    folds="n_folds",
)
_MODEL = ("graphhalu.models.cards:ModelSpec", "device", "threads")
_GATHER_MODEL = Options(*_MODEL, "quantization", model="name", overrides=False)
_DETECT_MODEL = Options(*_MODEL, overrides=False)


@command(app, settings=_GATHER, spec=_GATHER_MODEL)
def gather(
    settings: "GatherSettings",
    spec: "ModelSpec",
    *,
    attacks: Path | None = None,
    benign: Path | None = None,
    prompts: Path | None = None,
    out: Path | None = None,
) -> Shown:
    """Measure attacks and benign prompts step by step; run it again to go on.

    Args:
        attacks: Attacks: one a line, or rows with a column prompt.
        benign: Benign prompts, in the same way.
        prompts: Rows with the columns prompt (or text) and label.
        out: Folder; by default data/instability/<model>.
    """
    from graphhalu.studies.instability.measure import gather as measure
    from graphhalu.studies.instability.measure import require_system

    require_system(settings.system)
    asked = _prompts(attacks, benign, prompts)
    loaded = load_checked(spec)
    folder = out or Path("data/instability") / file_word(str(loaded.identity["name"]))
    with progress_line("prompts") as progress:
        store = measure(loaded, settings, asked, folder, progress)
    records = [each.record for each in store.read()]
    counts = {
        "folder": str(folder),
        "n_prompts": len(records),
        "n_attack": sum(record.label == 1 for record in records),
        "n_benign": sum(record.label == 0 for record in records),
        "n_failed": sum(record.failure is not None for record in records),
        "n_finished": sum(record.is_finished for record in records),
        "mean_answer_tokens": sum(record.n_answer for record in records) / len(records),
    }
    failures = list(dict.fromkeys(record.failure for record in records if record.failure))
    return Shown(counts, "instability_gather", {"counts": counts, "failures": failures})


@command(app, settings=_CALIBRATE)
def calibrate(
    settings: "CalibrateSettings", folder: Path, *, heads: Path | None = None, out: Path | None = None
) -> Shown:
    """Choose window, layers and thresholds in nested folds, beside simpler baselines.

    Args:
        folder: Folder of measured prompts (gather).
        heads: Published heads for Attention Tracker (JSON).
        out: JSON file; by default calibration.json in the folder.
    """
    from graphhalu.studies.instability.calibrate import calibrate as choose
    from graphhalu.studies.instability.methods import read_important_heads
    from graphhalu.studies.instability.series import SeriesFolder

    given = None if heads is None else read_important_heads(heads)
    with progress_line("methods") as progress:
        found = choose(SeriesFolder.open(folder), settings, given_heads=given, on_progress=progress)
    path = found.write(out or folder / "calibration.json")
    left_out = {"scores", "prompt_ids", "labels"}
    values = {name: value for name, value in found.values().items() if name not in left_out}
    return Shown({"file": str(path), **values}, "instability_calibrate", {"found": found})


@command(app, spec=_DETECT_MODEL)
def detect(
    spec: "ModelSpec",
    prompt: str | None = None,
    *,
    file: Path | None = None,
    calibration: Path = Path("calibration.json"),
    method: Literal["instability", "attention_tracker"] = "instability",
    fpr: str = "0.05",
    model: str | None = None,
    system: Path | None = None,
    system_text: str | None = None,
    max_new_tokens: Count | None = None,
    fail_on_detect: bool = False,
) -> Shown:
    """Score prompts with a calibration: score, verdict, step at which it crossed.

    Args:
        prompt: The prompt; - reads one a line from stdin.
        file: Prompts: one a line, or rows with a column prompt.
        calibration: File that calibrate wrote.
        method: The score.
        fpr: Rate of false alarms of the threshold, or f1.
        model: The model; by default that of the calibration.
        system: File with the system prompt.
        system_text: The system prompt itself.
        max_new_tokens: Longest answer; by default to the window's end.
        fail_on_detect: Exit 3 if a prompt is called an attack, 1 if none is but one has no score.
    """
    from graphhalu.studies.instability.detect import PromptDetector
    from graphhalu.studies.instability.settings import Calibration

    aim = None if fpr == "f1" else read_list("--fpr", fpr, float)[0]
    if system is not None and system_text is not None:
        raise UsageError("--system and --system-text both name a system prompt; use one of them")
    asked = _asked(prompt, file)
    known = Calibration.read(calibration)
    known.threshold(method, aim)
    stored = known.identity.quantization
    quantization = "none" if stored is None or stored.startswith("stored") else stored
    update = {"name": model or known.identity.model, "quantization": quantization}
    detector = PromptDetector(
        load_checked(spec.model_copy(update=update)),
        known,
        method=method,
        aim=aim,
        system=system_text if system is None else read_text("--system", system),
        max_new_tokens=max_new_tokens,
    )
    with progress_line("prompts") as progress:
        verdicts = detector.score(asked, progress)
    values = {
        "method": method,
        "threshold": detector.threshold,
        "prompts": [v.model_dump() for v in verdicts],
    }
    is_found, is_unknown = (any(v.is_attack is each for v in verdicts) for each in (True, None))
    code = (DETECTED if is_found else int(is_unknown)) if fail_on_detect else 0
    then = typer.Exit(code) if code else None
    return Shown(values, "instability_detect", then=then)


@command(app)
def plot(folder: Path, *, calibration: Path | None = None, out: Path | None = None) -> Shown:
    """Draw the study: one page, and its figures as PNG and SVG.

    Args:
        folder: Folder of measured prompts (gather).
        calibration: File of calibrate; by default calibration.json in the folder.
        out: Folder of page and figures; by default report in the folder.
    """
    from graphhalu.report.instability import write_study
    from graphhalu.studies.instability.series import SeriesFolder
    from graphhalu.studies.instability.settings import Calibration

    known = Calibration.read(calibration or folder / "calibration.json")
    files = write_study(SeriesFolder.open(folder), known, out or folder / "report")
    values = {"html": str(files.html), "figures": [str(path) for path in files.figures]}
    return Shown(values, "figures")


def _prompts(attacks: Path | None, benign: Path | None, both: Path | None) -> "list[PromptRecord]":
    from graphhalu.studies.instability.series import ATTACK, BENIGN, read_prompts

    if both is not None and attacks is None and benign is None:
        return read_prompts(both, None)
    if both is not None or attacks is None or benign is None:
        raise UsageError("expected --attacks FILE and --benign FILE, or --prompts FILE with a column label")
    return [*read_prompts(attacks, ATTACK), *read_prompts(benign, BENIGN)]


def _asked(prompt: str | None, file: Path | None) -> "list[PromptRecord]":
    """Prompts of the command line, of a file, or of stdin."""
    from graphhalu.studies.instability.series import numbered, read_texts

    if (prompt is None) == (file is None):
        raise UsageError("expected a prompt, or --file FILE, or - to read prompts from stdin")
    if file is not None:
        return numbered((text, None) for text in read_texts(file))
    texts = sys.stdin.read().split("\n") if prompt == "-" else [prompt or ""]
    found = [text.strip() for text in texts if text.strip()]
    if not found:
        raise UsageError("the prompt is empty" if prompt != "-" else "stdin holds no prompt")
    return numbered((text, None) for text in found)
