"""What is asked of a detector, and what it says: a question or a conversation, and the score of an answer."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from graphhalu.core.errors import UsageError
from graphhalu.core.files import shown
from graphhalu.datasets.question import GivenAnswer, Question, Turn
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class AnswerScore:
    """What a detector says of one answer.

    Attributes:
        question: As it was asked.
        answer: The model's own, or the one that was given; ``None`` if there is none.
        score: The detector's score, higher = more likely hallucinated; ``None`` if it failed.
            Of a detector of tokens that of the highest token.
        probability: Probability that the answer is hallucinated, for answers that are
            hallucinated as often as those of the validation side; ``None`` without calibration,
            and for a detector of tokens.
        is_hallucinated: Whether the score reaches the threshold; ``None`` without one.
        threshold: The score from which on answers are called hallucinated.
        is_given: Whether the answer was given, and not the model's own.
        threshold_probability: The probability from which on answers are called hallucinated.
        warnings: What speaks against trusting the score, each in one sentence.
        failure: Why there is no score.
        trace: What the score was made of.
        tokens: Scores of the tokens of the answer, NaN as ``None``; ``None`` for a detector of
            answers.
    """

    question: str
    answer: str | None
    score: float | None
    probability: float | None
    is_hallucinated: bool | None
    threshold: float | None
    is_given: bool
    threshold_probability: float | None = None
    warnings: tuple[str, ...] = ()
    failure: str | None = None
    trace: Trace | None = field(default=None, repr=False, compare=False)
    tokens: tuple[float | None, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the trace."""
        return {name: value for name, value in vars(self).items() if name != "trace"}


def asked_question(
    question: str | Question | Sequence[Mapping[str, Any]],
    answer: str | None = None,
    context: str | None = None,
) -> Question:
    """A question as the scorer takes it, with the answer to judge if there is one.

    Args:
        question: The question, or a conversation that ends with it: messages with ``role`` and ``content``.
        answer: The answer to judge, if it is given.
        context: A passage that the prompt shows before the question.

    Raises:
        UsageError: If the question or the answer is empty, or a conversation does not end with the user.
    """
    if isinstance(question, Question):
        return question
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    if not isinstance(question, str):
        question, system, turns = conversation(question)
    for what, text in (("a question", question), ("an answer", answer)):
        if text is not None and not text.strip():
            raise UsageError(f"expected {what}, got an empty text")
    given = () if answer is None else (GivenAnswer(answer),)
    return Question("asked", question, (), context=context or None, system=system, turns=turns, given=given)


def conversation(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str | None, tuple[Turn, ...]]:
    """The question, the system prompt and the turns before the question, of messages as OpenAI writes them.

    Messages of one speaker that follow each other are one turn; what a tool says is said by the user, and
    calls of tools are text.

    Raises:
        UsageError: If the last turn is not the user's, or a message has no role or text.
    """
    system: list[str] = []
    turns: list[Turn] = []
    for message in messages:
        role, text = message.get("role"), _message_text(message)
        if not isinstance(role, str):
            raise UsageError(f"expected messages with a role, got {shown(message)}")
        if role in ("system", "developer"):
            system.append(text)
        if role in ("system", "developer") or not text.strip():
            continue
        text = f"Tool: {text}" if role in ("tool", "function") else text
        role = "assistant" if role == "assistant" else "user"
        if turns and turns[-1][0] == role:
            text = f"{turns.pop()[1]}\n\n{text}"
        turns.append((role, text))
    if not turns or turns[-1][0] != "user":
        raise UsageError("the last message must be the user's, and not empty")
    return turns[-1][1], "\n\n".join(system) or None, tuple(turns[:-1])


def _message_text(message: Mapping[str, Any]) -> str:
    """What a message says; parts of another kind than text are refused."""
    content = message.get("content") or ""
    if not isinstance(content, str):
        parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise UsageError(f"expected messages of text, got {shown(content)}")
        content = "".join(map(str, parts))
    calls = [
        json.dumps(call.get("function", call), ensure_ascii=False) for call in message.get("tool_calls") or ()
    ]
    return "\n".join(part for part in (content, *calls) if part)
