"""Code that comes with a model: it runs only if it was asked for by name and revision."""

import hashlib
from pathlib import Path
from typing import Any

from graphhalu.errors import ModelUnavailableError, UsageError
from graphhalu.models.card import ModelSource
from graphhalu.models.spec import ModelSpec

_DIGITS = 12
"""Hexadecimal digits of the digest that stands for the revision of a folder."""


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
        message = f"{spec.name} brings no code of its own\n  Leave --trust-remote-code away"
        raise UsageError(message)
    if asked != found:
        message = (
            f"the code in {source.place} is not the one that was asked for: expected {asked!r}, "
            f"got {found!r}\n  Read it, then:  --trust-remote-code {spec.name}@{found}"
        )
        raise UsageError(message)
    return asked


def code_digest(folder: Path) -> str | None:
    """What stands for the revision of a folder: a digest of its Python files; ``None`` for none."""
    files = sorted(folder.rglob("*.py")) if folder.is_dir() else []
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        content = file.read_bytes()
        digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:_DIGITS]


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
