"""What is written, what is refused, and what a failure leaves behind."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import (
    NonFiniteError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
    UnknownNameError,
    UsageError,
)
from graphhalu.traces.metadata import create_root
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import open_or_create, open_traces
from graphhalu.traces.verify import verify_store

ANY_TEXT = st.text(st.characters(codec=None), max_size=30)  # lone surrogates too
LENGTHS = st.lists(
    st.tuples(st.integers(2, 17), st.integers(0, 16)).filter(lambda pair: pair[1] < pair[0]), max_size=4
)


def changed(trace, **arrays):
    return dataclasses.replace(trace, arrays={**trace.arrays, **arrays})


def files(path):
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(parts=st.lists(LENGTHS, max_size=3), names=st.sets(st.sampled_from(sorted(ARRAYS))), text=ANY_TEXT)
def test_whatever_is_written_is_read_bit_by_bit(toys, tmp_path_factory, parts, names, text):
    path = tmp_path_factory.mktemp("any") / "a.zarr"
    store, expected = toys.create(path, arrays=sorted(names)), []
    for number, lengths in enumerate(parts):
        block = [
            toys.trace(f"q{number}.{place}{text}", length, row_start, text=text)
            for place, (length, row_start) in enumerate(lengths)
        ]
        toys.add(store, block)
        expected += block
    for found in (store, open_traces(path)):
        assert len(found) == len(expected)
        for stored, given_ in zip(found, expected, strict=True):
            toys.assert_same(stored, given_, names)
    shutil.rmtree(path)


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x1c", "\r", "\n", "\ud800", "東京", "\0"])
def test_no_character_of_a_text_ends_a_record(toys, tmp_path, mark):
    store = toys.create(tmp_path / "a.zarr")
    trace = toys.trace(f"q{mark}", 3, text=f"one{mark}two")
    toys.add(store, [trace, toys.trace("other", 5)])
    assert open_traces(store.path)[0].record == trace.record
    assert verify_store(store.path) == []


def test_a_number_that_json_does_not_know_becomes_null(toys, tmp_path):
    trace = toys.trace("q", 3)
    record = dataclasses.replace(trace.record, metadata={"score": float("nan")})
    store = toys.create(tmp_path / "a.zarr")
    toys.add(store, [dataclasses.replace(trace, record=record)])
    assert open_traces(store.path)[0].record.metadata == {"score": None}


def test_a_part_of_failures_alone_is_a_part(toys, tmp_path):
    store = toys.create(tmp_path / "a.zarr")
    toys.add(store, [], failures=[{"question_id": "x", "reason": "too long"}])
    found = open_traces(store.path)
    assert (len(found), found.done_question_ids()) == (0, {"x"})
    assert found.failures == [{"question_id": "x", "reason": "too long"}]
    assert found.parts[0].read("attention").shape == (5, 3, 0)


def test_the_commit_record_says_what_the_part_covers(toys, store):
    record = json.loads((store.parts[1].folder / "commit.json").read_text())
    assert (record["format"], record["part"]) == ("graphhalu-traces", 1)
    assert record["question_ids"] == ["q5", "q11"]
    assert record["trace_ids"] == ["q5#0", "q11#0"]
    assert record["counts"] == {"traces": 2, "tokens": 16, "rows": 9, "pairs": 9 + 56}
    assert record["created"].endswith("+00:00")
    on_disk = files(store.parts[1].folder)
    assert set(record["files"]) == set(on_disk) - {"commit.json"}
    assert all(record["files"][f]["bytes"] == len(on_disk[f]) for f in record["files"])


def test_offsets_of_records_cut_the_lines_of_json(store):
    part = zarr.open_group(store.parts[0].folder, mode="r", zarr_format=3)
    start, stop = part["record_offsets"][1:3]
    assert json.loads(bytes(part["records"][int(start) : int(stop)]))["trace_id"] == "q7#0"


def test_a_writer_sees_at_once_what_it_wrote_and_views_keep_what_they_had(toys, store):
    view = store[:]
    toys.add(store, [toys.trace("q3", 3)])
    assert store.trace_ids == ("q2#0", "q7#0", "q13#0", "q5#0", "q11#0", "q3#0")
    assert store.trace("q3").length == 3
    assert len(view) == 5
    assert store.next_part_index() == 3


def test_a_part_that_was_removed_is_filled_again(toys, store):
    shutil.rmtree(store.parts[0].folder)
    again = open_traces(store.path)
    assert again.next_part_index() == 0
    toys.add(again, [toys.trace("q2", 2)])
    assert open_traces(store.path).trace_ids == ("q2#0", "q5#0", "q11#0")
    assert verify_store(store.path) == []


def test_a_folder_without_a_commit_record_gives_way(toys, store):
    (store.parts[1].folder / "commit.json").unlink()
    again = open_traces(store.path)
    toys.add(again, [toys.trace("q5", 5, 3)])
    assert open_traces(store.path).trace_ids[3:] == ("q5#0",)
    assert verify_store(store.path) == []


def test_a_part_written_twice_is_there_once_and_unchanged(toys, store):
    before = files(store.path)
    with store.writer() as writer:
        part = store.parts[1]
        again = [store.trace(name) for name in part.commit.trace_ids]
        writer.write_part(1, again, part.commit.question_ids, part.commit.failures)
    assert files(store.path) == before


def test_a_question_is_not_written_into_two_parts(toys, store):
    with pytest.raises(StoreError, match=r"the first is 'q7'.*\n.*again to go on"):
        toys.add(store, [toys.trace("q7", 7)])


@pytest.mark.parametrize("fault", ["foreign", "twice", "failure"])
def test_a_part_holds_traces_of_its_own_questions_once(toys, store, fault):
    trace = toys.trace("new", 3)
    traces, questions, failures = {
        "foreign": ([trace], ["other"], []),
        "twice": ([trace, trace], ["new"], []),
        "failure": ([trace], ["new"], [{"question_id": "x", "reason": "?"}]),
    }[fault]
    with store.writer() as writer, pytest.raises(ValueError, match="every trace once"):
        writer.write_part(2, traces, questions, failures)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"span_mass": np.zeros((5, 3, 3, 5), np.float16)}, r"of shape \(5, 3, 3, 6\), got"),
        ({"received": np.zeros((5, 3, 3), np.float64)}, r"must be float32 .* got float64"),
    ],
)
def test_an_array_of_another_shape_or_format_is_refused(toys, store, arrays, text):
    before = files(store.path)
    with pytest.raises(ValueError, match=text):
        toys.add(store, [changed(toys.trace("new", 3), **arrays)])
    assert files(store.path) == before


def test_a_missing_array_and_a_trace_of_another_model_are_refused(toys, store):
    trace = toys.trace("new", 3)
    bare = dataclasses.replace(trace, arrays={"token_ids": trace.arrays["token_ids"]})
    with pytest.raises(ValueError, match="'new#0' has no span_code, which the store keeps"):
        toys.add(store, [bare])
    other = dataclasses.replace(toys.SHAPE, attention_layers=(0, 2, 3, 5, 9))
    with pytest.raises(ValueError, match="the store keeps TraceShape"):
        toys.add(store, [dataclasses.replace(trace, shape=other)])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_attention_that_is_not_finite_is_refused_with_its_layer(toys, store, value):
    before = files(store.path)
    trace = toys.trace("new", 3)
    attention = trace.arrays["attention"].copy()
    attention[3, 1, 2] = value
    with pytest.raises(NonFiniteError, match="'new#0' holds NaN or infinity in layer 5"):
        toys.add(store, [changed(trace, attention=attention)])
    assert files(store.path) == before


def _fails(command):
    return subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with a few hundred KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=900k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or _fails(mount):
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk_leaves_the_store_intact_and_the_run_goes_on_after(toys, small_disk):
    store = toys.create(small_disk / "a.zarr")
    toys.add(store, [toys.trace("q0", 3)])
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 20 * 4096))
    with pytest.raises(StoreFullError, match=r"part 000001 of .* was not written\n .*intact"):
        toys.add(store, [toys.trace("q1", 61)])
    assert open_traces(store.path).trace_ids == ("q0#0",)
    assert verify_store(store.path) == []
    assert not list((store.path / "parts").glob("000001"))
    ballast.unlink()
    toys.add(open_traces(store.path), [toys.trace("q1", 23)])
    toys.assert_same(open_traces(store.path)[1], toys.trace("q1", 23))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", [os.fsync, os.rename, Path.write_text])
def test_a_disk_that_fills_at_any_step_leaves_nothing_behind(toys, store, monkeypatch, number, call):
    before = files(store.path)

    def full(*args, **kwargs):
        raise OSError(number, "full")

    with store.writer() as writer, monkeypatch.context() as patch:
        if call is os.rename:
            patch.setattr(Path, "rename", full)
        else:
            patch.setattr(Path if call is Path.write_text else os, call.__name__, full)
        with pytest.raises(StoreFullError, match="intact"):
            writer.write_part(2, [toys.trace("new", 3)], ["new"])
        assert not list((store.path / ".writing").glob("*"))
    assert files(store.path) == before


def test_a_folder_that_may_not_be_written_is_a_usage_error(toys, store, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    with store.writer() as writer, monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        with pytest.raises(UsageError, match=r"cannot be written: Permission denied\n.*--out"):
            writer.write_part(2, [toys.trace("new", 3)], ["new"])


def test_any_other_fault_of_the_system_is_not_disguised(toys, store, monkeypatch):
    def fail(*args):
        raise OSError(errno.EIO, "Input/output error")

    with store.writer() as writer, monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            writer.write_part(2, [toys.trace("new", 3)], ["new"])
    assert len(open_traces(store.path)) == 5


def test_a_store_is_not_created_over_something(toys, store, tmp_path):
    with pytest.raises(UsageError, match=r"something at .*toys\.zarr already"):
        toys.create(store.path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"toys.zarr"}


def test_a_full_disk_at_creation_is_told_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFullError, match="the disk is full"):
        create_root(tmp_path / "a.zarr", {})
    assert list(tmp_path.iterdir()) == []


def test_an_array_that_nobody_knows_is_refused_with_the_nearest(toys, tmp_path):
    with pytest.raises(UnknownNameError, match="'attention'"):
        toys.create(tmp_path / "a.zarr", arrays=["atention"])


def test_another_shape_or_other_arrays_are_a_mismatch(toys, store):
    asked = {"configuration": store.configuration, "arrays": list(ARRAYS)}
    assert open_or_create(store.path, shape=toys.SHAPE, **asked).trace_ids == store.trace_ids
    shape = dataclasses.replace(toys.SHAPE, hidden_size=9)
    with pytest.raises(StoreMismatchError, match=r"shape\.hidden_size: 7 in the store, 9 asked"):
        open_or_create(store.path, shape=shape, **asked)
    with pytest.raises(StoreMismatchError, match=r"arrays: .* in the store"):
        open_or_create(store.path, shape=toys.SHAPE, **{**asked, "arrays": ["attention"]})
    wanted = {**asked, "configuration": {"model": {"name": "tiny", "dtype": "float16"}}}
    with pytest.raises(StoreMismatchError, match=r"model\.dtype: None in the store, 'float16'"):
        open_or_create(store.path, shape=toys.SHAPE, **wanted)
