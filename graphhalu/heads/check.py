"""The ablation check with its settings: which heads, and on which questions."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, model_validator

from graphhalu.config import Config
from graphhalu.datasets.registry import load_questions
from graphhalu.extract.prompts import uses_chat
from graphhalu.extract.settings import PromptSettings
from graphhalu.heads.ablation import AblationResult, ablation_check, require_fitting
from graphhalu.heads.quality import Item, answer_quality, needle_items, question_items
from graphhalu.heads.retrieval import RetrievalSettings, hidden_needles
from graphhalu.heads.select import HeadMask, heads_above, stable_heads, top_k_heads
from graphhalu.heads.table import HeadTable
from graphhalu.models.load import LoadedModel


class AblationSettings(Config):
    """Which heads are left out, and how the answers are measured."""

    top_k: int | None = Field(default=None, ge=1)
    """So many heads with the highest mean; by default 10 if no threshold is given."""
    threshold: float | None = None
    """Heads whose mean is at least this."""
    stable_share: float | None = Field(default=None, gt=0, le=1)
    """Only heads that are among the ``top_k`` in this share of resamples."""
    task: Literal["needle", "questions"] = "questions"
    """``needle``: needles in a haystack; ``questions``: a data set."""
    dataset: str = "worldfacts"
    """Name of a data set, or a file of one's own."""
    data_path: Path | None = None
    """File of the data set in a published layout."""
    num_samples: int | None = Field(default=50, ge=1)
    """Questions, or hidden needles."""
    lengths: tuple[int, ...] = (256,)
    """Lengths of prompts with a needle."""
    haystack: Path | None = None
    """Text to hide needles in; by default the bundled one."""
    needles: Path | None = None
    """Needles; by default the bundled ones."""
    template: str | None = None
    """Prompt template; by default ``concise`` in a chat and ``bare`` without."""
    chat: Literal["off", "on", "auto"] = "auto"
    """Whether the model's chat template is used; auto uses it where there is one."""
    draws: int = Field(default=5, ge=1)
    """Draws of random heads of the same layers."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest answer, in tokens."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts that are answered at a time."""
    seed: int = 0
    """Seed of the questions, the draws and the resamples."""

    @model_validator(mode="after")
    def _one_rule(self) -> "AblationSettings":
        if self.threshold is not None and (self.top_k or self.stable_share):
            message = "heads are chosen by rank or by threshold: give one of the two"
            raise ValueError(message)
        return self


def choose_heads(table: HeadTable, settings: AblationSettings) -> HeadMask:
    """The heads that the settings ask for.

    Raises:
        UsageError: If there are fewer heads than asked for.
        NotEnoughDataError: If the rule chooses none.
    """
    if settings.threshold is not None:
        return heads_above(table, settings.threshold)
    k = settings.top_k or 10
    if settings.stable_share is not None:
        return stable_heads(table, k, min_share=settings.stable_share, seed=settings.seed)
    return top_k_heads(table, k)


def check_heads(
    loaded: LoadedModel,
    table: HeadTable,
    settings: AblationSettings | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> AblationResult:
    """Leave the chosen heads of a table out and compare with random heads of their layers.

    Args:
        loaded: The model that the table was measured on.
        table: Scores of its heads.
        settings: Which heads, and on which questions.
        on_progress: Called with the number of answers given, and of all.

    Raises:
        UsageError: If the table belongs to another model, or the rule cannot be used.
        NotEnoughDataError: If the rule chooses no head, or no question states an answer.
    """
    settings = settings or AblationSettings()
    require_fitting(table, loaded.identity, loaded.n_heads)
    mask = choose_heads(table, settings)
    is_chat = uses_chat(PromptSettings(chat=settings.chat), loaded)
    items = _items(loaded, settings, is_chat=is_chat)
    n_total, n_done = len(items) * (2 + settings.draws), 0

    def advance(n_items: int) -> None:
        nonlocal n_done
        n_done += n_items
        on_progress(n_done, n_total)

    def measure(asked: Sequence[Item]) -> Float[np.ndarray, "item metric"]:
        return answer_quality(
            loaded, asked, max_new_tokens=settings.max_new_tokens,
            stops_at_newline=not is_chat, batch_size=settings.batch_size, on_progress=advance,
        )  # fmt: skip

    return ablation_check(
        loaded.model, mask, items, measure, n_draws=settings.draws, seed=settings.seed
    )


def _items(loaded: LoadedModel, settings: AblationSettings, *, is_chat: bool) -> list[Item]:
    if settings.task == "needle":
        needles = RetrievalSettings(
            lengths=settings.lengths, haystack=settings.haystack, needles=settings.needles,
            template=settings.template, chat=settings.chat,
            max_new_tokens=settings.max_new_tokens,
        )  # fmt: skip
        hidden = hidden_needles(loaded, needles)
        if settings.num_samples is not None and settings.num_samples < len(hidden):
            generator = np.random.default_rng(settings.seed)
            drawn = sorted(generator.choice(len(hidden), settings.num_samples, replace=False))
            hidden = [hidden[place] for place in drawn]
        return needle_items(loaded, hidden, is_chat=is_chat)
    questions = load_questions(
        settings.dataset, settings.data_path, num_samples=settings.num_samples,
        seed=settings.seed,
    )  # fmt: skip
    template = settings.template or ("concise" if is_chat else "bare")
    return question_items(loaded, questions, template=template, chat=is_chat)
