"""One writer a store, and a dead one holds nothing."""

import contextlib
import errno
import json
import re
import socket
import subprocess
import sys

import filelock
import pytest

from graphhalu.core.errors import StoreError, StoreFullError, UsageError
from graphhalu.traces import storage
from graphhalu.traces.storage import LocalBackend


def dead_process():
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_second_writer_of_the_same_process_is_refused_too(tmp_path):
    with LocalBackend(tmp_path).lock():
        assert LocalBackend(tmp_path).is_locked()
        with pytest.raises(StoreError) as caught, LocalBackend(tmp_path).lock():
            pass
    text = str(caught.value)
    assert re.search(rf"process \d+ on {re.escape(socket.gethostname())} since \d{{4}}-", text)
    assert str(tmp_path) in text
    assert not LocalBackend(tmp_path).is_locked()


def test_a_lock_that_a_dead_process_left_is_taken_over(tmp_path):
    holder = {"pid": dead_process(), "host": socket.gethostname(), "since": "2026-01-01"}
    (tmp_path / storage.LOCK).write_text("")
    (tmp_path / ".lock.json").write_text(json.dumps(holder))
    assert not LocalBackend(tmp_path).is_locked()
    with LocalBackend(tmp_path).lock():
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] != holder["pid"]


def test_a_writer_that_fails_lets_go(tmp_path):
    with contextlib.suppress(KeyError), LocalBackend(tmp_path).lock():
        raise KeyError
    assert not LocalBackend(tmp_path).is_locked()
    assert not (tmp_path / ".lock.json").exists()


def test_a_holder_that_cannot_be_read_is_another_process(tmp_path):
    with LocalBackend(tmp_path).lock():
        (tmp_path / ".lock.json").write_text("[1]")
        with pytest.raises(StoreError, match="by another process"), LocalBackend(tmp_path).lock():
            pass


def test_a_folder_without_a_lock_is_not_locked_and_stays_untouched(tmp_path):
    assert not LocalBackend(tmp_path).is_locked()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "kind"), [(errno.EROFS, UsageError), (errno.ENOSPC, StoreFullError)])
def test_a_lock_that_cannot_be_made_says_why(tmp_path, monkeypatch, number, kind):
    def fail(*args, **kwargs):
        raise OSError(number, "no")

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with pytest.raises(kind, match=re.escape(str(tmp_path))), LocalBackend(tmp_path).lock():
        pass
