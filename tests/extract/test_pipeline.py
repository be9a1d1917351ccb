"""Parts are written beside the model, and the store is the one that came without that."""

import errno
import threading

import pytest

from graphhalu.core.errors import NonFiniteError, StoreFullError
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.run import extract
from graphhalu.traces import write
from graphhalu.traces.store import open_traces
from graphhalu.traces.verify import verify_store
from graphhalu.traces.write import PartQueue, TraceWriter

N_QUESTIONS = 17
PATIENCE_S = 60


@pytest.fixture(scope="module")
def config(sums_config):
    """Four batches; kept beams make two parts of most."""
    return sums_config(N_QUESTIONS, batch_size=5, part_size=5)


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    """The store of a run that writes each part before it makes the next."""
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PartQueue, "put", lambda _, writer, *part: writer.write_part(*part))
        extract(config, path)
    return contents(path)


def contents(path):
    """Questions and digests of every part by its name."""
    parts = open_traces(path).parts
    return {part.folder.name: (part.commit.question_ids, part.commit.files) for part in parts}


def first_of(whole, count):
    return dict(list(whole.items())[:count])


@pytest.fixture
def blocks(monkeypatch):
    """Numbers of the parts that the model has begun to make."""
    begun, traces = [], Extraction.traces

    def noted(extraction, block):
        begun.append(len(begun))
        return traces(extraction, block)

    monkeypatch.setattr(Extraction, "traces", noted)
    return begun


def test_the_bytes_of_the_store_are_those_without_the_thread(config, whole, tmp_path):
    extract(config, tmp_path / "a.zarr")
    assert len(whole) > N_QUESTIONS / config.part_size + 2
    assert contents(tmp_path / "a.zarr") == whole


def test_the_model_makes_the_next_part_while_one_is_written(config, whole, tmp_path, monkeypatch):
    begun, n_written, write_part = threading.Semaphore(0), [], TraceWriter.write_part
    traces = Extraction.traces

    def noted(extraction, block):
        begun.release()
        return traces(extraction, block)

    def patient(writer, *part):
        # the model has begun this part, and before the last one the next
        n_needed = min(len(n_written) + 2, len(whole)) - len(n_written) - bool(n_written)
        assert all(begun.acquire(timeout=PATIENCE_S) for _ in range(n_needed))
        n_written.append(len(part[1]))
        write_part(writer, *part)

    monkeypatch.setattr(Extraction, "traces", noted)
    monkeypatch.setattr(TraceWriter, "write_part", patient)
    extract(config, tmp_path / "a.zarr")
    assert contents(tmp_path / "a.zarr") == whole
    assert len(n_written) == len(whole)


def test_never_more_than_two_parts_are_on_their_way(config, whole, blocks, tmp_path, monkeypatch):
    write_part, n_made = TraceWriter.write_part, []

    def counted(writer, *part):
        n_made.append(len(blocks) - len(n_made))
        write_part(writer, *part)

    monkeypatch.setattr(TraceWriter, "write_part", counted)
    extract(config, tmp_path / "a.zarr")
    assert len(n_made) == len(whole)
    assert max(n_made) <= 2


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        (OSError(errno.ENOSPC, "no space"), StoreFullError, "the disk is full: part 000005 of"),
        (NonFiniteError("holds NaN"), NonFiniteError, "holds NaN"),
    ],
)
def test_an_error_of_the_writer_is_raised_as_it_is_and_ends_the_run(
    config, whole, blocks, tmp_path, monkeypatch, fault, error, message
):
    at = list(whole).index("000005")
    sync_tree, n_synced = write.sync_tree, []

    def limited(folder):
        if len(n_synced) == at:
            raise fault
        n_synced.append(folder)
        sync_tree(folder)

    monkeypatch.setattr(write, "sync_tree", limited)
    with pytest.raises(error, match=message):
        extract(config, tmp_path / "a.zarr")
    assert contents(tmp_path / "a.zarr") == first_of(whole, at)
    assert not any((tmp_path / "a.zarr" / ".writing").glob("*"))
    assert len(blocks) <= at + 2
    monkeypatch.setattr(write, "sync_tree", sync_tree)
    extract(config, tmp_path / "a.zarr")
    assert contents(tmp_path / "a.zarr") == whole


def test_an_error_of_the_last_part_is_raised_too(config, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(write, "sync_tree", lambda _: (_ for _ in ()).throw(OSError(errno.ENOSPC, "")))
    with pytest.raises(StoreFullError, match="part 000000"):
        extract(config.model_copy(update={"num_samples": 1}), tmp_path / "a.zarr")
    assert not contents(tmp_path / "a.zarr")


@pytest.mark.parametrize("fault", [RuntimeError("the model"), KeyboardInterrupt()])
def test_what_ends_the_model_lets_the_part_before_be_written(config, whole, tmp_path, monkeypatch, fault):
    traces, write_part, is_over = Extraction.traces, TraceWriter.write_part, threading.Event()
    n_made = []

    def ending(extraction, block):
        n_made.append(len(block))
        if len(n_made) == 4:
            is_over.set()
            raise fault
        return traces(extraction, block)

    def late(writer, *part):
        if len(n_made) >= 3 and part[0] == int(list(whole)[2]):
            assert is_over.wait(PATIENCE_S)
        write_part(writer, *part)

    monkeypatch.setattr(Extraction, "traces", ending)
    monkeypatch.setattr(TraceWriter, "write_part", late)
    with pytest.raises(type(fault)):
        extract(config, tmp_path / "a.zarr")
    assert contents(tmp_path / "a.zarr") == first_of(whole, 3)
    assert verify_store(tmp_path / "a.zarr") == []
    monkeypatch.undo()
    extract(config, tmp_path / "a.zarr")
    assert contents(tmp_path / "a.zarr") == whole
