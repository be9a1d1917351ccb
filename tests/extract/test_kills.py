"""An extraction that is killed at random moments loses nothing, doubles nothing, spoils nothing.

``GRAPHHALU_KILLS`` sets how often it is killed: 2 by default, so that the suite stays quick.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest

from graphhalu.cli.main import run
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import open_traces
from graphhalu.traces.verify import verify_store

pytestmark = pytest.mark.slow

N_KILLS = int(os.environ.get("GRAPHHALU_KILLS", "2"))
PART_SIZE = 4
N_QUESTIONS = 4 * PART_SIZE * max(N_KILLS, 3)
LONGEST_DELAY_S = 0.5
"""Some parts' worth of work: a kill may come at any step of generating, replaying or writing."""
PATIENCE_S = 120


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Arguments of the extraction, all but the store."""
    folder = save_tiny(tmp_path_factory.mktemp("model") / "tiny")
    # one token a letter: the prompts of worldfacts are longer than the tiny model's context
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    return [
        "extract",
        "--model",
        str(folder),
        "--dataset",
        "worldfacts",
        "--threads",
        "1",
        "--num-samples",
        str(N_QUESTIONS),
        "--set",
        f"part_size={PART_SIZE}",
        "--beams",
        "2",
        "--max-new-tokens",
        "5",
        "--batch-size",
        "2",
        "--json",
        "--out",
    ]


def committed(store):
    """Name and inode of every part; a part that was written again has another one."""
    return {folder.name: folder.stat().st_ino for folder in store.glob("parts/[0-9]*")}


def killed_after_progress(arguments, store, delay_s):
    """Start a run, wait until one more part is there and a while longer, and kill it.

    Returns whether it was still at work.
    """
    before = committed(store)
    process = subprocess.Popen(
        [sys.executable, "-m", "graphhalu", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while len(committed(store)) == len(before) and process.poll() is None:
            assert time.monotonic() < deadline, "no part was committed"
            time.sleep(0.002)
        time.sleep(delay_s)
        is_at_work = process.poll() is None
    finally:
        process.kill()
        process.wait()
    return is_at_work


def done(store):
    """Every question of a store, as often as it is done."""
    return [name for part in store.parts for name in part.commit.question_ids]


@pytest.mark.slow
@pytest.mark.timeout(120 + 30 * N_KILLS)
def test_killed_at_random_moments_it_does_every_question_once_and_exactly(command, tmp_path, capsys):
    store, delays = tmp_path / "killed.zarr", random.Random(17)
    parts, n_torn = {}, 0
    for kill in range(N_KILLS):
        is_at_work = killed_after_progress([*command, str(store)], store, delays.uniform(0, LONGEST_DELAY_S))
        assert is_at_work, f"the run was over before kill {kill}: more questions are needed"
        n_torn += any((store / ".writing").glob("*"))
        assert verify_store(store) == []
        assert parts.items() < committed(store).items()
        parts = committed(store)

    assert run([*command, str(store)]) == 0
    assert run([*command, str(tmp_path / "whole.zarr")]) == 0
    capsys.readouterr()
    print(f"{N_KILLS} kills, {n_torn} during a write, {len(parts)} parts until the last of them")
    assert parts.items() < committed(store).items()
    assert verify_store(store) == []
    assert not any((store / ".writing").glob("*"))
    assert not list(tmp_path.glob(".*"))

    found, whole = open_traces(store), open_traces(tmp_path / "whole.zarr")
    assert Counter(done(found)) == dict.fromkeys(done(whole), 1)
    assert len(done(whole)) == N_QUESTIONS
    assert Counter(found.trace_ids) == dict.fromkeys(whole.trace_ids, 1)
    assert found.failures == whole.failures
    assert len(whole) > N_QUESTIONS // 2
    for name in whole.trace_ids:
        trace, expected = found.trace(name), whole.trace(name)
        assert trace.record == expected.record
        for array in whole.arrays:
            ours, theirs = trace.arrays[array][:], expected.arrays[array][:]
            assert ours.tobytes() == theirs.tobytes(), (name, array)
