"""Where the dependencies come from: versions with hashes, known licences, no unsafe reading."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
import supply  # noqa: E402

SOURCES = sorted((ROOT / "graphhalu").rglob("*.py"))
_LINE = re.compile(r"([a-z0-9-]+)==(\S+) --hash=sha256:[0-9a-f]{64}")


def test_the_lock_has_every_pinned_version_with_a_hash():
    lines = supply.LOCK.read_text(encoding="utf-8").splitlines()
    entries = [line for line in lines if not line.startswith("#")]
    found = [_LINE.fullmatch(entry) for entry in entries]
    assert len(entries) > 100
    assert all(found), [e for e, match in zip(entries, found, strict=True) if match is None]
    # the index gives torch as a build for the CPU, which says so behind a plus
    locked = {match[1]: match[2].partition("+")[0] for match in found if match}
    assert locked == supply.pinned()


def test_the_lock_names_no_place_of_an_index():
    assert "://" not in supply.LOCK.read_text(encoding="utf-8")


def test_every_dependency_has_a_licence_that_is_known():
    rows = supply.LICENCES.read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows if row[:2] == "| "]
    listed = {name: licence for name, _, licence, _ in cells[1:]}
    assert set(supply.required()) <= set(listed)
    assert set(supply.pinned()) <= set(listed)
    assert not [name for name, licence in listed.items() if licence in {"", "unknown"}]


def test_the_list_of_licences_is_that_of_the_pinned_versions():
    text = supply.LICENCES.read_text(encoding="utf-8")
    assert all(f"| {name} | {version} |" in text for name, version in supply.pinned().items())


UNSAFE = {
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.load_all",
    "eval",
    "exec",
    "pickle.load",
    "pickle.loads",
    "marshal.loads",
    "torch.load",
    "shelve.open",
    "os.system",
}


def calls_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


@pytest.mark.parametrize("room", sorted({p.relative_to(ROOT).parts[1] for p in SOURCES}))
def test_no_reader_can_run_what_it_reads(room):
    paths = [path for path in SOURCES if path.relative_to(ROOT).parts[1] == room]
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {name}"
        for path in paths
        for name, node in calls_of(path)
        if name in UNSAFE
        or any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords)
        or any(k.arg == "shell" for k in node.keywords)
    ]
    assert found == []
