"""One model that answers and scores many requests: a bounded queue, one thread, answers decoded together."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.exceptions import HTTPException

from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.datasets.question import Question
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.live import LIVE_ARRAYS, LiveAnswer, LiveBatch
from graphhalu.scoring.asked import AnswerScore
from graphhalu.scoring.ready import ServeConfig
from graphhalu.scoring.scorer import AnswerScorer, asked_prompt
from graphhalu.scoring.stream import LiveScores, ScoredToken, TextStream
from graphhalu.traces.trace import Trace

_log = logging.getLogger(__name__)
SCORED_TOGETHER: Final = 32
"""Given answers that are scored at a time, so that growing ones do not wait long."""


class EndEvent(NamedTuple):
    """The end of an answer.

    Attributes:
        reason: ``stop`` or ``length``.
        score: Of the whole answer.
        n_prompt: Tokens of the prompt.
        n_answer: Tokens of the answer.
    """

    reason: str
    score: AnswerScore
    n_prompt: int
    n_answer: int


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        questions: One to answer, or several with given answers to score.
        deliver: Called in the engine's thread with each :class:`ScoredToken` of an answer and then with its
            :class:`EndEvent`, or once with the scores of given answers, each with its tokens; with an
            ``HTTPException`` if it fails.
        deadline: When it is given up, in the time of ``time.monotonic``.
        prompt: Fields of the prompt's settings that differ from the training.
        settings: Of the answer; see :class:`graphhalu.extract.live.LiveAnswer`.
        stop: Texts that end the answer; they are cut off.
        wants_attention: Whether tokens name what they attend to.
        is_cancelled: Set by anybody when nobody waits for it any more.
        answer: What is being written, once it has begun.
        texts: The text of its tokens.
        held: Its tokens that may be the beginning of a stop text.
        n_seen: Its tokens that the engine has looked at.
        n_delivered: Its tokens that were handed out.
    """

    questions: Sequence[Question]
    deliver: Callable[[Any], None]
    deadline: float
    prompt: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    wants_attention: bool = False
    is_cancelled: bool = False
    answer: LiveAnswer = field(init=False)
    texts: TextStream = field(init=False)
    held: list[ScoredToken] = field(default_factory=list)
    n_seen: int = 0
    n_delivered: int = 0

    @property
    def is_scoring(self) -> bool:
        """Whether answers are given."""
        return bool(self.questions[0].given)

    def add(self, event: ScoredToken) -> bool:
        """Hand out what cannot be the beginning of a stop text; true if the answer ends here."""
        self.held.append(event)
        text = "".join(each.text for each in self.held)
        found = [text.find(stop) for stop in self.stop if stop in text]
        if found:
            rest = self._release(min(found))
            if rest and self.held:
                self._deliver(self.held[0]._replace(text=self.held[0].text[:rest]))
            self.held.clear()
            return True
        self._release(len(text) - max((_overlap(text, stop) for stop in self.stop), default=0))
        return False

    def flush(self) -> None:
        """Hand out what was held back."""
        self._release(sum(len(each.text) for each in self.held))

    def _release(self, n_characters: int) -> int:
        """Hand out tokens that lie within the first characters of what is held; gives the characters left."""
        while self.held and len(self.held[0].text) <= n_characters:
            n_characters -= len(self.held[0].text)
            self._deliver(self.held.pop(0))
        return n_characters

    def _deliver(self, event: ScoredToken) -> None:
        self.n_delivered += 1
        self.deliver(event)


class Engine:
    """Answers and scores jobs in a thread of its own.

    Args:
        scorer: Detector of answers.
        token_scorer: Detector of tokens of the same model, if there is one.
        config: How much at a time.
    """

    def __init__(
        self,
        scorer: AnswerScorer,
        token_scorer: AnswerScorer | None = None,
        config: ServeConfig | None = None,
    ) -> None:
        self.scorer, self.token_scorer, self.config = scorer, token_scorer, config or ServeConfig()
        self.extraction = self._extraction(template="direct", chat="auto")
        self.tokenizer = self.extraction.loaded.tokenizer
        self.answers = LiveScores(scorer, self.extraction)
        self.tokens = None if token_scorer is None else LiveScores(token_scorer, self.extraction)
        kept = {*self.answers.arrays, *(self.tokens.arrays if self.tokens else ())}
        self.batch = LiveBatch(self.extraction, [name for name in LIVE_ARRAYS if name in kept])
        self.growing: list[Job] = []
        self.waiting: deque[Job] = deque()
        self._wake, self._session = threading.Condition(), ExitStack()
        self._is_open, self._is_closed = False, False
        self._thread = threading.Thread(target=self._run, name="graphhalu-engine", daemon=True)
        self._seconds = 1.0
        self.registry = CollectorRegistry()
        self._metrics()

    def _extraction(self, **prompt: Any) -> Extraction:
        """The model with another prompt; how long an answer may be is for each request to say."""
        found = self.scorer.extraction("generated", **prompt)
        generation = found.config.generation.model_copy(update={"max_new_tokens": 1})
        found.config = found.config.model_copy(update={"generation": generation})
        return found

    def _metrics(self) -> None:
        names: dict[str, Any] = {"namespace": "graphhalu", "registry": self.registry}
        self.n_tokens = Counter("tokens", "Tokens written", **names)
        self.n_answers = Counter("answers", "Answers by verdict", ["kind", "verdict"], **names)
        self.n_failures = Counter("failures", "Requests that failed", ["status"], **names)
        self.step_seconds = Histogram("step_seconds", "Seconds of a step of all answers", **names)
        Gauge("queue_length", "Requests that wait", **names).set_function(lambda: len(self.waiting))
        Gauge("growing", "Answers being written", **names).set_function(lambda: len(self.growing))

    @property
    def model_name(self) -> str:
        """Name of the model."""
        return str(self.scorer.identity.model or "model")

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self) -> None:
        """Stop; jobs that are not done fail with 503."""
        with self._wake:
            self._is_closed = True
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(timeout=60)
        for job in (*self.waiting, *self.growing):
            self._fail(job, 503, "the server is shutting down")
        self.waiting.clear()

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive() and not self._is_closed

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            HTTPException: If too many wait; says when to try again.
        """
        with self._wake:
            if len(self.waiting) >= self.config.queue_size:
                ahead = len(self.waiting) / self.config.max_batch
                seconds = max(1, min(60, round(ahead * self._seconds)))
                raise HTTPException(429, "the queue is full", {"Retry-After": str(seconds)})
            self.waiting.append(job)
            self._wake.notify_all()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: bool(self._is_closed or self.waiting or self.growing))
                if self._is_closed:
                    break
            for work in (self._drop_stale, self._score_waiting, self._admit, self._step):
                try:
                    work()
                except Exception as error:  # noqa: BLE001 - a fault of one pass ends no other
                    self._fail_all(error)
            if not self.growing:
                self._leave()
        self._leave()

    def _fail(self, job: Job, status: int, message: str) -> None:
        self.n_failures.labels(str(status)).inc()
        job.deliver(HTTPException(status, message))

    def _fail_all(self, error: Exception) -> None:
        """A fault in a pass of the model ends what takes part in it, and nothing else."""
        _log.exception("a pass of the model failed")
        self._leave()
        growing, self.growing = self.growing, []
        self.batch.clear()
        status = 503 if isinstance(error, torch.OutOfMemoryError | MemoryError) else 500
        for each in growing:
            self._fail(each, status, "the model failed; the fault is in the server's log")

    def _drop_stale(self) -> None:
        """Let jobs go that nobody waits for, and give up those that are late."""
        now = time.monotonic()
        with self._wake:
            late = [job for job in self.waiting if job.is_cancelled or job.deadline < now]
            for job in late:
                self.waiting.remove(job)
        gone = [each for each in self.growing if each.is_cancelled or each.deadline < now]
        if gone:
            self.batch.drop([each.answer for each in gone])
            self.growing = [each for each in self.growing if each not in gone]
        for job in (*late, *gone):
            if not job.is_cancelled:
                self._fail(job, 504, f"not done within {self.config.timeout_s:g} seconds")

    def _taken(self, n_most: int, *, is_scoring: bool) -> list[Job]:
        """Waiting jobs of one kind, first come first served."""
        with self._wake:
            taken: list[Job] = []
            for job in list(self.waiting):
                size = len(job.questions) if is_scoring else 1
                if job.is_scoring == is_scoring and (not taken or n_most >= size) and n_most > 0:
                    taken.append(job)
                    self.waiting.remove(job)
                    n_most -= size
        return taken

    def _score_waiting(self) -> None:
        jobs = self._taken(SCORED_TOGETHER, is_scoring=True)
        if not jobs:
            return
        self._leave()
        try:
            found = self.scorer.score_many([question for job in jobs for question in job.questions])
            pairs = iter(zip(found, self._given_tokens(found), strict=True))
        except Exception as error:  # noqa: BLE001 - of a plug-in, or of one request
            _log.exception("scoring failed")
            known = isinstance(error, GraphhaluError)
            message = str(error) if known else "scoring failed; the fault is in the server's log"
            for job in jobs:
                self._fail(job, 500, message)
            return
        for job in jobs:
            scored = list(islice(pairs, len(job.questions)))
            for score, _ in scored:
                self._count("given", score)
            job.deliver(scored)

    def _given_tokens(self, scores: Sequence[AnswerScore]) -> list[list[ScoredToken]]:
        """Scores of the tokens of given answers, where there is a detector of tokens."""
        of_scores = [score.trace if score.failure is None else None for score in scores]
        traces = [trace for trace in of_scores if trace is not None]
        if self.token_scorer is None or not traces:
            return [[] for _ in scores]
        values = iter(self.token_scorer.values(traces).by_trace())
        return [[] if trace is None else self._tokens(trace, next(values)) for trace in of_scores]

    def _tokens(self, trace: Trace, values: Float[np.ndarray, "_"]) -> list[ScoredToken]:
        texts = zip(trace.tokens[trace.prompt_length :], values.tolist(), strict=True)
        return [ScoredToken(text, None, *self._chance(value)) for text, value in texts]

    def _admit(self) -> None:
        """Begin the answers that there is room for."""
        jobs = self._taken(self.config.max_batch - len(self.growing), is_scoring=False)
        new: list[Job] = []
        for job in jobs:
            try:
                self._begin(job)
            except GraphhaluError as error:
                self._fail(job, 400, str(error))
            except Exception:  # noqa: BLE001 - what a chat template or tokenizer raises
                _log.exception("a prompt failed")
                self._fail(job, 400, "the prompt cannot be read")
            else:
                new.append(job)
        if not new:
            return
        self._enter()
        self.growing += new
        self.batch.add([each.answer for each in new])

    def _begin(self, job: Job) -> None:
        (question,) = job.questions
        extraction = self._extraction(**job.prompt) if job.prompt else self.extraction
        prompt = asked_prompt(extraction, question)
        limit = min(
            self.config.max_total_tokens, extraction.loaded.max_positions or self.config.max_total_tokens
        )
        room = limit - prompt.length
        if room < 1:
            raise UsageError(f"the prompt has {prompt.length} tokens; at most {limit - 1} are taken")
        settings = {"max_new_tokens": self.config.max_new_tokens, **job.settings}
        settings["max_new_tokens"] = min(settings["max_new_tokens"], room)
        job.answer, job.texts = LiveAnswer(prompt, **settings), TextStream(self.tokenizer)

    def _step(self) -> None:
        """Write one token of every answer."""
        if not self.growing:
            return
        self._enter()
        started = time.perf_counter()
        self.batch.step()
        self.step_seconds.observe(time.perf_counter() - started)
        for each in list(self.growing):
            try:
                self._advance(each)
            except Exception:  # noqa: BLE001 - of a plug-in
                _log.exception("a score failed")
                self.growing.remove(each)
                self.batch.drop([each.answer])
                self._fail(each, 500, "scoring failed; the fault is in the server's log")

    def _advance(self, job: Job) -> None:
        """Hand out the newest token of an answer, and its end."""
        answer = job.answer
        is_stopped = False
        if len(answer.token_ids) > job.n_seen:
            job.n_seen = len(answer.token_ids)
            self.n_tokens.inc()
            score = None if self.tokens is None else self.tokens.newest(answer)
            attended = self._attended(answer) if job.wants_attention and self.batch.recorder.arrays else []
            token_id = answer.token_ids[-1]
            text = job.texts.add(token_id)
            is_stopped = job.add(ScoredToken(text, token_id, *self._chance(score), attended=attended))
        if answer.end is None and not is_stopped:
            return
        job.flush()
        if is_stopped:
            answer.end = "stop"
            answer.cut(job.n_delivered)
            self.batch.drop([answer])
        self.growing.remove(job)
        if not self.answers.is_live:
            self._leave()
        found = self.answers.whole(answer)
        self._count("generated", found)
        spent = self.config.timeout_s - (job.deadline - time.monotonic())
        self._seconds += 0.1 * (spent - self._seconds)
        reason = answer.end or "stop"
        job.deliver(EndEvent(reason, found, answer.prompt.length, len(answer.token_ids)))

    def _chance(self, score: float | None) -> tuple[float | None, float | None]:
        if score is None or self.token_scorer is None or score != score:  # noqa: PLR0124 - NaN
            return None, None
        return score, self.token_scorer.probability(score)

    def _attended(self, answer: LiveAnswer) -> list[tuple[int, str, float]]:
        ids = [*answer.prompt.encoded.token_ids.tolist(), *answer.token_ids]
        return [(key, self.tokenizer.decode([ids[key]]), weight) for key, weight in answer.attended()]

    def _count(self, kind: str, score: AnswerScore) -> None:
        self.n_answers.labels(kind, verdict(score) or "none").inc()

    def _enter(self) -> None:
        """Capture attention; nothing else runs on the model until :meth:`_leave`."""
        if not self._is_open:
            self._session.enter_context(self.batch.decoding())
            self._is_open = True

    def _leave(self) -> None:
        self._session.close()
        self._is_open = False


def verdict(score: AnswerScore) -> str | None:
    """The verdict in words; ``None`` without one."""
    if score.is_hallucinated is None:
        return None
    return "hallucinated" if score.is_hallucinated else "not hallucinated"


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text with which a stop text may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
