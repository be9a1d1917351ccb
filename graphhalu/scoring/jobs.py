"""Requests to the engine: what is asked, what is delivered, and an answer that is being written."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graphhalu.core.errors import GraphhaluError
from graphhalu.datasets.question import Question
from graphhalu.extract.live import LiveAnswer
from graphhalu.scoring.asked import AnswerScore
from graphhalu.scoring.stream import TextStream


class Failure(NamedTuple):
    """Why a request failed, with the HTTP status that says so."""

    status: int
    message: str


class TokenEvent(NamedTuple):
    """A token of an answer that is being written.

    Attributes:
        text: What it adds to the answer.
        score: By the detector of tokens; ``None`` without one.
        probability: The same as a probability.
        attended: Position, text and weight of the tokens that its row attends to most.
    """

    text: str
    score: float | None
    probability: float | None
    attended: list[tuple[int, str, float]]


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


class ScoredEvent(NamedTuple):
    """Scores of given answers, each with those of its tokens where there is a detector of tokens."""

    scores: list[AnswerScore]
    tokens: list[list[TokenEvent]]


@dataclass(eq=False)
class Job:
    """A request.

    Attributes:
        questions: One to answer, or several with given answers to score.
        deliver: Called in the engine's thread with each event; the last is an end, scores, or a failure.
        deadline: When it is given up, in the time of ``time.monotonic``.
        prompt: Fields of the prompt's settings that differ from the training.
        settings: Of the answer; see :class:`graphhalu.extract.live.LiveAnswer`.
        stop: Texts that end the answer; they are cut off.
        wants_attention: Whether tokens name what they attend to.
        is_cancelled: Set by anybody when nobody waits for it any more.
    """

    questions: Sequence[Question]
    deliver: Callable[[Any], None]
    deadline: float
    prompt: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    wants_attention: bool = False
    is_cancelled: bool = False

    @property
    def is_scoring(self) -> bool:
        """Whether answers are given."""
        return bool(self.questions[0].given)


class Growing:
    """A job whose answer is being written.

    Args:
        job: The request.
        answer: Its answer.
        tokenizer: That of the model.
    """

    def __init__(self, job: Job, answer: LiveAnswer, tokenizer: Any) -> None:
        self.job, self.answer = job, answer
        self.texts, self.held = TextStream(tokenizer), list[TokenEvent]()
        self.n_seen = self.n_delivered = 0

    def add(self, event: TokenEvent) -> bool:
        """Hand out what cannot be the beginning of a stop text; true if the answer ends here."""
        self.held.append(event)
        text = "".join(each.text for each in self.held)
        found = [text.find(stop) for stop in self.job.stop if stop in text]
        if found:
            rest = self._release(min(found))
            if rest and self.held:
                self._deliver(self.held[0]._replace(text=self.held[0].text[:rest]))
            self.held.clear()
            return True
        self._release(len(text) - max((_overlap(text, stop) for stop in self.job.stop), default=0))
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

    def _deliver(self, event: TokenEvent) -> None:
        self.n_delivered += 1
        self.job.deliver(event)


class QueueFullError(GraphhaluError):
    """More requests wait than may.

    Attributes:
        retry_after_s: When to try again, in seconds.
    """

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("the queue is full")
        self.retry_after_s = retry_after_s


def verdict(score: AnswerScore) -> str | None:
    """The verdict in words; ``None`` without one."""
    if score.is_hallucinated is None:
        return None
    return "hallucinated" if score.is_hallucinated else "not hallucinated"


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of a text with which a stop text may begin."""
    return next((n for n in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:n])), 0)
