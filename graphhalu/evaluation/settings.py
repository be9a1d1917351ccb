"""Settings of a comparison."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator

from graphhalu.core.config import Config

MARGIN: Final = 0.015
"""A difference of AUROC below this counts as none, in a test of equivalence."""
_EVALUATION_ONLY: Final = ("detectors", "settings", "seeds", "against", "margin", "subgroups")


class CompareConfig(Config):
    """Settings of a comparison."""

    detectors: tuple[str, ...] = ()
    """Names of the detectors, ``name@variant`` for one with settings of its own; all if empty."""
    settings: Mapping[str, Mapping[str, Any]] = {}
    """What differs from the defaults of a detector, by its name; its seed is that of the run."""
    n_folds: Annotated[int, Field(ge=3, le=50)] = 5
    """Folds of the cross-fit: one tests, one validates, the rest train."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the folds and of detectors; metrics are means over seeds."""
    quick: bool = False
    """One grouped 60 / 20 / 20 split a seed in place of folds: a fifth of the traces is tested."""
    beams: Literal["best", "all"] = "best"
    """Whether the best beam of each question is compared, or every beam by itself."""
    n_resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 2000
    """Resamples of the question-level bootstrap."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    bootstrap_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the resamples; all detectors see the same ones."""
    against: str | None = None
    """Detector that all others are tested against; by default the strongest baseline."""
    margin: Annotated[float, Field(gt=0, lt=1)] = MARGIN
    """Difference of AUROC that would matter, for the test of equivalence."""
    subgroups: str | None = "category"
    """Field of the questions' metadata by which metrics are given apart, where there is one."""

    @field_validator("seeds", "detectors")
    @classmethod
    def _differ(cls, values: tuple[Any, ...]) -> tuple[Any, ...]:
        if len(set(values)) < len(values):
            message = (
                "seeds must differ, since the same one twice would hide how results scatter, and "
                "variants of a detector need names of their own, as gat@wide"
            )
            raise ValueError(message)
        return values

    def deciding(self) -> dict[str, Any]:
        """The fields that decide the metrics of one detector and seed."""
        return self.model_dump(mode="json", exclude=set(_EVALUATION_ONLY))
