"""The server: this machine only, reading only, and nobody else's page gets an answer."""

import http.client
import json
import threading

import pytest

from graphhalu.viewer.heads import layer_text
from graphhalu.viewer.page import ViewServer


@pytest.fixture(scope="module")
def server(stores, plain_view):
    with ViewServer(plain_view(stores["full"])) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def asked(server, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def test_it_listens_on_the_loopback_address_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.port}/"


def test_the_page_the_traces_and_their_layers_are_there(server, stores):
    status, headers, text = asked(server, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "connect-src &#39;self&#39;" in text
    status, _, text = asked(server, "/traces/2.json")
    assert status == 200
    assert json.loads(text)["question"] == stores["full"].records[2].question
    status, _, text = asked(server, "/traces/2/layers/4.txt")
    starts = json.loads(asked(server, "/traces/2.json")[2])["pieces"]
    assert text == layer_text(stores["full"][2], 4, 3, starts)


@pytest.mark.parametrize(
    "path",
    [
        "/traces/7.json",
        "/traces/0/layers/5.txt",
        "/traces/-1.json",
        "/../../etc/passwd",
        "/x",
        "/traces/0.json?x=1",
        "/traces/%30.json",
    ],
)
def test_there_is_nothing_else(server, path):
    assert asked(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_reads(server, method):
    assert asked(server, "/", method)[0] == 501


def test_the_head_alone_has_no_body(server):
    status, headers, text = asked(server, "/", "HEAD")
    assert status == 200
    assert text == ""
    assert int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1", "", "192.168.0.2"])
def test_a_name_that_is_not_of_this_machine_is_refused(server, host):
    status, _, text = asked(server, "/traces/0.json", Host=host)
    assert status == 403
    assert "question" not in text


def test_a_page_of_another_site_gets_nothing(server):
    for site in ("cross-site", "same-site"):
        assert asked(server, "/", **{"Sec-Fetch-Site": site})[0] == 403
    assert asked(server, "/", **{"Sec-Fetch-Site": "same-origin"})[0] == 200
    assert asked(server, "/", Host=f"localhost:{server.port}")[0] == 200
