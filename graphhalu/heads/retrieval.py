"""Retrieval heads: which heads copy a needle out of a haystack into the answer.

One greedy answer without attention, then one teacher-forced pass over prompt and answer that
keeps the largest weight and the needle's mass of each row that produces the answer.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from graphhalu.core.axes import RowRange
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.extract.prompts import generated_answer
from graphhalu.heads.haystack import Haystack, HiddenNeedle, read_haystack, read_needles, trials
from graphhalu.heads.observers import RowsObserver, run_observed
from graphhalu.heads.quality import greedy_search, prompt_form
from graphhalu.heads.settings import RetrievalSettings, Rule
from graphhalu.heads.statistics import mean_of_present
from graphhalu.heads.table import HeadTable, Rejected, Trial
from graphhalu.labels.rouge import UnicodeTokenizer
from graphhalu.models.load import LoadedModel

_EMPTY: Final = "the model gave an empty answer"


class Scored(NamedTuple):
    """Scores of one trial, and what a head that attends blindly would have.

    Both are NaN in a layer none of whose rows can see the whole span.
    """

    score: Float[np.ndarray, "layer head"]
    chance: Float[np.ndarray, "layer head"]


class Passage(NamedTuple):
    """Where things are in a prompt with its answer.

    Attributes:
        token_ids: Prompt and answer.
        prompt_length: Tokens of the prompt.
        span: The hidden span.
        context: The context around it, span included.
        windows: Sliding window of each layer, itself included; ``None`` = all keys.
    """

    token_ids: Integer[np.ndarray, "token"]
    prompt_length: int
    span: RowRange
    context: RowRange
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, needle: HiddenNeedle, answer: tuple[int, ...], windows: tuple[int | None, ...]) -> "Passage":
        """A prompt with a hidden needle, and the tokens of its answer."""
        token_ids = np.concatenate([needle.token_ids, np.array(answer, dtype=np.int32)])
        spans = (needle.needle_tokens, needle.context_tokens)
        return cls(token_ids, len(needle.token_ids), *spans, windows)

    @property
    def answer_rows(self) -> Int[np.ndarray, "row"]:
        """The rows that produce the answer."""
        return np.arange(self.prompt_length - 1, len(self.token_ids) - 1)

    def first_key(self) -> Int[np.ndarray, "layer row"]:
        """First key that each answer row sees."""
        windows = np.array([w or len(self.token_ids) for w in self.windows])
        first = self.answer_rows - windows[:, None] + 1
        return np.maximum(0, first)


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
    search = greedy_search(loaded, settings.max_new_tokens, stops_at_newline=not is_chat)
    accepted: list[Trial] = []
    rejected: list[Rejected] = []
    scored: dict[str, list[Scored]] = {"retrieval": [], "retrieval_mass": []}
    for done, needle in enumerate(hidden, start=1):
        token_ids = search.answer([needle.token_ids.tolist()])[0][0].token_ids
        answer = generated_answer(token_ids, loaded.tokenizer).text
        reason = _rejection(answer, needle, settings.gate) if token_ids else _EMPTY
        if reason is not None:
            rejected.append(Rejected(needle.trial_id, reason))
        else:
            passage = Passage.of(needle, token_ids, loaded.layer_windows)
            argmax, mass = needle_rows(loaded.model, passage)
            accepted.append(Trial(needle.trial_id, needle.trial_id))
            scored["retrieval"].append(copied_share(argmax, passage, settings.rule))
            scored["retrieval_mass"].append(mass_share(mass, passage))
        on_progress(done, len(hidden))
    shape = (len(accepted), loaded.n_layers, loaded.n_heads)
    tables = [
        HeadTable(
            role=role,
            layers=tuple(range(loaded.n_layers)),
            trials=tuple(accepted),
            scores=np.array([each.score for each in found]).reshape(shape),
            chance=mean_of_present(np.array([each.chance for each in found]).reshape(shape)),
            rejected=tuple(rejected),
            model=dict(loaded.identity),
            settings=settings.model_dump(mode="json"),
        )
        for role, found in scored.items()
    ]
    return [table.require_trials() for table in tables]


def hidden_needles(loaded: LoadedModel, settings: RetrievalSettings) -> list[HiddenNeedle]:
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
    needles = read_needles(settings.needles)
    return list(trials(haystack, needles, settings.lengths, settings.n_depths))


def rouge1_recall(answer: str, reference: str) -> float:
    """Share of the reference's words that the answer holds, in percent; case plays no part."""
    scorer = RougeScorer(["rouge1"], tokenizer=UnicodeTokenizer())
    return 100 * float(scorer.score(reference, answer)["rouge1"].recall)


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


def _rejection(answer: str, needle: HiddenNeedle, gate: float | None) -> str | None:
    recall = rouge1_recall(answer, needle.needle.real_needle)
    if gate is None or recall > gate:
        return None
    return f"ROUGE-1 recall {recall:.0f} % is not above {gate:g} %"


def copied_share(argmax: Int[np.ndarray, "layer head row"], passage: Passage, rule: Rule = "set") -> Scored:
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
    first_key = passage.first_key()
    score, chance = (np.full(argmax.shape[:2], np.nan) for _ in range(2))
    is_counted = first_key <= passage.span.start
    _require_rows(is_counted, passage)
    for layer in np.flatnonzero(is_counted.any(1)):
        is_hit = is_copied[layer] & is_counted[layer]
        hits = _counts(argmax[layer], is_hit, n_keys)
        hits = np.minimum(hits, 1) if rule == "set" else hits
        first = int(first_key[layer, is_counted[layer]].max())
        score[layer], chance[layer] = _span_and_others(hits, passage, first)
    return Scored(score, chance)


def mass_share(mass: Float[np.ndarray, "layer head row"], passage: Passage) -> Scored:
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
    first_key = passage.first_key()
    is_counted = first_key <= passage.span.start
    _require_rows(is_counted, passage)
    n_rows = is_counted.sum(1)
    is_seen = n_rows > 0
    n_visible = passage.answer_rows + 1 - first_key
    length = passage.span.stop - passage.span.start
    uniform = np.where(is_counted, length / n_visible, 0.0).sum(1) / np.maximum(n_rows, 1)
    total = np.where(is_counted[:, None], mass, 0.0).sum(-1) / np.maximum(n_rows, 1)[:, None]
    score = np.where(is_seen[:, None], total, np.nan)
    chance = np.where(is_seen, uniform, np.nan)
    return Scored(score, np.broadcast_to(chance[:, None], score.shape).copy())


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


def _require_rows(is_counted: Bool[np.ndarray, "layer row"], passage: Passage) -> None:
    if not is_counted.any():
        raise NotEnoughDataError(
            f"no layer sees the span of tokens {passage.span.start} … {passage.span.stop - 1} "
            f"from the rows that produce the answer ({len(passage.answer_rows)} rows from "
            f"{passage.prompt_length - 1})"
        )
