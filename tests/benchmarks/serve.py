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

import numpy as np
import psutil
import torch
import uvicorn
from transformers import StoppingCriteria

from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.extract.live import LiveAnswer, LiveBatch
from graphhalu.scoring.asked import asked_question
from graphhalu.scoring.ready import ServeConfig
from graphhalu.scoring.scorer import AnswerScorer, load_detector
from graphhalu.scoring.server import create_app
from graphhalu.scoring.stream import LiveScores

TOO_MANY = 429
WORDS = ["river", "mountain", "letter", "garden", "winter", "engine", "planet", "silver", "window", "market"]


def figures(quick: bool) -> dict[str, Any]:
    """Ratios of one run; a server on loopback with 16 clients."""
    torch.set_num_threads(1)
    tokens, answers = load_detector("smollm2-tokens", threads=1), load_detector("smollm2", threads=1)
    found = _overhead(tokens, n_tokens=6 if quick else 128, n_times=1 if quick else 3)
    found |= _batches(answers, n_answers=3 if quick else 16, n_times=1 if quick else 3)
    with _Server() as server:
        return found | _load(server, answers, quick=quick) | _memory(server, quick=quick)


def _seconds(run: Callable[[], Any], n_times: int) -> float:
    found = []
    for _ in range(n_times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


class _Turns(StoppingCriteria):
    """Lets live answers take a step after each of ``generate``; a busy machine meets all alike that way.

    Args:
        batches: Each with one answer; by name.
        steps: What a step of each does.
    """

    def __init__(self, batches: dict[str, LiveBatch], steps: dict[str, Callable[[], Any]]) -> None:
        self.batches, self.steps, self.n_calls = batches, steps, 0
        self.seconds = {name: np.zeros(2) for name in steps}

    def timed(self, name: str, work: Callable[[], Any]) -> None:
        """Add the seconds of processor and clock that some work takes."""
        with self.batches[name].decoding():
            started = _clocks()
            work()
            self.seconds[name] += _clocks() - started

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.n_calls += 1
        for name in sorted(self.steps, reverse=bool(self.n_calls % 2)):
            if self.batches[name].answers:
                self.timed(name, self.steps[name])
        return torch.zeros(len(input_ids), dtype=torch.bool)


def _clocks() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])


def _overhead(scorer: AnswerScorer, *, n_tokens: int, n_times: int) -> dict[str, Any]:
    """Greedy decoding: transformers' ``generate``, ours without scores, and ours with one for each token."""
    extraction = scorer.extraction("generated")
    prompt = extraction.prompt(asked_question("Tell me about the history of the Roman Empire."))
    scores, model = LiveScores(scorer, extraction), extraction.loaded.model
    ids = torch.from_numpy(prompt.encoded.token_ids.astype("int64"))[None]

    def grown(n_tokens: int) -> tuple[int, dict[str, np.ndarray]]:
        """Tokens, and seconds of processor and clock of each way."""
        arrays = {"plain": (), "scored": scores.arrays}
        batches = {name: LiveBatch(extraction, kept) for name, kept in arrays.items()}
        answers = {name: LiveAnswer(prompt, max_new_tokens=n_tokens) for name in arrays}

        def scored() -> None:
            batches["scored"].step()
            scores.newest(answers["scored"])

        turns = _Turns(batches, {"plain": batches["plain"].step, "scored": scored})
        for name, batch in batches.items():
            turns.timed(name, lambda batch=batch, name=name: batch.add([answers[name]]))
        before, started = sum(turns.seconds.values()), _clocks()
        settings = {"max_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0}
        found = model.generate(
            ids, attention_mask=torch.ones_like(ids), stopping_criteria=[turns], **settings
        )
        whole = _clocks() - started - (sum(turns.seconds.values()) - before)
        written = found[0, ids.shape[1] :].tolist()[: len(answers["plain"].token_ids)]
        assert written == answers["plain"].token_ids == answers["scored"].token_ids
        return len(written), {**turns.seconds, "generate": whole}

    grown(3)
    found = [grown(n_tokens) for _ in range(n_times)]
    figures: dict[str, Any] = {"tokens_written": found[0][0]}
    for other in ("plain", "generate"):
        ratios = np.array([seconds["scored"] / seconds[other] for _, seconds in found])
        figures[f"scored_over_{other}_processor"] = float(np.median(ratios[:, 0]))
        figures[f"scored_over_{other}_processor_highest"] = float(ratios[:, 0].max())
        figures[f"scored_over_{other}_clock"] = float(np.median(ratios[:, 1]))
    return figures


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


def _load(server: _Server, offline: AnswerScorer, *, quick: bool) -> dict[str, Any]:
    """200 requests of 16 clients; every answer comes once, with the score of the same answer offline."""
    n_requests, n_clients = (2, 2) if quick else (200, 16)
    questions = [f"What is a {WORDS[n % 10]} number {n}?" for n in range(n_requests)]
    started = time.perf_counter()
    found = server.send([_chat(question, 12) for question in questions], n_clients)
    seconds, n_refused = time.perf_counter() - started, server.n_refused
    n_written, differences = server.n_written, []
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


def _memory(server: _Server, *, quick: bool) -> dict[str, Any]:
    """Resident memory while 1,000 requests pass: answers of four tokens, and given ones in between."""
    ends = (1, 2) if quick else (100, 500, 1000)
    requests = [
        _chat(f"What is a {WORDS[n % 10]} number {n}?", 4)
        if n % 2
        else ("/score", {"question": f"What is {n}?", "answer": f"A {WORDS[n % 10]}."})
        for n in range(ends[-1])
    ]
    sizes, started = {}, time.perf_counter()
    for start, stop in pairwise((0, *ends)):
        server.send(requests[start:stop], 16)
        sizes[f"memory_mib_after_{stop}"] = psutil.Process().memory_info().rss / 2**20
    return {**sizes, "memory_seconds": time.perf_counter() - started}
