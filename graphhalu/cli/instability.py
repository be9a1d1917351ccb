"""``graphhalu instability``: do heads disagree on the system prompt when it is attacked?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.instability_text import print_calibration, print_verdicts
from graphhalu.cli.output import print_json, print_table, progress_line, read_numbers, say

if TYPE_CHECKING:
    from graphhalu.models.load import LoadedModel
    from graphhalu.studies.instability.series import PromptRecord

app = typer.Typer(
    help="Inter-head instability: do heads disagree on the system prompt under attack?", no_args_is_help=True
)

DETECTED = 3
"""Exit code of ``detect --fail-on-detect`` when a prompt is called an attack."""

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting, as seed=1.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1 …")]
Threads = Annotated[int | None, typer.Option(help="CPU threads. [default: the free cores]")]
System = Annotated[Path | None, typer.Option(help="File with the system prompt.")]
SystemText = Annotated[str | None, typer.Option(help="The system prompt itself.")]
Folder = Annotated[Path, typer.Argument(help="Folder of measured prompts (gather).")]
CalibrationFile = Annotated[Path, typer.Option("--calibration", help="File that calibrate wrote.")]


@app.command()
def gather(
    model: Annotated[
        str | None, typer.Option(help="Alias, hub id, folder or GGUF file. [default: smollm2]")
    ] = None,
    system: System = None,
    system_text: SystemText = None,
    attacks: Annotated[
        Path | None, typer.Option(help="Attacks: one a line, or rows with a column prompt.")
    ] = None,
    benign: Annotated[Path | None, typer.Option(help="Benign prompts, in the same way.")] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="Rows with the columns prompt (or text) and label.")
    ] = None,
    denominator: Annotated[
        str | None, typer.Option(help="Share of the attention to: prompt or everything.")
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest answer. [160]")] = None,
    iterations: Annotated[int | None, typer.Option(help="Answers a prompt. [1]")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 = greedy. [0]")] = None,
    chat: Annotated[str | None, typer.Option(help="Chat template: off, on or auto.")] = None,
    quantization: Annotated[str | None, typer.Option(help="none, int8 or nf4.")] = None,
    device: Device = None,
    threads: Threads = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder. [default: data/instability/<model>]")] = None,
    json: Json = False,
) -> None:
    """Measure attacks and benign prompts step by step; run it again to go on."""
    from graphhalu.studies.instability.measure import gather as measure
    from graphhalu.studies.instability.measure import require_system
    from graphhalu.studies.instability.settings import GatherSettings

    text = _system_text(system, system_text) or ""
    require_system(text)
    asked = _prompts(attacks, benign, prompts)
    settings = _settings(
        GatherSettings,
        set_,
        system=text,
        denominator=denominator,
        max_new_tokens=max_new_tokens,
        iterations=iterations,
        temperature=temperature,
        chat=chat,
    )
    loaded = _loaded(model, device, threads, quantization)
    folder = out or Path("data/instability") / _file_name(loaded.identity)
    with progress_line("prompts") as progress:
        store = measure(loaded, settings, asked, folder, progress.count)
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
    if json:
        print_json(counts)
        return
    print_table(
        ["attacks", "benign", "failed", "ended by themselves", "mean tokens"],
        [
            [
                str(counts["n_attack"]),
                str(counts["n_benign"]),
                str(counts["n_failed"]),
                str(counts["n_finished"]),
                f"{counts['mean_answer_tokens']:.1f}",
            ]
        ],
        title=str(folder),
    )
    for reason in dict.fromkeys(record.failure for record in records if record.failure):
        print(f"  failed: {reason}")


@app.command()
def calibrate(
    folder: Folder,
    spread: Annotated[str | None, typer.Option(help="std, logit or bounded. [std]")] = None,
    starts: Annotated[
        str | None, typer.Option(help="First steps of windows, as 1,5,10; or auto. [auto]")
    ] = None,
    lengths: Annotated[str | None, typer.Option(help="Steps of windows, as 5,20; or auto. [auto]")] = None,
    mid_high: Annotated[str | None, typer.Option(help="Shares of the depth left out at the front.")] = None,
    tail_cut: Annotated[str | None, typer.Option(help="Shares of the depth left out at the end.")] = None,
    folds: Annotated[int | None, typer.Option(help="Outer folds. [5]")] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds of the folds. [0,1,2,3,4]")] = None,
    heads: Annotated[Path | None, typer.Option(help="Published heads for Attention Tracker (JSON).")] = None,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(help="JSON file. [default: calibration.json in the folder]")
    ] = None,
    json: Json = False,
) -> None:
    """Choose window, layers and thresholds in nested folds, beside simpler baselines."""
    from graphhalu.evaluation.files import plain_values
    from graphhalu.studies.instability.calibrate import calibrate as choose
    from graphhalu.studies.instability.calibration import KIND
    from graphhalu.studies.instability.series import SeriesFolder
    from graphhalu.studies.instability.settings import CalibrateSettings
    from graphhalu.studies.instability.tracker import read_important_heads

    settings = _settings(
        CalibrateSettings,
        set_,
        spread=spread,
        starts=read_numbers("--starts", starts),
        lengths=read_numbers("--lengths", lengths),
        mid_high=read_numbers("--mid-high", mid_high, float),
        tail_cut=read_numbers("--tail-cut", tail_cut, float),
        n_folds=folds,
        seeds=read_numbers("--seeds", seeds),
    )
    given = None if heads is None else read_important_heads(heads)
    with progress_line("methods") as progress:
        found = choose(SeriesFolder.open(folder), settings, given_heads=given, on_progress=progress.count)
    path = found.write(out or folder / "calibration.json")
    if json:
        values = plain_values(found, KIND)
        left_out = {"scores", "prompt_ids", "labels"}
        shown = {name: value for name, value in values.items() if name not in left_out}
        print_json({"file": str(path), **shown})
        return
    print_calibration(found)
    say(f"written to {path}")


@app.command()
def detect(
    prompt: Annotated[str | None, typer.Argument(help="The prompt; - reads one a line from stdin.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Prompts: one a line, or rows with a column prompt.")
    ] = None,
    calibration: CalibrationFile = Path("calibration.json"),
    method: Annotated[str, typer.Option(help="instability or attention_tracker.")] = "instability",
    fpr: Annotated[str, typer.Option(help="Rate of false alarms of the threshold, or f1.")] = "0.05",
    model: Annotated[str | None, typer.Option(help="The model. [default: that of the calibration]")] = None,
    system: System = None,
    system_text: SystemText = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer. [default: to the window's end]")
    ] = None,
    device: Device = None,
    threads: Threads = None,
    fail_on_detect: Annotated[
        bool,
        typer.Option(
            "--fail-on-detect",
            help="Exit 3 if a prompt is called an attack, 1 if none is but one has no score.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Score prompts with a calibration: score, verdict, step at which it crossed."""
    from graphhalu.studies.instability.calibration import read_calibration
    from graphhalu.studies.instability.detect import PromptDetector

    name = _method(method)
    aim = _aim(fpr)
    asked = _asked(prompt, file)
    known = read_calibration(calibration)
    known.threshold(name, aim)
    loaded = _loaded(model or known.identity.model, device, threads, known.identity.quantization)
    detector = PromptDetector(
        loaded,
        known,
        method=name,
        aim=aim,
        system=_system_text(system, system_text),
        max_new_tokens=max_new_tokens,
    )
    with progress_line("prompts") as progress:
        verdicts = detector.score(asked, progress.count)
    print_verdicts(verdicts, name, detector.threshold, json)
    if fail_on_detect and any(verdict.is_attack for verdict in verdicts):
        raise typer.Exit(DETECTED)
    if fail_on_detect and any(verdict.is_attack is None for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def plot(
    folder: Folder,
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="[default: calibration.json in the folder]")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of page and figures. [default: <folder>/report]")
    ] = None,
    json: Json = False,
) -> None:
    """Draw the study: one page, and its figures as PNG and SVG."""
    from graphhalu.report.instability_page import write_study
    from graphhalu.studies.instability.calibration import read_calibration
    from graphhalu.studies.instability.series import SeriesFolder

    known = read_calibration(calibration or folder / "calibration.json")
    files = write_study(SeriesFolder.open(folder), known, out or folder / "report")
    if json:
        print_json({"html": str(files.html), "figures": [str(path) for path in files.figures]})
        return
    print(files.html)
    for path in files.figures:
        print(path)


def _system_text(file: Path | None, text: str | None) -> str | None:
    from graphhalu.core.errors import UsageError

    if file is None:
        return text
    if text is not None:
        message = "--system and --system-text both name a system prompt; use one of them"
        raise UsageError(message)
    if not file.is_file():
        message = f"no system prompt at {file}: --system takes a file, --system-text a text"
        raise UsageError(message)
    try:
        found = file.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        message = f"{file} is no UTF-8 text"
        raise UsageError(message) from None
    if not found:
        message = f"{file} is empty: there is no system prompt in it"
        raise UsageError(message)
    return found


def _prompts(attacks: Path | None, benign: Path | None, both: Path | None) -> "list[PromptRecord]":
    from graphhalu.core.errors import UsageError
    from graphhalu.studies.instability.prompts import ATTACK, BENIGN, read_prompts

    if both is not None and attacks is None and benign is None:
        return read_prompts(both, None)
    if both is not None or attacks is None or benign is None:
        message = "expected --attacks FILE and --benign FILE, or --prompts FILE with a column label"
        raise UsageError(message)
    return [*read_prompts(attacks, ATTACK), *read_prompts(benign, BENIGN)]


def _asked(prompt: str | None, file: Path | None) -> "list[PromptRecord]":
    """Prompts of the command line, of a file, or of stdin."""
    import sys

    from graphhalu.core.errors import UsageError
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


def _method(name: str) -> Any:
    from graphhalu.core.registry import unknown_name
    from graphhalu.studies.instability.calibration import MAIN, TRACKER

    if name not in (MAIN, TRACKER):
        raise unknown_name("method", name, (MAIN, TRACKER))
    return name


def _aim(text: str) -> float | None:
    if text == "f1":
        return None
    rate: float = read_numbers("--fpr", text, float)[0]
    return rate


def _settings(kind: Any, set_: list[str] | None, **options: Any) -> Any:
    from graphhalu.core.config import load_config, read_overrides

    given = {name: value for name, value in options.items() if value is not None}
    return load_config(kind, None, {**given, **read_overrides(set_ or [])})


def _loaded(
    model: str | None, device: str | None, threads: int | None, quantization: str | None
) -> "LoadedModel":
    from graphhalu.core.config import load_config
    from graphhalu.models.check import check_model
    from graphhalu.models.load import ModelSpec, load_model

    is_stored = quantization is not None and quantization.startswith("stored")
    options = {
        "name": model,
        "device": device,
        "threads": threads,
        "quantization": None if is_stored else quantization,
    }
    given = {name: value for name, value in options.items() if value is not None}
    loaded = load_model(load_config(ModelSpec, None, given))
    check_model(loaded)
    return loaded


def _file_name(identity: dict[str, Any]) -> str:
    import re

    return re.sub(r"[^\w.-]+", "_", str(identity["name"])).strip("._") or "model"
