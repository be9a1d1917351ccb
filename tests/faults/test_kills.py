"""A writer that is killed at random moments loses nothing, doubles nothing, spoils nothing.

``GRAPHHALU_KILLS`` sets how often each store is killed: 2 by default, so that the suite is quick.
"""

import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from graphhalu.traces.storage import LocalBackend
from graphhalu.traces.store import open_traces, storage_backend
from graphhalu.traces.verify import verify_store

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("write_store.py")
N_KILLS = int(os.environ.get("GRAPHHALU_KILLS", "2"))
PATIENCE_S = 60


def n_parts(place):
    """Enough that the writer is at work whenever it is killed; a server is slower than a disk."""
    return (2 if str(place).startswith("s3:") else 6) * N_KILLS + 4


def start(place, *arguments):
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(place), str(n_parts(place)), *arguments],
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    for process in processes:
        _, error = process.communicate(timeout=PATIENCE_S + 10 * N_KILLS)
        assert process.returncode == 0, error


def n_committed(place):
    where = storage_backend(place)
    if isinstance(where, LocalBackend):
        return len(where.part_folders())
    return len(where.list_objects("commits"))


def killed(place, delay_s, *arguments):
    """Start a writer, kill it some time after it has made progress; whether it was at work."""
    before, process = n_committed(place), start(place, *arguments)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while n_committed(place) == before and process.poll() is None:
            assert time.monotonic() < deadline, "no part was committed"
            time.sleep(0.05)
        time.sleep(delay_s)
        return process.poll() is None
    finally:
        process.kill()
        process.communicate()


def assert_whole(toys, place):
    """Every part is there once, is sound, and holds what an undisturbed writer makes."""
    made = runpy.run_path(str(PROGRAM))
    store = open_traces(place)
    done = Counter(name for part in store.parts for name in part.commit.question_ids)
    assert done == {f"q{number}": 1 for number in range(n_parts(place) * made["PART_SIZE"])}
    assert verify_store(place) == []
    expected = {trace.trace_id: trace for index in range(n_parts(place)) for trace in made["part"](index)}
    found = toys.content(place)
    assert set(found) == set(expected)
    for name, (record, arrays) in found.items():
        assert record == expected[name].record
        for array, content in arrays.items():
            assert content == expected[name].arrays[array][:].tobytes()


@pytest.mark.timeout(120 + 20 * N_KILLS)
@pytest.mark.parametrize("where", ["folder", "object store"])
def test_killed_at_random_moments(toys, where, url, tmp_path, capsys):
    place = url if where == "object store" else tmp_path / "killed.zarr"
    killed(place, 0.0)
    delays, n_at_work = random.Random(23), 0
    for _ in range(N_KILLS):
        n_at_work += killed(place, delays.uniform(0, 0.1))
        if N_KILLS <= 10:  # every byte of every part, so not after each of a hundred
            assert verify_store(place) == []
    assert n_at_work >= N_KILLS // 2, "the writer was done too soon for kills to mean anything"
    finish(start(place))
    with capsys.disabled():
        if N_KILLS > 10:
            print(f"\n{where}: {N_KILLS} kills, {n_at_work} at work, {n_parts(place)} parts whole")
    assert_whole(toys, place)


def _is_made(place):
    return storage_backend(place).exists()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("where", ["folder", "object store"])
def test_shards_that_die_and_come_back_make_one_store(toys, where, url, tmp_path):
    place = url if where == "object store" else tmp_path / "shared.zarr"
    first = [start(place, f"{number}/3") for number in (1, 2, 3)]
    while not _is_made(place) or n_committed(place) < 3:
        time.sleep(0.05)
    first[0].kill()
    first[0].communicate()
    finish(*first[1:], start(place, "1/3"))
    assert_whole(toys, place)


@pytest.mark.timeout(240)
def test_two_drivers_on_one_folder_take_turns(toys, tmp_path):
    place = tmp_path / "contested.zarr"
    first = start(place)
    while not _is_made(place) or not n_committed(place):
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)  # a driver that hangs holds its store all the same
    second = start(place)
    _, error = second.communicate(timeout=PATIENCE_S)
    first.send_signal(signal.SIGCONT)
    assert second.returncode != 0
    assert "is being written by process" in error
    finish(first)
    assert_whole(toys, place)


@pytest.mark.timeout(240)
def test_two_drivers_on_one_object_store_double_nothing(toys, url):
    both = [start(url), start(url)]
    for process in both:
        process.communicate(timeout=PATIENCE_S + 10 * N_KILLS)
    # one may have been told that the other was faster; running it again ends the work
    finish(start(url))
    assert_whole(toys, url)
