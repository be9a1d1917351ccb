"""What was measured so far, line by line, so that a killed run goes on where it stopped."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np

from graphhalu.config import differing_fields
from graphhalu.errors import StoreMismatchError
from graphhalu.safe_read import MAX_TABLE_BYTES, parse_json, read_bytes, reading
from graphhalu.studies.sinks.observer import SinkMass
from graphhalu.studies.sinks.running import Measured

DIGITS: Final = 7
_MOST_SHOWN: Final = 12


class Journal:
    """A file of JSON lines: what the run is, then one measurement a line.

    Args:
        path: The file; it is made if it is not there.
        identity: What the run is; plain JSON values.

    Attributes:
        done: Measurements by number of the sequence.

    Raises:
        StoreMismatchError: If the file belongs to another run; names the fields.
        DataFileError: If it is no journal, or cannot be read.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[int, Measured] = {}
        plain = json.loads(json.dumps(identity))
        if path.exists():
            self._read(plain)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append([plain])

    def add(self, measured: Iterable[tuple[int, Measured]]) -> None:
        """Append measurements, in one write."""
        found = list(measured)
        self._append({"idx": idx, **_plain(each)} for idx, each in found)
        self.done.update(found)

    def remove(self) -> None:
        """Delete the file: the records are written."""
        self.path.unlink(missing_ok=True)

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        with (
            reading(f"{self.path} cannot be written"),
            self.path.open("a", encoding="utf-8") as file,
        ):
            file.write(text)

    def _read(self, identity: Mapping[str, Any]) -> None:
        with reading(f"{self.path} is no journal of a measurement", way_out="Delete it"):
            lines = read_bytes(self.path, MAX_TABLE_BYTES).decode("utf-8").splitlines(keepends=True)
            # a line without an end was being written when the run was killed
            whole = [line for line in lines if line.endswith("\n")]
            head, *rows = (parse_json(line, allows_nan=True) for line in whole)
            self.done = {int(row["idx"]): _measured(row) for row in rows}
            require_same(dict(head), identity, self.path)
        if len(whole) < len(lines):
            self.path.write_text("".join(whole), encoding="utf-8")


def require_same(stored: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with another run's file.

    Raises:
        StoreMismatchError: Names the fields that differ.
    """
    differences = differing_fields(stored, json.loads(json.dumps(asked)))
    if differences:
        listed = "\n".join(f"  {line}" for line in differences[:_MOST_SHOWN])
        message = (
            f"{path} was measured with other settings:\n{listed}\n"
            f"  Ask for the same ones, or give another folder with --out"
        )
        raise StoreMismatchError(message)


def _plain(measured: Measured) -> dict[str, Any]:
    cells = [
        {
            "k": k, "mode": mode, "is_seen": mass.is_seen.tolist(),
            "values": np.round(mass.values, DIGITS).tolist(),
        }
        for (k, mode), mass in measured.mass.items()
    ]  # fmt: skip
    return {
        "entropy": measured.entropy,
        "option_logprobs": list(measured.option_logprobs),
        "cells": cells,
    }


def _measured(row: Mapping[str, Any]) -> Measured:
    mass = {
        (int(cell["k"]), cell["mode"]): SinkMass(
            np.array(cell["values"], dtype=np.float64), np.array(cell["is_seen"], dtype=np.bool_)
        )
        for cell in row["cells"]
    }
    for found in mass.values():
        if found.values.ndim != 2 or found.is_seen.shape != found.values.shape[:1]:  # noqa: PLR2004
            message = f"sink mass of the shape {list(found.values.shape)}"
            raise ValueError(message)
    return Measured(mass, float(row["entropy"]), tuple(map(float, row["option_logprobs"])))
