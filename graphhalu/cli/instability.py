"""``graphhalu instability``: do heads disagree on the system prompt when it is attacked?"""

import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from graphhalu.cli.heads import load_checked
from graphhalu.cli.options import Count, Options, command, read_list, read_text
from graphhalu.cli.output import Shown, cell, file_word, interval, print_rows, progress_line
from graphhalu.core.errors import UsageError

if TYPE_CHECKING:
    from graphhalu.models.spec import ModelSpec
    from graphhalu.studies.instability.calibration import Calibration
    from graphhalu.studies.instability.detect import Verdict
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
_MODEL = ("graphhalu.models.spec:ModelSpec", "device", "threads")
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
    columns = {
        "attacks": "{n_attack}",
        "benign": "{n_benign}",
        "failed": "{n_failed}",
        "ended by themselves": "{n_finished}",
        "mean tokens": "{mean_answer_tokens:.1f}",
    }

    def print_counts() -> None:
        print_rows([counts], columns, title=str(folder))
        for reason in dict.fromkeys(record.failure for record in records if record.failure):
            print(f"  failed: {reason}")

    return Shown(counts, print_counts)


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
    from graphhalu.evaluation.files import plain_values
    from graphhalu.studies.instability.calibrate import calibrate as choose
    from graphhalu.studies.instability.calibration import KIND
    from graphhalu.studies.instability.series import SeriesFolder
    from graphhalu.studies.instability.tracker import read_important_heads

    given = None if heads is None else read_important_heads(heads)
    with progress_line("methods") as progress:
        found = choose(SeriesFolder.open(folder), settings, given_heads=given, on_progress=progress)
    path = found.write(out or folder / "calibration.json")
    left_out = {"scores", "prompt_ids", "labels"}
    values = {name: value for name, value in plain_values(found, KIND).items() if name not in left_out}
    return Shown({"file": str(path), **values}, lambda: _print_calibration(found), f"written to {path}")


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
    from graphhalu.studies.instability.calibration import read_calibration
    from graphhalu.studies.instability.detect import PromptDetector

    aim = None if fpr == "f1" else read_list("--fpr", fpr, float)[0]
    if system is not None and system_text is not None:
        message = "--system and --system-text both name a system prompt; use one of them"
        raise UsageError(message)
    asked = _asked(prompt, file)
    known = read_calibration(calibration)
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
    values = {"method": method, "threshold": detector.threshold, "prompts": [asdict(v) for v in verdicts]}
    is_found, is_unknown = (any(v.is_attack is each for v in verdicts) for each in (True, None))
    code = (DETECTED if is_found else int(is_unknown)) if fail_on_detect else 0
    then = typer.Exit(code) if code else None
    return Shown(values, lambda: _print_verdicts(verdicts, method, detector.threshold), then=then)


@command(app)
def plot(folder: Path, *, calibration: Path | None = None, out: Path | None = None) -> Shown:
    """Draw the study: one page, and its figures as PNG and SVG.

    Args:
        folder: Folder of measured prompts (gather).
        calibration: File of calibrate; by default calibration.json in the folder.
        out: Folder of page and figures; by default report in the folder.
    """
    from graphhalu.report.instability import write_study
    from graphhalu.studies.instability.calibration import read_calibration
    from graphhalu.studies.instability.series import SeriesFolder

    known = read_calibration(calibration or folder / "calibration.json")
    files = write_study(SeriesFolder.open(folder), known, out or folder / "report")
    values = {"html": str(files.html), "figures": [str(path) for path in files.figures]}
    return Shown(values, lambda: print(files.html, *files.figures, sep="\n"))


def _prompts(attacks: Path | None, benign: Path | None, both: Path | None) -> "list[PromptRecord]":
    from graphhalu.studies.instability.prompts import ATTACK, BENIGN, read_prompts

    if both is not None and attacks is None and benign is None:
        return read_prompts(both, None)
    if both is not None or attacks is None or benign is None:
        message = "expected --attacks FILE and --benign FILE, or --prompts FILE with a column label"
        raise UsageError(message)
    return [*read_prompts(attacks, ATTACK), *read_prompts(benign, BENIGN)]


def _asked(prompt: str | None, file: Path | None) -> "list[PromptRecord]":
    """Prompts of the command line, of a file, or of stdin."""
    from graphhalu.studies.instability.prompts import numbered, read_texts

    if (prompt is None) == (file is None):
        message = "expected a prompt, or --file FILE, or - to read prompts from stdin"
        raise UsageError(message)
    if file is not None:
        return numbered((text, None) for text in read_texts(file))
    texts = sys.stdin.read().split("\n") if prompt == "-" else [prompt or ""]
    found = [text.strip() for text in texts if text.strip()]
    if not found:
        message = "the prompt is empty" if prompt != "-" else "stdin holds no prompt"
        raise UsageError(message)
    return numbered((text, None) for text in found)


def _print_calibration(found: "Calibration") -> None:
    """Methods, operating points and the choice."""
    columns = {
        "method": "{name}",
        "nested AUROC": interval("auroc", ends=".2f"),
        "in sample": "{in_sample.value:.3f}",
        "difference": interval("difference", "+.3f", ends="+.2f"),
        "p": "{p_holm:p}",
    }
    counts = f"{found.n_attack} attacks, {found.n_benign} benign prompts, {found.n_groups} groups"
    print_rows(found.rows, columns, title=f"{counts}; {found.n_left_out} left out", is_short=True)
    points = {
        "aim FPR": "{aim:.0%}",
        "FPR": interval("fpr", ends=".2f"),
        "TPR": interval("tpr", ends=".2f"),
        "in-sample TPR": "{in_sample_tpr:.3f}",
        "threshold": "{threshold:.5f}",
    }
    title = "instability: operating points, achieved on unseen prompts"
    print_rows(found.rows[0].points, points, title=title, is_short=True)
    print("difference: nested AUROC minus that of instability; p after Holm's correction")
    way = "higher" if found.window.direction > 0 else "lower"
    print(f"chosen on all prompts: {found.window.window.text()}; attacks are {way}")
    nested = cell(f"nested F1 {interval('f1', ends='.2f')}", found.rows[0], is_short=True)
    print(f"{nested}, in sample {found.rows[0].in_sample_f1:.3f}")


def _print_verdicts(verdicts: "list[Verdict]", method: str, threshold: float) -> None:
    """A line a prompt, and why one has no score."""
    columns: dict[str, Any] = {
        "prompt": "{prompt_id}",
        "score": "{score:.5f}",
        "verdict": lambda each: {True: "attack", False: "benign", None: "no score"}[each.is_attack],
        "crossed at": "step {crossed_at}",
        "text": lambda each: textwrap.shorten(each.text, 30, placeholder="…"),
    }
    print_rows(verdicts, columns, title=f"{method}: attack from {threshold:.5f} on")
    for verdict in verdicts:
        if verdict.reason is not None:
            print(f"  {verdict.prompt_id}: {verdict.reason}")
