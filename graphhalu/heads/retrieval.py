"""Retrieval heads: which heads copy a needle out of a haystack into the answer.

One greedy answer without attention, then one teacher-forced pass over prompt and answer that
keeps the largest weight and the needle's mass of each row that produces the answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from rouge_score.rouge_scorer import RougeScorer
from torch import Tensor

from graphhalu.axes import RowRange
from graphhalu.config import Config
from graphhalu.errors import UsageError
from graphhalu.extract.generate import BeamSearch
from graphhalu.extract.prompts import generated_answer, newline_token_ids, uses_chat
from graphhalu.extract.settings import PromptSettings
from graphhalu.heads.copying import Passage, Rule, Scored, copied_share, mass_share
from graphhalu.heads.haystack import Haystack, HiddenNeedle, read_haystack, read_needles, trials
from graphhalu.heads.observers import RowsObserver, run_observed
from graphhalu.heads.select import RETRIEVAL_THRESHOLD
from graphhalu.heads.statistics import mean_of_present
from graphhalu.heads.table import HeadTable, Rejected, Trial
from graphhalu.labels.rouge import UnicodeTokenizer
from graphhalu.models.load import LoadedModel


class RetrievalSettings(Config):
    """How retrieval heads are looked for."""

    lengths: tuple[int, ...] = (256, 512, 1024)
    """Lengths of the prompts, in tokens."""
    n_depths: int = Field(default=5, ge=1)
    """Depths at which a needle is hidden, from first to last."""
    haystack: Path | None = None
    """Text to hide needles in; by default the bundled one."""
    needles: Path | None = None
    """JSON Lines with needle, question, real_needle; by default the bundled ones."""
    template: str | None = None
    """Prompt template, one that shows a context; by default ``concise`` in a chat and ``bare``
    without."""
    chat: Literal["off", "on", "auto"] = "auto"
    """Whether the model's chat template is used; auto uses it where there is one."""
    rule: Rule = "set"
    """``set`` counts a copied token once (the paper), ``sum`` every time (its code)."""
    gate: float | None = Field(default=50.0, ge=0, le=100)
    """A trial counts if the ROUGE-1 recall of the answer is above this, in percent; None = all."""
    threshold: float = RETRIEVAL_THRESHOLD
    """Mean score from which a head is called a retrieval head."""
    max_new_tokens: int = Field(default=50, ge=1)
    """Longest answer, in tokens."""


@dataclass(frozen=True)
class NeedleAnswer:
    """What a model answered to a hidden needle, and how well: ROUGE-1 recall in percent."""

    token_ids: tuple[int, ...]
    text: str
    recall: float


@dataclass
class _Collected:
    """Scores of the accepted trials so far."""

    trials: list[Trial] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    copied: list[Scored] = field(default_factory=list)
    mass: list[Scored] = field(default_factory=list)


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
    search = needle_search(loaded, settings)
    found = _Collected()
    for done, trial in enumerate(hidden, start=1):
        _try(loaded, settings, search, trial, found)
        on_progress(done, len(hidden))
    tables = [
        _table(role, scored, found, loaded, settings)
        for role, scored in (("retrieval", found.copied), ("retrieval_mass", found.mass))
    ]
    return [table.require_trials() for table in tables]


def hidden_needles(loaded: LoadedModel, settings: RetrievalSettings) -> list[HiddenNeedle]:
    """All prompts of a run, short ones first.

    Raises:
        UsageError: If one does not fit the haystack or the model's context.
    """
    if not settings.lengths:
        message = "no length of a prompt is given; use --lengths 256,512"
        raise UsageError(message)
    longest = max(settings.lengths) + settings.max_new_tokens
    if loaded.max_positions is not None and longest > loaded.max_positions:
        message = (
            f"prompt and answer need up to {longest} tokens, the context of "
            f"{loaded.spec.name} has {loaded.max_positions}\n  Use smaller --lengths"
        )
        raise UsageError(message)
    chat = uses_chat(PromptSettings(chat=settings.chat), loaded)
    template = settings.template or ("concise" if chat else "bare")
    text = read_haystack(settings.haystack)
    haystack = Haystack(text, loaded.tokenizer, template=template, chat=chat)
    needles = read_needles(settings.needles)
    return list(trials(haystack, needles, settings.lengths, settings.n_depths))


def needle_search(loaded: LoadedModel, settings: RetrievalSettings) -> BeamSearch:
    """Greedy decoding that stops at the end mark and, in a plain prompt, at a newline."""
    is_chat = uses_chat(PromptSettings(chat=settings.chat), loaded)
    newlines = () if is_chat else newline_token_ids(loaded.tokenizer)
    return BeamSearch(
        loaded.model, layer_windows=loaded.layer_windows,
        stop_ids=[*loaded.eos_token_ids, *newlines], n_beams=1,
        max_new_tokens=settings.max_new_tokens,
    )  # fmt: skip


def answer_needle(loaded: LoadedModel, search: BeamSearch, trial: HiddenNeedle) -> NeedleAnswer:
    """The greedy answer to a hidden needle."""
    token_ids = search.answer([trial.token_ids.tolist()])[0][0].token_ids
    text = generated_answer(token_ids, loaded.tokenizer).text
    return NeedleAnswer(token_ids, text, rouge1_recall(text, trial.needle.real_needle))


def rouge1_recall(answer: str, reference: str) -> float:
    """Share of the reference's words that the answer holds, in percent; case plays no part."""
    scorer = RougeScorer(["rouge1"], tokenizer=UnicodeTokenizer())
    return 100 * float(scorer.score(reference, answer)["rouge1"].recall)


def needle_rows(
    model: Any, passage: Passage
) -> tuple[np.ndarray, Float[np.ndarray, "layer head row"]]:
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


def _try(
    loaded: LoadedModel,
    settings: RetrievalSettings,
    search: BeamSearch,
    trial: HiddenNeedle,
    found: _Collected,
) -> None:
    answer = answer_needle(loaded, search, trial)
    reason = _reason(answer, settings.gate)
    if reason is not None:
        found.rejected.append(Rejected(trial.trial_id, reason))
        return
    passage = Passage(
        token_ids=np.concatenate([trial.token_ids, np.array(answer.token_ids, dtype=np.int32)]),
        prompt_length=len(trial.token_ids), span=trial.needle_tokens,
        context=trial.context_tokens, windows=loaded.layer_windows,
    )  # fmt: skip
    argmax, mass = needle_rows(loaded.model, passage)
    found.trials.append(Trial(trial.trial_id, trial.trial_id))
    found.copied.append(copied_share(argmax, passage, settings.rule))
    found.mass.append(mass_share(mass, passage))


def _reason(answer: NeedleAnswer, gate: float | None) -> str | None:
    if not answer.token_ids:
        return "the model gave an empty answer"
    if gate is None or answer.recall > gate:
        return None
    return f"ROUGE-1 recall {answer.recall:.0f} % is not above {gate:g} %"


def _table(
    role: str,
    scored: Sequence[Scored],
    found: _Collected,
    loaded: LoadedModel,
    settings: RetrievalSettings,
) -> HeadTable:
    shape = (loaded.n_layers, loaded.n_heads)
    scores, chances = (
        np.stack([each[place] for each in scored]) if scored else np.zeros((0, *shape))
        for place in (0, 1)
    )
    return HeadTable(
        role=role,
        layers=tuple(range(loaded.n_layers)),
        trials=tuple(found.trials),
        scores=scores,
        chance=mean_of_present(chances),
        rejected=tuple(found.rejected),
        model=dict(loaded.identity),
        settings=settings.model_dump(mode="json"),
    )
