"""Retrieval heads: which heads copy a needle out of a haystack into the answer.

A sentence is hidden at a given depth in a prompt of a given length, and found again by its
characters, through the tokenizer's offsets, never by searching for its tokens. One greedy answer
without attention follows, then one teacher-forced pass over prompt and answer that keeps the
largest weight and the needle's mass of each row that produces the answer.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from graphhalu.core.axes import RowRange, Span
from graphhalu.core.errors import DataFileError, NotEnoughDataError, UsageError
from graphhalu.datasets.base import bundled_file, bundled_places
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.prompts import Prompt, build_prompt, encode_prompt
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import text_field
from graphhalu.extract.generate import beam_search
from graphhalu.extract.prompts import generated_answer
from graphhalu.heads.runs import RowsObserver, measured_table, prompt_form, run_observed
from graphhalu.heads.settings import RetrievalSettings, Rule
from graphhalu.heads.table import HeadScores, HeadTable, Trial
from graphhalu.labels.rouge import RougeOverlap
from graphhalu.models.hub import quiet_loading
from graphhalu.models.load import LoadedModel

_SENTENCE_END: Final = re.compile(r"[.!?][\"')]*(?=\s|$)")


class Passage(NamedTuple):
    """Where things are in a prompt with a needle, and in its answer once there is one.

    Attributes:
        token_ids: Prompt and answer.
        prompt_length: Tokens of the prompt.
        span: Where the needle lies among them.
        context: Where the haystack lies, needle included.
        windows: Sliding window of each layer, itself included; ``None`` = all keys.
        question: What is asked about the needle, which is its group; its id says length and depth too.
    """

    token_ids: Integer[np.ndarray, "token"]
    prompt_length: int
    span: RowRange
    context: RowRange
    windows: tuple[int | None, ...] = ()
    question: Question = Question("", "", ())

    @property
    def answer_rows(self) -> Int[np.ndarray, "row"]:
        """The rows that produce the answer."""
        return np.arange(self.prompt_length - 1, len(self.token_ids) - 1)


def find_retrieval_heads(
    loaded: LoadedModel,
    settings: RetrievalSettings | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[HeadTable]:
    """Hide needles, ask for them, and score what every head copies.

    Args:
        loaded: The model.
        settings: Lengths, depths, texts, rule and gate.
        on_progress: Called with the number of trials done, and of all.

    Returns:
        Two tables of the same trials: ``retrieval`` (the largest weight of a row decides) and
        ``retrieval_mass`` (mean attention to the needle).

    Raises:
        UsageError: If a prompt does not fit the haystack or the model's context.
        NotEnoughDataError: If no trial is accepted; counts the reasons.

    Source:
        Wu et al. 2024, arXiv:2404.15574. Their gate stems words; ours compares whole words.
    """
    settings = settings or RetrievalSettings()
    hidden = hidden_needles(loaded, settings)
    _, is_chat = prompt_form(loaded, settings.template, settings.chat)
    search = beam_search(loaded, max_new_tokens=settings.max_new_tokens, stops_at_newline=not is_chat)
    accepted: list[Trial] = []
    rejected: list[tuple[str, str]] = []
    scored: dict[str, list[HeadScores]] = {"retrieval": [], "retrieval_mass": []}
    for done, prompt in enumerate(hidden, start=1):
        trial_id = prompt.question.question_id
        token_ids = search.answer([prompt.token_ids.tolist()])[0][0].token_ids
        answer = generated_answer(token_ids, loaded.tokenizer).text
        recall = rouge1_recall(answer, prompt.question.answers[0])
        if not token_ids:
            rejected.append((trial_id, "the model gave an empty answer"))
        elif settings.gate is not None and not recall > settings.gate:
            reason = f"ROUGE-1 recall {recall:.0f} % is not above {settings.gate:g} %"
            rejected.append((trial_id, reason))
        else:
            both = np.append(prompt.token_ids, np.array(token_ids, dtype=np.int32))
            passage = prompt._replace(token_ids=both, windows=loaded.layer_windows)
            argmax, mass = needle_rows(loaded.model, passage)
            accepted.append((trial_id, trial_id))
            scored["retrieval"].append(copied_share(argmax, passage, settings.rule))
            scored["retrieval_mass"].append(mass_share(mass, passage))
        on_progress(done, len(hidden))
    tables = (
        measured_table(loaded, role, accepted, found, settings=settings, rejected=rejected)
        for role, found in scored.items()
    )
    return [table.require_trials() for table in tables]


def hidden_needles(loaded: LoadedModel, settings: RetrievalSettings) -> list[Passage]:
    """All prompts of a run, short ones first.

    Raises:
        UsageError: If one does not fit the haystack or the model's context.
    """
    if not settings.lengths:
        raise UsageError("no length of a prompt is given; use --lengths 256,512")
    longest = max(settings.lengths) + settings.max_new_tokens
    if loaded.max_positions is not None and longest > loaded.max_positions:
        raise UsageError(
            f"prompt and answer need up to {longest} tokens, the context of "
            f"{loaded.spec.name} has {loaded.max_positions}\n  Use smaller --lengths"
        )
    template, chat = prompt_form(loaded, settings.template, settings.chat)
    text = read_haystack(settings.haystack)
    haystack = Haystack(text, loaded.tokenizer, template=template, chat=chat)
    return list(trials(haystack, read_needles(settings.needles), settings.lengths, settings.n_depths))


def rouge1_recall(answer: str, reference: str) -> float:
    """Share of the reference's words that the answer holds, in percent; case plays no part."""
    return 100 * RougeOverlap("rouge1_recall").best_score(answer, (reference,))


def needle_rows(model: Any, passage: Passage) -> tuple[np.ndarray, Float[np.ndarray, "layer head row"]]:
    """Key of the largest weight and mass on the span of each row that produces the answer."""
    rows = passage.answer_rows
    span = passage.span

    def reduce(weights: Float[Tensor, "head row key"]) -> Float[Tensor, "head row 2"]:
        mass = weights[..., span.start : span.stop].sum(-1)
        # positions are exact in float64
        return torch.stack([weights.argmax(-1).double(), mass.double()], dim=-1)

    observer = RowsObserver(RowRange(int(rows[0]), int(rows[-1]) + 1), reduce)
    run_observed(model, passage.token_ids, observer)
    both = observer.stacked()
    return both[..., 0].astype(np.int64), both[..., 1]


def copied_share(
    argmax: Int[np.ndarray, "layer head row"], passage: Passage, rule: Rule = "set"
) -> HeadScores:
    """Share of a span that each head copies into the answer.

    A row copies a token when its largest weight lies on it and the row produces that very token.

    Args:
        argmax: Key of the largest weight of every row that produces the answer.
        passage: The prompt with its answer.
        rule: ``"set"`` counts a token of the span once, so a score is in [0, 1]; ``"sum"`` counts
            it as often as it is copied.

    Returns:
        The score, and as its chance level the mean score of all other spans of the same length
        in the context that the counted rows can see; NaN where there is none.

    Raises:
        NotEnoughDataError: If no row of any layer can see the span.

    Source:
        Wu et al. 2024, arXiv:2404.15574 (``"set"``: share of the needle's tokens that are
        copied); nightdessert/Retrieval_Head, commit 3ac171a (``"sum"``: 1 / length for every
        copying step, so that repeats count and a score can exceed 1). Here the span comes from
        character offsets, and rows that cannot see all of it do not count.
    """
    n_keys, rows = len(passage.token_ids), passage.answer_rows
    is_copied = passage.token_ids[argmax] == passage.token_ids[rows + 1]
    score, chance = np.full((2, *argmax.shape[:2]), np.nan)
    first_key, is_counted = _counted_rows(passage)
    for layer in np.flatnonzero(is_counted.any(1)):
        is_hit = is_copied[layer] & is_counted[layer]
        hits = _counts(argmax[layer], is_hit, n_keys)
        hits = np.minimum(hits, 1) if rule == "set" else hits
        first = int(first_key[layer, is_counted[layer]].max())
        score[layer], chance[layer] = _span_and_others(hits, passage, first)
    return HeadScores(score, chance)


def mass_share(mass: Float[np.ndarray, "layer head row"], passage: Passage) -> HeadScores:
    """Mean attention that the rows which produce the answer pay to a span, per head.

    Args:
        mass: Attention of each of those rows to the whole span.
        passage: The prompt with its answer.

    Returns:
        The mean over rows that can see the span, in [0, 1], and as its chance level the same of
        uniform attention on the visible keys: length of the span over their number.

    Raises:
        NotEnoughDataError: If no row of any layer can see the span.

    Source:
        Mean-mass form of the retrieval score, beside the largest weights of arXiv:2404.15574.
    """
    first_key, is_counted = _counted_rows(passage)
    n_rows = is_counted.sum(1)
    is_seen = n_rows > 0
    n_visible = passage.answer_rows + 1 - first_key
    length = passage.span.stop - passage.span.start
    uniform = np.where(is_counted, length / n_visible, 0.0).sum(1) / np.maximum(n_rows, 1)
    total = np.where(is_counted[:, None], mass, 0.0).sum(-1) / np.maximum(n_rows, 1)[:, None]
    score = np.where(is_seen[:, None], total, np.nan)
    chance = np.where(is_seen, uniform, np.nan)
    return HeadScores(score, np.broadcast_to(chance[:, None], score.shape).copy())


def _counts(
    argmax: Int[np.ndarray, "head row"], is_hit: Bool[np.ndarray, "head row"], n_keys: int
) -> Int[np.ndarray, "head key"]:
    """How often each key is hit by each head."""
    n_heads = len(argmax)
    cells = argmax + n_keys * np.arange(n_heads)[:, None]
    return np.bincount(cells[is_hit], minlength=n_heads * n_keys).reshape(n_heads, n_keys)


def _span_and_others(
    hits: Int[np.ndarray, "head key"], passage: Passage, first_key: int
) -> tuple[Float[np.ndarray, "head"], Float[np.ndarray, "head"]]:
    """Hits a token of the span, and of all spans of its length that do not touch it."""
    span, context = passage.span, passage.context
    length = span.stop - span.start
    before = np.pad(np.cumsum(hits, axis=1), ((0, 0), (1, 0)))
    starts = np.arange(max(context.start, first_key), context.stop - length + 1)
    starts = starts[(starts + length <= span.start) | (starts >= span.stop)]
    score = (before[:, span.stop] - before[:, span.start]) / length
    if not len(starts):
        return score, np.full(len(hits), np.nan)
    return score, (before[:, starts + length] - before[:, starts]).mean(1) / length


def _counted_rows(passage: Passage) -> tuple[Int[np.ndarray, "layer row"], Bool[np.ndarray, "layer row"]]:
    """First key that each answer row sees, and which rows see the whole span."""
    windows = np.array([w or len(passage.token_ids) for w in passage.windows])
    first_key = np.maximum(0, passage.answer_rows - windows[:, None] + 1)
    is_counted = first_key <= passage.span.start
    if not is_counted.any():
        raise NotEnoughDataError(
            f"no layer sees the span of tokens {passage.span.start} … {passage.span.stop - 1} "
            f"from the rows that produce the answer ({len(passage.answer_rows)} rows from "
            f"{passage.prompt_length - 1})"
        )
    return first_key, is_counted


def read_haystack(path: Path | None = None) -> str:
    """The text of a haystack, by default the bundled one.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If it is not UTF-8 text, or holds none.
    """
    path = path or bundled_file(bundled_places("haystack", "haystack.txt"))
    return " ".join(open_file(path, "--haystack").text().split())


def read_needles(path: Path | None = None) -> tuple[Question, ...]:
    """The needles of a file of JSON Lines with the published keys, by default the bundled ones.

    Returns:
        What is asked about each needle, a sentence, which is its context and its group; the answer is
        the part of it that the file calls ``real_needle``.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If a row is not a needle; names it.

    Source:
        nightdessert/Retrieval_Head, commit 3ac171a, ``needles.jsonl``.
    """
    path = path or bundled_file(bundled_places("haystack", "needles.jsonl"))
    found = []
    for number, row in enumerate(read_rows(open_file(path, "--needles"))):
        needle, text, answer = (text_field(row, name) for name in ("needle", "question", "real_needle"))
        found.append(Question(str(number), text, (answer,), group_id=needle, context=needle))
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

    def hide(self, question: Question, *, length: int, depth: float) -> Passage:
        """A prompt of about ``length`` tokens with the needle at ``depth``.

        Args:
            question: One of :func:`read_needles`; its group is what is hidden.
            length: Tokens of the prompt; it may come out a few tokens shorter or longer.
            depth: 0 = before the haystack, 1 = behind it; moved back to the end of a sentence.

        Raises:
            UsageError: If there is no room for the needle, or the haystack is too short.
        """
        if not 0 <= depth <= 1:
            raise UsageError(f"a depth lies between 0 (first) and 1 (last), got {depth}")
        needle = question.group_id
        n_tokens = length - len(self._encode(self._prompt(question, needle))[0])
        if not 0 < n_tokens <= len(self._token_ends):
            raise UsageError(
                f"a prompt of {length} tokens needs {n_tokens} tokens of haystack, which has "
                f"{len(self._token_ends)}\n"
                f"  Use --lengths that fit, or a longer text with --haystack"
            )
        before, after = self._cut(n_tokens, depth)
        context = " ".join(part for part in (before, needle, after) if part)
        start = len(before) + 1 if before else 0
        prompt = self._prompt(question, context)
        token_ids, offsets = self._encode(prompt)
        context_start = next((piece.start for piece in prompt.pieces if piece.span == Span.CONTEXT), None)
        if context_start is None:
            raise UsageError(
                "the prompt template shows no context to hide a needle in\n  Use --template bare"
            )
        needle_tokens = _covered(prompt.text, offsets, context_start + start, len(needle))
        context_tokens = _covered(prompt.text, offsets, context_start, len(context))
        if needle_tokens is None or context_tokens is None:
            raise UsageError(f"needle {question.question_id} is not in its prompt of {length} tokens")
        trial_id = f"length {length}, depth {depth:.2f}, needle {question.question_id}"
        asked = replace(question, question_id=trial_id)
        return Passage(token_ids, len(token_ids), needle_tokens, context_tokens, question=asked)

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
        ends = (match.end() for match in _SENTENCE_END.finditer(self.text[: place + 1]))
        place = max((end for end in ends if end <= place), default=0)
        return text[:place].strip(), text[place:].strip()

    def _prompt(self, question: Question, context: str) -> Prompt:
        shown = replace(question, context=context)
        return build_prompt(shown, template=self.template, chat=self.chat, tokenizer=self.tokenizer)

    def _encode(self, prompt: Prompt) -> tuple[Int[np.ndarray, "token"], Sequence[tuple[int, int]]]:
        """Tokens of a prompt as the extraction makes them, with their characters."""
        token_ids = encode_prompt(prompt, self.tokenizer).token_ids
        encoded = self.tokenizer(
            prompt.text, add_special_tokens=not prompt.has(Span.BOS), return_offsets_mapping=True
        )
        return token_ids, encoded["offset_mapping"][: len(token_ids)]


def trials(
    haystack: Haystack, needles: Sequence[Question], lengths: Sequence[int], n_depths: int
) -> Iterator[Passage]:
    """Every needle at every depth in prompts of every length, short ones first.

    Raises:
        UsageError: If there is no depth, or a prompt cannot be made.
    """
    if n_depths < 1:
        raise UsageError(f"needles are hidden at one depth or more, got {n_depths}")
    depths = np.linspace(0, 1, n_depths) if n_depths > 1 else np.array([0.5])
    for length, depth, needle in product(sorted(lengths), depths.tolist(), needles):
        yield haystack.hide(needle, length=length, depth=depth)


def _covered(text: str, offsets: Sequence[tuple[int, int]], start: int, length: int) -> RowRange | None:
    """Tokens from the first to the last whose first visible character lies in a range."""
    found = []
    for index, (first, last) in enumerate(offsets):
        visible = next((i for i in range(first, last) if not text[i].isspace()), None)
        if visible is not None and start <= visible < start + length:
            found.append(index)
    # a token of nothing but space has no visible character, and may stand between them
    return RowRange(found[0], found[-1] + 1) if found else None
