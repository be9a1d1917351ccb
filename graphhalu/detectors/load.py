"""Saving and loading of detectors by name: of which class they are, and on which traces they were fitted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from graphhalu.core.errors import GraphhaluError, UnknownNameError, UsageError
from graphhalu.core.files import reading, shown
from graphhalu.core.registry import class_path, unknown_name
from graphhalu.detectors.base import Detector
from graphhalu.detectors.identity import Identity, check_identity
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.saved import add_to_description, damaged, read_description
from graphhalu.traces.trace import Trace


def save_detector(detector: Detector, folder: Path, identity: Identity | None = None) -> None:
    """Write a fitted detector, with the model, quantisation and prompt that it belongs to.

    Args:
        detector: Fitted.
        folder: Is made if it is missing.
        identity: Of the traces that it was fitted on: ``Identity.of(store.configuration)``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    detector.save(folder)
    added: dict[str, Any] = {}
    path = class_path(type(detector))
    if DETECTORS.path(detector.card.name) != path:
        added["class"] = path
    if identity is not None:
        added["identity"] = identity.model_dump()
    if added:
        add_to_description(folder, added)


def load_detector(
    folder: Path, traces: Sequence[Trace] | None = None, *, detector_class: type[Detector] | str | None = None
) -> Detector:
    """Read a saved detector.

    Its file says of which class it is, and may come from a stranger: only a registered class is
    imported because of what it says.

    Args:
        folder: Where it was saved.
        traces: What it shall score; those of another model, quantisation or prompt are refused.
        detector_class: Class of one that is not registered, or ``module:Class``.

    Raises:
        UsageError: If the folder holds no saved detector, or one of another class.
        UnknownNameError: If its class is not registered here and none is given.
        DataFileError: If its files cannot be read.
        DetectorMismatchError: If it was fitted on other traces than these; names the fields.
    """
    values = read_description(folder)
    kind = _class_of(values, folder, detector_class)
    try:
        identity = None if values.get("identity") is None else Identity.model_validate(values["identity"])
    except ValueError as error:
        raise damaged(folder, error) from None
    if traces is not None:
        check_identity(identity, traces)
    what = f"the detector in {folder} does not fit its own description"
    with reading(what, also=(RuntimeError, SafetensorError)):
        detector: object = kind.load(folder)
    if not isinstance(detector, Detector):
        raise GraphhaluError(f"{class_path(kind)}.load must return the detector, got {shown(detector)}")
    detector.identity = identity
    return detector


def _class_of(values: Mapping[str, Any], folder: Path, given: type[Detector] | str | None) -> type[Detector]:
    """The class that the caller names, else the registered one; never one that a file names."""
    name, path = values["name"], values.get("class")
    if given is None:
        # a class of graphhalu's own needs no path, so one with a path only bears its name
        if name not in DETECTORS or (path is not None and DETECTORS.path(name) is not None):
            if path is None:
                raise unknown_name("detector", name, DETECTORS.names())
            raise UnknownNameError(
                f"the detector {shown(name)} in {folder} is of the class {shown(path)}, which is not "
                f"registered: nothing is imported because a file says so\n"
                f"  Install the plug-in that registers it, or, if you trust it, name the class:  "
                f"--detector-class module:Class   or   load_detector(folder, detector_class=...)"
            )
        return DETECTORS.registered(name)
    found = DETECTORS.get(given) if isinstance(given, str) else given
    DETECTORS.check(found, f"detector {shown(given)}")
    if found.card.name != name:
        raise UsageError(f"{folder} holds the detector {shown(name)}, not {found.card.name!r}")
    return found
