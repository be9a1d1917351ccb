"""Bodies of requests to the server, as OpenAI's clients send them."""

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from graphhalu.datasets.question import Question
from graphhalu.scoring.asked import asked_question, conversation

MOST_ITEMS: Final = 64
"""Answers that one request may score, and prompts that one may complete."""


def _plain_text(text: object) -> object:
    """A text that has a UTF-8 form; half a surrogate pair has none."""
    if isinstance(text, str):
        text.encode("utf-8")
    return text


Text = Annotated[str, BeforeValidator(_plain_text)]


class _Body(BaseModel):
    """A body; fields that clients send and nothing here reads are passed over."""

    model_config = ConfigDict(extra="ignore")


class TextPart(_Body):
    """A part of a message; only texts are read."""

    type: Literal["text", "input_text"]
    text: Text


class ChatMessage(_Body):
    """A turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[TextPart] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class Extension(_Body):
    """What graphhalu is asked for beside the answer."""

    attention: bool = False
    """Whether each token names the tokens that it attends to."""


class StreamOptions(_Body):
    """As OpenAI's."""

    include_usage: bool = False


class CompletionRequest(_Body):
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

    @model_validator(mode="after")
    def _ends_with_a_question(self) -> "ChatRequest":
        plain_conversation(self.messages)
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


class ScoreItem(_Body):
    """An answer to score."""

    question: Text | None = None
    messages: list[ChatMessage] | None = Field(default=None, max_length=256)
    answer: Text
    context: Text | None = None

    @model_validator(mode="after")
    def _is_asked(self) -> "ScoreItem":
        if (self.question is None) == (self.messages is None):
            raise ValueError("expected a question, or messages")
        self.asked()
        return self

    def asked(self) -> Question:
        """The question with its answer."""
        question = self.question if self.messages is None else plain_conversation(self.messages)
        assert question is not None
        return asked_question(question, self.answer, self.context)


class ScoreRequest(_Body):
    """Body of ``/score``: one answer, or several as ``items``."""

    items: list[ScoreItem] = Field(min_length=1, max_length=MOST_ITEMS)

    @model_validator(mode="before")
    @classmethod
    def _of_one(cls, values: Any) -> Any:
        return values if not isinstance(values, dict) or "items" in values else {"items": [values]}


def plain_conversation(messages: list[ChatMessage]) -> list[dict[str, Any]]:
    """Messages as plain values; what cannot be asked is a fault of the body."""
    plain = [message.model_dump() for message in messages]
    conversation(plain)
    return plain
