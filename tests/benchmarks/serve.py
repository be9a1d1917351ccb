"""Serving: what live scores cost beside plain generation, batches of given answers, a load on loopback."""

import json
import socket
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Self

import psutil
import torch
import uvicorn

from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.extract.live import LiveAnswer, LiveBatch
from graphhalu.scoring.asked import asked_question
from graphhalu.scoring.scorer import AnswerScorer, load_detector
from graphhalu.scoring.server import create_app
from graphhalu.scoring.settings import ServeConfig
from graphhalu.scoring.stream import LiveScores

TOO_MANY = 429
WORDS = ["river", "mountain", "letter", "garden", "winter", "engine", "planet", "silver", "window", "market"]


def figures(quick: bool) -> dict[str, Any]:
    """Ratios of one run; a server on loopback with 16 clients."""
    torch.set_num_threads(1)
    tokens, answers = load_detector("smollm2-tokens", threads=1), load_detector("smollm2", threads=1)
    found = _overhead(tokens, n_tokens=6 if quick else 128, n_times=1 if quick else 3)
    found |= _batches(answers, n_answers=3 if quick else 16, n_times=1 if quick else 3)
    return found | _load(quick=quick) | _memory(quick=quick)


def _seconds(run: Callable[[], Any], n_times: int) -> float:
    found = []
    for _ in range(n_times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _overhead(scorer: AnswerScorer, *, n_tokens: int, n_times: int) -> dict[str, Any]:
    """Greedy decoding with a score for each token beside decoding without, step by step in turns.

    A busy machine meets both alike that way. Medians over the repeats; transformers' ``generate`` runs
    between them.
    """
    extraction = scorer.extraction("generated")
    prompt = extraction.prompt(asked_question("Tell me about the history of the Roman Empire."))
    scores = LiveScores(scorer, extraction)
    ids = torch.from_numpy(prompt.encoded.token_ids.astype("int64"))[None]
    settings = {"max_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0}
    model = extraction.loaded.model

    def grown(n_tokens: int) -> tuple[int, dict[bool, float], dict[bool, float]]:
        """Tokens, and seconds of processor and clock without and with scores."""
        batches = {scored: LiveBatch(extraction, scores.arrays if scored else ()) for scored in (False, True)}
        answers = {scored: LiveAnswer(prompt, max_new_tokens=n_tokens) for scored in batches}
        processor, clock = dict.fromkeys(batches, 0.0), dict.fromkeys(batches, 0.0)

        def timed(work: Callable[[], Any], *, scored: bool) -> None:
            started = time.process_time(), time.perf_counter()
            work()
            processor[scored] += time.process_time() - started[0]
            clock[scored] += time.perf_counter() - started[1]

        def step(*, scored: bool) -> None:
            batches[scored].step()
            if scored:
                scores.newest(answers[scored])

        for scored, batch in batches.items():
            with batch.decoding():
                timed(lambda batch=batch, scored=scored: batch.add([answers[scored]]), scored=scored)
        n_steps = 0
        while batches[True].answers:
            n_steps += 1
            for scored in (bool(n_steps % 2), not n_steps % 2):
                with batches[scored].decoding():
                    timed(lambda scored=scored: step(scored=scored), scored=scored)
        assert answers[True].token_ids == answers[False].token_ids
        return n_steps, processor, clock

    grown(3)
    found, usual = [], []
    for _ in range(n_times):
        found.append(grown(n_tokens))
        usual.append(
            _seconds(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **settings), 1)
        )
    n_written = found[0][0]
    ratios = {
        name: sorted(each[place][True] / each[place][False] for each in found)
        for place, name in ((1, "processor"), (2, "clock"))
    }
    scored = statistics.median(clock[True] for *_, clock in found)
    return {
        "tokens_written": n_written,
        "plain_token_ms": 1000 * statistics.median(clock[False] for *_, clock in found) / n_written,
        "scored_over_plain_processor": statistics.median(ratios["processor"]),
        "scored_over_plain_processor_lowest": ratios["processor"][0],
        "scored_over_plain_processor_highest": ratios["processor"][-1],
        "scored_over_plain_clock": statistics.median(ratios["clock"]),
        "scored_over_generate_clock": scored / statistics.median(usual),
    }


def _batches(scorer: AnswerScorer, *, n_answers: int, n_times: int) -> dict[str, Any]:
    """Given answers of 60 tokens: one by one, and as one batch."""
    text = " ".join(WORDS * 6)
    asked = [
        Question(f"q{n}", f"What is a {WORDS[n % 10]}?", (), given=(GivenAnswer(f"{WORDS[n % 10]} {text}"),))
        for n in range(n_answers)
    ]
    scorer.score_many(asked[:2])
    alone = _seconds(lambda: [scorer.score_many([each]) for each in asked], n_times)
    together = _seconds(lambda: scorer.score_many(asked), n_times)
    return {
        "batch_size": n_answers,
        "given_alone_ms": 1000 * alone / n_answers,
        "batch_speedup": alone / together,
    }


class _Server:
    """A server on loopback in this process, and its clients."""

    def __init__(self) -> None:
        config = ServeConfig(max_new_tokens=12, queue_size=32, timeout_s=600)
        app = create_app(
            load_detector("smollm2", threads=1), load_detector("smollm2-tokens", threads=1), config
        )
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listening.getsockname()[1]}"
        self.server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
        settings = {"sockets": [self.listening]}
        self.thread = threading.Thread(target=self.server.run, kwargs=settings, daemon=True)
        self.n_refused, self.engine = 0, app.state.engine

    def __enter__(self) -> Self:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.server.should_exit = True
        self.thread.join(timeout=30)

    @property
    def n_written(self) -> int:
        """Answers that the engine has written, by its own count."""
        samples = [sample for metric in self.engine.n_answers.collect() for sample in metric.samples]
        return int(sum(each.value for each in samples if each.name.endswith("_total")))

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, which is sent again while the queue is full."""
        data, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        while True:
            try:
                request = urllib.request.Request(self.url + path, data=data, headers=headers)
                with urllib.request.urlopen(request, timeout=900) as response:
                    return dict(json.loads(response.read()))
            except urllib.error.HTTPError as error:
                if error.code != TOO_MANY:
                    raise
                self.n_refused += 1
                time.sleep(0.2)

    def send(self, requests: Sequence[tuple[str, dict[str, Any]]], n_clients: int) -> list[list[Any]]:
        """What came back to each request; each client sends one after another."""
        found: list[list[Any]] = [[] for _ in requests]

        def client(number: int) -> None:
            for place in range(number, len(requests), n_clients):
                found[place].append(self.call(*requests[place]))

        threads = [threading.Thread(target=client, args=(number,)) for number in range(n_clients)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        return found


def _chat(question: str, max_tokens: int) -> tuple[str, dict[str, Any]]:
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": max_tokens}
    return "/v1/chat/completions", body


def _load(*, quick: bool) -> dict[str, Any]:
    """200 requests of 16 clients; every answer comes once, with the score of the same answer offline."""
    n_requests, n_clients = (4, 2) if quick else (200, 16)
    questions = [f"What is a {WORDS[n % 10]} number {n}?" for n in range(n_requests)]
    with _Server() as server:
        started = time.perf_counter()
        found = server.send([_chat(question, 12) for question in questions], n_clients)
        seconds, n_refused = time.perf_counter() - started, server.n_refused
        n_written = server.n_written
    offline, differences = load_detector("smollm2", threads=1), []
    for question, (answer,) in list(zip(questions, found, strict=True))[:: max(1, n_requests // 40)]:
        *_, last = offline.stream(question, max_new_tokens=12)
        choice = answer["choices"][0]
        assert last.answer.answer == choice["message"]["content"].strip()
        differences.append(abs(choice["hallucination"]["score"] - last.answer.score))
    return {
        "load_requests": n_requests,
        "load_clients": n_clients,
        "load_answers_of_the_engine": n_written,
        "load_answered": sum(len(each) == 1 for each in found),
        "load_refused_and_tried_again": n_refused,
        "load_seconds": seconds,
        "load_compared": len(differences),
        "load_largest_difference": max(differences),
    }


def _memory(*, quick: bool) -> dict[str, Any]:
    """Resident memory while 1,000 requests pass: answers of four tokens, and given ones in between."""
    ends = (2, 4, 6) if quick else (100, 500, 1000)
    requests = [
        _chat(f"What is a {WORDS[n % 10]} number {n}?", 4)
        if n % 2
        else ("/score", {"question": f"What is {n}?", "answer": f"A {WORDS[n % 10]}."})
        for n in range(ends[-1])
    ]
    sizes, started = {}, time.perf_counter()
    with _Server() as server:
        for start, stop in pairwise((0, *ends)):
            server.send(requests[start:stop], 16)
            sizes[f"memory_mib_after_{stop}"] = psutil.Process().memory_info().rss / 2**20
    return {**sizes, "memory_seconds": time.perf_counter() - started}
