"""Edges of a token graph: the rules that choose them (top-k, threshold), and the recipe of a graph."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import UsageError
from graphhalu.core.registry import unknown_name
from graphhalu.features.block import Ragged
from graphhalu.traces.schema import TraceRecord

CHOICES: Final = {
    "view": ("view of a trace", ("layers", "stacked", "multiplex")),
    "importance": ("importance of a pair", ("mean", "max", "weighted")),
    "channels": ("edge channels", ("heads", "mean", "max", "weighted")),
    "sinks": ("treatment of sinks", ("keep", "remove", "renormalise")),
}
"""For each setting that is a name: what it is called, and the known names."""
PairValues = Float[np.ndarray, "layer pair"]
PairMask = Bool[np.ndarray, "layer pair"]
RowStarts = Int[np.ndarray, "row_end"]
GRAPH_VERSION: Final = 2
"""Rises when the same recipe gives another graph."""


class EdgeRule(ABC):
    """Chooses edges from one importance for each pair of row and key."""

    @abstractmethod
    def choose_pairs(self, importance: PairValues, row_starts: RowStarts) -> PairMask:
        """Which pairs become edges.

        Args:
            importance: One non-negative value a pair; a pair with 0 is never an edge. The keys
                of a row follow one another, lowest first.
            row_starts: Where each row starts on the pair axis, and where the last one ends.
        """


@dataclass(frozen=True)
class Threshold(EdgeRule):
    """Every pair whose importance is more than ``tau``.

    Attributes:
        tau: In [0, 1).
        censor: Whether weights of single heads that do not pass become 0 on the edge. For a
            recipe with the importance ``"max"``: an edge exists where any head passes.

    Source:
        Frasca et al., CHARM, with ``censor=True`` and the importance ``"max"``.
    """

    tau: float
    censor: bool = False

    def __post_init__(self) -> None:
        """Refuse a threshold that no attention could pass or fail.

        Raises:
            UsageError: If ``tau`` is outside [0, 1).
        """
        if not 0 <= self.tau < 1:
            raise UsageError(f"Threshold(tau) must be in [0, 1), got {self.tau}")

    def choose_pairs(self, importance: PairValues, row_starts: RowStarts) -> PairMask:
        """As :meth:`EdgeRule.choose_pairs`."""
        return importance > self.tau


@dataclass(frozen=True)
class TopK(EdgeRule):
    """The ``k`` most important keys of every row; a tie goes to the lower key.

    Attributes:
        k: At least 1; a row that sees fewer other tokens keeps them all.
        over_layers: Whether the keys are those of the largest mean over the layers, and not of each
            layer its own. For a recipe with the view ``"multiplex"``, whose edges all layers share.
    """

    k: int
    over_layers: bool = False

    def __post_init__(self) -> None:
        """Refuse a rule that keeps nothing.

        Raises:
            UsageError: If ``k`` is less than 1.
        """
        if self.k < 1:
            raise UsageError(f"TopK(k) must be at least 1, got {self.k}")

    def choose_pairs(self, importance: PairValues, row_starts: RowStarts) -> PairMask:
        """As :meth:`EdgeRule.choose_pairs`."""
        looked_at = importance.mean(0, keepdims=True) if self.over_layers else importance
        chosen = _best_of_rows(looked_at, row_starts, lambda ranked: np.arange(ranked.shape[1]) < self.k)
        return np.broadcast_to(chosen, importance.shape)


@dataclass(frozen=True)
class CumulativeMass(EdgeRule):
    """The fewest keys of every row that hold a share ``p`` of its importance to other tokens.

    The most important come first; a tie goes to the lower key.

    Attributes:
        p: In (0, 1]; 1 keeps every pair that has any importance.
    """

    p: float

    def __post_init__(self) -> None:
        """Refuse a share that is none.

        Raises:
            UsageError: If ``p`` is outside (0, 1].
        """
        if not 0 < self.p <= 1:
            raise UsageError(f"CumulativeMass(p) must be in (0, 1], got {self.p}")

    def choose_pairs(self, importance: PairValues, row_starts: RowStarts) -> PairMask:
        """As :meth:`EdgeRule.choose_pairs`."""

        def is_needed(ranked: Float[np.ndarray, "row width"]) -> Bool[np.ndarray, "row width"]:
            reached = np.cumsum(ranked, axis=1, dtype=np.float64)
            before = np.pad(reached[:, :-1], ((0, 0), (1, 0)))
            return before < self.p * reached[:, -1:]

        return _best_of_rows(importance, row_starts, is_needed)


def _best_of_rows(
    importance: PairValues,
    row_starts: RowStarts,
    is_kept: Callable[[Float[np.ndarray, "row width"]], Bool[np.ndarray, "..."]],
) -> PairMask:
    """The pairs of each row that are kept, of equal ones the lower keys first.

    Args:
        importance: One non-negative value a pair.
        row_starts: Where each row starts on the pair axis, and where the last one ends.
        is_kept: Which places of the ranked values of a row are kept, largest first.
    """
    rows = Ragged(row_starts)
    is_edge = np.zeros(importance.shape, dtype=bool)
    values = torch.from_numpy(importance)
    padded = values.new_zeros((len(rows.lengths), int(rows.lengths.max(initial=1))))
    for layer in range(len(importance)):
        padded[rows.trace, rows.position] = values[layer]
        ranked, order = padded.sort(dim=1, descending=True, stable=True)
        is_best = torch.from_numpy((ranked.numpy() > 0) & is_kept(ranked.numpy()))
        chosen = torch.zeros_like(is_best).scatter_(1, order, is_best)
        is_edge[layer] = chosen[rows.trace, rows.position].numpy()
    return is_edge


class HeadRoles:
    """How much each head of a model plays each of some roles.

    Args:
        names: One name a role.
        values: Non-negative weights: a score, or 1 for the heads of a mask. The first axis has
            every layer of the model. ``values[layer, head]`` stands for a single role.

    Raises:
        UsageError: If a weight is negative or not finite, or the names do not fit.
    """

    def __init__(self, names: tuple[str, ...], values: Float[np.ndarray, "layer head *role"]) -> None:
        self.names = tuple(names)
        given = np.array(values, dtype=np.float64)
        self.values: Float[np.ndarray, "layer head role"] = given if given.ndim > 2 else given[..., None]  # noqa: PLR2004
        if self.values.shape[2] != len(self.names) or not self.names:
            raise UsageError(
                f"expected weights [layer, head, role] for the roles {list(self.names)}, "
                f"got the shape {self.values.shape}"
            )
        if not (np.isfinite(self.values).all() and (self.values >= 0).all()):
            raise UsageError("weights of heads must be finite and not negative")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadRoles) and self.digest() == other.digest()

    def __hash__(self) -> int:
        return hash(self.digest())

    def __repr__(self) -> str:
        return f"HeadRoles({self.names}, {self.digest()[:12]})"

    def digest(self) -> str:
        """A digest of names, shape and weights."""
        plain = json.dumps([list(self.names), list(self.values.shape)]).encode()
        return hashlib.sha256(plain + self.values.tobytes()).hexdigest()

    def share(self, layers: tuple[int, ...]) -> Float[np.ndarray, "layer head role"]:
        """Weights of some layers, divided by their sum over heads; 0 where a layer has none."""
        chosen = self.values[list(layers)]
        total = chosen.sum(1, keepdims=True)
        return np.divide(chosen, total, out=np.zeros_like(chosen), where=total > 0)


DEFAULT_EDGES: Final = TopK(8)
DEFAULT_NODES: Final = ("position", "span", "sink", "instability", "self_attention", "entropy", "likelihood")


@dataclass(frozen=True)
class GraphRecipe:
    """How a trace becomes a graph.

    Attributes:
        edges: Rule that chooses edges by their importance.
        nodes: Blocks of node features, names in ``NODE_BLOCKS``.
        prompt_edges: Whether rows of the prompt have edges. Without, edges begin at the last
            prompt token, whose row produces the first answer token.
        importance: Over heads, ``"mean"``, ``"max"`` or ``"weighted"`` by the one role of
            ``roles``.
        view: ``"layers"``: one graph a layer. ``"stacked"``: one graph a trace, with the graphs
            of its layers side by side. ``"multiplex"``: one graph a trace; an edge is there if
            any layer chooses it, and has the weights of all layers.
        channels: What an edge carries of each layer: every head (``"heads"``), their ``"mean"``
            or ``"max"``, or one weighted mean a role (``"weighted"``).
        roles: Weights of heads, for ``"weighted"`` and for the node block ``roles``.
        sinks: ``"keep"``: the first tokens are nodes as all others. ``"remove"``: no edge comes
            from the first four; weights stay as they are. ``"renormalise"``: as before, and
            every head's weights are divided by the share of its attention that does not go
            there, so that edges say how a row spreads the rest.
    """

    edges: EdgeRule = DEFAULT_EDGES
    nodes: tuple[str, ...] = DEFAULT_NODES
    prompt_edges: bool = True
    importance: str = "mean"
    view: str = "layers"
    channels: str = "heads"
    roles: HeadRoles | None = None
    sinks: str = "keep"

    def __post_init__(self) -> None:
        """Refuse a name that is not known, and settings that do not go together.

        Raises:
            UnknownNameError: Lists the known names.
            UsageError: If weights of heads are missing or too many, if single heads are to be
                censored while the rule does not look at them, or if layers that have edges of
                their own are to share them.
        """
        for field, (kind, known) in CHOICES.items():
            if (name := getattr(self, field)) not in known:
                raise unknown_name(kind, name, known)
        is_weighted = "weighted" in (self.importance, self.channels) or "roles" in self.nodes
        if is_weighted and self.roles is None:
            raise UsageError(
                "weighted heads and the node block 'roles' need weights: give "
                "roles=HeadRoles(names, values[layer, head, role])"
            )
        if self.importance == "weighted" and self.roles and len(self.roles.names) != 1:
            raise UsageError(
                f'importance="weighted" needs the weights of one role, got {", ".join(self.roles.names)}'
            )
        if self.censors and self.importance != "max":
            raise UsageError(
                "Threshold(censor=True) sets single heads to 0 on an edge that exists where any "
                'head passes: give importance="max" with it'
            )
        if isinstance(self.edges, TopK) and self.edges.over_layers and self.view != "multiplex":
            raise UsageError(
                "TopK(over_layers=True) chooses edges that all layers share: "
                f'give view="multiplex" with it, got {self.view!r}'
            )

    @property
    def censors(self) -> bool:
        """Whether weights of single heads become 0 where they do not pass the threshold."""
        return isinstance(self.edges, Threshold) and self.edges.censor

    def first_row(self, record: TraceRecord) -> int:
        """First row that may have edges; row 0 has no other token to attend to."""
        return 1 if self.prompt_edges else max(1, record.prompt_length - 1)

    def weights(self, layers: tuple[int, ...]) -> Float[np.ndarray, "layer head role"]:
        """Weights of heads that sum to 1 in each layer.

        Raises:
            UsageError: If no head of a layer has a weight.
        """
        assert self.roles is not None
        shares = self.roles.share(layers)
        is_empty = shares.sum(1) == 0
        if is_empty.any():
            place, role = np.argwhere(is_empty)[0].tolist()
            raise UsageError(
                f"no head of layer {layers[place]} has a weight in the role "
                f"{self.roles.names[role]!r}\n  Leave this layer out, or give it a weight"
            )
        return shares

    def digest(self) -> str:
        """The same for equal recipes only, in every process."""
        names = [self.importance, self.view, self.channels, self.roles and self.roles.digest(), self.sinks]
        rule = [type(self.edges).__qualname__, repr(self.edges)]
        plain = [GRAPH_VERSION, *rule, self.nodes, self.prompt_edges, *names]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


DEFAULT_RECIPE: Final = GraphRecipe()
