"""A risk curve by layer: named components with weights, and nothing but a hypothesis.

Each component is a quantity of the layers, turned into the share of other layers that it lies
above (or below): ranks have no units, so no component outweighs the others by its scale. The
curve is the weighted mean. A curve is worth what its validation says; it is never shown alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal

import numpy as np
from jaxtyping import Float
from pydantic import Field, PlainValidator, field_validator
from scipy.stats import rankdata

from graphhalu.core.config import Config, read_yaml
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import numbers_of
from graphhalu.core.registry import unknown_name
from graphhalu.weights.tables import LAYER_DESCRIPTIONS, WeightProfile

Numbers = Annotated[Float[np.ndarray, "..."], PlainValidator(numbers_of)]
"""Numbers that a file holds as nested lists."""


class RiskComponent(Config):
    """One component of the curve."""

    quantity: str
    """A quantity of the layers of a profile."""
    risky: Literal["high", "low"] = "high"
    """Which end of it counts as risk."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Its weight; 0 leaves it out."""
    reason: str
    """Why it should matter: the hypothesis."""

    @field_validator("quantity")
    @classmethod
    def _is_known(cls, quantity: str) -> str:
        if quantity not in LAYER_DESCRIPTIONS:
            raise ValueError(str(unknown_name("quantity", quantity, LAYER_DESCRIPTIONS)))
        return quantity


_FILE: Final = read_yaml(Path(__file__).with_name("risk.yaml"))
_DEFAULT: Final = {name: RiskComponent(**entry) for name, entry in _FILE["components"].items()}


class RiskSettings(Config):
    """Components of a risk curve, by name."""

    components: Annotated[Mapping[str, RiskComponent], Field(min_length=1)] = _DEFAULT
    """What is added up."""

    @field_validator("components")
    @classmethod
    def _weigh(cls, components: Mapping[str, RiskComponent]) -> Mapping[str, RiskComponent]:
        if not sum(component.weight for component in components.values()):
            raise ValueError("all weights are 0: a risk curve needs a component that counts")
        return components


@dataclass(frozen=True)
class RiskCurve:
    """Risk by layer.

    Attributes:
        values: Weighted mean of the components, in [0, 1].
        components: Each component by layer, in [0, 1], by name.
        weights: Weights that were used; they sum to 1.
        reasons: What each component supposes.
        left_out: Components that the profile does not have, with the reason.
        mixed_types: Components that read parts stored in more than one way.
    """

    values: Numbers
    components: Mapping[str, Numbers]
    weights: Mapping[str, float]
    reasons: Mapping[str, str]
    left_out: Mapping[str, str]
    mixed_types: tuple[str, ...]


_GAINS: Final = ("attention_gain", "mlp_gain", "gain_ratio")


def risk_curve(profile: WeightProfile, settings: RiskSettings | None = None) -> RiskCurve:
    """Add up the components of a profile.

    Raises:
        NotEnoughDataError: If the profile has none of the components for all its layers.
    """
    settings = settings or RiskSettings()
    parts: dict[str, Float[np.ndarray, "layer"]] = {}
    left_out: dict[str, str] = {}
    for name, component in settings.components.items():
        values = profile.of_layers(component.quantity)
        if not np.isfinite(values).all():
            left_out[name] = f"the profile has no {component.quantity} for every layer"
        elif component.weight > 0:
            parts[name] = _shares(values if component.risky == "high" else -values)
    if not parts:
        raise NotEnoughDataError(f"no component of the risk can be computed: {'; '.join(left_out.values())}")
    total = sum(settings.components[name].weight for name in parts)
    weights = {name: settings.components[name].weight / total for name in parts}
    return RiskCurve(
        values=np.sum([weights[name] * values for name, values in parts.items()], axis=0),
        components=parts,
        weights=weights,
        reasons={name: settings.components[name].reason for name in parts},
        left_out=left_out,
        mixed_types=tuple(name for name in parts if reads_mixed(profile, settings.components[name].quantity)),
    )


def reads_mixed(profile: WeightProfile, quantity: str) -> bool:
    """Whether a quantity of the layers depends on a part that is stored in more than one way."""
    if quantity in _GAINS and not any(profile.layers["is_gain_estimate"].to_pylist()):
        return False  # the norms behind the blocks fix them
    return not profile.mixed().keys().isdisjoint(_FILE["reads"].get(quantity, ()))


def _shares(values: Float[np.ndarray, "layer"]) -> Float[np.ndarray, "layer"]:
    """Share of the other layers that each layer lies above; ties share."""
    if len(values) < 2:  # noqa: PLR2004
        return np.full(len(values), 0.5)
    return (rankdata(values) - 1) / (len(values) - 1)
