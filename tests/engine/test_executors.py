"""Executors of this machine: every item once, the state once a worker, faults told as they are."""

import math
import operator
import os
from functools import partial

import pytest

from graphhalu.core.errors import UsageError, WorkerError
from graphhalu.engine.executors import ProcessExecutor, SerialExecutor, TaskResult, in_order
from graphhalu.extract.run import parse_shard

NO_START = partial(parse_shard, "x")


def test_results_come_in_order_however_they_were_found():
    early = [TaskResult(place, place * 10) for place in (2, 0, 3, 1)]
    assert [done.value for done in in_order(early)] == [0, 10, 20, 30]


def test_an_item_that_was_quarantined_has_no_result():
    with pytest.raises(WorkerError, match="worker was lost"):
        TaskResult(0, None, "its worker was lost").result()


def test_this_process_makes_the_state_once_and_only_when_it_is_needed():
    made = []
    with SerialExecutor().workers(lambda: made.append(5) or 7, 3) as workers:
        assert made == []
        assert [d.value for d in workers(operator.mul, [2, 3])] == [14, 21]
        assert [d.value for d in workers(operator.add, [1])] == [8]
    assert made == [5]


def test_a_fault_of_the_user_comes_as_it_is_from_this_process():
    refused = pytest.raises(UsageError, match="as 3/10")
    with SerialExecutor().workers(NO_START, 1) as workers, refused:
        list(workers(operator.eq, [1]))


@pytest.mark.slow
def test_processes_do_every_item_once_and_tell_faults_as_they_are():
    with ProcessExecutor(2).workers(partial(math.pow, 2, 3), 7) as workers:
        found = list(in_order(workers(operator.mul, [2, 3, 5, 7])))
    assert [done.value for done in found] == [16, 24, 40, 56]
    refused = pytest.raises(UsageError, match="as 3/10")
    with ProcessExecutor(5).workers(NO_START, 1) as workers, refused:
        list(workers(operator.eq, [1]))


@pytest.mark.slow
def test_a_process_that_dies_is_told_in_one_line():
    died = pytest.raises(WorkerError, match="a worker process died")
    with ProcessExecutor(1).workers(os.getpid, 1) as workers, died:
        list(workers(os.kill, [9]))
