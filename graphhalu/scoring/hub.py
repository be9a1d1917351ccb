"""Detectors and trace stores on the Hugging Face hub: pushed with a card and checksums, pulled by commit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from graphhalu.core.errors import CorruptStoreError, DataFileError, GraphhaluError, UsageError
from graphhalu.core.files import read_json_object, replace_file
from graphhalu.core.provenance import file_sha256, provenance
from graphhalu.detectors.saved import DESCRIPTION_FILE, DETECTOR_FOLDER, read_description
from graphhalu.scoring.ready import read_card

HUB: Final = "hf://"
"""Begins the address of a detector on the hub: ``hf://OWNER/NAME@REVISION``."""
CHECKSUMS_FILE: Final = "checksums.json"
PULLED_FILE: Final = "pulled.json"
"""Where a pulled folder came from: repository and commit."""
_STORE: Final = "zarr.json"
_MAY_BE: Final = (".json", ".safetensors", ".md", ".parquet", ".csv", ".png", ".html")
_LIMITS: Final = (
    "It says how an answer looks inside this model, not whether it is true. Scores of another model, number "
    "format or prompt are refused or marked."
)


def push(path: Path, repository: str, *, is_private: bool = False, licence: str = "apache-2.0") -> str:
    """Upload a detector or a trace store, with a card and the checksum of every file.

    Args:
        path: A run, its folder ``detector``, or a store.
        repository: ``OWNER/NAME``; is made if it is missing. The hub is that of ``HF_ENDPOINT``.
        is_private: Whether a repository that is made is private.
        licence: As the hub writes it.

    Returns:
        The address with the commit, as :func:`pull` takes it.

    Raises:
        UsageError: If the folder is neither, or holds what is not uploaded.
        GraphhaluError: If the hub refuses or cannot be reached.
    """
    folder = path / DETECTOR_FOLDER if (path / DETECTOR_FOLDER).is_dir() else path
    is_store = (folder / _STORE).is_file()
    if not is_store and not (folder / DESCRIPTION_FILE).is_file():
        raise UsageError(f"{path} is neither a trained detector nor a trace store\n  Name a run or a store")
    # locks and what is not committed begin with a dot
    names = {each: each.relative_to(folder) for each in sorted(folder.rglob("*")) if each.is_file()}
    files = [each for each, name in names.items() if not any(part.startswith(".") for part in name.parts)]
    if not is_store and (odd := [each.name for each in files if each.suffix not in _MAY_BE]):
        raise UsageError(f"{folder} holds {odd[0]}, which no detector of graphhalu has; it is not uploaded")
    sums = {names[each].as_posix(): file_sha256(each) for each in files}
    added = {
        CHECKSUMS_FILE: json.dumps({"files": sums, "provenance": provenance()}, indent=1),
        "README.md": store_card(folder, licence) if is_store else model_card(folder, licence),
    }
    kind = "dataset" if is_store else "model"
    operations = [
        huggingface_hub.CommitOperationAdd(name, folder / name) for name in sums if name not in added
    ]
    operations += [huggingface_hub.CommitOperationAdd(name, text.encode()) for name, text in added.items()]
    api = huggingface_hub.HfApi(library_name="graphhalu")
    try:
        api.create_repo(repository, repo_type=kind, private=is_private, exist_ok=True)
        message = "A trace store of graphhalu" if is_store else "A detector of graphhalu"
        done = api.create_commit(repository, operations, commit_message=message, repo_type=kind)
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _hub_fault(repository, error) from error
    return f"{HUB}{repository}@{done.oid}"


def pull(address: str, out: Path | None = None, *, is_store: bool = False) -> Path:
    """Download a detector or a store, and compare every file with its checksum.

    Args:
        address: ``OWNER/NAME`` or ``hf://OWNER/NAME``, with ``@REVISION`` where one is meant.
        out: Folder to write to; by default the cache of the hub's client.
        is_store: Whether it is a trace store.

    Returns:
        The folder, which says in ``pulled.json`` from which commit it is.

    Raises:
        UsageError: If the address is none.
        CorruptStoreError: If a file is missing, was added, or differs from its checksum.
        GraphhaluError: If the hub refuses or cannot be reached.
    """
    repository, _, revision = address.removeprefix(HUB).partition("@")
    if repository.count("/") != 1:
        raise UsageError(f"expected {HUB}OWNER/NAME or {HUB}OWNER/NAME@REVISION, got {address!r}")
    kind = "dataset" if is_store else "model"
    try:
        commit = huggingface_hub.HfApi().repo_info(repository, revision=revision or None, repo_type=kind).sha
        where = huggingface_hub.snapshot_download(
            repository, revision=commit, repo_type=kind, local_dir=out, library_name="graphhalu"
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise _hub_fault(repository, error) from error
    folder = Path(where)
    check_sums(folder)
    if out is not None:
        note = {"repository": repository, "commit": commit}
        replace_file(folder / PULLED_FILE, json.dumps(note, indent=1).encode())
    return folder


def check_sums(folder: Path) -> None:
    """Compare every file of a pulled folder with its checksum.

    Raises:
        CorruptStoreError: If a file is missing, was added, or differs; names it.
        DataFileError: If there are no checksums.
    """
    listed = read_json_object(folder / CHECKSUMS_FILE, way_out="Push it again with graphhalu push").get(
        "files"
    )
    if not isinstance(listed, dict) or not all(isinstance(each, str) for each in listed.values()):
        raise DataFileError(f"{folder / CHECKSUMS_FILE} lists no files")
    own = {CHECKSUMS_FILE, PULLED_FILE, "README.md", ".gitattributes"}
    there = {each.relative_to(folder).as_posix() for each in folder.rglob("*") if each.is_file()}
    there = {name for name in there if name not in own and not name.startswith(".cache/")}
    if odd := sorted(there ^ {name for name in listed if name not in own}):
        what = "is missing" if odd[0] in listed else "was added"
        raise CorruptStoreError(f"{folder}: {odd[0]} {what}\n  Pull it again, or do not trust it")
    for name, digest in listed.items():
        if name not in own and file_sha256(folder / name) != digest:
            raise CorruptStoreError(f"{folder}: {name} differs from its checksum\n  Pull it again")


def model_card(folder: Path, licence: str) -> str:
    """The card of a detector: what it was trained on, held-out figures, use and limits."""
    description, known = read_description(folder), read_card(folder) or {}
    identity: Mapping[str, Any] = description.get("identity") or {}
    rows = known.get("held_out") or _result_rows(folder.parent, description["name"])
    lines = ["| {set} | {metric} | {value:.3f} [{low:.3f}, {high:.3f}] | {n} |".format(**row) for row in rows]
    table = "\n".join(["| answers | | [95 % over questions] | n |", "|---|---|---|---|", *lines])
    about = {name: value for name, value in identity.items() if name != "config"}
    training = known.get("training") or [str((identity.get("config") or {}).get("dataset", {}).get("name"))]
    return _card(
        licence,
        f"{description['name']} for {identity.get('model')}",
        f"A detector of hallucinations of `{identity.get('model')}`, trained with graphhalu.",
        '## Use\n\n```python\nfrom graphhalu import load_detector\n\ndetector = load_detector("hf://OWNER/NAME")'
        '\ndetector.score("Who wrote Emma?", "Jane Austen")\n```',
        "## Trained on\n\n" + "\n".join(f"- {each}" for each in training),
        "## Held-out figures\n\n" + (table if rows else "None are stored with it."),
        f"## Limits\n\n{_LIMITS}" + (f" Not for: {known['not_for']}." if "not_for" in known else ""),
        f"## Model\n\n```json\n{json.dumps(about, indent=1)}\n```",
    )


def store_card(folder: Path, licence: str) -> str:
    """The card of a trace store: how its traces were made."""
    values = read_json_object(folder / _STORE).get("attributes", {})
    return _card(
        licence,
        folder.stem,
        "Traces of a language model: prompts, answers, and what of attention and hidden states was kept.",
        f"## Configuration\n\n```json\n{json.dumps(values.get('configuration', {}), indent=1)}\n```",
        "## Read it\n\n```python\nfrom graphhalu import open_traces\n\ntraces = open_traces(FOLDER)\n```",
    )


def _card(licence: str, title: str, *parts: str) -> str:
    head = f"---\nlicense: {licence}\nlibrary_name: graphhalu\ntags: [hallucination, attention]\n---"
    return "\n\n".join([head, f"# {title}", *parts]) + "\n"


def _result_rows(run: Path, detector: str) -> list[dict[str, Any]]:
    """Figures of the run that a detector lies in, as rows of a card."""
    path = run / "result.json"
    if not path.is_file():
        return []
    rows = []
    for row in read_json_object(path).get("rows", []):
        found = (row.get("metrics") or {}).get("auroc")
        if row.get("detector") == detector and found:
            rows.append({"set": "held out in training", "metric": "AUROC", "n": "", **found})
    return rows


def _hub_fault(repository: str, error: Exception) -> GraphhaluError:
    said = " ".join(str(error).split())[:240]
    return GraphhaluError(
        f"the hub does not give or take {repository} ({type(error).__name__}: {said})\n"
        f"  Log in with  hf auth login , or set HF_TOKEN; HF_ENDPOINT names another hub"
    )
