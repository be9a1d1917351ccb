"""What a user sees when there is no Ray, no cluster, or a wrong address."""

import socket
import sys

import pytest

from graphhalu.cli.main import run, with_address
from graphhalu.core.errors import MissingExtraError, UsageError, WorkerError
from graphhalu.engine.ray import RayExecutor, check_address, connected


@pytest.mark.parametrize("address", ["local", "auto"])
def test_words_are_no_place(address):
    assert check_address(address) is None


def test_a_place_is_host_and_port():
    assert check_address("head-1.lan:6379") == ("head-1.lan", 6379)
    assert check_address("[::1]:6379") == ("::1", 6379)


@pytest.mark.parametrize("address", ["head", "head:", "head:99999", "ray://head:1", "a.zarr", ""])
def test_what_is_no_address_is_refused_with_the_way_out(address):
    with pytest.raises(UsageError, match="HOST:PORT, got"):
        check_address(address)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"graphhalu\[ray\]"), connected("local"):
        pass


def test_a_port_where_nobody_answers_is_told_at_once(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fake = type(sys)("ray")
    fake.is_initialized = lambda: False
    monkeypatch.setitem(sys.modules, "ray", fake)
    refused = pytest.raises(WorkerError, match=rf"127.0.0.1:{port}: Connection refused")
    with refused, connected(f"127.0.0.1:{port}"):
        pass


@pytest.mark.parametrize(
    ("address", "text"),
    [("local", "does not start on this machine: node timed out"), ("auto", "used at auto: node")],
)
def test_a_ray_that_does_not_come_up_is_told_in_its_own_words(monkeypatch, address, text):
    def init(**_):
        raise Exception("node\ntimed out")  # noqa: TRY002 - as ray does

    fake = type(sys)("ray")
    fake.is_initialized, fake.init = (lambda: False), init
    monkeypatch.setitem(sys.modules, "ray", fake)
    with pytest.raises(WorkerError, match=text), connected(address):
        pass


def test_an_address_may_be_left_out_at_the_end_and_before_another_option():
    assert with_address(["extract", "--ray"]) == ["extract", "--ray=local"]
    assert with_address(["extract", "--ray", "--json"]) == ["extract", "--ray=local", "--json"]
    given = ["compare", "--ray", "auto", "a.zarr"]
    assert with_address(given) == given


def test_settings_of_workers_without_ray_are_refused():
    assert RayExecutor().if_asked() is None
    with pytest.raises(UsageError, match="go with --ray"):
        RayExecutor(ray_actors=3).if_asked()
    with pytest.raises(UsageError, match="share of one GPU"):
        RayExecutor(ray="local", ray_gpus=1.5).if_asked()
    engine = RayExecutor(ray="auto", ray_actors=5, ray_cpus=3, ray_gpus=0.5, ray_wait=7.0).if_asked()
    assert (engine.ray_actors, engine.n_threads, engine.ray_gpus, engine.ray_wait) == (5, 3, 0.5, 7.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["extract", "--shard", "4/3"], "as 3/10; got '4/3'"),
        (["extract", "--ray", "no.zarr"], "local, auto or HOST:PORT"),
        (["features", "--ray-cpus", "2"], "go with --ray"),
        (["compare", "--ray", "no.zarr"], "local, auto or HOST:PORT"),
        (["graphs", "compare", "--ray", "no.zarr"], "local, auto or HOST:PORT"),
    ],
)
def test_a_wrong_option_is_one_clear_error(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == 2
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())
