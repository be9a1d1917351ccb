"""How a trace becomes a graph."""

import hashlib
import json
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float

from graphhalu.core.errors import UsageError
from graphhalu.core.registry import unknown_name
from graphhalu.graphs.edges import EdgeRule, Threshold, TopK
from graphhalu.traces.schema import TraceRecord

DEFAULT_EDGES: Final = TopK(8)
DEFAULT_NODES: Final = ("position", "span", "sink", "instability", "self_attention", "entropy", "likelihood")
VIEWS: Final = ("layers", "stacked", "multiplex")
IMPORTANCES: Final = ("mean", "max", "weighted")
CHANNELS: Final = ("heads", "mean", "max", "weighted")
SINKS: Final = ("keep", "remove", "renormalise")
_KINDS: Final = {
    "view": "view of a trace",
    "importance": "importance of a pair",
    "channels": "edge channels",
    "sinks": "treatment of sinks",
}
GRAPH_VERSION: Final = 2
"""Rises when the same recipe gives another graph."""


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
        self.values: Float[np.ndarray, "layer head role"] = np.array(values, dtype=np.float64)
        if self.values.ndim == 2:  # noqa: PLR2004
            self.values = self.values[..., None]
        if self.values.shape[2] != len(self.names) or not self.names:
            raise UsageError(
                f"expected weights [layer, head, role] for the roles {list(self.names)}, "
                f"got the shape {self.values.shape}"
            )
        if not (np.isfinite(self.values).all() and (self.values >= 0).all()):
            raise UsageError("weights of heads must be finite and not negative")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, HeadRoles) and (
            self.names == other.names and np.array_equal(self.values, other.values)
        )

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
            UsageError: If weights of heads are missing or too many, or if single heads are to be
                censored while the rule does not look at them.
        """
        for kind, name, known in (
            ("view", self.view, VIEWS),
            ("importance", self.importance, IMPORTANCES),
            ("channels", self.channels, CHANNELS),
            ("sinks", self.sinks, SINKS),
        ):
            if name not in known:
                raise unknown_name(_KINDS[kind], name, known)
        self._check_roles()
        if self.censors and self.importance != "max":
            raise UsageError(
                "Threshold(censor=True) sets single heads to 0 on an edge that exists where any "
                'head passes: give importance="max" with it'
            )

    def _check_roles(self) -> None:
        needs = "weighted" in (self.importance, self.channels) or "roles" in self.nodes
        if needs and self.roles is None:
            raise UsageError(
                "weighted heads and the node block 'roles' need weights: give "
                "roles=HeadRoles(names, values[layer, head, role])"
            )
        if self.importance == "weighted" and self.roles and len(self.roles.names) != 1:
            raise UsageError(
                f'importance="weighted" needs the weights of one role, got {", ".join(self.roles.names)}'
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
        plain = [
            GRAPH_VERSION,
            type(self.edges).__qualname__,
            repr(self.edges),
            list(self.nodes),
            self.prompt_edges,
            self.importance,
            self.view,
            self.channels,
            self.roles.digest() if self.roles else None,
            self.sinks,
        ]
        return hashlib.sha256(json.dumps(plain).encode()).hexdigest()


DEFAULT_RECIPE: Final = GraphRecipe()
