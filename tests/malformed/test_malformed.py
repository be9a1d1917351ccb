"""Spoilt files to every reader: a valid object or one clear error, within bounds.

``scripts/nightly`` does the same with 20,000 cases a reader.
"""

import gzip
import json
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphhalu.core.errors import CorruptStoreError, DataFileError
from graphhalu.core.files import unpack_gzip
from graphhalu.datasets import files
from graphhalu.datasets.registry import DATASETS
from graphhalu.detectors.registry import DETECTORS
from graphhalu.traces.metadata import read_attributes, read_commit
from graphhalu.traces.storage import LocalBackend
from graphhalu.traces.store import TraceStore
from tests.malformed.bounds import Bench
from tests.malformed.mutations import STRUCTURED, bomb, spoil
from tests.malformed.readers import READERS
from tests.malformed.store_readers import PART, STORE, make_store, seal_store
from tests.malformed.table import Reader, Target

NAMES = [reader.name for reader in READERS]


def test_there_are_readers_and_each_has_a_name_of_its_own():
    assert len(NAMES) == len(set(NAMES)) > 40
    assert all(reader.targets for reader in READERS)


def test_every_data_set_is_among_the_readers():
    assert {f"dataset {name}" for name in DATASETS.names()} <= set(NAMES)
    assert len(DATASETS.names()) > 10


def test_every_way_of_saving_a_detector_is_among_the_readers():
    tried = {t.file.partition("/")[0] for r in READERS for t in r.targets if "detector" in r.name}
    ways = {DETECTORS.get(name).load.__func__ for name in tried & set(DETECTORS.names())}
    missing = [n for n in DETECTORS.names() if DETECTORS.get(n).load.__func__ not in ways]
    # these save other detectors in folders of their own, each read by its own reader
    assert set(missing) <= {"all-features", "graphhalu", "shuffled-labels"}


@pytest.mark.filterwarnings("ignore")  # libraries may warn of what they read
@pytest.mark.parametrize("reader", READERS, ids=NAMES)
def test_a_spoilt_file_is_refused_or_read_within_bounds(reader, tmp_path):
    bench = Bench(reader, tmp_path / "bench")

    @settings(
        max_examples=reader.n_slice,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def each(rng):
        target, outcome = bench.case(rng)
        assert not outcome.is_fault, f"{target.file}: {outcome.kind}\n{outcome.detail}"

    each()


@pytest.mark.parametrize("kind", ["bytes", *STRUCTURED])
def test_each_way_to_spoil_gives_other_content(kind, tmp_path):
    reader, target = next(
        (r, t) for r in READERS for t in r.targets if t.kind == kind and r.name != "trace store"
    )
    reader.make(tmp_path)
    valid = (tmp_path / target.file).read_bytes()
    others = {spoil(valid, kind, Random(number)) for number in range(29)} - {valid}
    assert len(others) > 13


def made(folder):
    (folder / "file").write_bytes(b"valid")


def outcomes(read, tmp_path, *, writes=False, is_checked=False):
    reader = Reader("made up", made, read, (Target("file", is_checked=is_checked),), writes=writes)
    bench = Bench(reader, tmp_path / "bench")
    return {bench.case(Random(number))[1].kind for number in range(31)}


def test_another_exception_is_a_fault(tmp_path):
    def read(path):
        if path.read_bytes() != b"valid":
            raise KeyError("x")

    assert "raised KeyError" in outcomes(read, tmp_path)


def test_a_case_without_end_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.malformed.bounds.MOST_CPU_S", 0.02)

    def read(path):
        content = path.read_bytes() if path.is_file() else b"valid"
        while content != b"valid":
            pass

    assert "too long" in outcomes(read, tmp_path)


def test_a_file_beside_the_chosen_folder_is_a_fault(tmp_path):
    def read(path):
        if not path.is_file() or path.read_bytes() != b"valid":
            (path.parent.parent / "escaped").write_bytes(b"x")

    assert "wrote elsewhere" in outcomes(read, tmp_path)


def test_a_change_behind_a_checksum_that_is_read_is_a_fault(tmp_path):
    kinds = outcomes(lambda path: path.is_file() and path.read_bytes(), tmp_path, is_checked=True)
    assert "silent change" in kinds


def test_a_request_for_too_much_memory_is_a_fault(tmp_path):
    def read(path):
        if not path.is_file() or path.read_bytes() != b"valid":
            return len(bytearray(2**33))
        return 0

    assert "raised MemoryError" in outcomes(read, tmp_path)


@pytest.mark.parametrize("name", ["../escape", "/escape", "a/../../escape", "a\0b", "a//b", ""])
def test_a_commit_record_cannot_name_a_file_outside_of_its_part(name, tmp_path):
    make_store(tmp_path)
    commit = tmp_path / PART / "commit.json"
    plain = json.loads(commit.read_bytes())
    plain["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    commit.write_text(json.dumps(plain))
    seal_store(commit)
    with pytest.raises(CorruptStoreError, match="cannot be read"):
        read_commit(commit.parent)


def opened(path):
    """A store as ``open_traces`` gives it; type checks of a function would read its first trace."""
    return TraceStore(LocalBackend(path), read_attributes(path))


@pytest.mark.parametrize("shape", [[10**18], [0], [-1], [5, 7], [2**31]])
def test_an_array_of_another_size_than_its_traces_is_refused_before_it_is_read(shape, tmp_path):
    make_store(tmp_path)
    described = tmp_path / PART / "token_ids" / "zarr.json"
    plain = json.loads(described.read_bytes())
    plain["shape"] = shape
    plain["chunk_grid"]["configuration"]["chunk_shape"] = shape
    described.write_text(json.dumps(plain))
    seal_store(described)
    with pytest.raises(CorruptStoreError, match="array 'token_ids' of part 000000"):
        _ = opened(tmp_path / STORE).parts[0].read("token_ids")


def test_a_chunk_of_no_size_is_refused(tmp_path):
    make_store(tmp_path)
    described = tmp_path / PART / "token_ids" / "zarr.json"
    plain = json.loads(described.read_bytes())
    plain["chunk_grid"]["configuration"]["chunk_shape"] = [0]
    described.write_text(json.dumps(plain))
    seal_store(described)
    with pytest.raises(CorruptStoreError, match="array 'token_ids' of part 000000"):
        _ = opened(tmp_path / STORE).parts[0].read("token_ids")


def test_a_gzip_bomb_is_stopped_at_its_bound(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at most 1,048,576 bytes after gzip, got more"):
        unpack_gzip(bomb(), 2**20)
    monkeypatch.setattr(files, "_MAX_BYTES", 2**20)
    path = tmp_path / "questions.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" * 2**21))
    with pytest.raises(DataFileError, match="expected at most 1,048,576 bytes after gzip"):
        files.open_file(path)
