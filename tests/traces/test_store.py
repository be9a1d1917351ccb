"""The store: exact round trips, atomic parts, and no silent damage."""

import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from graphhalu.core.errors import (
    CorruptStoreError,
    NonFiniteError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
    StoreNotFoundError,
    TraceNotFoundError,
    UsageError,
)
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.traces.disk import check_fits
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore, as_traces, newest_store, open_or_create, open_traces
from graphhalu.traces.verify import describe_store, verify_store

NAMES = tuple(ARRAYS)
N_TRACES = 11


def write(path, traces, *, arrays=NAMES, sizes=(4, 4, 3)):
    store = TraceStore.create(path, configuration={"a": 1}, shape=PLANTED_SHAPE, arrays=arrays)
    start = 0
    with store.writer() as writer:
        for size in sizes:
            part = traces[start : start + size]
            names = [trace.record.question_id for trace in part]
            writer.write_part(writer.store.next_part_index(), part, names)
            start += size
    return open_traces(path)


@pytest.fixture(scope="module")
def traces():
    return planted_traces(N_TRACES)[0]


@pytest.fixture(scope="module")
def written(traces, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "planted.zarr"
    write(path, traces)
    return path


@pytest.fixture
def copy(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "copy.zarr"))


def files_of(store):
    return sorted(path for path in (store / "parts" / "000001").rglob("*") if path.is_file())


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def read_all(path):
    return [{name: trace.arrays[name][:] for name in trace.arrays} for trace in open_traces(path)]


def test_everything_read_is_what_was_written(traces, written):
    for trace, stored in zip(traces, open_traces(written), strict=True):
        assert stored.record == trace.record
        for name in NAMES:
            np.testing.assert_array_equal(stored.arrays[name][:], trace.arrays[name][:])
            assert stored.arrays[name].shape == trace.arrays[name].shape


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 999),
    arrays=st.sets(st.sampled_from(NAMES), min_size=1),
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3),
)
def test_any_choice_of_arrays_and_parts_comes_back_exactly(tmp_path, seed, arrays, sizes):
    some, _ = planted_traces(sum(sizes), seed=seed)
    path = tmp_path / f"{seed}-{len(list(tmp_path.iterdir()))}.zarr"
    store = write(path, some, arrays=tuple(sorted(arrays)), sizes=sizes)
    for place in np.random.default_rng(seed).permutation(len(some)):
        for name in arrays:
            np.testing.assert_array_equal(store[int(place)].arrays[name][:], some[place].arrays[name][:])


def test_a_layer_of_a_random_trace_is_that_of_the_matrix(traces, written):
    store = open_traces(written)
    for place, layer in ((7, 3), (0, 4), (10, 0), (7, 1)):
        np.testing.assert_array_equal(store[place].attention(layer), traces[place].attention(layer))
        np.testing.assert_array_equal(store[place].hidden(layer), traces[place].hidden(layer))


def test_views_keep_order_and_identity(traces, written):
    store = open_traces(written)
    assert store.select([5, 0]).trace_ids == (traces[5].trace_id, traces[0].trace_id)
    assert store[3:7].trace_ids == tuple(trace.trace_id for trace in traces[3:7])
    assert store[-1].record == traces[-1].record
    assert store.trace(traces[6].trace_id).record == traces[6].record


def test_a_missing_trace_says_how_many_there_are(written):
    with pytest.raises(TraceNotFoundError, match=r"no trace for question 'tc_33'.*11 traces"):
        open_traces(written).trace("tc_33")


def test_a_missing_store_names_those_nearby(written):
    with pytest.raises(StoreNotFoundError, match=r"planted\.zarr"):
        open_traces(written.parent / "plantd.zarr")


def test_a_folder_that_is_no_store_is_refused(tmp_path):
    (tmp_path / "x.zarr").mkdir()
    with pytest.raises(StoreError):
        open_traces(tmp_path / "x.zarr")


def test_another_configuration_is_refused_by_field(copy):
    with pytest.raises(StoreMismatchError, match="a: 1 in the store, 2 asked for"):
        open_or_create(copy, configuration={"a": 2}, shape=PLANTED_SHAPE, arrays=NAMES)


def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="Give another place"):
        TraceStore.create(tmp_path / "file" / "a.zarr", configuration={}, shape=PLANTED_SHAPE, arrays=NAMES)


def test_what_a_killed_writer_left_is_invisible_and_swept(copy, traces):
    left = copy / ".writing" / "000003-1"
    left.mkdir(parents=True)
    (left / "zarr.json").write_text("{}")
    assert len(open_traces(copy)) == N_TRACES
    with open_traces(copy).writer():
        pass
    assert not left.exists()


def test_a_part_that_is_there_stays_as_it_is_and_other_questions_take_the_next_index(copy, traces):
    before = read_all(copy)
    store = open_traces(copy)
    n_parts = len(store.parts)
    with store.writer() as writer:
        writer.write_part(1, [], ["other"], [{"question_id": "other", "reason": "empty"}])
    for old, new in zip(before, read_all(copy), strict=True):
        np.testing.assert_array_equal(old["attention"], new["attention"])
    assert [part.commit.part for part in open_traces(copy).parts] == list(range(n_parts + 1))


def test_every_flipped_byte_is_found_and_none_is_read_as_a_number(written, tmp_path):
    expected = read_all(written)
    n_files = len(files_of(written))
    assert n_files > 30
    # every third file from a seeded start: all kinds of files, a third of the time
    for number in range(0, n_files, 3):
        store = Path(shutil.copytree(written, tmp_path / f"{number}.zarr"))
        damaged = files_of(store)[number]
        flip(damaged)
        assert verify_store(store), damaged
        try:
            found = read_all(store)
        except (CorruptStoreError, StoreError, TypeCheckError):  # the last wraps the others
            continue
        for old, new in zip(expected, found, strict=True):
            for name in NAMES:
                np.testing.assert_array_equal(old[name], new[name], err_msg=str(damaged))
        shutil.rmtree(store)


def test_a_missing_chunk_is_an_error_and_not_zeros(copy):
    chunk = next(path for path in files_of(copy) if "attention/c/" in path.as_posix())
    chunk.unlink()
    assert verify_store(copy)
    with pytest.raises(CorruptStoreError, match="attention"):
        read_all(copy)


def test_truncated_extra_and_missing_things_are_found(copy):
    hidden = next(path for path in files_of(copy) if "hidden/c/" in path.as_posix())
    hidden.write_bytes(hidden.read_bytes()[:-7])
    (copy / "parts" / "000000" / "extra").write_text("x")
    shutil.rmtree(copy / "parts" / "000001")
    found = {(problem["part"], problem["file"]) for problem in verify_store(copy)}
    assert ("000001", "-") in found
    assert ("000000", "extra") in found


def test_a_part_without_its_commit_record_does_not_exist_and_is_reported(copy):
    (copy / "parts" / "000001" / "commit.json").unlink()
    assert len(open_traces(copy)) == N_TRACES - 4
    assert verify_store(copy)


HOLD = """
import sys, time
from graphhalu.traces.store import open_traces
with open_traces(sys.argv[1]).writer():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_holds_the_store(copy):
    command = [sys.executable, "-c", HOLD, str(copy)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=str(process.pid)), open_traces(copy).writer():
            pass
        with pytest.raises(StoreNotFoundError, match="being written"):
            newest_store(copy.parent)
        process.kill()
        process.wait()
        with open_traces(copy).writer():  # a killed holder holds nothing
            pass
    finally:
        process.kill()
        process.communicate()


def renamed(trace):
    record = dataclasses.replace(
        trace.record, trace_id=f"new-{trace.trace_id}", question_id=f"new-{trace.trace_id}"
    )
    return dataclasses.replace(trace, record=record)


def test_a_full_disk_leaves_the_store_as_it_was(copy, traces, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    new = [renamed(trace) for trace in traces[:2]]
    with open_traces(copy).writer() as writer:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreFullError, match="intact"):
            writer.write_part(3, new, [trace.record.question_id for trace in new])
        monkeypatch.undo()
    assert len(open_traces(copy)) == N_TRACES
    assert verify_store(copy) == []


def test_a_run_that_cannot_fit_is_refused(tmp_path):
    with pytest.raises(StoreFullError, match="--keep streams"):
        check_fits(tmp_path / "a.zarr", 2**60)


def test_attention_with_nan_is_refused(tmp_path):
    (trace,), _ = planted_traces(1)
    trace.arrays["attention"][0, 0, 0] = np.nan
    with pytest.raises(NonFiniteError, match="attention"):
        write(tmp_path / "a.zarr", [trace], sizes=(1,))


def test_plain_zarr_reads_the_store(traces, written):
    group = zarr.open_group(written, mode="r", zarr_format=3)
    assert group.attrs["row_convention"] == "row i predicts token i + 1"
    part = group["parts/000000"]
    stop = int(part["pair_offsets"][1])
    np.testing.assert_array_equal(part["attention"][2, :, :stop], traces[0].arrays["attention"][2])
    first = json.loads(bytes(part["records"][:]).decode().splitlines()[0])
    assert first["trace_id"] == traces[0].trace_id


def test_the_newest_store_is_found_and_described(written):
    assert newest_store(written.parent) == written
    described = describe_store(written)
    assert described["n_traces"] == N_TRACES
    assert described["arrays"]["hidden"]["dtype"] == "bfloat16"
    assert described["configuration"] == {"a": 1}


def sized_store(folder, n_traces, age_s):
    """A store of traces without arrays whose last part is this old."""
    path = folder / f"{n_traces}.zarr"
    write(path, planted_traces(n_traces)[0], arrays=("token_ids",), sizes=(n_traces,))
    part = path / "parts" / "000000"
    os.utime(part, (1_000_000 - age_s,) * 2)
    return path


def test_a_newest_store_of_a_few_answers_is_passed_over_with_one_line(tmp_path):
    large = sized_store(tmp_path, 50, 30)
    sized_store(tmp_path, 53, 40)
    small, smaller = sized_store(tmp_path, 49, 20), sized_store(tmp_path, 7, 10)
    said = []
    assert newest_store(tmp_path, said.append) == large
    assert said == [f"passed over with fewer than 50 answers, unless named: {smaller} (7), {small} (49)"]


def test_among_small_stores_the_newest_is_taken_and_nothing_is_said(tmp_path):
    sized_store(tmp_path, 13, 20)
    small, said = sized_store(tmp_path, 7, 10), []
    assert newest_store(tmp_path, said.append) == small
    assert said == []


def test_traces_are_taken_as_they_are_or_from_a_path(traces, written):
    assert as_traces(traces) is traces
    assert as_traces(written).trace_ids == as_traces(str(written)).trace_ids
    view = open_traces(written)[2:5]
    assert as_traces(view) is view
    with pytest.raises(StoreNotFoundError, match=r"nowhere\.zarr"):
        as_traces("nowhere.zarr")


@pytest.mark.parametrize(
    ("given", "came"), [(7, "int"), (None, "NoneType"), ([1, 2], "list of int"), ({}, "dict")]
)
def test_what_is_no_traces_is_refused_with_what_came(given, came):
    with pytest.raises(UsageError, match=rf"^expected traces .*, got {came}\n"):
        as_traces(given)


CALLS = """
import graphhalu
from graphhalu.core.errors import UsageError
from graphhalu.labels.planted import planted_traces
traces, labels = planted_traces(11)
for call in (
    lambda: graphhalu.compare(traces, [0, 1], ["length"]),
    lambda: graphhalu.compare(7, labels, ["length"]),
    lambda: graphhalu.read_labels(traces, "match"),
    lambda: graphhalu.feature_matrix([7], ["sink_mass_k4"]),
    lambda: graphhalu.feature_table(7, ["sink_mass_k4"]),
):
    try:
        call()
    except UsageError as error:
        print(str(error).splitlines()[0])
"""


def test_public_functions_refuse_other_things_in_a_line():
    # a process of its own: here every argument is checked before the function is entered
    command = [sys.executable, "-c", CALLS]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    traces = "expected traces (a TraceStore, its path, or a list of Trace), got"
    assert done.stdout.splitlines() == [
        "expected Labels, which name their traces, got list",
        f"{traces} int",
        "expected a TraceStore or its path, got list",
        f"{traces} list of int",
        f"{traces} int",
    ]


def test_a_path_is_taken_where_traces_are(copy):
    from graphhalu.evaluation.compare import compare
    from graphhalu.evaluation.settings import CompareConfig
    from graphhalu.features.matrix import feature_matrix
    from graphhalu.features.table import feature_table
    from graphhalu.labels.registry import make_labeller
    from graphhalu.labels.run import label_store, read_labels

    store = open_traces(copy)
    labels = label_store(store, make_labeller("match"))
    for path in (copy, str(copy)):
        assert read_labels(path, "match").trace_ids == labels.trace_ids
        expected = feature_matrix(store, ["sink_mass_k4"]).values
        np.testing.assert_array_equal(feature_matrix(path, ["sink_mass_k4"]).values, expected)
        np.testing.assert_array_equal(feature_table(path, ["sink_mass_k4"]).values, expected)
    config = CompareConfig(quick=True, seeds=(0,), n_resamples=100)
    assert compare(str(copy), labels, ["length"], config=config).n_traces == N_TRACES


def test_stores_traces_and_labels_show_themselves_in_one_line(written, traces):
    store, (_, labels) = open_traces(written), planted_traces(N_TRACES)
    assert repr(store) == f"TraceStore('{written}', 11 traces, 5 layers of 3 heads)"
    shown = repr(dataclasses.replace(store[0], arrays={"token_ids": store[0].arrays["token_ids"]}))
    lengths = f"{traces[0].prompt_length} + {traces[0].answer_length} tokens"
    assert shown == f"Trace('{traces[0].trace_id}', {lengths}, keeps token_ids)"
    share = 100 * labels.prevalence
    assert repr(labels) == f"Labels('planted', 11 of 11 valid, {share:.1f} % hallucinated)"
    undecided = dataclasses.replace(labels, is_valid=np.zeros(N_TRACES, dtype=bool))
    assert repr(undecided) == "Labels('planted', 0 of 11 valid)"


def test_a_trace_gives_its_question_its_text_and_its_tokens(traces):
    record = dataclasses.replace(
        traces[0].record,
        question="Who?",
        prompt="Q: Who?",
        answer="ab é",
        prompt_length=2,
        length=6,
        answer_offsets=((0, 1), (1, 2), (3, 4), (3, 4)),
    )
    ids = np.array([5, 3, 7, 11, 13, 17], dtype=np.int32)
    trace = dataclasses.replace(traces[0], record=record, arrays={"token_ids": ids})
    assert trace.question == "Who?"
    assert trace.text == "Q: Who?ab é"
    assert trace.tokens == ["#5", "#3", "a", "b", " é", ""]
    older = dataclasses.replace(trace, record=dataclasses.replace(record, answer_offsets=()))
    assert older.tokens == ["#5", "#3", "#7", "#11", "#13", "#17"]
