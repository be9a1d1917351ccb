"""A trained token detector on disk: the files of :mod:`graphhalu.detectors.saved`."""

from collections.abc import Sequence
from pathlib import Path

from graphhalu.detectors.identity import Identity, check_identity
from graphhalu.detectors.saved import add_identity, read_description, read_identity
from graphhalu.detectors.tokens.base import TokenDetector
from graphhalu.detectors.tokens.registry import TOKEN_DETECTORS
from graphhalu.traces.trace import Trace


def save_token_detector(
    detector: TokenDetector, folder: Path, identity: Identity | None = None
) -> None:
    """Write a fitted detector, with the model, quantisation and prompt that it belongs to.

    Args:
        detector: Fitted.
        folder: Is made if it is missing.
        identity: Of the traces that it was fitted on: ``Identity.of(store.configuration)``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    detector.save(folder)
    if identity is not None:
        add_identity(folder, identity)


def load_token_detector(folder: Path, traces: Sequence[Trace] | None = None) -> TokenDetector:
    """Read a saved token detector of any registered kind.

    Args:
        folder: Where it was saved.
        traces: What it shall score; those of another model, quantisation or prompt are refused.

    Raises:
        UsageError: If the folder holds no saved detector.
        UnknownNameError: If its name is none of a token detector.
        DataFileError: If its files cannot be read.
        DetectorMismatchError: If it was fitted on other traces than these; names the fields.
    """
    values = read_description(folder)
    detector_class = TOKEN_DETECTORS.registered(values["name"])
    identity = read_identity(values, folder)
    if traces is not None:
        check_identity(identity, traces)
    detector = detector_class.load(folder)
    detector.identity = identity
    return detector
