"""What is asked of a detector: a question or a conversation, with the answer to judge if there is one."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from graphhalu.core.errors import UsageError
from graphhalu.core.files import shown
from graphhalu.datasets.question import GivenAnswer, Question, Turn


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
