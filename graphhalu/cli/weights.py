"""Commands ``graphhalu weights``: profiles of weights, validated against traces."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.output import file_word, number_text, print_json, print_table, progress_line, say

if TYPE_CHECKING:
    from graphhalu.labels.labels import Labels
    from graphhalu.studies.weights.validation import Validation
    from graphhalu.traces.store import TraceStore
    from graphhalu.weights.layer import ProfileSettings
    from graphhalu.weights.read import Weights
    from graphhalu.weights.tables import WeightProfile

app = typer.Typer(
    help="Weights of a model: profile, validation against traces, comparison.", no_args_is_help=True
)

Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]
Svg = Annotated[bool, typer.Option("--svg", help="Write figures as SVG files, too.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Any setting, as n_keys=128.")]


@app.command()
def profile(
    model: Annotated[
        str, typer.Argument(help="Alias, hub id, folder of safetensors or GGUF file.")
    ] = "smollm2",
    spectra: Annotated[str | None, typer.Option(help="full, or largest: quick for large models.")] = None,
    revision: Annotated[str | None, typer.Option(help="Revision of a hub model.")] = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder. [default: data/weights/<model>]")] = None,
    rows: Annotated[int, typer.Option(min=0, help="Rows of the table; the files have all.")] = 40,
    json: Json = False,
) -> None:
    """Compute norms, spectra and circuits of every head from the weights, without running it."""
    from graphhalu.core.config import load_config, read_overrides
    from graphhalu.weights.layer import ProfileSettings
    from graphhalu.weights.read import open_weights

    given = {**({"spectra": spectra} if spectra else {}), **read_overrides(set_ or [])}
    settings = load_config(ProfileSettings, None, given)
    weights = open_weights(model, revision)
    folder = out or _folder(weights)
    found = _made_profile(weights, settings, folder)
    if json:
        values = {
            "folder": str(folder),
            "model": found.model,
            "notes": found.notes,
            "mixed_types": [{"part": m.part, "types": m.types} for m in found.mixed()],
            "layers": found.layers.to_pylist(),
        }
        print_json(values)
        return
    _print_profile(found, rows)
    say(f"written to {folder}; hold it against traces:  graphhalu weights validate")


@app.command()
def validate(
    traces: Annotated[
        Path | None, typer.Argument(help="The store. [default: the newest finished one]")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The model. [default: that of the traces]")] = None,
    profile: Annotated[
        Path | None,
        typer.Option("--profile", help="Folder of its profile. [default: made when it is missing]"),
    ] = None,
    labeller: Annotated[str, typer.Option(help="Rule that decides what is hallucinated.")] = "match",
    num_traces: Annotated[int | None, typer.Option(min=1, help="Only the first traces.")] = None,
    risk: Annotated[Path | None, typer.Option(help="YAML file with components of the risk.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any setting, as n_resamples=500.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result. [default: that of the profile]")
    ] = None,
    json: Json = False,
) -> None:
    """Hold a profile against the traces of the same model, and give each claim a verdict."""
    from graphhalu.cli.analyse import open_store
    from graphhalu.core.config import load_config, read_overrides, read_yaml
    from graphhalu.report.weights_page import profile_page
    from graphhalu.report.write import REPORT_FILE, write_page
    from graphhalu.studies.weights.validation import ValidateSettings
    from graphhalu.studies.weights.validation import validate as run_validation
    from graphhalu.weights.read import open_weights

    given: dict[str, Any] = {"risk": read_yaml(risk)} if risk is not None else {}
    settings = load_config(ValidateSettings, None, {**given, **read_overrides(set_ or [])})
    store = open_store(traces)[:num_traces]
    identity = dict(store.configuration.get("model", {}))
    weights = open_weights(_model_of(model, identity))
    found, folder = _profile_of(profile, weights)
    labels = _labels(store, labeller)
    with progress_line("steps") as progress:
        said = {"name": store.path.name, "n_traces": len(store), "model": identity}
        result = run_validation(
            found, weights, store, labels, store=said, settings=settings, on_progress=progress.count
        )
    target = out or folder
    result.write(target)
    files = write_page(profile_page(found, result), target / REPORT_FILE)
    if json:
        print_json({"folder": str(target), "report": str(files.html), **result.values()})
        return
    _print_validation(result)
    say(f"{files.html} shows it, with figures")


@app.command()
def plot(
    folder: Annotated[Path, typer.Argument(help="Folder of a profile.")],
    validation: Annotated[
        Path | None, typer.Option(help="Folder of its validation. [default: the same]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder. [default: that of the profile]")] = None,
    svg: Svg = False,
    json: Json = False,
) -> None:
    """Draw a profile, with its validation where there is one; the risk never without."""
    from graphhalu.report.weights_page import profile_page
    from graphhalu.report.write import REPORT_FILE, write_page
    from graphhalu.studies.weights.validation import VALIDATION_FILE, read_validation
    from graphhalu.weights.tables import read_profile

    found = read_profile(folder)
    place = validation or folder
    is_there = validation is not None or (folder / VALIDATION_FILE).is_file()
    checked = read_validation(place) if is_there else None
    files = write_page(profile_page(found, checked), (out or folder) / REPORT_FILE, has_svg=svg)
    if json:
        print_json({"html": str(files.html), "figures": [str(path) for path in files.figures]})
    else:
        print(files.html)
        say(f"{len(files.figures)} figures are beside it")
    if checked is None:
        say("without a validation no risk is drawn:  graphhalu weights validate")


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a profile.")],
    second: Annotated[Path, typer.Argument(help="Folder of another one.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of page and figures. [default: none is written]")
    ] = None,
    json: Json = False,
) -> None:
    """Compare two models, or two quantisations of one model."""
    from dataclasses import asdict

    from graphhalu.report.weights_page import comparison_page
    from graphhalu.report.write import REPORT_FILE, write_page
    from graphhalu.weights.compare import compare_profiles
    from graphhalu.weights.tables import read_profile

    profiles = [read_profile(path) for path in (first, second)]
    found = compare_profiles(*profiles)
    if out is not None:
        write_page(comparison_page(profiles[0], profiles[1], found), out / REPORT_FILE)
    if json:
        print_json({**asdict(found), "folder": None if out is None else str(out)})
        return
    print_table(
        ["quantity", "of", "first", "second", "rank corr.", "change"],
        [
            [
                row.quantity,
                row.level,
                number_text(row.first, ".3g"),
                number_text(row.second, ".3g"),
                number_text(row.correlation, "+.3f"),
                number_text(row.change, ".1%"),
            ]
            for row in found.rows
        ],
        title=f"{found.names[0]} and {found.names[1]}: medians",
    )
    for part, (one, other) in found.zeros.items():
        print(f"exact zeros of {part}: {one:.2%} and {other:.2%}")
    for part, reason in found.refused.items():
        print(f"exact zeros of {part} are not compared: {reason}")
    for warning in found.warnings:
        say(f"note: {warning}")


def _model_of(model: str | None, identity: dict[str, Any]) -> str:
    from graphhalu.core.errors import UsageError

    name = model or identity.get("name")
    if not name:
        message = "the store does not say of which model it is\n  Name it with --model"
        raise UsageError(message)
    return str(name)


def _profile_of(folder: Path | None, weights: "Weights") -> "tuple[WeightProfile, Path]":
    """A stored profile; made now where none was named and none is there."""
    from graphhalu.weights.layer import ProfileSettings
    from graphhalu.weights.tables import PROFILE_FILE, read_profile

    place = folder or _folder(weights)
    if folder is not None or (place / PROFILE_FILE).is_file():
        return read_profile(place), place
    name = weights.identity["name"]
    say(f"profiling {name}, which takes a minute or more; kept in {place}")
    return _made_profile(weights, ProfileSettings(), place), place


def _made_profile(weights: "Weights", settings: "ProfileSettings", folder: Path) -> "WeightProfile":
    from graphhalu.heads.files import write_heads
    from graphhalu.studies.weights.heads import head_tables
    from graphhalu.weights.profile import profile_model

    with progress_line("steps") as progress:
        found = profile_model(weights, settings, progress.count)
    found.write(folder)
    write_heads(folder / "heads.json", head_tables(found))
    return found


def _folder(weights: "Weights") -> Path:
    return Path("data/weights") / file_word(str(weights.identity["name"]))


def _labels(store: "TraceStore", labeller: str) -> "Labels":
    """Labels of these traces; a registered rule is applied now and nothing is written."""
    from graphhalu.labels.registry import LABELLERS, make_labeller
    from graphhalu.labels.run import label_records, read_labels, stored_labellers

    if labeller in stored_labellers(store) and labeller not in LABELLERS:
        return read_labels(store, labeller)
    return label_records(store.records, make_labeller(labeller))


def _print_profile(found: "WeightProfile", n_rows: int) -> None:
    shown = {
        "logit_variance": "s²",
        "peaked_share": "peaked",
        "value_norm": "values",
        "copying": "copying",
        "attention_gain": "attn gain",
        "mlp_gain": "mlp gain",
        "tail_alpha": "alpha",
    }
    columns = [found.of_layers(name)[:n_rows] for name in shown]
    print_table(
        ["layer", *shown.values()],
        [
            [str(layer), *(number_text(value, ".3g") for value in values)]
            for layer, values in enumerate(zip(*columns, strict=True))
        ],
        title=f"{found.name}: hypotheses from weights alone (gains are estimates)",
    )
    for note in found.notes:
        say(f"note: {note}")
    for mixed in found.mixed():
        say(f"mixed storage types: {mixed.text()}")
        for kind, names in mixed.types.items():
            say(f"  {kind}: {', '.join(names)}")


def _print_validation(result: "Validation") -> None:
    rows = []
    for row in result.rows:
        name = row.static + (" *" if row.is_mixed else "")
        against = f"{row.measured} ({row.level})"
        if row.verdict == "not tested":
            rows.append([name, against, "-", row.verdict])
            continue
        correlation = f"{row.rho:+.2f}\n[{row.low:+.2f},{row.high:+.2f}]"
        verdict = f"{row.verdict}\nq {number_text(row.q_value)}"
        rows.append([name, against, re.sub(r"\b0\.", ".", correlation), verdict])
    print_table(
        ["from weights", "measured", "rank corr.", "verdict"],
        rows,
        title=f"{result.model.get('name')}: weights against {result.measured.n_traces} traces",
    )
    if any(row.is_mixed for row in result.rows):
        say("* reads parts that are stored in more than one type")
    for what, why in result.missing.items():
        say(f"not measured: {what}: {why}")
