"""The wheel holds every file that the package reads at run time."""

import re
import tomllib
from pathlib import Path

import pathspec
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "graphhalu"
OTHERS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in PACKAGE.rglob("*")
    if path.is_file() and path.suffix not in {".py", ".pyc"}
)
"""Files of the package that are not Python modules: texts, tables, templates and type stubs."""


def test_there_are_files_beside_the_modules():
    assert "graphhalu/cli/library.pyi" in OTHERS
    assert "graphhalu/py.typed" in OTHERS
    assert {Path(name).suffix for name in OTHERS} >= {".yaml", ".txt", ".html", ".css", ".js", ".pyi"}


def test_nothing_keeps_them_out_of_the_wheel():
    # the build takes all files of the packages but those that version control ignores
    with (ROOT / "pyproject.toml").open("rb") as file:
        build = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["packages"] == ["graphhalu"]
    assert set(build["wheel"]) <= {"packages", "force-include"}
    assert "graphhalu" in build["sdist"]["include"]
    lines = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    ignored = pathspec.PathSpec.from_lines("gitignore", lines)
    assert [name for name in OTHERS if ignored.match_file(name)] == []


def test_the_build_takes_them():
    wheel = pytest.importorskip("hatchling.builders.wheel")
    taken = {file.distribution_path for file in wheel.WheelBuilder(str(ROOT)).recurse_included_files()}
    assert set(OTHERS) <= taken


def test_every_file_that_a_module_names_beside_itself_is_there():
    named = {
        path.with_name(name)
        for path in PACKAGE.rglob("*.py")
        for name in re.findall(r'with_name\("([\w.]+\.\w+)"\)', path.read_text(encoding="utf-8"))
        if "__file__" in path.read_text(encoding="utf-8")
    }
    assert len(named) > 9
    assert [str(path) for path in named if path.suffix in {".yaml", ".txt"} and not path.is_file()] == []
