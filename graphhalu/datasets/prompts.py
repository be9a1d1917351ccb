"""Prompts with named spans: the text of a question as a model reads it, and its tokens.

Spans are found while the text is made: markers stand around each piece when a chat template is
rendered. Token spans come from the tokenizer's offsets. Nothing is ever searched for.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Int, Int32, UInt8
from transformers import PreTrainedTokenizerBase

from graphhalu.core.axes import SPAN_NAMES, Span
from graphhalu.core.errors import ModelRefusedError, UsageError
from graphhalu.datasets.question import Question
from graphhalu.datasets.templates import Pieces, prompt_template

CHAT_OPTIONS: Final[Mapping[str, Any]] = {
    # templates that show today's date would make another prompt every day
    "date_string": "26 Jul 2024",
    # an answer of one sentence has no room for a chain of thought before it
    "enable_thinking": False,
}
"""What every chat template is told beside the messages."""
_FIRST_MARK: Final = 0xE000
_LAST_MARK: Final = 0xF8FF


class Piece(NamedTuple):
    """Characters ``start … stop - 1`` of a prompt, which belong to one span."""

    span: Span
    start: int
    stop: int


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: What the tokenizer gets.
        pieces: Spans in order; together they hold every character once.
        is_chat: Whether a chat template made it.
    """

    text: str
    pieces: tuple[Piece, ...]
    is_chat: bool

    def has(self, span: Span) -> bool:
        """Whether a piece belongs to this span."""
        return any(piece.span == span for piece in self.pieces)


@dataclass(frozen=True)
class EncodedPrompt:
    """The tokens of a prompt.

    Attributes:
        token_ids: Vocabulary indices, beginning-of-sequence token included if there is one.
        span_code: Named span of each token, as the integer of :class:`graphhalu.core.axes.Span`.
    """

    token_ids: Int32[np.ndarray, "token"]
    span_code: UInt8[np.ndarray, "token"]


def build_prompt(
    question: Question,
    *,
    template: str = "concise",
    chat: bool,
    tokenizer: PreTrainedTokenizerBase,
    system: str | None = None,
) -> Prompt:
    """Render the prompt of a question.

    Args:
        question: The question, with its examples, context and choices if it has any.
        template: Name of a prompt template.
        chat: Whether the model's chat template goes around it. Dates in it are fixed to
            26 Jul 2024, and a thinking mode is switched off.
        tokenizer: Tokenizer of the model.
        system: System prompt; ``None`` takes the question's own. A plain prompt begins with it.

    Raises:
        UsageError: If the question is empty or the template cannot show it, there is no chat
            template, or it takes no system prompt.
        ModelRefusedError: If the chat template changes the texts that are put into it.
    """
    if not question.text.strip():
        raise UsageError(f"question {question.question_id!r} has no text")
    body = prompt_template(template)(question)
    system = question.system if system is None else system
    if system is not None and not system.strip():
        system = None
    if chat:
        return _chat_prompt(body, system, tokenizer)
    front = [] if system is None else [(Span.SYSTEM, system), (Span.TEMPLATE, "\n\n")]
    marks = Marks([text for _, text in (*front, *body)])
    return marks.prompt("".join(marks.around(span, text) for span, text in (*front, *body)))


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> EncodedPrompt:
    """Tokenize a prompt and give each token the span of its first non-space character.

    The tokenizer is called once, on the whole text. It adds its own special tokens unless the
    text holds the beginning-of-sequence token; an end mark that it appends is taken off.
    Special tokens that it puts in front are ``bos``, others ``template``.

    Raises:
        ModelRefusedError: If the tokenizer gives no offsets, doubles the beginning-of-sequence
            token, or makes no token.
    """
    if not tokenizer.is_fast:
        raise ModelRefusedError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets, and named "
            f"spans need them; use a model with a fast tokenizer"
        )
    encoded = tokenizer(prompt.text, add_special_tokens=not prompt.has(Span.BOS), return_offsets_mapping=True)
    token_ids = list(encoded["input_ids"])
    offsets = [(int(start), int(stop)) for start, stop in encoded["offset_mapping"]]
    while token_ids and token_ids[-1] == tokenizer.eos_token_id and offsets[-1] == (0, 0):
        token_ids, offsets = token_ids[:-1], offsets[:-1]
    _check_beginning(token_ids, tokenizer)
    spans = list(_token_spans(prompt, token_ids, offsets, set(tokenizer.all_special_ids)))
    return EncodedPrompt(np.array(token_ids, dtype=np.int32), np.array(spans, dtype=np.uint8))


def require_span(
    span_code: UInt8[np.ndarray, "token"], span: Span, *, where: str = "the prompt"
) -> Int[np.ndarray, "member"]:
    """Positions of the tokens of a span.

    Args:
        span_code: Named span of each token.
        span: The span asked for.
        where: What to call the sequence in the error.

    Raises:
        UsageError: If no token belongs to it; names the spans that are there.
    """
    positions = np.flatnonzero(span_code == span)
    if not positions.size:
        present = ", ".join(SPAN_NAMES[code] for code in np.unique(span_code))
        raise UsageError(f"{where} has no {SPAN_NAMES[span]!r} span; it has {present or 'none'}")
    return positions


def _chat_prompt(body: Pieces, system: str | None, tokenizer: PreTrainedTokenizerBase) -> Prompt:
    if not tokenizer.chat_template:
        raise UsageError(
            "the model has no chat template: it is not tuned for chat\n"
            "  Use a plain prompt:  --set prompt.chat=off"
        )
    marks = Marks([system or "", *(text for _, text in body), str(tokenizer.chat_template)])
    marked_system = None if system is None else marks.around(Span.SYSTEM, system)
    marked_user = "".join(marks.around(span, text) for span, text in body)
    marked = _rendered(marked_user, marked_system, tokenizer)
    plain = _rendered("".join(text for _, text in body), system, tokenizer)
    if marks.removed(marked) != plain:
        raise rewritten_error("it renders another text when the pieces are marked")
    if marked_system is not None and marked_system.strip()[0] not in marked:
        raise _no_system("leaves it out")
    return marks.prompt(marked, bos=tokenizer.bos_token, is_chat=True)


def _rendered(user: str, system: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    messages = [{"role": "user", "content": user}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS
        )
    except jinja2.TemplateError as error:
        if system is not None:
            raise _no_system(f"says: {error}") from None
        raise ModelRefusedError(f"the model's chat template cannot be rendered: {error}") from None
    return str(text)


def _token_spans(
    prompt: Prompt, token_ids: list[int], offsets: list[tuple[int, int]], special: set[int]
) -> Iterator[Span]:
    span_of_character = [piece.span for piece in prompt.pieces for _ in range(*piece[1:])]
    has_begun = False
    for token_id, (start, stop) in zip(token_ids, offsets, strict=True):
        if start == stop and (token_id in special or stop == 0):
            yield Span.BOS if token_id in special and not has_begun else Span.TEMPLATE
        else:
            has_begun = True
            yield span_of_character[_first_visible(prompt.text, start, stop)]


def _first_visible(text: str, start: int, stop: int) -> int:
    """First character of a token that is no space, or its first character."""
    # tokenizers that trim give a token of spaces an empty range behind them
    start = min(start, stop - 1)
    return next((i for i in range(start, stop) if not text[i].isspace()), start)


def _check_beginning(token_ids: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    bos = tokenizer.bos_token_id
    if not token_ids:
        raise ModelRefusedError("the tokenizer makes no token of the prompt")
    if bos is not None and token_ids[:2] == [bos, bos]:
        raise ModelRefusedError(
            f"the prompt begins with two beginning-of-sequence tokens ({tokenizer.bos_token!r}); "
            f"the model never saw that in training"
        )


def _no_system(how: str) -> UsageError:
    return UsageError(
        f"the model's chat template takes no system prompt; it {how}\n"
        f"  Leave the system prompt out, or use a plain prompt:  --set prompt.chat=off"
    )


class Marks:
    """Pairs of private-use characters that stand around pieces while a text is rendered.

    Args:
        texts: Everything that goes into the rendering; no mark occurs in it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        taken = set("".join(texts))
        self._free = (chr(c) for c in range(_FIRST_MARK, _LAST_MARK + 1) if chr(c) not in taken)
        self._pairs: list[tuple[Span, str, str, str]] = []

    def around(self, span: Span, text: str) -> str:
        """The text with marks inside its outer space, so that a template may trim it."""
        core = text.strip()
        if span == Span.TEMPLATE or not core:
            return text
        first, last = next(self._free), next(self._free)
        self._pairs.append((span, core, first, last))
        lead, _, trail = text.partition(core)
        return f"{lead}{first}{core}{last}{trail}"

    def removed(self, marked: str) -> str:
        """The text without marks."""
        return marked.translate({ord(c): None for _, _, *pair in self._pairs for c in pair})

    def prompt(self, marked: str, *, bos: str | None = None, is_chat: bool = False) -> Prompt:
        """The prompt of a marked text, partitioned into spans.

        Raises:
            ModelRefusedError: If a piece does not stand in it exactly once, unchanged.
        """
        text = self.removed(marked)
        found = [Piece(Span.BOS, 0, len(bos))] if bos and text.startswith(bos) else []
        for span, core, first, last in self._pairs:
            start = len(self.removed(marked.partition(first)[0]))
            stop = len(self.removed(marked.partition(last)[0]))
            if marked.count(first) != 1 or marked.count(last) != 1 or text[start:stop] != core:
                how = f"the {SPAN_NAMES[span]} text does not stand in it once, unchanged"
                raise rewritten_error(how)
            found.append(Piece(span, start, stop))
        found.sort(key=lambda piece: piece.start)
        return Prompt(text, tuple(_partition(found, len(text))), is_chat)


def rewritten_error(how: str) -> ModelRefusedError:
    """The error for a chat template that changes what is put into it."""
    return ModelRefusedError(
        f"the model's chat template rewrites its content, so spans cannot be placed: {how}\n"
        f"  Use a plain prompt:  --set prompt.chat=off"
    )


def _partition(found: list[Piece], length: int) -> Iterator[Piece]:
    """The pieces with ``template`` in the gaps between them."""
    end = 0
    for piece in found:
        if piece.start < end:
            raise rewritten_error("two pieces overlap in it")
        if piece.start > end:
            yield Piece(Span.TEMPLATE, end, piece.start)
        yield piece
        end = piece.stop
    if end < length:
        yield Piece(Span.TEMPLATE, end, length)
