"""``graphhalu new``: module, registry line and test of a detector, a feature or a data set, in a checkout."""

import re
from pathlib import Path
from typing import Final, Literal

from graphhalu.cli.options import command
from graphhalu.cli.output import Shown
from graphhalu.core.errors import UsageError

_TEMPLATES = Path(__file__).parent / "new"

_REGISTRIES: Final = {
    "detector": ("detectors/registry.py", '    ("text", "tfidf"),\n', '    ("@MODULE@", "@NAME@"),\n'),
    "feature": (
        "features/registry.py",
        '    ("likelihood", "beam_eigenscore"),\n',
        '    ("@MODULE@", "@MODULE@"),\n',
    ),
    "dataset": (
        "datasets/registry.py",
        '        "ragtruth": ',
        '        "@MODULE@": "graphhalu.datasets.@MODULE@:@CLASS@",\n',
    ),
}
"""By kind: its registry, the line there that the new one is put before, and the new one."""


@command("new")
def new(kind: Literal["detector", "feature", "dataset"], name: str) -> Shown:
    """Write a detector, a feature or a data set with its line in the registry and a test that passes.

    Args:
        kind: What is written, in a checkout of graphhalu.
        name: Small letters, digits and hyphens.
    """
    registry, anchor, added = _REGISTRIES[kind]
    root = Path.cwd()
    if not (root / "graphhalu" / registry).is_file() or not (root / "tests").is_dir():
        raise UsageError(
            "this is no checkout of graphhalu: run it in the folder that holds graphhalu/ and tests/"
        )
    if not re.fullmatch(r"[a-z][a-z0-9]*(?:[-_][a-z0-9]+)*", name):
        raise UsageError(f"expected a name of small letters, digits and hyphens, got {name!r}")
    module = name.replace("-", "_")
    words = {
        "NAME": name,
        "MODULE": module,
        "CLASS": "".join(part.capitalize() for part in module.split("_")),
    }
    folder = registry.partition("/")[0]
    targets = {
        "module": root / "graphhalu" / folder / f"{module}.py",
        "test": root / "tests" / folder / f"test_{module}.py",
    }
    if there := [path for path in targets.values() if path.exists()]:
        raise UsageError(f"{there[0].relative_to(root)} is there already")
    path = root / "graphhalu" / registry
    text = path.read_text(encoding="utf-8")
    if text.count(anchor) != 1:
        raise UsageError(
            f"graphhalu/{registry} has changed: put the line into it by hand: {_filled(added, words)}"
        )
    for part, target in targets.items():
        template = (_TEMPLATES / f"{kind}_{part}.txt").read_text(encoding="utf-8")
        target.write_text(_filled(template, words), encoding="utf-8")
    path.write_text(text.replace(anchor, _filled(added, words) + anchor), encoding="utf-8")
    made = [str(each.relative_to(root)) for each in (*targets.values(), path)]
    return Shown({"files": made, "test": made[1]}, "new")


def _filled(text: str, words: dict[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text
