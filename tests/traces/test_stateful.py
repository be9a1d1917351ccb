"""Any course of writing, crashing, losing and reopening, against a plain dictionary."""

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.traces import storage, write
from graphhalu.traces.store import open_traces
from graphhalu.traces.verify import verify_store

NAMES = ("token_ids", "received", "hidden", "attention")


class Crash(BaseException):
    """The process ends here."""


class StoreMachine(RuleBasedStateMachine):
    """``model`` maps the index of a part to its traces, as a store should."""

    toys = None

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "a.zarr"
        self.store = self.toys.create(self.path, arrays=NAMES)
        self.model = {}
        self.n_questions = 0
        self.committed = set()

    def teardown(self):
        shutil.rmtree(self.folder)

    def block(self, lengths):
        """New traces, two beams for a question of even length."""
        traces = []
        for length in lengths:
            name = f"q{self.n_questions}"
            self.n_questions += 1
            traces += [self.toys.trace(name, length, beam=beam) for beam in range(2 - length % 2)]
        return traces

    @rule(lengths=st.lists(st.integers(2, 9), max_size=3))
    def append(self, lengths):
        traces, index = self.block(lengths), self.store.next_part_index()
        failure = {"question_id": f"failed{self.n_questions}.{index}", "reason": "too long"}
        self.toys.add(self.store, traces, index=index, failures=[failure] if not lengths else [])
        self.model[index] = traces
        self.committed.add(index)

    @rule()
    def reopen(self):
        self.store = open_traces(self.path)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def commit_again(self, data):
        index = data.draw(st.sampled_from([i for i in sorted(self.model) if self.model[i]] or [-1]))
        if index >= 0:
            self.toys.add(self.store, self.model[index], index=index)

    @rule(step=st.sampled_from(["sync_tree", "_move_into_place"]), lengths=st.lists(st.integers(2, 5)))
    def crash_before_the_commit(self, step, lengths):
        with pytest.MonkeyPatch.context() as patch:

            def crash(*args):
                # a dead process tidies nothing
                patch.setattr(shutil, "rmtree", lambda *_, **__: None)
                raise Crash

            patch.setattr(storage if step == "_move_into_place" else write, step, crash)
            with pytest.raises(Crash):
                self.toys.add(self.store, self.block(lengths))
        assert list((self.path / ".writing").iterdir())
        self.store = open_traces(self.path)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), is_whole=st.booleans())
    def lose_a_part(self, data, is_whole):
        index = data.draw(st.sampled_from(sorted(self.model)))
        folder = self.path / "parts" / f"{index:06d}"
        if is_whole:
            shutil.rmtree(folder)
        else:
            (folder / "commit.json").unlink()
        del self.model[index]
        self.store = open_traces(self.path)

    @invariant()
    def holds_what_the_model_holds(self):
        expected = [trace for index in sorted(self.model) for trace in self.model[index]]
        for store in (self.store, open_traces(self.path)):
            assert [part.commit.part for part in store.parts] == sorted(self.model)
            assert list(store.trace_ids) == [trace.trace_id for trace in expected]
            assert [record.length for record in store.records] == [t.length for t in expected]
        if expected:
            self.toys.assert_same(self.store[-1], expected[-1], NAMES)
            self.toys.assert_same(self.store.trace(expected[0].trace_id), expected[0], NAMES)
        with pytest.raises(TraceNotFoundError):
            self.store.trace("failed")

    @invariant()
    def has_no_damage_but_what_was_lost(self):
        found = {int(problem["part"]) for problem in verify_store(self.path)}
        assert found == self.committed - set(self.model)


def test_any_course_of_events_keeps_what_was_committed(toys):
    StoreMachine.toys = toys
    run_state_machine_as_test(
        StoreMachine, settings=settings(max_examples=8, stateful_step_count=9, deadline=None)
    )
