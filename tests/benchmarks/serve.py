"""Serving: what live scores cost beside plain generation, batches of given answers, a load on loopback."""

import json
import socket
import statistics
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

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
    return found | _load(quick=quick)


def _seconds(run: Callable[[], Any], n_times: int) -> float:
    found = []
    for _ in range(n_times):
        started = time.perf_counter()
        run()
        found.append(time.perf_counter() - started)
    return statistics.median(found)


def _overhead(scorer: AnswerScorer, *, n_tokens: int, n_times: int) -> dict[str, Any]:
    """Greedy decoding with a score for each token, without one, and as transformers' ``generate`` does it."""
    extraction = scorer.extraction("generated")
    prompt = extraction.prompt(asked_question("Tell me about the history of the Roman Empire."))
    scores = LiveScores(scorer, extraction)

    def grow(*, is_scored: bool) -> int:
        batch = LiveBatch(extraction, scores.arrays if is_scored else ())
        answer = LiveAnswer(prompt, max_new_tokens=n_tokens)
        with batch.decoding():
            batch.add([answer])
            while batch.answers:
                batch.step()
                if is_scored:
                    scores.newest(answer)
        return len(answer.token_ids)

    ids = torch.from_numpy(prompt.encoded.token_ids.astype("int64"))[None]
    settings = {"max_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0}
    model = extraction.loaded.model
    n_written = grow(is_scored=True)
    grow(is_scored=False)
    scored, plain, usual = [], [], []
    for _ in range(n_times):  # in turns, so that other work on the machine meets all three
        scored.append(_seconds(lambda: grow(is_scored=True), 1))
        plain.append(_seconds(lambda: grow(is_scored=False), 1))
        usual.append(
            _seconds(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **settings), 1)
        )
    return {
        "tokens_written": n_written,
        "scored_tokens_a_second": n_written / statistics.median(scored),
        "scored_over_plain_seconds": statistics.median(scored) / statistics.median(plain),
        "scored_over_generate_seconds": statistics.median(scored) / statistics.median(usual),
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


def _load(*, quick: bool) -> dict[str, Any]:  # noqa: C901
    """200 requests of 16 clients; every answer comes once, with the score of the same answer offline."""
    n_requests, n_clients = (4, 2) if quick else (200, 16)
    config = ServeConfig(max_new_tokens=12, queue_size=32)
    where = {"threads": 1}
    app = create_app(load_detector("smollm2", **where), load_detector("smollm2-tokens", **where), config)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1/chat/completions"
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    questions = [f"What is a {WORDS[n % 10]} number {n}?" for n in range(n_requests)]
    found: dict[str, list[Any]] = {}
    n_refused, lock = [0], threading.Lock()

    def client(number: int) -> None:
        for question in questions[number::n_clients]:
            body = json.dumps(
                {"messages": [{"role": "user", "content": question}], "max_tokens": 12}
            ).encode()
            while True:
                request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
                try:
                    with urllib.request.urlopen(request, timeout=120) as response:
                        choice = json.loads(response.read())["choices"][0]
                except urllib.error.HTTPError as error:
                    if error.code != TOO_MANY:
                        raise
                    n_refused[0] += 1
                    time.sleep(0.2)
                    continue
                with lock:
                    found.setdefault(question, []).append(choice)
                break

    memory = psutil.Process().memory_info
    started, before = time.perf_counter(), memory().rss
    threads = [threading.Thread(target=client, args=(n,)) for n in range(n_clients)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    seconds, after = time.perf_counter() - started, memory().rss
    server.should_exit = True
    thread.join(timeout=30)
    offline = load_detector("smollm2", **where)
    differences = []
    for question in questions[:: max(1, n_requests // 40)]:
        *_, last = offline.stream(question, max_new_tokens=12)
        mine = found[question][0]["hallucination"]["probability"]
        if last.answer.probability is not None and mine is not None:
            differences.append(abs(mine - last.answer.probability))
    return {
        "load_requests": n_requests,
        "load_answered": len(found),
        "load_answered_twice": sum(len(each) > 1 for each in found.values()),
        "load_refused_and_tried_again": n_refused[0],
        "load_seconds": seconds,
        "load_largest_difference": max(differences),
        "load_memory_growth_mib": (after - before) / 2**20,
    }
