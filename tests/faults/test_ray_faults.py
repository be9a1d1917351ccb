"""Faults of a cluster, on a real Ray of two nodes on loopback: nothing lost, nothing twice.

One run goes through all of them: its driver is killed and the same command given again, a worker
is killed, a node is lost with a wave half done, and another node comes in its place. Starting Ray
costs most of the time, so the tests below look at different sides of that one run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass

import pytest

pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")

from graphhalu.cli.main import run
from graphhalu.core.errors import WorkerError
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import open_traces
from graphhalu.traces.verify import verify_store
from tests.faults.ray_cluster import ENVIRONMENT, loopback_cluster, workers

N_QUESTIONS = 48
PART_SIZE = 4
PATIENCE_S = int(os.environ.get("GRAPHHALU_PATIENCE_S", "600"))
"""Far more than is needed in quiet; nothing here takes longer."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(PATIENCE_S)]


@dataclass(frozen=True)
class Story:
    """What was seen of the run.

    Attributes:
        store: Its store.
        whole: The store of one process without faults.
        summary: What the command that went through to the end printed.
        before: Name and inode of every part that the first, killed driver left.
        problems: What was wrong with the store when that driver was dead.
    """

    store: object
    whole: object
    summary: dict
    before: dict
    problems: list


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Arguments of the extraction, all but the store; a command for a shell."""
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


@pytest.fixture(scope="module")
def story(command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    assert run([*command, str(folder / "whole.zarr")]) == 0
    try:
        with loopback_cluster(cpus=1, patience_s=float(PATIENCE_S)) as cluster:
            told = lived_through(cluster, command, folder)
    except WorkerError as error:
        pytest.skip(f"{error}: the machine is too busy")
    whole, found = open_traces(folder / "whole.zarr"), open_traces(folder / "ray.zarr")
    return Story(found, whole, *told)


def lived_through(cluster, command, folder):
    """What the run said in the end, and what its killed driver had left."""
    node, store = cluster.add_node(cpus=1), folder / "ray.zarr"
    arguments = [*command, str(store), "--ray", cluster.address, "--ray-wait", str(PATIENCE_S)]
    driver = started(arguments, folder / "killed.log")
    wait_for(lambda: committed(store), driver)
    driver.kill()
    driver.communicate()
    wait_for(lambda: not workers())  # Ray ends the workers of a driver that is gone
    before, problems = committed(store), verify_store(store)
    driver = started(arguments, folder / "again.log")
    try:
        go_through_faults(cluster, node, driver)
        output, _ = driver.communicate(timeout=PATIENCE_S)
    finally:
        driver.kill()
    assert driver.returncode == 0, (folder / "again.log").read_text()
    return json.loads(output), before, problems


def go_through_faults(cluster, node, driver):
    """Hold the worker of one node, kill that of the other, and lose the first node."""
    wait_for(lambda: workers(node) and len(workers()) > 1, driver)
    held = workers(node)
    for each in held:
        os.kill(each, signal.SIGSTOP)  # it is at something, and will not end it
    try:
        for each in set(workers()) - set(held):
            os.kill(each, signal.SIGKILL)
        cluster.lose_node()
    finally:
        for each in held:
            os.kill(each, signal.SIGKILL)
    cluster.add_node(cpus=1)


def started(arguments, log):
    with log.open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-m", "graphhalu", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **ENVIRONMENT},
        )


def wait_for(is_so, process=None):
    """Wait until something is so, and refuse to if the process has ended."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert process is None or process.poll() is None, "the run is over already"
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def committed(store):
    """Name and inode of every part; a part that was written again has another one."""
    return {folder.name: folder.stat().st_ino for folder in store.glob("parts/[0-9]*")}


def test_a_driver_that_is_killed_leaves_whole_parts_that_are_not_done_again(story):
    assert story.problems == []
    assert 0 < len(story.before) < N_QUESTIONS / PART_SIZE
    assert story.before.items() < committed(story.store.path).items()


def test_a_killed_worker_and_a_lost_node_lose_nothing_and_double_nothing(story):
    done = [name for part in story.store.parts for name in part.commit.question_ids]
    planned = [name for part in story.whole.parts for name in part.commit.question_ids]
    assert Counter(done) == dict.fromkeys(planned, 1)
    assert len(done) == N_QUESTIONS
    assert verify_store(story.store.path) == []
    assert story.summary["set_aside"] == {}
    assert not list(story.store.path.glob(".writing/*"))


def test_the_store_is_that_of_one_process_byte_for_byte(story):
    ours = {part.folder.name: part.commit for part in story.store.parts}
    for part in story.whole.parts:
        assert ours.pop(part.folder.name).files == part.commit.files
    assert not ours
    assert story.store.configuration == story.whole.configuration


def test_when_all_is_done_the_same_command_does_nothing(story, command, capsys):
    assert story.summary["n_traces"] == len(story.whole)
    assert run([*command, str(story.store.path)]) == 0
    assert json.loads(capsys.readouterr().out)["n_new"] == 0
