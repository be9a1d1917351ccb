"""Settings of the searches for heads, and of the ablation of heads."""

from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator

from graphhalu.core.config import Config
from graphhalu.traces.schema import N_SINK_KEYS

RETRIEVAL_THRESHOLD: Final = 0.1
"""Mean score from which a head is called a retrieval head (arXiv:2404.15574)."""

Rule = Literal["set", "sum"]


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
    """Mean score from which a head is called a retrieval head (arXiv:2404.15574)."""

    max_new_tokens: int = Field(default=50, ge=1)
    """Longest answer, in tokens."""


class ReasoningSettings(Config):
    """How reasoning heads are looked for."""

    local_window: int = Field(default=4, ge=0)
    """Tokens right before a row that do not count, beside its own."""
    n_sink: int = Field(default=N_SINK_KEYS, ge=0, le=N_SINK_KEYS)
    """Leading tokens of the sequence that form the sink."""
    gate: float = Field(default=50.0, ge=0, le=100)
    """A trace is accepted if the ROUGE-1 recall of its answer is above this, in percent."""
    labeller: str | None = None
    """A labeller in place of the gate: a trace is accepted if its answer is labelled correct."""


class PatternSettings(Config):
    """How pattern heads are looked for."""

    n_sequences: int = Field(default=20, ge=1)
    """Random sequences."""
    period: int = Field(default=50, ge=2)
    """Different random tokens that are repeated once."""
    local_window: int = Field(default=4, ge=1)
    """Tokens before a row that count as local; its own does not."""
    seed: int = 0
    """Seed of the tokens."""


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
            raise ValueError("heads are chosen by rank or by threshold: give one of the two")
        return self
