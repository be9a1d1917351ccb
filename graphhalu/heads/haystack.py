"""Needles in a haystack: prompts of a given length with a sentence hidden at a given depth.

The needle is found again by its characters, through the tokenizer's offsets, never by searching
for its tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Int

from graphhalu.core.axes import RowRange, Span
from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.files import parse_json, read_bytes, reason_of
from graphhalu.datasets.base import bundled_file, bundled_places
from graphhalu.datasets.prompts import Prompt, build_prompt, encode_prompt
from graphhalu.datasets.question import Question
from graphhalu.models.quiet import quiet_loading

_SENTENCE_END: Final = re.compile(r"[.!?][\"')]*(?=\s|$)")
_KEYS: Final = ("needle", "question", "real_needle")


class Needle(NamedTuple):
    """A sentence to hide.

    Attributes:
        needle: The sentence.
        question: What is asked about it.
        real_needle: The part that answers the question.
    """

    needle: str
    question: str
    real_needle: str


@dataclass(frozen=True)
class HiddenNeedle:
    """A prompt with a needle in it.

    Attributes:
        trial_id: Length, depth and needle in one word.
        needle: What is hidden.
        token_ids: The prompt.
        needle_tokens: Where the needle lies among them.
        context_tokens: Where the haystack lies, needle included.
    """

    trial_id: str
    needle: Needle
    token_ids: Int[np.ndarray, "token"]
    needle_tokens: RowRange
    context_tokens: RowRange


def read_haystack(path: Path | None = None) -> str:
    """The text of a haystack, by default the bundled one.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If it is no UTF-8 text, or holds none.
    """
    path = path or bundled_file(bundled_places("haystack", "haystack.txt"))
    text = " ".join(_read_text(path).split())
    if not text:
        raise DataFileError(f"the haystack {path} holds no text")
    return text


def read_needles(path: Path | None = None) -> tuple[Needle, ...]:
    """The needles of a JSON Lines file with the published keys, by default the bundled ones.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If a line is no needle; names it.

    Source:
        nightdessert/Retrieval_Head, commit 3ac171a, ``needles.jsonl``.
    """
    path = path or bundled_file(bundled_places("haystack", "needles.jsonl"))
    found = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if line.strip():
            found.append(_needle(line, f"{path}, line {number}"))
    if not found:
        raise DataFileError(f"{path} holds no needle")
    return tuple(found)


class Haystack:
    """Makes prompts of a given length with a needle at a given depth.

    Args:
        text: The haystack.
        tokenizer: Tokenizer of the model.
        template: Name of a prompt template that shows a context.
        chat: Whether the model's chat template goes around the prompt.
    """

    def __init__(self, text: str, tokenizer: Any, *, template: str = "bare", chat: bool) -> None:
        self.text = text
        self.tokenizer = tokenizer
        self.template = template
        self.chat = chat

    def hide(self, needle: Needle, *, length: int, depth: float, name: str) -> HiddenNeedle:
        """A prompt of about ``length`` tokens with the needle at ``depth``.

        Args:
            needle: What is hidden.
            length: Tokens of the prompt; it may come out a few tokens shorter or longer.
            depth: 0 = before the haystack, 1 = behind it; moved back to the end of a sentence.
            name: Name of the needle, for the trial's identity.

        Raises:
            UsageError: If there is no room for the needle, or the haystack is too short.
        """
        if not 0 <= depth <= 1:
            raise UsageError(f"a depth lies between 0 (first) and 1 (last), got {depth}")
        n_tokens = length - len(self._encode(self._prompt(needle, needle.needle))[0])
        if not 0 < n_tokens <= len(self._token_ends):
            raise UsageError(
                f"a prompt of {length} tokens needs {n_tokens} tokens of haystack, which has "
                f"{len(self._token_ends)}\n"
                f"  Use --lengths that fit, or a longer text with --haystack"
            )
        before, after = self._cut(n_tokens, depth)
        context = " ".join(part for part in (before, needle.needle, after) if part)
        start = len(before) + 1 if before else 0
        prompt = self._prompt(needle, context)
        token_ids, offsets = self._encode(prompt)
        context_start = _start_of(prompt, Span.CONTEXT)
        needle_tokens = _covered(prompt.text, offsets, context_start + start, len(needle.needle))
        context_tokens = _covered(prompt.text, offsets, context_start, len(context))
        if needle_tokens is None or context_tokens is None:
            raise UsageError(f"the needle {name} is not in its prompt of {length} tokens")
        trial_id = f"length {length}, depth {depth:.2f}, needle {name}"
        return HiddenNeedle(trial_id, needle, token_ids, needle_tokens, context_tokens)

    @cached_property
    def _token_ends(self) -> list[int]:
        """End of each of the haystack's tokens, in characters."""
        with quiet_loading():  # a tokenizer warns of a text longer than the model's context
            encoded = self.tokenizer(self.text, add_special_tokens=False, return_offsets_mapping=True)
        return [int(stop) for _, stop in encoded["offset_mapping"]]

    def _cut(self, n_tokens: int, depth: float) -> tuple[str, str]:
        """What stands before and after the needle, of so many tokens together."""
        text = self.text[: self._token_ends[n_tokens - 1]]
        place = self._token_ends[round(depth * n_tokens) - 1] if round(depth * n_tokens) else 0
        ends = [match.end() for match in _SENTENCE_END.finditer(self.text[: place + 1])]
        place = max((end for end in ends if end <= place), default=0)
        return text[:place].strip(), text[place:].strip()

    def _prompt(self, needle: Needle, context: str) -> Prompt:
        question = Question("needle", needle.question, (needle.real_needle,), context=context)
        return build_prompt(question, template=self.template, chat=self.chat, tokenizer=self.tokenizer)

    def _encode(self, prompt: Prompt) -> tuple[Int[np.ndarray, "token"], Sequence[tuple[int, int]]]:
        """Tokens of a prompt as the extraction makes them, with their characters."""
        token_ids = encode_prompt(prompt, self.tokenizer).token_ids
        encoded = self.tokenizer(
            prompt.text, add_special_tokens=not prompt.has(Span.BOS), return_offsets_mapping=True
        )
        return token_ids, encoded["offset_mapping"][: len(token_ids)]


def trials(
    haystack: Haystack, needles: Sequence[Needle], lengths: Sequence[int], n_depths: int
) -> Iterator[HiddenNeedle]:
    """Every needle at every depth in prompts of every length, short ones first.

    Raises:
        UsageError: If there is no depth, or a prompt cannot be made.
    """
    if n_depths < 1:
        raise UsageError(f"needles are hidden at one depth or more, got {n_depths}")
    depths = np.linspace(0, 1, n_depths) if n_depths > 1 else np.array([0.5])
    for length in sorted(lengths):
        for depth in depths.tolist():
            for place, needle in enumerate(needles):
                yield haystack.hide(needle, length=length, depth=depth, name=str(place))


def _start_of(prompt: Prompt, span: Span) -> int:
    found = next((piece for piece in prompt.pieces if piece.span == span), None)
    if found is None:
        raise UsageError("the prompt template shows no context to hide a needle in\n  Use --template bare")
    return found.start


def _covered(text: str, offsets: Sequence[tuple[int, int]], start: int, length: int) -> RowRange | None:
    """Tokens from the first to the last whose first visible character lies in a range."""
    found = []
    for index, (first, last) in enumerate(offsets):
        visible = next((i for i in range(first, last) if not text[i].isspace()), None)
        if visible is not None and start <= visible < start + length:
            found.append(index)
    # a token of nothing but space has no visible character, and may stand between them
    return RowRange(found[0], found[-1] + 1) if found else None


def _needle(line: str, where: str) -> Needle:
    try:
        values = parse_json(line)
        found = Needle(*(values[key].strip() for key in _KEYS))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataFileError(f"{where}: expected an object with texts for {', '.join(_KEYS)}") from None
    if not all(found):
        raise DataFileError(f"{where}: {', '.join(_KEYS)} must not be empty")
    return found


def _read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"no file at {path}") from None
    except (OSError, ValueError) as error:
        raise DataFileError(f"{path} is no UTF-8 text: {reason_of(error)}") from None
