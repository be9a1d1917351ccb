"""Threads by default: the cores that nothing else uses."""

from graphhalu.models.load import busy_cores, default_threads


def test_processes_that_run_beside_this_one_are_counted(tmp_path):
    (tmp_path / "loadavg").write_text("0.50 0.40 0.30 4/123 4567\n")
    assert busy_cores(tmp_path / "loadavg") == 3


def test_a_system_that_does_not_tell_counts_as_idle(tmp_path):
    assert busy_cores(tmp_path / "missing") == 0
    (tmp_path / "loadavg").write_text("nonsense\n")
    assert busy_cores(tmp_path / "loadavg") == 0


def test_there_is_at_least_one_thread(monkeypatch):
    monkeypatch.setattr("graphhalu.models.load.busy_cores", lambda _: 97.0)
    assert default_threads() == 1
