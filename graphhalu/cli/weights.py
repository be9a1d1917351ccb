"""Weights of a model: profile, validation against traces, comparison."""

from pathlib import Path
from typing import Any

from graphhalu.cli import library
from graphhalu.cli.options import Options, Place, Size, command
from graphhalu.cli.output import ProgressLine, Shown, file_word, say
from graphhalu.cli.store import open_store
from graphhalu.core.errors import UsageError

_PROFILE = Options("ProfileSettings", "spectra", set_wins=True)


@command("weights profile", settings=_PROFILE)
def profile(
    settings: "library.ProfileSettings",
    model: str = "smollm2",
    *,
    revision: str | None = None,
    out: Place = None,
    rows: Size = 40,
) -> Shown:
    """Compute norms, spectra and circuits of every head from the weights, without running it.

    Args:
        model: Alias, hub id, folder of safetensors or GGUF file.
        revision: Revision of a hub model.
        out: Folder; by default data/weights/<model>.
        rows: Rows of the table; the files have all.
    """
    weights = library.open_weights(model, revision)
    folder = out or _folder(weights)
    found = _made_profile(weights, settings, folder)
    mixed = [{"part": part, "types": types} for part, types in found.mixed().items()]
    values = {"folder": folder, "model": found.model, "notes": found.notes, "mixed_types": mixed}
    values["layers"] = found.layers.to_pylist()
    return Shown(values, "weights_profile", {"found": found, "n_shown": rows})


@command("weights validate", given=Options())
def validate(
    given: dict[str, Any],
    traces: Place = None,
    *,
    model: str | None = None,
    profile: Place = None,
    labeller: str = "match",
    num_traces: int | None = None,
    risk: Place = None,
    out: Place = None,
) -> Shown:
    """Hold a profile against the traces of the same model, and give each claim a verdict.

    Args:
        model: The model; by default that of the traces.
        profile: Folder of its profile; by default made when it is missing.
        risk: YAML file with components of the risk.
        out: Folder of the result; by default that of the profile.
    """
    risks = {"risk": library.read_yaml(risk)} if risk else {}
    settings = library.load_config(library.ValidateSettings, None, risks | given)
    store = open_store(traces)[:num_traces]
    identity = dict(store.configuration.get("model", {}))
    name = model or identity.get("name")
    if not name:
        raise UsageError("the store does not say of which model it is\n  Name it with --model")
    weights = library.open_weights(str(name))
    folder = profile or _folder(weights)
    if profile is not None or (folder / library.PROFILE_FILE).is_file():
        found = library.read_profile(folder)
    else:
        say(f"profiling {weights.identity['name']}, which takes a minute or more; kept in {folder}")
        found = _made_profile(weights, library.ProfileSettings(), folder)
    labels = _labels(store, labeller)
    about = {"name": store.path.name, "n_traces": len(store), "model": identity}
    result = library.validate_profile(
        found, weights, store, labels, store=about, settings=settings, on_progress=ProgressLine("steps")
    )
    target = result.write(out or folder).parent
    files = library.write_page(library.profile_page(found, result), target / library.REPORT_FILE)
    values = {"folder": target, "report": files.html, **result.values()}
    return Shown(values, "weights_validate", {"result": result})


@command("weights plot")
def plot(folder: Path, *, validation: Place = None, out: Place = None, svg: bool = False) -> Shown:
    """Draw a profile, with its validation where there is one; the risk never without.

    Args:
        folder: Folder of a profile.
        validation: Folder of its validation; by default the same.
        out: Folder; by default that of the profile.
    """
    found = library.read_profile(folder)
    is_validated = validation is not None or (folder / library.VALIDATION_FILE).is_file()
    checked = library.Validation.read(validation or folder) if is_validated else None
    target = (out or folder) / library.REPORT_FILE
    files = library.write_page(library.profile_page(found, checked), target, has_svg=svg)
    values = {"html": files.html, "figures": files.figures}
    return Shown(values, "weights_plot", {"is_validated": is_validated})


@command("weights compare")
def compare(first: Path, second: Path, *, out: Place = None) -> Shown:
    """Compare two models, or two quantisations of one model.

    Args:
        first: Folder of a profile.
        second: Folder of another one.
        out: Folder of page and figures; by default none.
    """
    profiles = library.read_profile(first), library.read_profile(second)
    found = library.compare_profiles(*profiles)
    if out is not None:
        library.write_page(library.comparison_page(*profiles, found), out / library.REPORT_FILE)
    return Shown({**vars(found), "folder": out}, "weights_compare")


def _made_profile(
    weights: "library.Weights", settings: "library.ProfileSettings", folder: Path
) -> "library.WeightProfile":
    found = library.profile_model(weights, settings, ProgressLine("steps"))
    found.write(folder)
    library.write_heads(folder / "heads.json", library.head_tables(found))
    return found


def _folder(weights: "library.Weights") -> Path:
    return Path("data/weights") / file_word(str(weights.identity["name"]))


def _labels(store: "library.TraceStore", labeller: str) -> "library.Labels":
    """Labels of these traces; a registered rule is applied now and nothing is written."""
    if labeller in library.stored_labellers(store) and labeller not in library.LABELLERS:
        return library.read_labels(store, labeller)
    return library.label_records(store.records, library.make_labeller(labeller))
