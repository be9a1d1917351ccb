"""Weight profiles: tables of tensors, head slices, heads, layers and pairs of heads.

Two profiles are compared: those of two models, or of one model stored in two ways.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float
from scipy.stats import spearmanr

from graphhalu.core.config import read_yaml
from graphhalu.core.documents import FileFormat, read_document, write_document
from graphhalu.core.errors import UsageError
from graphhalu.core.files import read_parquet, reading, write_parquet
from graphhalu.core.numerics import json_ready
from graphhalu.core.registry import unknown_name

KIND: Final = FileFormat("graphhalu-weights", 1, "Make one:  graphhalu weights profile MODEL")
PROFILE_FILE: Final = "profile.json"
_RECORDS: Final = ("model", "architecture", "settings", "provenance")
TABLES: Final = ("tensors", "slices", "heads", "layers", "composition")

_DESCRIPTIONS: Final = read_yaml(Path(__file__).with_name("descriptions.yaml"))
HEAD_DESCRIPTIONS: Final[dict[str, str]] = _DESCRIPTIONS["heads"]
LAYER_DESCRIPTIONS: Final[dict[str, str]] = _DESCRIPTIONS["layers"]
MEASURED_DESCRIPTIONS: Final[dict[str, str]] = _DESCRIPTIONS["measured"]
"""What every quantity of a profile and of a validation is; the pages and files repeat it."""
NOTES: Final[dict[str, str]] = _DESCRIPTIONS["notes"]


StorageTypes = dict[str, dict[str, tuple[str, ...]]]
"""Names of tensors by part, as ``v`` or ``down``, and by storage type."""


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
    def name(self) -> str:
        """Name of the model."""
        return str(self.model.get("name", "a model"))

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
        return _numbers(self.heads, quantity, HEAD_DESCRIPTIONS).reshape(self.n_layers, self.n_heads)

    def of_layers(self, quantity: str) -> Float[np.ndarray, "layer"]:
        """One quantity of every layer; NaN where there is none.

        Raises:
            UnknownNameError: If there is no such quantity.
        """
        return _numbers(self.layers, quantity, LAYER_DESCRIPTIONS)

    def storage_types(self) -> StorageTypes:
        """How the tensors of each part are stored."""
        found: StorageTypes = {}
        for row in self.tensors.select(["part", "name", "storage"]).to_pylist():
            names = found.setdefault(row["part"], {})
            names[row["storage"]] = (*names.get(row["storage"], ()), row["name"])
        return found

    def mixed(self) -> StorageTypes:
        """Parts stored in more than one way: comparisons between their layers may show that."""
        return {
            part: types
            for part, types in self.storage_types().items()
            if len(types) > 1 and part not in ("other", "embedding", "unembedding")
        }

    def write(self, folder: Path) -> Path:
        """Write ``profile.json`` and a Parquet file a table; gives the JSON file."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in TABLES:
            write_parquet(getattr(self, name), folder / f"{name}.parquet")
        values = {
            **{name: getattr(self, name) for name in (*_RECORDS, "notes")},
            "mixed_types": [{"part": part, "types": types} for part, types in self.mixed().items()],
            "meanings": {"heads": HEAD_DESCRIPTIONS, "layers": LAYER_DESCRIPTIONS},
            "layers": self.layers.to_pylist(),
            "heads": self.heads.to_pylist(),
        }
        # the JSON comes last: a folder that has it is whole
        return write_document(folder / PROFILE_FILE, values, KIND)


def read_profile(folder: Path) -> WeightProfile:
    """What :meth:`WeightProfile.write` wrote.

    Raises:
        UsageError: If there is no profile.
        DataFileError: If it is damaged or of another version.
    """
    path = folder / PROFILE_FILE if folder.is_dir() else folder
    files = {name: path.parent / f"{name}.parquet" for name in TABLES}
    missing = [file.name for file in (path, *files.values()) if not file.is_file()]
    if missing:
        raise UsageError(f"no weight profile at {folder} ({missing[0]} is missing)\n  {KIND.way_out}")
    with reading(f"{path} is not a readable weight profile", also=(pa.ArrowException,)):
        values = read_document(path, dict, KIND)
        found = WeightProfile(
            **{name: dict(values[name]) for name in _RECORDS},
            notes=tuple(map(str, values["notes"])),
            **{name: read_parquet(file) for name, file in files.items()},
        )
        _check_sizes(found)
        return found


def _check_sizes(profile: WeightProfile) -> None:
    """Refuse tables that do not have a line for every head and layer of the model."""
    n_layers, n_heads = profile.n_layers, profile.n_heads
    found = (profile.layers.num_rows, profile.heads.num_rows)
    if min(n_layers, n_heads) < 1 or found != (n_layers, n_layers * n_heads):
        raise ValueError(f"{n_layers} layers of {n_heads} heads, with tables of {found} lines")
    for table, known in ((profile.heads, HEAD_DESCRIPTIONS), (profile.layers, LAYER_DESCRIPTIONS)):
        for name in known.keys() & set(table.column_names):
            table[name].cast(pa.float64())
    for name in ("part", "name", "storage"):
        profile.tensors[name].cast(pa.string())
    profile.tensors["zero_fraction"].cast(pa.float64())
    layers = profile.tensors["layer"].cast(pa.int64()).drop_null().to_pylist()
    if layers and not (min(layers) >= 0 and max(layers) < n_layers):
        raise ValueError(f"a tensor of layer {max(layers)} in a model of {n_layers}")


def table_of_rows(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Rows as a table; a number that is not finite is null."""
    names = list(rows[0]) if rows else []
    return pa.table({name: _column([row[name] for row in rows]) for name in names})


def table_of(columns: Mapping[str, np.ndarray]) -> pa.Table:
    """Columns as a table; a number that is not finite is null."""
    return pa.table({name: _column(values.tolist()) for name, values in columns.items()})


def _column(values: Sequence[Any]) -> pa.Array:
    has_numbers = any(isinstance(v, float) for v in values)
    return pa.array(json_ready(values), type=pa.float64() if has_numbers else None)


def _numbers(table: pa.Table, quantity: str, known: Mapping[str, str]) -> Float[np.ndarray, "row"]:
    if quantity not in table.column_names or quantity not in known:
        raise unknown_name("quantity", quantity, [n for n in known if n in table.column_names])
    return table[quantity].cast(pa.float64()).to_numpy()


_LEAST: Final = 3


@dataclass(frozen=True)
class ComparedQuantity:
    """One quantity in both profiles.

    Attributes:
        level: ``head`` or ``layer``.
        first: Median of the first profile.
        second: Median of the second.
        correlation: Spearman's, head by head or layer by layer; NaN where shapes differ.
        change: Median of ``|second - first|`` over the median of ``|first|``; NaN as above.
    """

    quantity: str
    level: str
    first: float
    second: float
    correlation: float
    change: float


@dataclass(frozen=True)
class ProfileComparison:
    """Two profiles side by side.

    Attributes:
        names: Names of the models.
        rows: Every quantity.
        is_same_shape: Whether layers and heads correspond.
        warnings: What storage types make doubtful.
        zeros: Mean share of exact zeros of each part, where both sides store it in one and the
            same type.
        refused: Parts whose zeros are not compared, with the reason.
    """

    names: tuple[str, str]
    rows: tuple[ComparedQuantity, ...]
    is_same_shape: bool
    warnings: tuple[str, ...]
    zeros: Mapping[str, tuple[float, float]]
    refused: Mapping[str, str]


def compare_profiles(first: WeightProfile, second: WeightProfile) -> ProfileComparison:
    """Compare every quantity of two profiles, and say where storage types forbid it.

    Raises:
        UsageError: If they were made with other settings.
    """
    if dict(first.settings) != dict(second.settings):
        names = [key for key in first.settings if first.settings[key] != second.settings.get(key)]
        raise UsageError(
            f"the profiles were made with different settings ({', '.join(names)})\n"
            f"  Profile one of them again"
        )
    is_same = (first.n_layers, first.n_heads) == (second.n_layers, second.n_heads)
    both = (first, second)
    rows = [
        _row(name, "head", *(profile.of_heads(name).ravel() for profile in both), is_same=is_same)
        for name in HEAD_DESCRIPTIONS
        if all(name in profile.heads.column_names for profile in both)
    ]
    rows += [
        _row(name, "layer", *(profile.of_layers(name) for profile in both), is_same=is_same)
        for name in LAYER_DESCRIPTIONS
    ]
    zeros, refused = _zeros(first, second)
    return ProfileComparison(
        names=(first.name, second.name),
        rows=tuple(rows),
        is_same_shape=is_same,
        warnings=tuple(_warnings(first, second)),
        zeros=zeros,
        refused=refused,
    )


def _row(
    name: str, level: str, first: Float[np.ndarray, "a"], second: Float[np.ndarray, "b"], *, is_same: bool
) -> ComparedQuantity:
    correlation = change = float("nan")
    if is_same:
        both = np.isfinite(first) & np.isfinite(second)
        one, other = first[both], second[both]
        if len(one) >= _LEAST and np.ptp(one) > 0 and np.ptp(other) > 0:
            correlation = float(spearmanr(one, other).statistic)
        middle = _median(np.abs(one))
        change = _median(np.abs(other - one)) / middle if middle > 0 else float("nan")
    return ComparedQuantity(name, level, _median(first), _median(second), correlation, change)


def _median(values: Float[np.ndarray, "_"]) -> float:
    there = values[np.isfinite(values)]
    return float(np.median(there)) if len(there) else float("nan")


def _warnings(first: WeightProfile, second: WeightProfile) -> list[str]:
    lines = []
    for profile, (part, kinds) in [(each, item) for each in (first, second) for item in each.mixed().items()]:
        listed = ", ".join(f"{len(names)} x {kind}" for kind, names in kinds.items())
        warning = "differences between its layers may be those of the types"
        lines.append(f"{profile.name} stores {part}: {listed}: {warning}")
    types, others = first.storage_types(), second.storage_types()
    differing = [
        f"{part} as {'/'.join(sorted(types[part]))} and {'/'.join(sorted(others[part]))}"
        for part in types
        if part != "other" and part in others and others[part].keys() != types[part].keys()
    ]
    if differing:
        lines.append(f"the two store parts in different types: {'; '.join(differing)}")
    return lines


def _zeros(
    first: WeightProfile, second: WeightProfile
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    zeros, refused = {}, {}
    types, others = first.storage_types(), second.storage_types()
    for part in sorted((types.keys() & others.keys()) - {"other"}):
        kinds = sorted({*types[part], *others[part]})
        if len(kinds) > 1:
            refused[part] = f"stored as {', '.join(kinds)}: types differ in having a zero"
        else:
            zeros[part] = (_mean_zeros(first, part), _mean_zeros(second, part))
    return zeros, refused


def _mean_zeros(profile: WeightProfile, part: str) -> float:
    shares = profile.tensors.filter(pc.field("part") == part)["zero_fraction"].drop_null()
    return float(shares.to_numpy().mean()) if len(shares) else float("nan")
