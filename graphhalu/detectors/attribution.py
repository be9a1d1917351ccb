"""What of a trace a score is made of."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class EdgeEffect(NamedTuple):
    """How much an edge of a token graph adds to a score.

    Attributes:
        layer: Model layer; ``None`` in a multiplex graph.
        key: Attended token.
        query: Attending token.
        effect: Score with the edge minus score without it.
    """

    layer: int | None
    key: int
    query: int
    effect: float


class Attribution(NamedTuple):
    """A score in parts.

    Attributes:
        heads: What each head adds; 0 where a detector reads nothing of it.
        features: What each named feature or block adds.
        is_exact: Whether the parts and ``rest`` sum to the score, as those of a linear model do;
            else each part is what the score loses without it.
        rest: What no head adds: other features and the bias.
        edges: Edges of the graphs, those with the largest effect first.
    """

    heads: Float[np.ndarray, "layer head"]
    features: dict[str, float]
    is_exact: bool
    rest: float
    edges: tuple[EdgeEffect, ...] = ()
