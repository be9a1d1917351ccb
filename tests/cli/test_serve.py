"""The command that serves, before it serves."""

import os
import socket
import subprocess
import sys

import pytest
from fastapi import FastAPI

from graphhalu.cli.main import run


def test_another_address_needs_a_key(monkeypatch, capsys):
    monkeypatch.delenv("GRAPHHALU_API_KEY", raising=False)
    assert run(["serve", "--host", "0.0.0.0"]) == 2
    said = capsys.readouterr().err
    assert "no key is asked for" in said
    assert "GRAPHHALU_API_KEY" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--detector", "nowhere"], "no saved detector"),
        (["--max-batch", "0"], "greater than or equal to 1"),
        (["--port", "70000"], "less than or equal to 65535"),
    ],
)
def test_a_fault_of_the_user_is_one_line_and_exit_code_2(arguments, said, capsys):
    assert run(["serve", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_one_line(capsys, monkeypatch):
    from graphhalu.cli import library

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(library, "create_app", lambda *_: FastAPI(), raising=False)
        assert run(["serve", "--port", str(taken.getsockname()[1])]) == 2
    assert "cannot listen on 127.0.0.1" in capsys.readouterr().err


BLOCKED = (
    "lightning torch_geometric torchmetrics rustworkx matplotlib seaborn bitsandbytes ray obstore uvicorn"
)


def test_the_core_scores_and_reads_without_its_extras(tmp_path):
    """In a process in which what only extras bring cannot be imported."""
    code = f"""
import sys
sys.modules.update(dict.fromkeys({BLOCKED.split()!r} + ["prometheus_client", "fastapi"]))
from graphhalu import load_detector, open_traces
from graphhalu.cli.main import run
found = load_detector("smollm2").score("Who wrote Emma?", "Jane Austen")
assert 0 <= found.probability <= 1
assert run(["serve"]) == 1
assert run(["train", "gat"]) in (1, 2)
assert run(["show", "detectors"]) == 0
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "pip install 'graphhalu[serve]'" in done.stderr
