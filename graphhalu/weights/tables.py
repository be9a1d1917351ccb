"""A weight profile as tables: one line a tensor, a head slice, a head, a layer, a pair of heads."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from graphhalu.atomic import replace_file
from graphhalu.errors import UsageError
from graphhalu.numerics import json_ready
from graphhalu.parquet import read_parquet, write_parquet
from graphhalu.registry import unknown_name
from graphhalu.safe_read import read_json_object, reading, told_format
from graphhalu.weights.meanings import HEAD_MEANINGS, LAYER_MEANINGS

FORMAT: Final = "graphhalu-weights"
FORMAT_VERSION: Final = 1
PROFILE_FILE: Final = "profile.json"
TABLES: Final = ("tensors", "slices", "heads", "layers", "composition")

Column = Sequence[Any] | np.ndarray

_TENSORS: Final = pa.schema(
    [
        ("part", pa.string()), ("name", pa.string()), ("storage", pa.string()),
        ("layer", pa.int64()), ("zero_fraction", pa.float64()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class MixedType:
    """A part of the model whose tensors are stored in more than one way.

    Attributes:
        part: Which part, as ``v`` or ``down``.
        types: Names of the tensors by storage type.
    """

    part: str
    types: Mapping[str, tuple[str, ...]]

    def text(self) -> str:
        """One line."""
        listed = ", ".join(f"{len(names)} x {kind}" for kind, names in self.types.items())
        return f"{self.part}: {listed}"


@dataclass(frozen=True)
class WeightProfile:
    """What was computed from the weights of one model.

    Attributes:
        model: Which model; ``weights`` is a digest where there is one.
        architecture: Sizes and rules.
        settings: Of the profile.
        provenance: Versions, machine, code state.
        notes: What a reader must know, such as an approximation of this family.
        tensors: One line a tensor.
        slices: One line a layer, part and head of it.
        heads: One line a layer and head.
        layers: One line a layer.
        composition: One line a later head, an earlier layer and its head.
    """

    model: Mapping[str, Any]
    architecture: Mapping[str, Any]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    notes: tuple[str, ...]
    tensors: pa.Table
    slices: pa.Table
    heads: pa.Table
    layers: pa.Table
    composition: pa.Table

    @property
    def n_layers(self) -> int:
        """Layers of the model."""
        return int(self.architecture["n_layers"])

    @property
    def n_heads(self) -> int:
        """Heads of a layer."""
        return int(self.architecture["n_heads"])

    def of_heads(self, quantity: str) -> Float[np.ndarray, "layer head"]:
        """One quantity of every head; NaN where there is none.

        Raises:
            UnknownNameError: If there is no such quantity.
        """
        return _numbers(self.heads, quantity, HEAD_MEANINGS).reshape(self.n_layers, self.n_heads)

    def of_layers(self, quantity: str) -> Float[np.ndarray, "layer"]:
        """One quantity of every layer; NaN where there is none.

        Raises:
            UnknownNameError: If there is no such quantity.
        """
        return _numbers(self.layers, quantity, LAYER_MEANINGS)

    def mixed(self) -> tuple[MixedType, ...]:
        """Parts stored in more than one way: comparisons between their layers may show that."""
        found: dict[str, dict[str, list[str]]] = {}
        for row in self.tensors.select(["part", "name", "storage"]).to_pylist():
            found.setdefault(row["part"], {}).setdefault(row["storage"], []).append(row["name"])
        return tuple(
            MixedType(part, {kind: tuple(names) for kind, names in types.items()})
            for part, types in found.items()
            if len(types) > 1 and part not in ("other", "embedding", "unembedding")
        )

    def zero_fractions(self, part: str) -> Float[np.ndarray, "layer"]:
        """Share of exact zeros of a part, layer by layer.

        Raises:
            UsageError: If its tensors are stored in different types: some types have an exact
                zero and others have none, so a comparison would show the type and not the model.
        """
        mixed = [found for found in self.mixed() if found.part == part]
        if mixed:
            message = (
                f"zeros of {part} are not compared between layers, since they are stored in "
                f"different types ({mixed[0].text()}): types differ in whether they have a zero"
            )
            raise UsageError(message)
        found = np.full(self.n_layers, np.nan)
        for row in self.tensors.select(["part", "layer", "zero_fraction"]).to_pylist():
            if row["part"] == part and row["layer"] is not None:
                found[row["layer"]] = _or_nan(row["zero_fraction"])
        return found

    def write(self, folder: Path) -> Path:
        """Write ``profile.json`` and a Parquet file a table; gives the JSON file."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            write_parquet(getattr(self, name), folder / f"{name}.parquet")
        values = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "model": self.model,
            "architecture": self.architecture, "settings": self.settings,
            "provenance": self.provenance, "notes": self.notes,
            "mixed_types": [{"part": m.part, "types": m.types} for m in self.mixed()],
            "meanings": {"heads": HEAD_MEANINGS, "layers": LAYER_MEANINGS},
            "layers": self.layers.to_pylist(), "heads": self.heads.to_pylist(),
        }  # fmt: skip
        text = json.dumps(json_ready(values), indent=1, ensure_ascii=False, allow_nan=False)
        path = folder / PROFILE_FILE
        # the JSON comes last: a folder that has it is whole
        replace_file(path, f"{text}\n".encode())
        return path


def read_profile(folder: Path) -> WeightProfile:
    """What :meth:`WeightProfile.write` wrote.

    Raises:
        UsageError: If there is no profile.
        DataFileError: If it is damaged or of another version.
    """
    path = folder / PROFILE_FILE if folder.is_dir() else folder
    files = (path, *(path.parent / f"{name}.parquet" for name in TABLES))
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        message = (
            f"no weight profile at {folder} ({missing[0]} is missing)\n"
            f"  Make one:  graphhalu weights profile MODEL"
        )
        raise UsageError(message)
    with reading(f"{path} is no readable weight profile", also=(pa.ArrowException,)):
        values = _checked(read_json_object(path))
        tables = {name: read_parquet(path.parent / f"{name}.parquet") for name in TABLES}
        known = {
            name: dict(values[name]) for name in ("model", "architecture", "settings", "provenance")
        }
        found = WeightProfile(**known, notes=tuple(map(str, values["notes"])), **tables)
        _check_sizes(found)
        return found


def _check_sizes(profile: WeightProfile) -> None:
    """Refuse tables that do not have a line for every head and layer of the model."""
    n_layers, n_heads = profile.n_layers, profile.n_heads
    found = (profile.layers.num_rows, profile.heads.num_rows)
    if min(n_layers, n_heads) < 1 or found != (n_layers, n_layers * n_heads):
        message = f"{n_layers} layers of {n_heads} heads, with tables of {found} lines"
        raise ValueError(message)
    for name, table in (("heads", profile.heads), ("layers", profile.layers)):
        known = HEAD_MEANINGS if name == "heads" else LAYER_MEANINGS
        for column in known.keys() & set(table.column_names):
            table[column].cast(pa.float64())
    tensors = profile.tensors.select(["part", "name", "storage", "layer", "zero_fraction"]).cast(
        _TENSORS
    )
    layers = [layer for layer in tensors["layer"].to_pylist() if layer is not None]
    if layers and not (min(layers) >= 0 and max(layers) < n_layers):
        message = f"a tensor of layer {max(layers)} in a model of {n_layers}"
        raise ValueError(message)


def _checked(values: dict[str, Any]) -> dict[str, Any]:
    if values.get("format") != FORMAT or values.get("format_version") != FORMAT_VERSION:
        message = f"it has {told_format(values)}, expected {FORMAT!r} version {FORMAT_VERSION}"
        raise ValueError(message)
    return values


def table_of(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table; a number that there is not is null."""
    names = list(rows[0]) if rows else []
    columns = {name: _column([row[name] for row in rows]) for name in names}
    return pa.table(columns)


def head_rows(columns: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """One row a head, from one value a head and column."""
    length = len(next(iter(columns.values())))
    plain = {name: values.tolist() for name, values in columns.items()}
    return [{name: values[place] for name, values in plain.items()} for place in range(length)]


def _column(values: Sequence[Any]) -> pa.Array:
    plain = [None if isinstance(v, float) and not np.isfinite(v) else v for v in values]
    if any(isinstance(v, float) for v in values):
        return pa.array(plain, type=pa.float64())
    return pa.array(plain)


def _numbers(table: pa.Table, quantity: str, known: Mapping[str, str]) -> Float[np.ndarray, "row"]:
    if quantity not in table.column_names or quantity not in known:
        raise unknown_name("quantity", quantity, [n for n in known if n in table.column_names])
    return np.array([_or_nan(value) for value in table[quantity].to_pylist()], dtype=np.float64)


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else float(value)
