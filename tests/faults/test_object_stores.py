"""Stores in an object store: the same as in a folder, whatever happens on the way."""

import errno
import shutil
import threading
from pathlib import Path

import pytest

from graphhalu.cli.main import run
from graphhalu.core.errors import (
    CorruptStoreError,
    StoreError,
    StoreFullError,
    StoreMismatchError,
    UsageError,
)
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import label_store, read_labels
from graphhalu.traces import remote
from graphhalu.traces.remote import RemoteBackend
from graphhalu.traces.store import open_or_create, open_traces, storage_backend
from graphhalu.traces.verify import verify_store
from tests.faults.servers import BUCKET

pytestmark = pytest.mark.slow


@pytest.fixture
def store(toys, url, traces):
    """Two parts in an object store."""
    made = toys.create(url)
    toys.add(made, 0, traces[:5])
    toys.add(made, 64, traces[5:])
    return open_traces(url)


def problems(url):
    return {(each["part"], each["file"]) for each in verify_store(url)}


def test_what_was_put_is_what_a_folder_would_hold(toys, store, url, traces, tmp_path):
    local = toys.create(tmp_path / "local.zarr")
    toys.add(local, 0, traces[:5])
    toys.add(local, 64, traces[5:])
    assert toys.content(url) == toys.content(tmp_path / "local.zarr")
    assert [part.commit.part for part in store.parts] == [0, 64]
    assert problems(url) == set()
    assert store.name == url


def test_commands_call_it_by_its_address(store, url, capsys):
    assert run(["verify", url]) == 0
    assert run(["show", "traces", url]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{url} is sound\n{url}: ")


def test_only_what_is_read_is_fetched_and_only_once(store, monkeypatch):
    shutil.rmtree(store.path)
    again = open_traces(store.name)
    fetched = []
    read = RemoteBackend.read_object
    monkeypatch.setattr(
        RemoteBackend,
        "read_object",
        lambda self, name, n_bytes=None: fetched.append(name) or read(self, name, n_bytes),
    )
    for _ in range(2):
        _ = again[0].arrays["row_entropy"][:]
    assert fetched
    assert len(set(fetched)) == len(fetched)
    assert not any("attention" in name or "hidden" in name for name in fetched)


def test_a_large_object_is_read_in_ranges(store, monkeypatch):
    monkeypatch.setattr(remote, "RANGE_BYTES", 7)
    found = store.backend.read_object("zarr.json", len((store.path / "zarr.json").read_bytes()))
    assert found == (store.path / "zarr.json").read_bytes()


def test_of_two_writers_of_one_part_one_counts_and_the_other_leaves_nothing(toys, url, traces):
    first, second = toys.create(url), open_traces(url)
    writers = [first.member("a"), second.member("b")]
    barrier = threading.Barrier(2, timeout=60)
    upload = RemoteBackend.commit

    def both_at_once(place, staged, index):
        barrier.wait()
        return upload(place, staged, index)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteBackend, "commit", both_at_once)
        threads = [
            threading.Thread(target=toys.add, args=(None, 0, traces[:5], writer)) for writer in writers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(open_traces(url)) == 5
    assert problems(url) == set()
    attempts = {name.split("/")[1] for name in first.backend.list_objects("parts")}
    assert len(attempts - {"zarr.json"}) == 1


def test_two_that_make_the_store_at_once_share_it_if_they_agree(toys, url, monkeypatch):
    made = toys.create(url)
    arguments = {"shape": made.shape, "arrays": toys.arrays, "provenance": {}}
    configuration = {"model": {"name": "tiny"}}
    answers, really = iter([False]), RemoteBackend.exists
    monkeypatch.setattr(RemoteBackend, "exists", lambda place: next(answers, really(place)))
    again = open_or_create(url, configuration=configuration, **arguments)
    assert again.configuration == configuration
    answers = iter([False])
    with pytest.raises(StoreMismatchError, match="another configuration"):
        open_or_create(url, configuration={"model": {"name": "other"}}, **arguments)
    with pytest.raises(UsageError, match="already"):
        toys.create(url)


def test_a_flipped_byte_is_refused_when_it_is_read_and_found_by_verify(store, url):
    name = next(n for n in store.backend.list_objects("parts") if "/attention/c/" in n)
    sound = store.backend.read_object(name)
    store.backend.put_object(name, bytes([sound[0] ^ 1]) + sound[1:])
    shutil.rmtree(store.path)
    with pytest.raises(CorruptStoreError, match=r"differs from what was committed\n +Remove s3://"):
        _ = open_traces(url)[0].arrays["attention"][:]
    ((part, file),) = problems(url)
    assert (part, file.split("/")[0]) == ("000000", "attention")


def test_an_object_that_is_lost_is_an_error_and_not_zeros(store, url):
    name = next(n for n in store.backend.list_objects("parts") if "/hidden/c/" in n)
    store.backend.remove_objects([name])
    shutil.rmtree(store.path)
    with pytest.raises(CorruptStoreError, match="missing"):
        _ = open_traces(url)[0].arrays["hidden"][:]
    assert len(problems(url)) == 1


def test_a_part_that_is_lost_is_missed_and_done_again(toys, store, url, traces):
    store.backend.remove_objects(["commits/000064.json"])
    assert problems(url) == {("000064", "-")}
    assert len(open_traces(url)) == 5
    toys.add(open_traces(url), 64, traces[5:])
    assert problems(url) == set()
    assert len(open_traces(url)) == 11


def test_a_store_that_was_made_anew_is_not_read_from_the_mirror(toys, store, url, traces):
    place = store.backend
    place.remove_objects(list(place.list_objects("")))
    assert not storage_backend(url).exists()
    toys.add(toys.create(url), 0, traces[3:4])
    assert list(toys.content(url)) == [traces[3].trace_id]


def test_labels_lie_with_the_store(store, url):
    made = label_store(store, make_labeller("match"))
    shutil.rmtree(store.path)
    assert (read_labels(open_traces(url), "match").values == made.values).all()


def test_ten_seconds_without_the_store_lose_nothing(toys, store, url, traces, wire):
    expected = toys.content(url)
    shutil.rmtree(store.path)
    wire.cut()
    threading.Timer(10, wire.mend).start()
    assert toys.content(url) == expected
    wire.cut()
    threading.Timer(3, wire.mend).start()
    label_store(store, make_labeller("match"))
    assert problems(url) == set()


def test_a_slow_store_is_read_right(toys, store, url, wire):
    expected = toys.content(url)
    shutil.rmtree(store.path)
    wire.pause_s = 0.02
    assert toys.content(url) == expected


def test_a_store_that_never_answers_is_one_clear_line(store, url, wire, monkeypatch, capsys):
    monkeypatch.setenv("GRAPHHALU_STORE_PATIENCE_S", "1")
    wire.cut()
    assert run(["show", "traces", url]) == 1
    error = capsys.readouterr().err
    assert "does not answer" in error
    assert "run the same command again" in error
    assert "Traceback" not in error


def test_a_writer_that_dies_before_its_commit_leaves_no_part(toys, store, url, traces):
    class Death(BaseException):
        pass

    def die(*args):
        raise Death

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemoteBackend, "put_if_absent", die)
        with pytest.raises(Death):
            toys.add(open_traces(url), 128, [_renamed(traces[0])])
    assert len(open_traces(url)) == 11
    assert problems(url) == set()
    toys.add(open_traces(url), 128, [_renamed(traces[0])])
    assert len(open_traces(url)) == 12


def _renamed(trace):
    from dataclasses import replace

    record = replace(trace.record, trace_id="new#0", question_id="new", group_id="new")
    return replace(trace, record=record)


def test_a_commit_whose_answer_was_lost_is_known_by_its_content(store):
    content = b"a record"
    assert store.backend.put_if_absent("commits/x", content)
    assert store.backend.put_if_absent("commits/x", content)
    assert not store.backend.put_if_absent("commits/x", b"another")


def test_a_full_disk_of_the_mirror_is_told(store, url, monkeypatch):
    shutil.rmtree(store.path)
    again = open_traces(url)

    def full(*args):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(StoreFullError, match="the disk is full"):
        _ = again[0].arrays["attention"][:]


@pytest.mark.parametrize(
    ("address", "variables", "match"),
    [
        ("s3://no-such-bucket/a.zarr", {}, "no trace store at s3://no-such-bucket"),
        ("s3://", {}, "not an address of an object store"),
        ("az://container/a.zarr", {}, "not an address of an object store"),
        ("s3:/" + BUCKET + "/nothing.zarr", {}, f"no trace store at s3://{BUCKET}/nothing.zarr"),
        ("s3://b/a.zarr", {"GRAPHHALU_STORE_PATIENCE_S": "soon"}, "must be a time in seconds"),
    ],
)
def test_what_a_user_can_get_wrong_is_one_clear_line(url, monkeypatch, capsys, address, variables, match):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["show", "traces", address]) in (1, 2)
    error = capsys.readouterr().err
    assert match in error
    assert "Traceback" not in error


def test_a_store_without_its_package_names_the_extra(url, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "obstore.exceptions", None)
    assert run(["show", "traces", url]) == 1
    assert "pip install 'graphhalu[cloud]'" in capsys.readouterr().err


def test_file_addresses_are_folders(tmp_path):
    place = storage_backend(f"file://{tmp_path}/a%20b.zarr")
    assert not place.exists()
    (tmp_path / "a b.zarr").mkdir()
    assert place.exists()
    assert place.path == tmp_path / "a b.zarr"


def test_the_mirror_of_one_address_is_not_that_of_another_server(url, monkeypatch):
    first = remote.RemoteBackend(url).path
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    assert remote.RemoteBackend(url).path != first


def test_an_extension_of_a_refused_store_is_told(toys, store, url, monkeypatch):
    monkeypatch.setenv("GRAPHHALU_STORE_PATIENCE_S", "1")
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="does not answer"):
        open_traces(url)
