"""Bodies of requests to the server and of its answers, as OpenAI's clients send and read them."""

import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from typing import Annotated, Any, Final, Literal

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, BeforeValidator, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException

from graphhalu.core.numerics import json_ready
from graphhalu.datasets.question import Question
from graphhalu.scoring.asked import AnswerScore, asked_question
from graphhalu.scoring.engine import EndEvent, Engine, verdict
from graphhalu.scoring.stream import ScoredToken

_TYPES: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
MOST_ITEMS: Final = 64
"""Answers that one request may score, and prompts that one may complete."""


def _plain_text(text: object) -> object:
    """A text that has a UTF-8 form; half a surrogate pair has none."""
    if isinstance(text, str):
        text.encode("utf-8")
    return text


Text = Annotated[str, BeforeValidator(_plain_text)]


class TextPart(BaseModel):
    """A part of a message; only texts are read.

    As in every body, fields that clients send and nothing here reads are passed over.
    """

    type: Literal["text", "input_text"]
    text: Text


class ChatMessage(BaseModel):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Extension(BaseModel):
    """What graphhalu is asked for beside the answer."""

    attention: bool = False
    """Whether each token names the tokens that it attends to."""


class StreamOptions(BaseModel):
    """As OpenAI's."""

    include_usage: bool = False


class CompletionRequest(BaseModel):
    """What requests for an answer have in common."""

    model: Text | None = None
    max_tokens: int | None = Field(default=None, ge=1, le=10**6)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    n: Literal[1] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Text | list[Text] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    graphhalu: Extension = Extension()

    @property
    def stops(self) -> tuple[str, ...]:
        """Texts that end the answer."""
        stop = self.stop or ()
        return (stop,) if isinstance(stop, str) else tuple(text for text in stop if text)

    @model_validator(mode="after")
    def _few_stops(self) -> "CompletionRequest":
        if len(self.stops) > 4:  # noqa: PLR2004
            raise ValueError("at most 4 texts may end an answer")
        return self

    def settings(self) -> dict[str, Any]:
        """Of the answer; without a temperature the likeliest token is taken."""
        values = {
            "max_new_tokens": self.max_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "seed": None if self.seed is None else self.seed % 2**63,
        }
        return {name: value for name, value in values.items() if value is not None}


class ChatRequest(CompletionRequest):
    """Body of ``/v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    max_completion_tokens: int | None = Field(default=None, ge=1, le=10**6)
    _asked: Question

    @property
    def asked(self) -> Question:
        """The question with the turns before it."""
        return self._asked

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> "ChatRequest":
        self._asked = asked_question([message.model_dump() for message in self.messages])
        if self.max_tokens is None:
            self.max_tokens = self.max_completion_tokens
        return self


class TextRequest(CompletionRequest):
    """Body of ``/v1/completions``."""

    prompt: Text | list[Text]

    @property
    def prompts(self) -> list[str]:
        """Texts to go on with."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _has_prompts(self) -> "TextRequest":
        if not 1 <= len(self.prompts) <= MOST_ITEMS or not all(text.strip() for text in self.prompts):
            raise ValueError(f"expected 1 to {MOST_ITEMS} prompts that are not empty")
        if self.stream and len(self.prompts) > 1:
            raise ValueError("one prompt can be streamed at a time")
        return self


class ScoreItem(BaseModel):
    """An answer to score."""

    question: Text | None = None
    messages: list[ChatMessage] | None = Field(default=None, max_length=256)
    answer: Text
    context: Text | None = None
    _asked: Question

    @property
    def asked(self) -> Question:
        """The question with its answer."""
        return self._asked

    @model_validator(mode="after")
    def _is_asked(self) -> "ScoreItem":
        messages = [message.model_dump() for message in self.messages or ()]
        if (self.question is None) == (self.messages is None):
            raise ValueError("expected a question, or messages")
        asked = messages if self.question is None else self.question
        self._asked = asked_question(asked, self.answer, self.context)
        return self


class ScoreRequest(BaseModel):
    """Body of ``/score``: one answer, or several as ``items``."""

    items: list[ScoreItem] = Field(min_length=1, max_length=MOST_ITEMS)

    @model_validator(mode="before")
    @classmethod
    def _of_one(cls, values: Any) -> Any:
        return values if not isinstance(values, dict) or "items" in values else {"items": [values]}


def error_body(status: int, message: str) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")  # noqa: PLR2004
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def faults_of(error: RequestValidationError | ValidationError) -> str:
    """What is wrong with a body, by field; what was sent is not repeated."""
    faults = []
    for each in list(error.errors())[:5]:
        where = ".".join(str(part) for part in each["loc"] if part != "body")
        faults.append(f"{where}: {each['msg']}" if where else str(each["msg"]))
    return "; ".join(faults) or "the body cannot be read"


class Frame:
    """Bodies of a completion, whole or as chunks of a stream.

    Args:
        kind: ``chat.completion`` or ``text_completion``.
        engine: Its model and detector are named.
        body: The request.
    """

    def __init__(self, kind: str, engine: Engine, body: CompletionRequest) -> None:
        self.engine, self.is_chat, self.body = engine, kind == "chat.completion", body
        self.head = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": engine.model_name,
        }

    def whole(self, answers: list[tuple[list[ScoredToken], EndEvent]]) -> dict[str, Any]:
        """The body of finished answers."""
        choices = []
        for index, (tokens, end) in enumerate(answers):
            text = "".join(token.text for token in tokens)
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
            choice = {"index": index, **(said if self.is_chat else {"text": text}), "logprobs": None}
            choice |= {
                "finish_reason": end.reason,
                "hallucination": hallucination(self.engine, end.score, tokens),
            }
            choices.append(choice)
        return {**self.head, "choices": choices, "usage": _usage(end for _, end in answers)}

    def _chunk(self, text: str | None, reason: str | None = None, **more: Any) -> str:
        delta: dict[str, Any] = {"text": text or ""}
        if self.is_chat:
            delta = {"delta": {} if text is None else {"content": text}}
        choice = {"index": 0, **delta, "logprobs": None, "finish_reason": reason, **more}
        return self._event({"choices": [choice]})

    def _event(self, values: dict[str, Any]) -> str:
        head = {**self.head, "object": "chat.completion.chunk"} if self.is_chat else self.head
        return f"data: {json.dumps({**head, **values}, ensure_ascii=False, allow_nan=False)}\n\n"

    async def stream(self, events: AsyncIterator[Any]) -> AsyncIterator[str]:
        """Chunks of an answer while it is written.

        Args:
            events: Of its job; a failure or the end is the last.
        """
        if self.is_chat:
            yield self._event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        tokens: list[ScoredToken] = []
        async for event in events:
            if isinstance(event, HTTPException):
                yield f"data: {json.dumps(error_body(event.status_code, event.detail))}\n\n"
                return
            if isinstance(event, ScoredToken):
                tokens.append(event)
                yield self._chunk(event.text, hallucination={"tokens": [_token(event)]})
                continue
            yield self._chunk(
                None, event.reason, hallucination=hallucination(self.engine, event.score, tokens)
            )
            options = self.body.stream_options
            if options is not None and options.include_usage:
                yield self._event({"choices": [], "usage": _usage([event])})
            yield "data: [DONE]\n\n"


def _token(event: ScoredToken) -> dict[str, Any]:
    found: dict[str, Any] = {"token": event.text, "score": event.score, "probability": event.probability}
    if event.attended:
        names = ("position", "token", "weight")
        found["attention"] = [dict(zip(names, each, strict=True)) for each in event.attended]
    return found


def hallucination(engine: Engine, score: AnswerScore, tokens: list[ScoredToken]) -> dict[str, Any]:
    """What the detectors say of an answer."""
    token_scorer = engine.token_scorer
    found = {
        "probability": score.probability,
        "verdict": verdict(score),
        "score": score.score,
        "threshold_probability": score.threshold_probability,
        "detector": engine.scorer.detector.card.name,
        "token_detector": None if token_scorer is None else token_scorer.detector.card.name,
        "warnings": list(score.warnings),
        "failure": score.failure,
        "tokens": [_token(token) for token in tokens],
    }
    return dict(json_ready(found))


def _usage(ends: Iterable[EndEvent]) -> dict[str, int]:
    pairs = [(end.n_prompt, end.n_answer) for end in ends]
    n_prompt, n_answer = (sum(each) for each in zip(*pairs, strict=True))
    return {"prompt_tokens": n_prompt, "completion_tokens": n_answer, "total_tokens": n_prompt + n_answer}
