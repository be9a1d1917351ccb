"""What a measurement is asked to do."""

from typing import Annotated, Final, Literal

from pydantic import Field, field_validator

from graphhalu.core.config import Config
from graphhalu.datasets.registry import own_path
from graphhalu.extract.settings import (
    CaptureSettings,
    DatasetSettings,
    ExtractConfig,
    GenerationSettings,
    PromptSettings,
)
from graphhalu.models.spec import ModelSpec
from graphhalu.studies.sinks.records import QueryMode

Ablation = Literal["k", "chat", "quantization"]
ABLATED_KS: Final = (1, 4)
DEFAULT_KS: Final = (4,)


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
            message = f"sinks are different numbers of tokens from 1 on, got {ks}"
            raise ValueError(message)
        return ks

    @property
    def task(self) -> str:
        """Name of the data set, or of one's own file."""
        own = own_path(self.dataset.name)
        return self.dataset.name if own is None else own.name.split(".", maxsplit=1)[0]

    def extraction(self, answers: Literal["generated", "given"] = "generated") -> ExtractConfig:
        """The same as an extraction of streams, without hidden states."""
        return ExtractConfig(
            model=self.model,
            dataset=self.dataset,
            prompt=self.prompt,
            generation=GenerationSettings(
                answers=answers, num_beams=self.num_beams, max_new_tokens=self.max_new_tokens
            ),
            capture=CaptureSettings(keep="streams", hidden_layers="none"),
            num_samples=self.num_samples,
        )
