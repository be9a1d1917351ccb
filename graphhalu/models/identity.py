"""Identity of a model: its weights, and the code that it brings if any may run."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from graphhalu.core.errors import ModelUnavailableError, UsageError
from graphhalu.core.files import MAX_JSON_BYTES, parse_json, reading
from graphhalu.models.cards import ModelSource, ModelSpec
from graphhalu.models.gguf import source_digest

_SMALL_FILES: Final = ("*.json", "*.jinja", "*.txt", "*.model")
_SMALL_BYTES: Final = 64 * 2**20
_EDGE_BYTES: Final = 2**15
_STRIDE_BYTES: Final = 2**20
_CODE_DIGITS: Final = 12
"""Hexadecimal digits of the digest that is the revision of a folder."""


def model_identity(
    source: ModelSource, spec: ModelSpec, model: Any, *, path: str, commit: str | None
) -> dict[str, str | None]:
    """Name, source, weights, architecture, number format and quantisation of a loaded model.

    Two models with the same identity give the same numbers, up to the machine's rounding; the
    version of transformers and the path are not among it.

    Args:
        source: The source of the model.
        spec: How it was asked for.
        model: The loaded model.
        path: Folder of its files, or its hub id.
        commit: Its commit on the hub.
    """
    stored = getattr(model.config, "quantization_config", None)
    method = stored_method(stored)
    is_loaded_quantized = spec.quantization != "none" or method is None
    return {
        "name": _name(source),
        "source": source.place if source.kind in ("hub", "wheel") else source.kind,
        "revision": commit,
        "weights": None if source.kind == "hub" else weights_digest(Path(path)),
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": spec.quantization if is_loaded_quantized else f"stored {method}",
    }


def _name(source: ModelSource) -> str:
    if source.card is not None:
        return source.card.alias
    return source.place if source.kind == "hub" else Path(source.place).name


def stored_method(quantization: Any) -> str | None:
    """The method of a ``quantization_config``: ``nf4``, ``int8`` or the library's own name."""
    if quantization is None:
        return None
    values = quantization if isinstance(quantization, dict) else quantization.to_dict()
    if values.get("load_in_4bit"):
        return str(values.get("bnb_4bit_quant_type", "fp4"))
    if values.get("load_in_8bit"):
        return "int8"
    method = values.get("quant_method")
    return str(getattr(method, "value", method))


def weights_digest(folder: Path) -> str:
    """SHA-256 of what a model folder holds.

    Of a folder converted from GGUF it is that of the GGUF file. Otherwise it covers the
    configuration and tokenizer files, and both ends of every tensor: to read all of 140 GB
    would take longer than to load it. An edit inside one tensor that leaves its shape and both
    ends as they were is not seen.
    """
    converted_from = source_digest(folder)
    if converted_from is not None:
        return converted_from
    digest = hashlib.sha256()
    for path in _files(folder):
        with reading(f"{path} cannot be read"), path.open("rb") as file:
            size = path.stat().st_size
            digest.update(f"{path.name} {size}\n".encode())
            for start, length in _pieces(path, file, size):
                file.seek(start)
                digest.update(file.read(length))
    return digest.hexdigest()


def _files(folder: Path) -> list[Path]:
    patterns = (*_SMALL_FILES, "*.safetensors", "*.bin")
    found = {path for pattern in patterns for path in folder.glob(pattern)}
    return sorted(path for path in found if path.is_file())


def _pieces(path: Path, file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Start and length of each piece of a file that is read."""
    if path.suffix == ".safetensors":
        yield from _tensor_ends(file)
    elif size <= _SMALL_BYTES and path.suffix != ".bin":
        yield 0, size
    else:
        yield from ((start, 2**12) for start in range(0, size, _STRIDE_BYTES))


def _tensor_ends(file: BinaryIO) -> Iterator[tuple[int, int]]:
    n_header = int.from_bytes(file.read(8), "little")
    if n_header > min(MAX_JSON_BYTES, os.fstat(file.fileno()).st_size):
        raise ValueError(f"its header would have {n_header} bytes")
    header = parse_json(file.read(n_header))
    yield 0, 8 + n_header
    for name in sorted(header.keys() - {"__metadata__"}):
        start, stop = (8 + n_header + offset for offset in header[name]["data_offsets"])
        yield start, min(_EDGE_BYTES, stop - start)
        if stop - start > _EDGE_BYTES:
            yield stop - _EDGE_BYTES, _EDGE_BYTES


def trusted_revision(source: ModelSource, spec: ModelSpec) -> str | None:
    """The revision whose code may run, or ``None`` if no code may.

    Raises:
        UsageError: If the code of a folder is not the code that was asked for, or there is none.
    """
    if spec.trust_remote_code is None:
        return None
    asked = spec.trust_remote_code.rpartition("@")[2]
    if source.kind == "hub":
        return asked
    found = code_digest(Path(source.place)) if source.kind == "folder" else None
    if found is None:
        raise UsageError(f"{spec.name} brings no code of its own\n  Leave --trust-remote-code away")
    if asked != found:
        raise UsageError(
            f"the code in {source.place} is not the one that was asked for: expected {asked!r}, "
            f"got {found!r}\n  Read it, then:  --trust-remote-code {spec.name}@{found}"
        )
    return asked


def code_digest(folder: Path) -> str | None:
    """The revision of a folder: a digest of its Python files; ``None`` if there are none."""
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:_CODE_DIGITS]


def refused_code(
    source: ModelSource, spec: ModelSpec, error: Exception, options: dict[str, Any]
) -> ModelUnavailableError | None:
    """The error for a model that cannot be read without its own code, or ``None`` for another."""
    if spec.trust_remote_code is not None or "trust_remote_code" not in str(error):
        return None
    revision = options.get("revision") or code_digest(Path(source.place)) or "REVISION"
    return ModelUnavailableError(
        f"{spec.name} needs code from its own repository, which is not run\n"
        f"  Read that code; to run it:  --trust-remote-code {spec.name}@{revision}"
    )
