"""Faults of a folder: each is told, none gives a wrong number, and the same command mends it."""

import os
import shutil
from datetime import UTC, datetime, timedelta

import pytest

from graphhalu.core.errors import CorruptStoreError
from graphhalu.traces import metadata
from graphhalu.traces.metadata import read_attributes
from graphhalu.traces.storage import MAIN, STAGING, LocalBackend
from graphhalu.traces.store import TraceStore, open_traces
from graphhalu.traces.verify import verify_store


@pytest.fixture
def place(toys, traces, tmp_path):
    """Three parts in a folder."""
    path = tmp_path / "toys.zarr"
    made = toys.create(path)
    toys.add(made, 0, traces[:3])
    toys.add(made, 64, traces[3:8])
    toys.add(made, 128, traces[8:])
    return path


def redone(toys, place, traces):
    """Remove the middle part and write it again, as the message says."""
    shutil.rmtree(place / "parts" / "000064")
    toys.add(open_traces(place), 64, traces[3:8])
    assert verify_store(place) == []


@pytest.mark.parametrize("name", ["attention", "hidden", "token_ids", "records"])
def test_a_corrupted_part_is_refused_and_done_again(toys, place, traces, name):
    expected = toys.content(place)
    folder = place / "parts" / "000064" / name
    chunk = next(file for file in sorted(folder.rglob("*")) if file.is_file() and file.name.isdecimal())
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 0x10
    chunk.write_bytes(content)
    with pytest.raises(CorruptStoreError, match=r"part 000064[\s\S]*graphhalu verify"):
        toys.content(place)
    assert {problem["part"] for problem in verify_store(place)} == {"000064"}
    redone(toys, place, traces)
    assert toys.content(place) == expected


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_half_written_index_of_a_part_is_no_part_of_fewer_traces(toys, place, traces, share):
    record = place / "parts" / "000064" / "commit.json"
    content = record.read_bytes()
    record.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CorruptStoreError, match=r"commit\.json of part 000064"):
        # not open_traces: type checks of a function would read its first trace
        _ = TraceStore(LocalBackend(place), read_attributes(place)).parts
    assert {problem["part"] for problem in verify_store(place)} == {"000064"}
    redone(toys, place, traces)


def test_a_half_written_root_is_refused_and_no_part_is_touched(place):
    root = place / "zarr.json"
    content = root.read_bytes()
    root.write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptStoreError, match="parts are not touched"):
        open_traces(place)
    root.write_bytes(content)
    assert verify_store(place) == []


def test_a_lost_ledger_loses_nothing(toys, place, traces):
    expected = toys.content(place)
    shutil.rmtree(place / "ledger")
    assert verify_store(place) == []
    toys.add(open_traces(place), 64, traces[3:8])
    assert toys.content(place) == expected


def test_a_clock_that_jumps_changes_no_order_and_loses_nothing(toys, traces, tmp_path, monkeypatch):
    path, now = tmp_path / "a.zarr", datetime(2026, 1, 1, tzinfo=UTC)
    made = toys.create(path)
    days = iter([0, -4000, 9000])

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return now + timedelta(days=next(days))

    monkeypatch.setattr(metadata, "datetime", Clock)
    for index, block in ((0, traces[:3]), (64, traces[3:8]), (128, traces[8:])):
        toys.add(made, index, block)
    for number, folder in enumerate(sorted((path / "parts").glob("0*"))):
        os.utime(folder / "commit.json", (1e9 * (3 - number), 1e9 * (3 - number)))
    found = open_traces(path)
    assert list(found.trace_ids) == [trace.trace_id for trace in traces]
    assert verify_store(path) == []
    assert len({part.commit.created for part in found.parts}) == 3


def test_what_a_lost_run_has_at_work_cannot_be_committed_while_it_is_swept(place, monkeypatch):
    store, remove = LocalBackend(place), shutil.rmtree
    at_work = place / STAGING / "main.000192"
    at_work.mkdir(parents=True)
    (at_work / "records").write_bytes(b"half of a part")
    refused = []

    def commit_meanwhile(folder, **options):
        try:
            store.commit(at_work, 192)
        except FileNotFoundError as error:
            refused.append(error)
        remove(folder, **options)

    monkeypatch.setattr(shutil, "rmtree", commit_meanwhile)
    store.clean_up(MAIN)
    assert len(refused) == 1
    assert not list((place / STAGING).iterdir())
    assert not store.part(192).exists()
