"""Tables of heads as JSON files: our format, and the published ``{"layer-head": [scores]}``."""

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
from jaxtyping import Float
from pydantic import Field, FiniteFloat, StringConstraints, TypeAdapter, ValidationError

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import read_json_object, reading, replace_file, told_format
from graphhalu.core.numerics import json_ready, numbers_of
from graphhalu.core.provenance import provenance
from graphhalu.heads.table import HeadTable

FORMAT: Final = "graphhalu-heads"
FORMAT_VERSION: Final = 1
_PUBLISHED: Final = TypeAdapter(
    dict[
        Annotated[str, StringConstraints(pattern=r"^[0-9]{1,5}-[0-9]{1,5}$")],
        Annotated[list[Annotated[FiniteFloat, Field(strict=True)]], Field(min_length=1)],
    ]
)
"""Scores of the published files by ``layer-head``."""
_MAX_SCORES: Final = 20_000_000
"""Most scores of a published file: two keys could ask for a table of ten thousand million heads."""
_MAX_RESAMPLES: Final = 1_000_000


def write_heads(path: Path, tables: Sequence[HeadTable]) -> None:
    """Write tables as one JSON file, in one step; a killed run leaves an earlier file whole.

    A number that there is not is ``null``. ``heads`` repeats what follows from ``scores``, for
    readers without graphhalu.

    Raises:
        UsageError: If there is no table.
    """
    if not tables:
        raise UsageError("there is no table of heads to write")
    values = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "provenance": provenance(),
        "tables": [_plain(table) for table in tables],
    }
    content = json.dumps(json_ready(values), ensure_ascii=False, allow_nan=False).encode()
    replace_file(path, gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def read_heads(path: Path) -> list[HeadTable]:
    """The tables of a file in our format or in the published one, gzipped or not.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If it is damaged, of a newer format, or none of the two.
    """
    missing = UsageError(f"no file of heads at {path}\n  Make one:  graphhalu heads retrieval")
    # numbers are looked at where they stand, so that the error can name the head
    values = read_json_object(path, allows_nan=True, missing=missing)
    if "format" not in values:
        return [_published_table(values, path)]
    if values["format"] != FORMAT or values.get("format_version") != FORMAT_VERSION:
        raise DataFileError(
            f"{path} has {told_format(values)}; this graphhalu reads {FORMAT!r} version {FORMAT_VERSION}"
        )
    with reading(f"{path} is damaged", way_out="Measure the heads again"):
        try:
            tables = [_table(item) for item in values["tables"]]
        except UsageError as error:  # parts that do not fit are not the fault of an argument here
            raise ValueError(str(error)) from None
    if not tables:
        raise DataFileError(f"{path} holds no table of heads")
    return tables


def read_table(path: Path, role: str | None = None) -> HeadTable:
    """The table of a role, or the first one.

    Raises:
        UsageError: If the file has no table of this role; names those that it has.
        DataFileError: As :func:`read_heads`.
    """
    tables = read_heads(path)
    found = [table for table in tables if role in (None, table.role)]
    if not found:
        there = ", ".join(table.role for table in tables)
        raise UsageError(f"{path} has no table of the role {role!r}; it has {there}")
    return found[0]


def _plain(table: HeadTable) -> dict[str, Any]:
    return {
        **{each.name: getattr(table, each.name) for each in fields(table)},
        "trials": [{"trial_id": trial_id, "group": group} for trial_id, group in table.trials],
        "rejected": [{"trial_id": trial_id, "reason": reason} for trial_id, reason in table.rejected],
        "heads": table.ranked() if table.trials else [],
    }


def _table(values: Mapping[str, Any]) -> HeadTable:
    chance = _numbers(values["chance"])
    n_resamples, seed = int(values["n_resamples"]), int(values["seed"])
    if not 1 <= n_resamples <= _MAX_RESAMPLES or seed < 0:
        raise ValueError(f"n_resamples is {n_resamples} and the seed {seed}")
    trials = tuple((str(item["trial_id"]), str(item["group"])) for item in values["trials"])
    return HeadTable(
        str(values["role"]),
        tuple(int(layer) for layer in values["layers"]),
        trials,
        # an empty list of trials has lost its other axes
        _numbers(values["scores"]).reshape(len(trials), *chance.shape),
        chance,
        rejected=tuple((str(item["trial_id"]), str(item["reason"])) for item in values["rejected"]),
        model=dict(values["model"]),
        settings=dict(values["settings"]),
        columns={name: _numbers(column) for name, column in values["columns"].items()},
        n_resamples=n_resamples,
        seed=seed,
    )


def _numbers(values: Any) -> Float[np.ndarray, "..."]:
    found = numbers_of(values)
    if np.isinf(found).any():
        raise ValueError("a number is infinite")
    return found


def _published_table(values: Mapping[str, Any], path: Path) -> HeadTable:
    """The table of scores by ``layer-head``.

    Source:
        nightdessert/Retrieval_Head, commit 3ac171a, ``head_score/*.json``.
    """
    try:
        found = _PUBLISHED.validate_python(values)
    except ValidationError as error:
        key, *inside = error.errors()[0]["loc"]
        if inside[:1] == ["[key]"]:
            raise DataFileError(
                f'{path} is not a file of head scores: expected keys such as "16-19" (layer-head), '
                f"got {str(key)[:40]!r}"
            ) from None
        raise DataFileError(f"{path}: head {key} has no list of finite scores") from None
    columns = {tuple(map(int, key.split("-"))): scores for key, scores in found.items()}
    if not columns:
        raise DataFileError(f'{path} holds no head: expected entries such as "16-19": [0.9, 1.0]')
    lengths = {len(scores) for scores in columns.values()}
    if len(lengths) != 1:
        raise DataFileError(
            f"{path}: heads have {min(lengths)} to {max(lengths)} scores; expected one a trial for every head"
        )
    n_layers, n_heads = (1 + max(place[axis] for place in columns) for axis in (0, 1))
    n_scores = lengths.pop()
    if n_scores * n_layers * n_heads > _MAX_SCORES:
        raise DataFileError(
            f"{path} names heads up to {n_layers - 1}-{n_heads - 1} with {n_scores} scores each; "
            f"expected at most {_MAX_SCORES:,} scores of a whole model"
        )
    scores = np.full((n_scores, n_layers, n_heads), np.nan)
    for (layer, head), column in columns.items():
        scores[:, layer, head] = column
    return HeadTable(
        "retrieval",
        tuple(range(n_layers)),
        tuple((str(index), str(index)) for index in range(n_scores)),
        scores,
        chance=np.full((n_layers, n_heads), np.nan),
        settings={"source": "published scores", "file": path.name},
    )
