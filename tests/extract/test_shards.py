"""Shares of a run, done by processes that know nothing of each other, make the store of one run."""

import os
import subprocess
from pathlib import Path

import pytest

from graphhalu.engine.executors import ProcessExecutor
from graphhalu.extract.run import extract
from graphhalu.traces.store import open_traces
from graphhalu.traces.verify import verify_store

N_QUESTIONS = 23
SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_extract.sh"


@pytest.fixture(scope="module")
def config(sums_config):
    """Six batches of four questions; kept beams make two parts of each."""
    return sums_config(N_QUESTIONS, batch_size=3, part_size=4)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The store of one run."""
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    extract(config, path)
    return open_traces(path)


def same_parts(found, expected):
    """Whether two stores have the same parts with the same bytes."""
    ours, theirs = ({part.folder.name: part.commit for part in s.parts} for s in (found, expected))
    assert list(ours) == list(theirs)
    for name, commit in theirs.items():
        assert ours[name].question_ids == commit.question_ids
        assert ours[name].files == commit.files


def test_parts_are_named_by_the_place_of_their_first_question(whole):
    assert len(whole.parts) > N_QUESTIONS / 4
    names = [part.folder.name for part in whole.parts]
    asked = [name for part in whole.parts for name in part.commit.question_ids]
    firsts = [asked.index(part.commit.question_ids[0]) for part in whole.parts]
    assert names == [f"{first:06d}" for first in firsts]


def test_three_shards_in_any_order_give_the_same_parts_with_the_same_bytes(config, whole, tmp_path):
    out, counts = tmp_path / "a.zarr", []
    for number in (2, 3, 1):
        counts.append(extract(config, out, shard=(number, 3)).n_new)
    assert sorted(counts) == [7, 8, 8]
    same_parts(open_traces(out), whole)
    assert verify_store(out) == []
    assert extract(config, out).n_new == 0


def test_a_batch_of_which_a_part_is_missing_is_done_again_to_the_same_bytes(config, whole, tmp_path):
    import shutil

    out = tmp_path / "a.zarr"
    shutil.copytree(whole.path, out)
    lost = whole.parts[3].folder.name
    shutil.rmtree(out / "parts" / lost)
    kept = {f.name: f.stat().st_ino for f in (out / "parts").iterdir() if f.is_dir()}
    summary = extract(config, out)
    assert summary.n_new == len(whole.parts[3].commit.question_ids)
    same_parts(open_traces(out), whole)
    now = {f.name: f.stat().st_ino for f in (out / "parts").iterdir() if f.is_dir()}
    assert kept.items() < now.items()


@pytest.mark.slow
def test_workers_in_other_processes_give_the_same_parts_with_the_same_bytes(config, whole, tmp_path):
    out, seen = tmp_path / "a.zarr", []
    summary = extract(config, out, engine=ProcessExecutor(2), on_progress=lambda *step: seen.append(step))
    same_parts(open_traces(out), whole)
    assert summary.n_new == N_QUESTIONS
    assert seen[-1] == (N_QUESTIONS, N_QUESTIONS)
    assert not list(out.glob(".writing/*"))


def test_the_script_for_array_jobs_asks_for_the_share_of_its_task(tmp_path):
    (tmp_path / "graphhalu").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "graphhalu").chmod(0o755)
    environment = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "2"}
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    done = subprocess.run(
        ["bash", str(SCRIPT), "--out", "/shared/a b.zarr"],
        check=True,
        capture_output=True,
        text=True,
        env={**environment, "SLURM_ARRAY_TASK_ID": "3"},
    )
    assert done.stdout.splitlines() == [
        "extract",
        "--out",
        "/shared/a b.zarr",
        "--threads",
        "2",
        "--shard",
        "3/10",
    ]
    alone = subprocess.run(
        ["bash", str(SCRIPT)], check=False, env=environment, capture_output=True, text=True
    )
    assert alone.returncode != 0
    assert "send this with sbatch" in alone.stderr
