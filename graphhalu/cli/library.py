"""Names of the library that commands use, each imported when it is first asked for.

``library.pyi`` beside this file says where they are: it is what type checkers read, and what is
looked up here (https://scientific-python.org/specs/spec-0001).
"""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
_SOURCES = {
    name.asname or name.name: (str(node.module), name.name)
    for node in _STUB.body
    if isinstance(node, ast.ImportFrom)
    for name in node.names
}


def __getattr__(name: str) -> Any:
    if name not in _SOURCES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _SOURCES[name]
    return getattr(import_module(module), attribute)
