import hashlib
import json
import subprocess
from datetime import UTC, datetime

import numpy as np
import pytest

from graphhalu.core import provenance as module
from graphhalu.core.provenance import bfloat16_hint, file_sha256, git_state, installed_version, provenance


def test_versions_machine_and_time_are_recorded_as_plain_json():
    found = json.loads(json.dumps(provenance()))
    assert found["packages"]["numpy"] == np.__version__
    assert found["cpu_count"] >= 1
    age = datetime.now(UTC) - datetime.fromisoformat(found["created"])
    assert abs(age.total_seconds()) < 60


def test_a_package_that_is_not_installed_is_left_out(monkeypatch):
    monkeypatch.setattr(module, "_PACKAGES", ("numpy", "no-such-package"))
    assert list(provenance()["packages"]) == ["numpy"]
    assert installed_version("no-such-package") is None


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with one commit that the module takes for its own."""
    source = tmp_path / "graphhalu" / "core" / "provenance.py"
    source.parent.mkdir(parents=True)
    source.write_text("one")
    for arguments in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(module, "__file__", str(source))
    return source


def test_the_commit_of_a_clean_checkout_is_recorded(checkout):
    state = git_state()
    assert state["is_changed"] is False
    assert len(state["commit"]) == 40


def test_a_changed_file_is_recorded(checkout):
    checkout.write_text("two")
    assert git_state()["is_changed"] is True


def test_an_installed_package_has_no_git_state(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "graphhalu" / "core" / "provenance.py"))
    assert git_state() is None


def test_a_machine_without_git_has_no_git_state(checkout, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert git_state() is None


def test_a_checksum_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100_003)
    assert file_sha256(path) == hashlib.sha256(b"x" * 100_003).hexdigest()


def test_the_checksum_of_a_folder_changes_with_content_and_names_alone(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, names in ((first, ("a", "b")), (second, ("b", "a"))):
        (folder / "sub").mkdir(parents=True)
        for name in names:
            (folder / "sub" / name).write_text(name, encoding="utf-8")
    before = file_sha256(first)
    assert before == file_sha256(second)
    (second / "sub" / "a").rename(second / "sub" / "c")
    (first / "sub" / "a").write_text("z", encoding="utf-8")
    assert len({before, file_sha256(first), file_sha256(second)}) == 3


@pytest.mark.parametrize(
    ("line", "is_native"),
    [
        ("flags\t\t: fpu avx512_bf16 amx_tile", True),
        ("flags\t\t: fpu amx_bf16", True),
        ("Features\t: fp asimd bf16 i8mm", True),
        ("flags\t\t: fpu avx512f avx512_vnni avx512_bf16x", False),
        ("model name\t: a bf16 machine", False),
    ],
)
def test_a_cpu_with_bfloat16_is_told_by_what_it_lists(line, is_native, tmp_path):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{line}\nbugs\t\t: none\n")
    hint = bfloat16_hint(tmp_path / "cpuinfo")
    assert (hint is not None) == is_native
    assert hint is None or hint.startswith("--dtype bfloat16 is about 1.4 times as fast")
    assert bfloat16_hint(tmp_path / "no such file") is None
