"""Settings of a measurement of sinks, and of its analysis."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from graphhalu.core.config import Config, read_yaml
from graphhalu.core.registry import unknown_name
from graphhalu.datasets.registry import own_path
from graphhalu.extract.settings import (
    CaptureSettings,
    DatasetSettings,
    ExtractConfig,
    GenerationSettings,
    PromptSettings,
)
from graphhalu.labels.labels import Meaning
from graphhalu.models.cards import ModelSpec
from graphhalu.studies.sinks.records import QueryMode, SinkCell

Ablation = Literal["k", "chat", "quantization"]
Ablations = Sequence[Ablation]
ABLATED_KS: Final = (1, 4)
DEFAULT_KS: Final = (4,)
HEADS: Final = "heads"
ANSWER: Final = "answer"
"""Which of a few letters the model chose: a control, since a model is wrong more often with some of
them, and heads that look at the options know the letter."""
_FILE: Final = read_yaml(Path(__file__).with_name("sinks.yaml"))
KINDS: Final[dict[str, str]] = _FILE["kinds"]
DESCRIBED: Final[dict[str, str]] = _FILE["described"]
"""Fields of the description of a run, and where they are from."""
NESTED: Final[tuple[str, ...]] = tuple(_FILE["models"])
"""Every model that is fitted; what it reads is joined by ``+``."""
GAINS: Final[list[list[str]]] = _FILE["gains"]
"""Larger and smaller model of each comparison."""
SERIES: Final[dict[str, str]] = _FILE["series"]
"""Descriptions of the settings that runs of one series share."""
VARIED: Final[list[str]] = _FILE["varied"]


class SinkMeasureConfig(Config):
    """One model on one data set."""

    model: ModelSpec = ModelSpec()
    """The language model."""
    dataset: DatasetSettings = DatasetSettings(name="truthfulqa_mc")
    """The questions."""
    prompt: PromptSettings = PromptSettings()
    """The prompt."""
    num_samples: int | None = Field(default=None, ge=1)
    """How many questions; by default all."""
    n_examples: int | None = Field(default=None, ge=0)
    """At most so many solved examples before a question; by default all that it has."""
    ks: Annotated[tuple[int, ...], Field(min_length=1)] = DEFAULT_KS
    """Leading tokens that form the sink; several are measured in one pass."""
    modes: Annotated[tuple[QueryMode, ...], Field(min_length=1)] = ("last",)
    """Query rows: the last, or all after the sink; both are measured in one pass."""
    query_start: int = Field(default=0, ge=0)
    """First query row that counts in the mode ``range``; rows of the sink never do."""
    batch_tokens: int = Field(default=2048, ge=1)
    """Tokens of one batch, padding included, unless a single sequence is longer."""
    max_new_tokens: int = Field(default=64, ge=1)
    """Longest answer where the model must answer in words."""
    num_beams: int = Field(default=5, ge=1)
    """Beams of the search there."""

    @field_validator("ks")
    @classmethod
    def _different_sinks(cls, ks: tuple[int, ...]) -> tuple[int, ...]:
        if min(ks) < 1 or len(set(ks)) != len(ks):
            raise ValueError(f"sinks are different numbers of tokens from 1 on, got {ks}")
        return ks

    @property
    def cells(self) -> list[SinkCell]:
        """Every sink with every query mode."""
        return list(product(self.ks, self.modes))

    @property
    def task(self) -> str:
        """Name of the data set, or of one's own file."""
        own = own_path(self.dataset.name)
        return self.dataset.name if own is None else own.name.split(".", maxsplit=1)[0]

    def extraction(self, answers: Literal["generated", "given"] = "generated") -> ExtractConfig:
        """The same as an extraction of streams, without hidden states."""
        shared = {name: getattr(self, name) for name in ("model", "dataset", "prompt", "num_samples")}
        limits: dict[str, Any] = {"num_beams": self.num_beams, "max_new_tokens": self.max_new_tokens}
        generation = GenerationSettings(answers=answers, **limits)
        capture = CaptureSettings(keep="streams", hidden_layers="none")
        return ExtractConfig(**shared, generation=generation, capture=capture)


class AnalyzeConfig(Config):
    """How runs are analysed."""

    n_resamples: int = Field(default=2000, ge=100)
    """Resamples of questions, for every interval."""
    n_permutations: int = Field(default=10_000, ge=100)
    """Exchanges of labels, for the permutation test."""
    seed: int = 0
    """Seed of both."""
    fold_seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the folds of cross-fitted models."""
    models: tuple[str, ...] = NESTED
    """Models that are cross-fitted; fewer are faster. ``sink`` must be among them."""
    meanings: tuple[Meaning, ...] = ("hallucinated", "input")
    """Labels to analyse: the model's own output, and what the data set says of the input."""
    heads: Path | None = None
    """Table of heads (``graphhalu heads patterns``) to compare the heads that differ with."""
    role: str = "induction"
    """Role of that table."""
    n_top: int = Field(default=10, ge=1)
    """Heads that are named and compared."""

    @field_validator("models")
    @classmethod
    def _known_models(cls, models: tuple[str, ...]) -> tuple[str, ...]:
        for name in models:
            if name not in NESTED:
                raise ValueError(str(unknown_name("model", name, NESTED)))
        if "sink" not in models:
            raise ValueError("the model 'sink' must be among them: calibration is read from it")
        return models
