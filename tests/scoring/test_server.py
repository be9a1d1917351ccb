"""The server, spoken to by real clients over a real socket."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import openai
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.scoring import bodies
from graphhalu.scoring.asked import asked_question
from graphhalu.scoring.ready import ServeConfig
from graphhalu.scoring.scorer import AnswerScorer
from graphhalu.scoring.server import create_app


class Running:
    """A server in a thread."""

    def __init__(self, app, key=None):
        import uvicorn

        self.app, self.key, self.openai = app, key, None
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        self.thread = threading.Thread(
            target=self.server.run, kwargs={"sockets": [self.listening]}, daemon=True
        )

    def __enter__(self):
        self.thread.start()
        until = time.monotonic() + 30
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.02)
        return self

    def __exit__(self, *_):
        if self.openai is not None:
            self.openai.close()
        self.server.should_exit = True
        self.thread.join(timeout=30)

    def call(self, path, body=None, headers=(), raw=None):
        data = raw if raw is not None else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data)
        request.add_header("Content-Type", "application/json")
        for name, value in dict(headers).items():
            request.add_header(name, value)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.headers, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def client(self):
        """One client for all requests, which is closed with the server."""
        if self.openai is None:
            self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key=self.key or "none", max_retries=0)
        return self.openai


@pytest.fixture(scope="module")
def scorers(live):
    where = {"name": str(live["model"]), "threads": 1}
    return AnswerScorer(live["answers"].folder, **where), AnswerScorer(live["tokens"].folder, **where)


@pytest.fixture(scope="module")
def offline(live):
    """The detector of answers with a model of its own, since one model does one thing at a time."""
    return AnswerScorer(live["answers"].folder, name=str(live["model"]), threads=1)


@pytest.fixture(scope="module")
def running(scorers):
    config = ServeConfig(
        max_new_tokens=9, max_batch=3, queue_size=8, max_body_bytes=20_000, max_total_tokens=100
    )
    with Running(create_app(*scorers, config)) as server:
        yield server


ASK = {"messages": [{"role": "user", "content": "What is 3 plus 3?"}], "max_tokens": 7}


def test_the_openai_client_gets_an_answer_with_its_probability(running, offline):
    found = running.client().chat.completions.create(model="", **ASK)
    choice = found.choices[0]
    extra = choice.model_extra["hallucination"]
    assert choice.finish_reason in ("stop", "length")
    assert found.usage.completion_tokens == len(extra["tokens"])
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert "".join(token["token"] for token in extra["tokens"]) == choice.message.content
    assert extra["detector"] == "live-probe"
    assert extra["verdict"] in ("hallucinated", "not hallucinated")
    alone = list(offline.stream("What is 3 plus 3?", max_new_tokens=7))[-1].answer
    assert alone.answer == choice.message.content.strip()
    assert extra["probability"] == pytest.approx(alone.probability, abs=1e-4)
    assert extra["score"] == pytest.approx(alone.score, abs=1e-4)


def test_a_stream_is_the_same_answer_in_pieces(running):
    client = running.client()
    whole = client.chat.completions.create(model="", **ASK).choices[0]
    chunks = list(
        client.chat.completions.create(model="", stream=True, stream_options={"include_usage": True}, **ASK)
    )
    said = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(choice.delta.content or "" for choice in said) == whole.message.content
    assert said[0].delta.role == "assistant"
    assert said[-1].finish_reason == whole.finish_reason
    end = said[-1].model_extra["hallucination"]
    assert end["score"] == pytest.approx(whole.model_extra["hallucination"]["score"], abs=1e-4)
    scored = [choice.model_extra["hallucination"]["tokens"] for choice in said[1:-1]]
    assert [token["score"] for (token,) in scored] == pytest.approx(
        [token["score"] for token in whole.model_extra["hallucination"]["tokens"]], abs=1e-4
    )
    assert chunks[-1].usage.completion_tokens == len(scored)


def test_a_completion_goes_on_with_a_text(running):
    found = running.client().completions.create(model="", prompt=["The sea is", "Two and two"], max_tokens=4)
    assert [choice.index for choice in found.choices] == [0, 1]
    assert all("hallucination" in choice.model_extra for choice in found.choices)
    pieces = running.client().completions.create(model="", prompt="The sea is", max_tokens=4, stream=True)
    assert "".join(chunk.choices[0].text for chunk in pieces) == found.choices[0].text


def test_given_answers_are_scored_as_offline(running, offline):
    items = [{"question": "What is 3 plus 3?", "answer": str(n)} for n in range(5)]
    items.append({"messages": [{"role": "user", "content": "What is 3 plus 3?"}], "answer": "4"})
    status, _, text = running.call("/score", {"items": items})
    assert status == 200
    found = json.loads(text)["scores"]
    for item, each in zip(items[:5], found, strict=False):
        expected = offline.score(item["question"], item["answer"])
        assert each["probability"] == pytest.approx(expected.probability, abs=1e-4)
        assert len(each["tokens"]) == expected.trace.answer_length
    assert found[5]["score"] == pytest.approx(found[4]["score"], abs=1e-6)
    alone = json.loads(running.call("/score", items[0])[2])["scores"][0]
    assert alone["score"] == pytest.approx(found[0]["score"], abs=1e-4)


def test_earlier_turns_are_part_of_the_prompt(running):
    turns = [("user", "A"), ("assistant", "B"), ("user", "C")]
    messages = [{"role": role, "content": text} for role, text in turns]
    found = running.client().chat.completions.create(model="", messages=messages, max_tokens=3)
    alone = running.client().chat.completions.create(model="", messages=messages[-1:], max_tokens=3)
    assert found.usage.prompt_tokens > alone.usage.prompt_tokens


def test_a_conversation_is_read_once(monkeypatch):
    read = []
    monkeypatch.setattr(bodies, "asked_question", lambda *asked: read.append(asked) or asked_question(*asked))
    body = bodies.ChatRequest.model_validate(ASK)
    item = bodies.ScoreItem.model_validate({"messages": ASK["messages"], "answer": "4"})
    assert [body.asked.text, item.asked.text] == ["What is 3 plus 3?"] * 2
    assert item.asked.given[0].text == "4"
    assert len(read) == 2


def test_a_stop_text_ends_the_answer_and_is_cut_off(running):
    whole = running.client().chat.completions.create(model="", **ASK).choices[0].message.content
    stop = whole[3:5]
    cut = running.client().chat.completions.create(model="", stop=[stop, "never said"], **ASK).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    chunks = list(running.client().chat.completions.create(model="", stop=stop, stream=True, **ASK))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == cut.message.content


def test_tokens_name_what_they_attend_to_where_that_is_asked_for(running):
    found = running.client().chat.completions.create(
        model="", extra_body={"graphhalu": {"attention": True}}, **ASK
    )
    tokens = found.choices[0].model_extra["hallucination"]["tokens"]
    assert all(0 < len(token["attention"]) <= 12 for token in tokens)
    for token in tokens:
        weights = [each["weight"] for each in token["attention"]]
        assert weights == sorted(weights, reverse=True)
        assert 0 < sum(weights) <= 1 + 1e-4


WRONG = {
    "no messages": {"messages": []},
    "no body": [],
    "the assistant last": {"messages": [{"role": "assistant", "content": "x"}]},
    "an empty question": {"messages": [{"role": "user", "content": "  "}]},
    "an image": {
        "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    },
    "a role": {"messages": [{"role": "wizard", "content": "x"}]},
    "a hot temperature": {**ASK, "temperature": 9},
    "no tokens": {**ASK, "max_tokens": 0},
    "two answers": {**ASK, "n": 2},
    "five stops": {**ASK, "stop": list("abcde")},
    "half a character": {"messages": [{"role": "user", "content": "\ud800"}]},
    "a long prompt": {"messages": [{"role": "user", "content": "a" * 400}]},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_body_is_told_in_one_line(running, name):
    status, _, text = running.call("/v1/chat/completions", WRONG[name])
    error = json.loads(text)["error"]
    assert status == 400, text
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert "\n" not in error["message"]


def test_text_that_is_no_json_is_refused(running):
    for raw in (b"{", b"\xff\xfe", b"[" * 5000, b'{"messages": ' + b"[" * 5000, b"NaN"):
        status, _, text = running.call("/v1/chat/completions", raw=raw)
        assert 400 <= status < 500, (raw[:20], status, text)
        assert "error" in json.loads(text)


def test_an_unknown_model_and_path_are_not_found(running):
    status, _, text = running.call("/v1/chat/completions", {**ASK, "model": "gpt-4"})
    assert (status, json.loads(text)["error"]["type"]) == (404, "not_found_error")
    assert "gpt-4" in text
    assert running.call("/v2/other")[0] == 404
    assert running.call("/v1/chat/completions")[0] == 405


def test_a_body_that_is_too_large_is_refused(running):
    status, _, text = running.call("/score", {"question": "q", "answer": "a" * 30_000})
    assert status == 413
    assert "larger than 20000 bytes" in text


@pytest.mark.parametrize(
    "headers", [{"Sec-Fetch-Site": "cross-site"}, {"Host": "evil.example"}, {"Host": "evil.example:80"}]
)
def test_other_sites_and_names_are_refused(running, headers):
    status, _, text = running.call("/score", {"question": "q", "answer": "a"}, headers)
    assert status == 403
    assert "refused" in text


def test_health_models_metrics_and_detectors(running):
    status, headers, text = running.call("/health")
    assert (status, json.loads(text)["status"]) == (200, "ok")
    assert headers["cache-control"] == "no-store"
    (model,) = running.client().models.list().data
    assert model.id == json.loads(text)["model"]
    kinds = json.loads(running.call("/detectors")[2])["detectors"]
    assert [each["name"] for each in kinds] == ["live-probe", "token-attention"]
    metrics = running.call("/metrics")[2]
    assert 'graphhalu_requests_total{path="/health",status="200"}' in metrics
    assert "graphhalu_tokens_total" in metrics


def test_many_clients_at_once_get_each_their_own_answer(running):
    questions = [f"What is {n} plus {n}?" for n in range(12)]
    expected = {}
    client = running.client()
    for question in questions:
        messages = [{"role": "user", "content": question}]
        expected[question] = client.chat.completions.create(model="", messages=messages, max_tokens=5)
    found, refused = {}, []

    def ask(question):
        messages = [{"role": "user", "content": question}]
        while question not in found:
            try:
                found[question] = running.client().chat.completions.create(
                    model="", messages=messages, max_tokens=5
                )
            except openai.RateLimitError as error:
                refused.append(int(error.response.headers["retry-after"]))
                time.sleep(0.2)

    threads = [threading.Thread(target=ask, args=(question,)) for question in questions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert set(found) == set(questions)
    assert all(seconds >= 1 for seconds in refused)
    for question, answer in found.items():
        mine, known = answer.choices[0], expected[question].choices[0]
        assert mine.message.content == known.message.content
        # hidden states are kept as bfloat16: a rounding to the other side moves a tiny model's score
        chances = [each.model_extra["hallucination"]["probability"] for each in (mine, known)]
        assert chances[0] == pytest.approx(chances[1], abs=5e-4)


def test_more_requests_than_may_wait_are_refused_with_a_time(scorers):
    app = create_app(*scorers, ServeConfig(queue_size=1, max_new_tokens=5))
    engine = app.state.engine
    engine.start = lambda: None  # nobody works, so the queue stays full
    with Running(app) as server:
        found = []
        body = {"question": "q", "answer": "a"}
        waiting = threading.Thread(target=lambda: found.append(server.call("/score", body)), daemon=True)
        waiting.start()
        until = time.monotonic() + 20
        while not engine.waiting and time.monotonic() < until:
            time.sleep(0.02)
        status, headers, text = server.call("/score", {"question": "q", "answer": "a"})
        assert status == 429, text
        assert int(headers["Retry-After"]) >= 1
        assert json.loads(text)["error"]["type"] == "rate_limit_error"
        engine.close()
        waiting.join(timeout=30)
    assert found[0][0] == 503


def test_a_late_request_is_given_up(scorers):
    with Running(create_app(*scorers, ServeConfig(timeout_s=0.001))) as server:
        status, _, text = server.call("/v1/chat/completions", ASK)
        assert status == 504
        assert "not done within" in text


def test_a_client_that_leaves_frees_its_place(running):
    engine = running.app.state.engine
    body = json.dumps({**ASK, "max_tokens": 80, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", running.port)) as client:
        client.sendall(head.encode() + body)
        client.recv(200)
    until = time.monotonic() + 20
    while (engine.growing or engine.waiting) and time.monotonic() < until:
        time.sleep(0.05)
    assert not engine.growing
    assert running.call("/score", {"question": "q", "answer": "a"})[0] == 200


def test_a_fault_of_the_model_ends_its_requests_and_not_the_server(running, monkeypatch):
    engine = running.app.state.engine

    def broken():
        raise RuntimeError("the card fell off")

    with monkeypatch.context() as patch:
        patch.setattr(engine.batch, "step", broken)
        status, _, text = running.call("/v1/chat/completions", ASK)
    assert status == 500
    assert "fell off" not in text
    assert running.call("/v1/chat/completions", ASK)[0] == 200


def test_a_key_is_asked_for_where_one_is_set(scorers, monkeypatch):
    monkeypatch.setenv("GRAPHHALU_API_KEY", "secret")
    with Running(create_app(*scorers, ServeConfig(max_new_tokens=3)), key="secret") as server:
        assert server.call("/health")[0] == 200
        assert server.call("/metrics")[0] == 401
        assert (
            server.call("/score", {"question": "q", "answer": "a"}, {"Authorization": "Bearer no"})[0] == 401
        )
        assert server.client().chat.completions.create(model="", **ASK).choices
        wrong = openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()


def test_the_page_runs_its_own_scripts_and_no_others(running):
    status, headers, text = running.call("/")
    policy = headers["content-security-policy"]
    assert status == 200
    assert "default-src 'none'" in policy
    assert policy.count("sha256-") == 2
    assert "unsafe" not in policy
    assert "http://" not in text
    assert "https://" not in text


def test_curl_gets_a_stream(running):
    command = [
        "curl",
        "-sN",
        f"{running.url}/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
    ]
    try:
        done = subprocess.run(
            [*command, json.dumps({**ASK, "stream": True})], check=True, capture_output=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("there is no curl")
    lines = [line for line in done.stdout.decode().splitlines() if line]
    assert lines[-1] == "data: [DONE]"
    assert all(line.startswith("data: ") for line in lines)


def test_prompts_are_in_the_log_only_where_that_is_asked_for(scorers, caplog):
    for wants in (False, True):
        caplog.clear()
        with (
            caplog.at_level("INFO", logger="graphhalu.server"),
            Running(create_app(*scorers, ServeConfig(max_new_tokens=3, log_prompts=wants))) as server,
        ):
            server.call("/score", {"question": "a secret question", "answer": "a"})
        events = [
            json.loads(record.message) for record in caplog.records if record.name == "graphhalu.server"
        ]
        assert any(event["event"] == "request" and event["status"] == 200 for event in events)
        assert any("secret" in json.dumps(event) for event in events) == wants


def test_a_model_that_cannot_be_streamed_is_refused_at_once(trained):
    scorer = AnswerScorer(trained.run, name=str(trained.model), threads=1)
    with contextlib.suppress(UsageError):
        create_app(scorer)


@pytest.mark.slow
def test_the_server_dies_and_comes_back(live, tmp_path):
    """Killed under load and started again: it answers as before."""
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    command = [sys.executable, "-m", "graphhalu", "serve", "--detector", str(live["answers"].folder)]
    command += ["--token-detector", "none", "--model", str(live["model"]), "--port", "0", "--threads", "1"]

    def started():
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment, cwd=tmp_path)
        for line in process.stderr:
            if line.startswith("serving "):
                process.stderr.close()
                return process, line.split()[1].rstrip(";/")
        raise AssertionError(process.wait())

    process, url = started()
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    first = client.chat.completions.create(model="", **ASK).choices[0]
    failures = []

    def load():
        try:
            client.chat.completions.create(model="", **{**ASK, "max_tokens": 60})
        except openai.OpenAIError as error:
            failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    process.kill()
    process.wait()
    for thread in threads:
        thread.join(timeout=60)
    client.close()
    process, url = started()
    try:
        with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
            again = client.chat.completions.create(model="", **ASK).choices[0]
        assert again.message.content == first.message.content
    finally:
        process.terminate()
        assert process.wait(timeout=30) in (0, -15, 130)


def test_a_request_is_a_span_where_the_variables_of_opentelemetry_ask_for_one(scorers, monkeypatch, capsys):
    from graphhalu.scoring import server

    monkeypatch.delenv("OTEL_TRACES_EXPORTER", raising=False)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert server.tracer() is None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    tracer = server.tracer()
    monkeypatch.setattr(server, "tracer", lambda: tracer)
    with Running(create_app(*scorers, ServeConfig(max_new_tokens=3))) as running:
        assert running.call("/health")[0] == 200
    assert tracer.span_processor.force_flush(5_000)
    assert '"GET /health"' in capsys.readouterr().out
