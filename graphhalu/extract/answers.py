"""The tokens of an answer and the characters that each of them covers."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from graphhalu.axes import Span
from graphhalu.datasets.prompts import EncodedPrompt, Prompt
from graphhalu.errors import DataFileError


@dataclass(frozen=True)
class Answer:
    """An answer as text and as tokens.

    Attributes:
        text: What is stored and labelled.
        token_ids: Its tokens; no end mark among them.
        offsets: Half-open range of characters of ``text`` that each token covers.
    """

    text: str
    token_ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]


def generated_answer(token_ids: Sequence[int], tokenizer: Any) -> Answer:
    """The answer that the model's own tokens spell, without space around it.

    A character of several tokens belongs to the last of them.
    """
    ends = [0]
    for count in range(1, len(token_ids) + 1):
        text = tokenizer.decode(list(token_ids[:count]), skip_special_tokens=True)
        # an unfinished character is shown as a replacement character until its last byte
        ends.append(max(ends[-1], len(text.rstrip("\ufffd"))))
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    ends[-1] = len(text)
    stripped = text.strip()
    lead = len(text) - len(text.lstrip())
    return Answer(stripped, tuple(token_ids), _ranges(ends, lead, len(stripped)))


def given_answer(text: str, prompt: Prompt, encoded: EncodedPrompt, tokenizer: Any) -> Answer:
    """The tokens of an answer that the data set states, as they follow the prompt.

    Prompt and answer are tokenized together, so that the answer begins as the model would write
    it. Where the prompt's own tokens come out otherwise, the answer is tokenized alone.

    Raises:
        DataFileError: If the answer is empty.
    """
    text = text.strip()
    gap = "" if prompt.is_chat or prompt.text[-1:].isspace() else " "
    settings: dict[str, Any] = {"return_offsets_mapping": True}
    joint = tokenizer(
        prompt.text + gap + text, add_special_tokens=not prompt.has(Span.BOS), **settings
    )
    n_prompt = len(encoded.token_ids)
    if joint["input_ids"][:n_prompt] == encoded.token_ids.tolist():
        ids, offsets = joint["input_ids"][n_prompt:], joint["offset_mapping"][n_prompt:]
        lead = len(prompt.text) + len(gap)
    else:
        alone = tokenizer(gap + text, add_special_tokens=False, **settings)
        ids, offsets, lead = alone["input_ids"], alone["offset_mapping"], len(gap)
    while ids and ids[-1] == tokenizer.eos_token_id and offsets[-1] == (0, 0):
        ids, offsets = ids[:-1], offsets[:-1]
    if not ids or not text:
        message = "the given answer is empty"
        raise DataFileError(message)
    return Answer(
        text,
        tuple(ids),
        tuple((max(0, start - lead), max(0, stop - lead)) for start, stop in offsets),
    )


def _ranges(ends: Sequence[int], lead: int, length: int) -> tuple[tuple[int, int], ...]:
    places = [min(max(end - lead, 0), length) for end in ends]
    return tuple(pairwise(places))
