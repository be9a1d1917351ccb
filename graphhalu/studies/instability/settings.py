"""Settings of the study of inter-head instability."""

from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from graphhalu.core.config import Config

Denominator = Literal["prompt", "everything"]
Spread = Literal["std", "logit", "bounded"]

TEMPLATE: Final = "published"
"""Prompt template: the user's text alone, without any of ours."""
Fraction = Annotated[float, Field(ge=0, lt=1)]


class GatherSettings(Config):
    """How prompts are measured."""

    system: str = ""
    """System prompt that all prompts are asked under; none is refused."""
    chat: Literal["off", "on", "auto"] = "auto"
    """Whether the model's chat template is used; auto uses it where there is one."""
    denominator: Denominator = "prompt"
    """Share of the system prompt in the attention to the prompt, or to everything."""
    max_new_tokens: int = Field(default=160, ge=1)
    """Longest answer, in tokens."""
    iterations: int = Field(default=1, ge=1)
    """Answers a prompt; more than one needs a temperature."""
    temperature: float = Field(default=0.0, ge=0)
    """0 decodes greedily; above, tokens are drawn."""
    seed: int = Field(default=1000003, ge=0)
    """Seed of drawn tokens; each prompt and iteration has its own stream."""
    batch_size: int = Field(default=8, ge=1)
    """Prompts that are answered together; also how many a part of the folder holds."""
    keeps_heads: bool = True
    """Whether the share of every single head is kept beside its spread over heads."""

    def prompt_recipe(self, *, is_chat: bool) -> dict[str, Any]:
        """The part of a detector's identity that decides the prompts."""
        return {"template": TEMPLATE, "chat": is_chat, "system": self.system}


class CalibrateSettings(Config):
    """How windows, layers and thresholds are chosen, and how the choice is judged."""

    spread: Spread = "std"
    """Which spread over heads is the score: plain, of the logits, or over its bound."""
    starts: tuple[Annotated[int, Field(ge=0)], ...] | Literal["auto"] = "auto"
    """First steps of decode windows; step 0 reads the prompt only."""
    lengths: tuple[Annotated[int, Field(ge=1)], ...] | Literal["auto"] = "auto"
    """Lengths of decode windows, in steps."""
    mid_high: tuple[Fraction, ...] = (0.20, 0.25, 0.33, 0.40)
    """Shares of the depth below which layers are left out."""
    tail_cut: tuple[Fraction, ...] = (0.05, 0.10, 0.15)
    """Shares of the depth that are left out at the end."""
    false_positive_rates: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.01, 0.05, 0.10)
    """Rates of false alarms that thresholds aim at."""
    n_folds: int = Field(default=5, ge=2, le=50)
    """Outer folds: each is tested once by what the others chose."""
    n_inner_folds: int = Field(default=3, ge=2, le=50)
    """Inner folds, in which window, layers and direction are chosen."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2, 3, 4)
    """Seeds of the folds; results are means over them."""
    n_resamples: int = Field(default=2000, ge=100)
    """Resamples of groups of prompts for intervals."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """Coverage of intervals."""
    tracker_k: tuple[Annotated[float, Field(ge=0)], ...] = (4.0, 3.0, 2.0, 1.0, 0.0)
    """Attention Tracker: standard deviations that must lie between the classes for a head to be
    important; the first of these that any head reaches."""

    @field_validator(
        *("starts", "lengths", "mid_high", "tail_cut"), *("seeds", "tracker_k", "false_positive_rates")
    )
    @classmethod
    def _are_there_once(cls, values: Any) -> Any:
        if values != "auto" and (not values or len(set(values)) < len(values)):
            raise ValueError("expected one value or more, each once")
        return values
