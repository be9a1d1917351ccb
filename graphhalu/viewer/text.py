"""The text of every token of a trace, which is never markup, and its pieces of about a sentence."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Integer

from graphhalu.core.errors import GraphhaluError
from graphhalu.traces.trace import Trace

MOST_PIECES: Final = 32
"""About as many pieces as a text is cut into; each named span ends one more."""

_ENDS: Final = (".", "!", "?", ";", ":", "\n", "。", "！", "？")  # noqa: RUF001


def store_tokenizer(
    configuration: Mapping[str, Any], name: str | None = None, on_note: Callable[[str], None] = lambda _: None
) -> Any | None:
    """The tokenizer that a store's tokens come from, or ``None`` where it cannot be had.

    Args:
        configuration: Of the store.
        name: Alias, hub id or folder to take in place of the store's model.
        on_note: Told in one line why there is none.

    Raises:
        GraphhaluError: If a tokenizer is named and cannot be had.
    """
    from graphhalu.models.cards import ModelSpec
    from graphhalu.models.load import load_tokenizer

    model = configuration.get("model") or {}
    wanted = name or model.get("name")
    if not wanted:
        on_note("the store does not name its model: tokens of the prompt are shown as numbers")
        return None
    revision = model.get("revision") if name is None else None
    try:
        return load_tokenizer(ModelSpec(name=wanted, revision=revision))
    except GraphhaluError as error:
        if name is not None:
            raise
        reason = str(error).splitlines()[0]
        on_note(f"tokens of the prompt are shown as numbers: {reason}; --tokenizer names another")
        return None


def token_texts(trace: Trace, tokenizer: Any | None) -> tuple[str, ...]:
    """What each token stands for, with the white space before it.

    The prompt is tokenized again and cut at the offsets, which keeps characters whole that
    several tokens share: the first of them has it, the others are empty. Where that gives other
    tokens than the trace has, each is decoded alone. Without a tokenizer, tokens of the prompt
    are shown as ``#`` and their number.
    """
    if tokenizer is None:
        return tuple(trace.tokens)
    ids = trace.token_ids.tolist()
    prompt, answer = ids[: trace.prompt_length], ids[trace.prompt_length :]
    return (*_prompt_texts(trace, prompt, tokenizer), *_answer_texts(trace, answer, tokenizer))


def hallucinated_tokens(trace: Trace) -> Bool[np.ndarray, "token"] | None:
    """Which tokens touch a span that the data set calls hallucinated; ``None`` if it says none."""
    record = trace.record
    if not record.given_spans or len(record.answer_offsets) != trace.answer_length:
        return None
    is_hallucinated: Bool[np.ndarray, "token"] = np.zeros(trace.length, dtype=np.bool_)
    for place, (start, stop) in enumerate(record.answer_offsets):
        is_hallucinated[trace.prompt_length + place] = any(
            start < last and first < stop for first, last in record.given_spans
        )
    return is_hallucinated


def _prompt_texts(trace: Trace, ids: list[int], tokenizer: Any) -> tuple[str, ...]:
    text = trace.record.prompt
    for has_special in (True, False):
        encoded = tokenizer(text, add_special_tokens=has_special, return_offsets_mapping=True)
        # an end mark that the tokenizer appends is not part of the prompt
        if list(encoded["input_ids"])[: len(ids)] == ids:
            return _cut(text, encoded["offset_mapping"][: len(ids)], ids, tokenizer)
    return _decoded(ids, tokenizer)


def _answer_texts(trace: Trace, ids: list[int], tokenizer: Any) -> tuple[str, ...]:
    offsets = trace.record.answer_offsets
    if len(offsets) == len(ids):
        return _cut(trace.record.answer, offsets, ids, tokenizer)
    return _decoded(ids, tokenizer)


def _cut(text: str, offsets: Sequence[Sequence[int]], ids: list[int], tokenizer: Any) -> tuple[str, ...]:
    special = set(tokenizer.all_special_ids)
    texts, end = [], 0
    for index, (start, stop) in zip(ids, offsets, strict=True):
        if start == stop and index in special:
            texts.append(str(tokenizer.convert_ids_to_tokens(index)))
            continue
        texts.append(text[end : max(end, stop)])
        end = max(end, stop)
    return tuple(texts)


def _decoded(ids: Sequence[int], tokenizer: Any) -> tuple[str, ...]:
    return tuple(str(tokenizer.decode([index])) for index in ids)


def piece_starts(
    texts: Sequence[str], span_code: Integer[np.ndarray, "token"], most: int = MOST_PIECES
) -> tuple[int, ...]:
    """First token of each piece.

    A piece ends where a named span ends, and at the first end of a sentence after ``n / most``
    tokens, or at twice as many where no sentence ends.

    Args:
        texts: Text of each token.
        span_code: Named span of each token.
        most: About how many pieces.
    """
    size = -(-len(texts) // most)
    starts = [0]
    for place in range(1, len(texts)):
        n_tokens = place - starts[-1]
        is_sentence_end = n_tokens >= size and _ends(texts[place - 1], texts[place])
        is_span_end = span_code[place] != span_code[place - 1]
        if is_span_end or is_sentence_end or n_tokens >= 2 * max(size, 8):
            starts.append(place)
    return tuple(starts)


def _ends(text: str, following: str) -> bool:
    """Whether a sentence ends between two tokens; white space may stand before the second."""
    has_gap = following[:1].isspace()
    return text.rstrip(" ").endswith(_ENDS) or (has_gap and "\n" in following)
