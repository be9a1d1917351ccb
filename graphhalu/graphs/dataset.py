"""Token graphs of many traces as a PyTorch Geometric data set, built when asked for."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch_geometric.data import Data

from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.graphs.build import (
    DEFAULT_EDGES,
    DEFAULT_NODES,
    GraphRecipe,
    TokenGraph,
    build_graph,
)
from graphhalu.graphs.edges import EdgeRule
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.splits import check_groups, grouped_split
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.trace import Trace

VIEWS: Final = ("layers",)
DEFAULT_DEPTHS: Final = (1 / 3, 1 / 2, 2 / 3)


class LayerData(Data):
    """One layer of a trace; ``trace_index`` counts traces and stays as it is in a batch."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """What a batch adds: PyG shifts every attribute with ``index`` in its name."""
        return 0 if key == "trace_index" else super().__inc__(key, value, *args, **kwargs)


class AttentionGraphs(torch.utils.data.Dataset[Data]):
    """One graph for each trace and layer, in the order of the traces.

    Args:
        traces: A store or a list of traces.
        view: ``"layers"``: one graph a layer, with the heads of that layer on the edges.
        layers: Model layers; by default :func:`default_layers`.
        edges: Rule that chooses edges.
        nodes: Blocks of node features; by default all but hidden states.
        labels: Labels of the same traces in the same order; ``y`` is NaN where one is invalid,
            and absent without labels.
        prompt_edges: Whether rows of the prompt have edges.

    Raises:
        UsageError: If the view is unknown, a layer is not kept, or the labels are of others.
        NotEnoughDataError: If there is no trace.
    """

    def __init__(
        self,
        traces: Sequence[Trace],
        *,
        view: str = "layers",
        layers: Sequence[int] | None = None,
        edges: EdgeRule = DEFAULT_EDGES,
        nodes: Sequence[str] | None = None,
        labels: Labels | None = None,
        prompt_edges: bool = True,
    ) -> None:
        if view not in VIEWS:
            message = f"no view named {view!r} of a trace; known: {', '.join(VIEWS)}"
            raise UsageError(message)
        if not len(traces):
            message = "there is no trace to make graphs of: the list or store is empty"
            raise NotEnoughDataError(message)
        self.traces = traces
        self.labels = _checked_labels(labels, traces)
        self.layers = _checked_layers(layers, traces[0].shape)
        self.recipe = GraphRecipe(
            edges, DEFAULT_NODES if nodes is None else tuple(nodes), prompt_edges
        )
        self.trace_indices: Int[np.ndarray, "trace"] = np.arange(len(traces))

    def __len__(self) -> int:
        """Graphs: traces of this view times layers."""
        return len(self.trace_indices) * len(self.layers)

    def __getitem__(self, index: int) -> Data:
        """One graph; the layers of a trace follow each other."""
        graph = self.token_graph(index)
        trace_index = self._trace_index(index)
        data = LayerData(
            x=torch.from_numpy(graph.x),
            edge_index=torch.from_numpy(graph.edge_index),
            edge_attr=torch.from_numpy(graph.edge_attr),
            is_answer=torch.from_numpy(graph.is_answer),
            kept_mass=torch.from_numpy(graph.kept_mass),
            layer=graph.layer,
            trace_index=trace_index,
            question_id=graph.question_id,
            node_feature_names=graph.node_feature_names,
        )
        if self.labels is not None:
            data.y = torch.tensor([_label(self.labels, trace_index)])
        return data

    def __iter__(self) -> Iterator[Data]:
        """All graphs in order."""
        return (self[index] for index in range(len(self)))

    def token_graph(self, index: int) -> TokenGraph:
        """The same graph as arrays."""
        layer = self.layers[range(len(self))[index] % len(self.layers)]
        return build_graph(self.traces[self._trace_index(index)], layer, self.recipe)

    @property
    def groups(self) -> Shaped[np.ndarray, "trace"]:
        """Group of every trace of this view, merged where two groups ask the same question."""
        return question_groups([self.traces[int(i)] for i in self.trace_indices])

    def select(self, indices: Int[np.ndarray, "trace"]) -> "AttentionGraphs":
        """A view of some traces, by their index in :attr:`traces`."""
        view = copy.copy(self)
        view.trace_indices = np.asarray(indices)
        return view

    def labelled(self) -> "AttentionGraphs":
        """A view of the traces with a valid label.

        Raises:
            UsageError: If there are no labels.
        """
        if self.labels is None:
            message = "these graphs have no labels: give labels=… to AttentionGraphs"
            raise UsageError(message)
        return self.select(self.trace_indices[self.labels.is_valid[self.trace_indices]])

    def split(
        self, seed: int = 0
    ) -> tuple["AttentionGraphs", "AttentionGraphs", "AttentionGraphs"]:
        """Views for training, validation and test; all traces of a group stay together.

        Raises:
            NotEnoughDataError: If there are fewer than three groups.
        """
        n_traces = len(self.trace_indices)
        values = np.zeros(n_traces, dtype=np.int64)
        if self.labels is not None:
            values = self.labels.values[self.trace_indices]
        groups = self.groups
        split = check_groups(grouped_split(values, groups, seed=seed), groups)
        sides = (split.train, split.validation, split.test)
        train, validation, test = (self.select(self.trace_indices[side]) for side in sides)
        return train, validation, test

    def stats(self) -> dict[str, Any]:
        """Sizes and kept attention, by building every graph once.

        Returns:
            ``n_graphs``, ``n_traces``, ``nodes_mean``, ``edges_mean``, ``kept_mass_mean`` (over
            the rows that may have edges) and ``prevalence`` (over valid labels; ``None``
            without any).

        Raises:
            NotEnoughDataError: If the view is empty.
        """
        if not len(self):
            message = "there is no graph in this view to take a mean over"
            raise NotEnoughDataError(message)
        sizes = [self._size(index) for index in range(len(self))]
        nodes, edges, kept = (np.concatenate(column) for column in zip(*sizes, strict=True))
        return {
            "n_graphs": len(self),
            "n_traces": len(self.trace_indices),
            "nodes_mean": float(nodes.mean()),
            "edges_mean": float(edges.mean()),
            "kept_mass_mean": float(kept.mean()),
            "prevalence": self._prevalence(),
        }

    def _size(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        graph = self.token_graph(index)
        first_row = self.recipe.first_row(self.traces[self._trace_index(index)])
        sizes = np.array([len(graph.x)]), np.array([len(graph.edge_attr)])
        return (*sizes, graph.kept_mass[first_row:])

    def _prevalence(self) -> float | None:
        if self.labels is None:
            return None
        is_valid = self.labels.is_valid[self.trace_indices]
        values = self.labels.values[self.trace_indices][is_valid]
        return float(values.mean()) if len(values) else None

    def _trace_index(self, index: int) -> int:
        return int(self.trace_indices[range(len(self))[index] // len(self.layers)])


def default_layers(shape: TraceShape) -> tuple[int, ...]:
    """Three kept layers, nearest to 1/3, 1/2 and 2/3 of the depth; fewer where fewer are kept.

    The middle one chooses first; a tie goes to the lower layer.

    Raises:
        UsageError: If no layer is kept.
    """
    if not shape.attention_layers:
        message = "the traces keep attention of no layer\n  Extract them again with layers"
        raise UsageError(message)
    left = sorted(shape.attention_layers)
    chosen: list[int] = []
    for depth in (DEFAULT_DEPTHS[1], DEFAULT_DEPTHS[0], DEFAULT_DEPTHS[2]):
        if left:
            nearest = min(left, key=lambda layer: abs(layer - depth * shape.n_layers))
            left.remove(nearest)
            chosen.append(nearest)
    return tuple(sorted(chosen))


def _checked_layers(layers: Sequence[int] | None, shape: TraceShape) -> tuple[int, ...]:
    if layers is None:
        return default_layers(shape)
    missing = [layer for layer in layers if layer not in shape.attention_layers]
    if missing or not layers:
        kept = ", ".join(map(str, shape.attention_layers))
        message = f"expected layers that the traces keep ({kept}), got {list(layers)}"
        raise UsageError(message)
    return tuple(layers)


def _checked_labels(labels: Labels | None, traces: Sequence[Trace]) -> Labels | None:
    if labels is None:
        return None
    if len(labels.trace_ids) != len(traces):
        message = f"expected a label for each of {len(traces)} traces, got {len(labels.trace_ids)}"
        raise UsageError(message)
    for index, labelled in enumerate(labels.trace_ids):
        trace_id = traces[index].trace_id
        if trace_id != labelled:
            message = (
                f"expected labels in the order of the traces: trace {index} is {trace_id!r}, "
                f"its label is of {labelled!r}\n  Label these traces again"
            )
            raise UsageError(message)
    return labels


def _label(labels: Labels, trace_index: int) -> float:
    return float(labels.values[trace_index]) if labels.is_valid[trace_index] else float("nan")
