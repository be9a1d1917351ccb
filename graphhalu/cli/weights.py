"""Commands ``graphhalu weights``: profiles of weights, validated against traces."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from graphhalu.cli.options import Options, Size, command
from graphhalu.cli.output import Shown, file_word, progress_line, say
from graphhalu.cli.store import open_store
from graphhalu.core.errors import UsageError

if TYPE_CHECKING:
    from graphhalu.labels.labels import Labels
    from graphhalu.traces.store import TraceStore
    from graphhalu.weights.layer import ProfileSettings
    from graphhalu.weights.read import Weights
    from graphhalu.weights.tables import WeightProfile

app = typer.Typer(
    help="Weights of a model: profile, validation against traces, comparison.", no_args_is_help=True
)

_PROFILE = Options("graphhalu.weights.layer:ProfileSettings", "spectra", set_wins=True)
_SHOWN = {
    "s²": "logit_variance",
    "peaked": "peaked_share",
    "values": "value_norm",
    "copying": "copying",
    "attn gain": "attention_gain",
    "mlp gain": "mlp_gain",
    "alpha": "tail_alpha",
}


@command(app, settings=_PROFILE)
def profile(
    settings: "ProfileSettings",
    model: str = "smollm2",
    *,
    revision: str | None = None,
    out: Path | None = None,
    rows: Size = 40,
) -> Shown:
    """Compute norms, spectra and circuits of every head from the weights, without running it.

    Args:
        model: Alias, hub id, folder of safetensors or GGUF file.
        revision: Revision of a hub model.
        out: Folder; by default data/weights/<model>.
        rows: Rows of the table; the files have all.
    """
    from graphhalu.weights.read import open_weights

    weights = open_weights(model, revision)
    folder = out or _folder(weights)
    found = _made_profile(weights, settings, folder)
    values = {
        "folder": str(folder),
        "model": found.model,
        "notes": found.notes,
        "mixed_types": [{"part": mixed.part, "types": mixed.types} for mixed in found.mixed()],
        "layers": found.layers.to_pylist(),
    }
    columns = [found.of_layers(column)[:rows] for column in _SHOWN.values()]
    listed = [dict(zip(_SHOWN, each, strict=True)) for each in zip(*columns, strict=True)]
    more = {"rows": [{"layer": layer, **each} for layer, each in enumerate(listed)], "names": list(_SHOWN)}
    return Shown(values, "weights_profile", {**more, "name": found.name, "mixed": found.mixed()})


@command(app, given=Options())
def validate(
    given: dict[str, Any],
    traces: Path | None = None,
    *,
    model: str | None = None,
    profile: Path | None = None,
    labeller: str = "match",
    num_traces: int | None = None,
    risk: Path | None = None,
    out: Path | None = None,
) -> Shown:
    """Hold a profile against the traces of the same model, and give each claim a verdict.

    Args:
        model: The model; by default that of the traces.
        profile: Folder of its profile; by default made when it is missing.
        risk: YAML file with components of the risk.
        out: Folder of the result; by default that of the profile.
    """
    from graphhalu.core.config import load_config, read_yaml
    from graphhalu.report.weights import profile_page
    from graphhalu.report.write import REPORT_FILE, write_page
    from graphhalu.studies.weights.validation import ValidateSettings
    from graphhalu.studies.weights.validation import validate as run_validation
    from graphhalu.weights.read import open_weights

    settings = load_config(ValidateSettings, None, ({"risk": read_yaml(risk)} if risk else {}) | given)
    store = open_store(traces)[:num_traces]
    identity = dict(store.configuration.get("model", {}))
    weights = open_weights(_model_of(model, identity))
    found, folder = _profile_of(profile, weights)
    labels = _labels(store, labeller)
    about = {"name": store.path.name, "n_traces": len(store), "model": identity}
    with progress_line("steps") as progress:
        result = run_validation(
            found, weights, store, labels, store=about, settings=settings, on_progress=progress
        )
    target = out or folder
    result.write(target)
    files = write_page(profile_page(found, result), target / REPORT_FILE)
    values = {"folder": str(target), "report": str(files.html), **result.values()}
    rows = [{**vars(row), "is_tested": row.verdict != "not tested"} for row in result.rows]
    return Shown(values, "weights_validate", {"result": result, "rows": rows})


@command(app)
def plot(
    folder: Path, *, validation: Path | None = None, out: Path | None = None, svg: bool = False
) -> Shown:
    """Draw a profile, with its validation where there is one; the risk never without.

    Args:
        folder: Folder of a profile.
        validation: Folder of its validation; by default the same.
        out: Folder; by default that of the profile.
    """
    from graphhalu.report.weights import profile_page
    from graphhalu.report.write import REPORT_FILE, write_page
    from graphhalu.studies.weights.validation import VALIDATION_FILE, Validation
    from graphhalu.weights.tables import read_profile

    found = read_profile(folder)
    is_validated = validation is not None or (folder / VALIDATION_FILE).is_file()
    checked = Validation.read(validation or folder) if is_validated else None
    files = write_page(profile_page(found, checked), (out or folder) / REPORT_FILE, has_svg=svg)
    values = {"html": str(files.html), "figures": [str(path) for path in files.figures]}
    return Shown(values, "weights_plot", {"is_validated": is_validated})


@command(app)
def compare(first: Path, second: Path, *, out: Path | None = None) -> Shown:
    """Compare two models, or two quantisations of one model.

    Args:
        first: Folder of a profile.
        second: Folder of another one.
        out: Folder of page and figures; by default none.
    """
    from graphhalu.report.weights import comparison_page
    from graphhalu.report.write import REPORT_FILE, write_page
    from graphhalu.weights.compare import compare_profiles
    from graphhalu.weights.tables import read_profile

    profiles = [read_profile(path) for path in (first, second)]
    found = compare_profiles(*profiles)
    if out is not None:
        write_page(comparison_page(profiles[0], profiles[1], found), out / REPORT_FILE)
    return Shown({**asdict(found), "folder": None if out is None else str(out)}, "weights_compare")


def _model_of(model: str | None, identity: dict[str, Any]) -> str:
    name = model or identity.get("name")
    if not name:
        raise UsageError("the store does not say of which model it is\n  Name it with --model")
    return str(name)


def _profile_of(folder: Path | None, weights: "Weights") -> "tuple[WeightProfile, Path]":
    """A stored profile and its folder; made now if none was named and none is stored."""
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
    from graphhalu.studies.weights.validation import head_tables
    from graphhalu.weights.profile import profile_model

    with progress_line("steps") as progress:
        found = profile_model(weights, settings, progress)
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
