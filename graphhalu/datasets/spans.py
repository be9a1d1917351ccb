"""Rendered prompts: marks around pieces while a text is made, spans of characters afterwards."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from graphhalu.axes import SPAN_NAMES, Span
from graphhalu.errors import ModelRefusedError

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
