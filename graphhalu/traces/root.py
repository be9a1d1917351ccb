"""The root of a store: its attributes, and which parts it has."""

import errno
import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import zarr
from pydantic import TypeAdapter

from graphhalu.axes import EDGE_CONVENTION, ROW_CONVENTION, SPAN_NAMES
from graphhalu.errors import CorruptStoreError, StoreError, StoreNotFoundError, UsageError
from graphhalu.safe_read import MALFORMED, shown
from graphhalu.traces.schema import ARRAYS, FORMAT, FORMAT_VERSION, TraceShape
from graphhalu.traces.write import disk_error, sync, sync_tree

PARTS: Final = "parts"
GROUP: Final = {"zarr_format": 3, "node_type": "group"}

_SHAPE: Final = TypeAdapter(TraceShape)
_MOST_SIZE: Final = 2**24
_MOST_PARTS: Final = 10**6
_PART_NAME: Final = re.compile("[0-9]{6,}")

_ERROR_BOUNDS: Final = {
    "float16": "relative 2**-11 above 6.1e-5, absolute 3.0e-8 below",
    "bfloat16": "relative 2**-8",
    "fixed16": "absolute 7.7e-6",
}


def is_part_name(name: str) -> bool:
    """Whether a folder of this name can be a part."""
    return _PART_NAME.fullmatch(name) is not None


def store_attributes(
    configuration: Mapping[str, Any],
    shape: TraceShape,
    arrays: Sequence[str],
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """What the root says of the store, with a digest of it; plain JSON values."""
    plain = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "configuration": configuration,
        "provenance": provenance,
        "shape": asdict(shape),
        "arrays": list(arrays),
        "axes": {name: list(ARRAYS[name].axes) for name in arrays},
        "span_names": list(SPAN_NAMES),
        "row_convention": ROW_CONVENTION,
        "edge_convention": EDGE_CONVENTION,
        "error_bounds": _ERROR_BOUNDS,
    }
    loaded: dict[str, Any] = json.loads(json.dumps(plain))
    return {**loaded, "digest": _digest(loaded)}


def create_root(path: Path, attributes: Mapping[str, Any]) -> None:
    """Create an empty store beside its place and move it there.

    Raises:
        UsageError: If there is something at ``path``, or its folder cannot be written.
        StoreFullError: If the disk is full.
    """
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".creating-", dir=path.parent))
        aside.chmod(0o755)
        group = zarr.create_group(store=aside, zarr_format=3, attributes=dict(attributes))
        group.create_group(PARTS)
        sync_tree(aside)
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists", str(path))
        aside.rename(path)
        sync(path.parent)
    except OSError as error:
        raise disk_error(error, str(path)) or _not_creatable(path, error) from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store.

    Raises:
        StoreNotFoundError: If there is nothing at ``path``; names the stores nearby.
        StoreError: If it is no trace store, or one of a newer version.
        CorruptStoreError: If the attributes are not what was written.
    """
    if not path.exists():
        raise no_such_store(path)
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    except MALFORMED as error:
        if (path / PARTS).is_dir():
            raise _damaged(path) from error
        raise StoreError(no_store(path)) from error
    if attributes.get("format") != FORMAT:
        if "row_convention" in attributes:
            raise _damaged(path)
        message = f"{no_store(path)}\n  Its format is {shown(attributes.get('format'))}"
        raise StoreError(message)
    version = attributes.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        message = (
            f"{path} has format version {version}, this graphhalu reads up "
            f"to {FORMAT_VERSION}\n  Update it:  pip install --upgrade graphhalu"
        )
        raise StoreError(message)
    if attributes.get("digest") != _digest(attributes) or not _is_sound(attributes):
        raise _damaged(path)
    return attributes


def _is_sound(attributes: Mapping[str, Any]) -> bool:
    """Whether sizes are such as a model has, and arrays such as a part may hold."""
    try:
        shape = _SHAPE.validate_python(attributes["shape"])
        sizes = (shape.n_layers, shape.n_heads, shape.n_kv_heads, shape.hidden_size)
        is_sized = min(sizes) > 0 and max(*sizes, shape.n_edges) <= _MOST_SIZE
        is_sized &= len(shape.layer_windows) == len(shape.attention_layers)
        is_sized &= attributes["shape"].keys() <= TraceShape.__dataclass_fields__.keys()
        is_known = set(attributes["arrays"]) <= ARRAYS.keys()
        described = (attributes["configuration"], attributes["provenance"])
        n_parts = attributes.get("n_parts", 0)
    except MALFORMED:
        return False
    is_counted = type(n_parts) is int and 0 <= n_parts <= _MOST_PARTS
    return is_sized and is_known and is_counted and all(isinstance(d, dict) for d in described)


def no_store(path: Path) -> str:
    """That something is no trace store, and what one is."""
    came = "a folder without a zarr.json" if path.is_dir() else "a file"
    if (path / "zarr.json").exists():
        came = "something else in Zarr's format"
    return f"{path} is no trace store, but {came}; expected a folder that graphhalu extract made"


def _damaged(path: Path) -> CorruptStoreError:
    message = (
        f"zarr.json of {path} is not what was written: the file is damaged or missing\n"
        f"  The parts are not touched. Bring the file back from a copy, or extract again "
        f"to another place"
    )
    return CorruptStoreError(message)


def _digest(attributes: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in attributes.items() if key != "digest"}
    return sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _not_creatable(path: Path, error: OSError) -> UsageError:
    if path.exists():
        return UsageError(
            f"there is something at {path} already\n"
            f"  Open it with open_traces, or give another place with --out"
        )
    above = next(folder for folder in path.parents if folder.exists())
    reason = error.strerror if above.is_dir() else f"{above} is a file, expected a folder"
    return UsageError(f"{path} cannot be created: {reason}\n  Give another place with --out")


def no_such_store(path: Path) -> StoreNotFoundError:
    """The error for a path with nothing there; names the stores nearby."""
    stores = sorted(found.name for found in path.parent.glob("*.zarr"))
    near = get_close_matches(path.name, stores, n=3)
    near += [name for name in stores if name not in near]
    listed = ", ".join(str(path.parent / name) for name in near[:10])
    hint = f"  Stores there: {listed}" if near else "  Make one:  graphhalu extract"
    return StoreNotFoundError(f"no trace store at {path}\n{hint}")
