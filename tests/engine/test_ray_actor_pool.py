"""How workers that die are replaced and their items done again, on a Ray that is played.

``tests/faults/test_ray_faults.py`` does the same on a real one.
"""

import operator
from functools import partial
from types import SimpleNamespace

import pytest

from graphhalu.core.errors import UsageError, WorkerError
from graphhalu.engine import ray as ray_module
from graphhalu.engine.executors import in_order
from graphhalu.engine.ray import _Actor, _ActorPool
from graphhalu.extract.run import parse_shard

pytestmark = pytest.mark.slow


class LostError(Exception):
    """What a played Ray raises where a worker was lost."""


class PlayedRay:
    """Actors that do their work when they are waited for.

    Args:
        dies_of: Items of which a worker dies.
        n_ready: Workers that ever become ready.
        n_false: Workers that end before they are ready.
    """

    exceptions = SimpleNamespace(RayError=LostError)

    def __init__(self, dies_of=(), n_ready=99, n_false=0):
        self.dies_of, self.n_ready, self.n_false = list(dies_of), n_ready, n_false
        self.hired = []
        self.killed = []

    def hire(self, start):
        holder = _Actor(start, "")
        actor = SimpleNamespace(number=len(self.hired))
        is_ready = len(self.hired) < self.n_ready
        is_false = len(self.hired) < self.n_false
        actor.ready = SimpleNamespace(remote=lambda: SimpleRef("ready", is_ready, is_false))
        actor.run = SimpleNamespace(remote=lambda f, item: SimpleRef((holder, f, item)))
        self.hired.append(actor)
        return actor

    def wait(self, refs, num_returns, timeout):
        # workers become ready before work is done, so that several are at work together
        ready = sorted((r for r in refs if r.is_ready), key=lambda ref: ref.what != "ready")
        ready = ready[:num_returns]
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref):
        if ref.is_false:
            raise LostError
        if ref.what == "ready":
            return None
        holder, function, item = ref.what
        if item in self.dies_of:
            raise LostError
        return holder.run(function, item)

    def kill(self, actor):
        self.killed.append(actor.number)


class SimpleRef:
    def __init__(self, what, is_ready=True, is_false=False):
        self.what, self.is_ready, self.is_false = what, is_ready, is_false


SEVEN = partial(int, "7")


def actors(ray, n_actors=2, start=SEVEN, wait_s=300.0):
    return _ActorPool(ray, partial(ray.hire, start), n_actors, wait_s, lambda: "no worker is ready")


def test_every_item_is_done_once_by_as_many_workers_as_were_asked_for():
    ray = PlayedRay()
    workers = actors(ray, n_actors=3)
    found = list(in_order(workers.map(operator.mul, [2, 3, 5, 11, 13])))
    assert [done.result() for done in found] == [14, 21, 35, 77, 91]
    assert len(ray.hired) == 3
    workers.dismiss()
    assert sorted(ray.killed) == [0, 1, 2]


def test_no_more_workers_are_hired_than_there_are_items():
    ray = PlayedRay()
    list(actors(ray, n_actors=7).map(operator.mul, [2, 3]))
    assert len(ray.hired) == 2


def test_an_item_that_kills_its_workers_is_quarantined_after_three_and_the_rest_is_done():
    ray = PlayedRay(dies_of=[3])
    found = list(in_order(actors(ray).map(operator.mul, [2, 3, 5, 11])))
    assert [done.value for done in found] == [14, None, 35, 77]
    assert found[1].failure == "its worker was lost (LostError) (3 attempts)"
    assert len(ray.killed) == 3


def test_an_item_that_fails_once_is_done_by_another_worker():
    ray = PlayedRay(dies_of=[3])
    workers = actors(ray)
    found = []
    for done in workers.map(operator.mul, [2, 3, 5]):
        ray.dies_of.clear()
        found.append(done)
    assert [done.result() for done in in_order(found)] == [14, 21, 35]


def test_when_nothing_was_ever_done_it_is_not_the_items():
    ray = PlayedRay(dies_of=range(20))
    with pytest.raises(WorkerError, match="no worker lives long enough"):
        list(actors(ray).map(operator.mul, list(range(20))))


def test_another_fault_of_the_work_counts_like_a_death_and_says_what_it_was():
    found = list(in_order(actors(PlayedRay()).map(operator.floordiv, [1, 0])))
    assert found[0].value == 7
    assert "ZeroDivisionError" in found[1].failure


def test_a_fault_of_the_user_ends_the_run_as_itself_and_names_the_machine():
    ray = PlayedRay()
    workers = actors(ray, start=partial(parse_shard, "x"))
    with pytest.raises(UsageError, match="a shard is written") as caught:
        list(workers.map(operator.mul, [2, 3, 5]))
    assert caught.value.__notes__[0].startswith("in a worker on ")


def test_whoever_stops_early_leaves_no_worker_at_work():
    ray = PlayedRay()
    found = actors(ray).map(operator.mul, [2, 3, 5, 11])
    next(found)
    found.close()
    assert ray.killed


def test_workers_that_never_find_room_end_the_run_with_what_they_need(monkeypatch, caplog):
    caplog.set_level("INFO")
    clock = iter(range(0, 10_000, 10))
    played = SimpleNamespace(monotonic=lambda: float(next(clock)))
    monkeypatch.setattr(ray_module, "time", played)
    workers = actors(PlayedRay(n_ready=0), wait_s=100.0)
    with pytest.raises(WorkerError, match=r"no worker is ready\n.*100 s"):
        list(workers.map(operator.mul, [2, 3]))
    assert caplog.messages == ["waiting: no worker is ready"]


def test_one_worker_that_finds_room_does_everything():
    ray = PlayedRay(n_ready=1)
    found = list(actors(ray).map(operator.mul, [2, 3, 5]))
    assert sorted(done.result() for done in found) == [14, 21, 35]


def test_workers_that_cannot_be_started_are_not_started_for_ever():
    ray = PlayedRay(n_false=99)
    with pytest.raises(WorkerError, match="ended before they were ready"):
        list(actors(ray).map(operator.mul, [2, 3]))
    assert len(ray.hired) < 15
