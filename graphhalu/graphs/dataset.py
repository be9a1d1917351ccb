"""Token graphs of many traces as a PyTorch Geometric data set, built when asked for."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch_geometric.data import Data

from graphhalu.errors import NotEnoughDataError, UsageError
from graphhalu.graphs.build import TokenGraph, build_graph, build_graphs, iter_graphs
from graphhalu.graphs.cache import GraphCache
from graphhalu.graphs.edges import EdgeRule
from graphhalu.graphs.recipe import DEFAULT_EDGES, DEFAULT_NODES, GraphRecipe, HeadRoles
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.splits import check_groups, grouped_split
from graphhalu.traces.lazy import ChunkCache
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace

DEFAULT_DEPTHS: Final = (1 / 3, 1 / 2, 2 / 3)


class LayerData(Data):
    """A token graph; ``trace_index`` counts traces and stays as it is in a batch."""

    def __inc__(self, key: str, value: Any, *args: Any, **kwargs: Any) -> Any:
        """What a batch adds: PyG shifts every attribute with ``index`` in its name."""
        return 0 if key == "trace_index" else super().__inc__(key, value, *args, **kwargs)


class AttentionGraphs(torch.utils.data.Dataset[Data]):
    """Graphs of traces in their order: one for each trace and layer, or one a trace.

    Works with ``torch_geometric.loader.DataLoader``, workers included; a batch is built in one
    piece. Memory does not grow with the number of graphs that were asked for.

    Args:
        traces: A store or a list of traces.
        view: ``"layers"``: one graph a layer, with the heads of that layer on the edges.
            ``"multiplex"``: one graph a trace, with the heads of all layers on the edges.
        layers: Model layers; by default :func:`default_layers`.
        edges: Rule that chooses edges.
        nodes: Blocks of node features; by default all but hidden states and roles.
        labels: Labels of the same traces in the same order; ``y`` is NaN where one is invalid,
            and absent without labels.
        prompt_edges: Whether rows of the prompt have edges.
        importance: What an edge rule looks at: ``"mean"``, ``"max"`` or ``"weighted"`` over heads.
        channels: What an edge carries of a layer: ``"heads"``, ``"mean"``, ``"max"``,
            ``"weighted"``.
        roles: Weights of heads, for ``"weighted"`` and the node block ``roles``.
        sinks: ``"renormalise"`` leaves the first four tokens out and divides by what is left.
        cache: Folder where built graphs are kept; by default they are built anew.

    Raises:
        UsageError: If a layer is not kept, or the labels are of others.
        UnknownNameError: If the view or another name is unknown.
        NotEnoughDataError: If there is no trace.
    """

    def __init__(  # noqa: PLR0913 - one keyword a setting
        self,
        traces: Sequence[Trace],
        *,
        view: str = "layers",
        layers: Sequence[int] | None = None,
        edges: EdgeRule = DEFAULT_EDGES,
        nodes: Sequence[str] | None = None,
        labels: Labels | None = None,
        prompt_edges: bool = True,
        importance: str = "mean",
        channels: str = "heads",
        roles: HeadRoles | None = None,
        sinks: str = "keep",
        cache: Path | str | None = None,
    ) -> None:
        self.recipe = GraphRecipe(
            edges=edges,
            nodes=DEFAULT_NODES if nodes is None else tuple(nodes),
            prompt_edges=prompt_edges,
            importance=importance,
            view=view,
            channels=channels,
            roles=roles,
            sinks=sinks,
        )
        if not len(traces):
            message = "there is no trace to make graphs of: the list or store is empty"
            raise NotEnoughDataError(message)
        self.traces = traces
        self.labels = _checked_labels(labels, traces)
        self.layers = _checked_layers(layers, traces[0].shape)
        self.cache = None if cache is None else GraphCache(Path(cache), self.layers, self.recipe)
        self.trace_indices: Int[np.ndarray, "trace"] = np.arange(len(traces))

    def __len__(self) -> int:
        """Graphs: traces of this view, times layers where each has a graph of its own."""
        return len(self.trace_indices) * self._graphs_a_trace

    def __getitem__(self, index: int) -> Data:
        """One graph; the layers of a trace follow each other."""
        return self._data(self.token_graph(index), self._trace_index(index))

    def __getitems__(self, indices: Sequence[int]) -> list[Data]:
        """Several graphs, as a loader asks for them; those of one trace share their work."""
        trace_indices = [self._trace_index(index) for index in indices]
        graphs = dict(self._built(sorted(set(trace_indices))))
        return [
            self._data(graphs[trace_index][index % self._graphs_a_trace], trace_index)
            for index, trace_index in zip(indices, trace_indices, strict=True)
        ]

    def __iter__(self) -> Iterator[Data]:
        """All graphs in order; traces side by side in a store are read and built together."""
        for trace_index, graphs in self._built(self.trace_indices.tolist()):
            for graph in graphs:
                yield self._data(graph, trace_index)

    def token_graph(self, index: int) -> TokenGraph:
        """The same graph as arrays."""
        trace_index, place = self._trace_index(index), index % self._graphs_a_trace
        if self.cache is not None:
            return next(self._built([trace_index]))[1][place]
        trace = self.traces[trace_index]
        if self.recipe.view == "layers":
            return build_graph(trace, self.layers[place], self.recipe)
        return build_graphs(trace, self.layers, self.recipe)[0]

    def token_graphs(self) -> Iterator[TokenGraph]:
        """All graphs in order, as arrays."""
        for _, graphs in self._built(self.trace_indices.tolist()):
            yield from graphs

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
        nodes, edges, kept = [], [], []
        for trace_index, graphs in self._built(self.trace_indices.tolist()):
            first_row = self.recipe.first_row(self.traces[trace_index].record)
            nodes += [len(graph.x) for graph in graphs]
            edges += [len(graph.edge_attr) for graph in graphs]
            kept += [graph.kept_mass[first_row:] for graph in graphs]
        return {
            "n_graphs": len(self),
            "n_traces": len(self.trace_indices),
            "nodes_mean": float(np.mean(nodes)),
            "edges_mean": float(np.mean(edges)),
            "kept_mass_mean": float(np.concatenate(kept).mean()),
            "prevalence": self._prevalence(),
        }

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: a store goes along without its decoded chunks."""
        state = dict(self.__dict__)
        if isinstance(self.traces, TraceStore):
            state["traces"] = copy.copy(self.traces)
            state["traces"].cache = ChunkCache()
        return state

    @property
    def _graphs_a_trace(self) -> int:
        return len(self.layers) if self.recipe.view == "layers" else 1

    def _built(self, trace_indices: Sequence[int]) -> Iterator[tuple[int, list[TokenGraph]]]:
        if self.cache is None:
            return iter_graphs(self.traces, self.layers, self.recipe, trace_indices)
        return ((index, self.cache.graphs(self.traces[index])) for index in trace_indices)

    def _data(self, graph: TokenGraph, trace_index: int) -> Data:
        data = LayerData(
            x=torch.from_numpy(graph.x),
            edge_index=torch.from_numpy(graph.edge_index),
            edge_attr=torch.from_numpy(graph.edge_attr),
            is_answer=torch.from_numpy(graph.is_answer),
            kept_mass=torch.from_numpy(graph.kept_mass),
            trace_index=trace_index,
            question_id=graph.question_id,
            node_feature_names=graph.node_feature_names,
            edge_feature_names=graph.edge_feature_names,
        )
        if graph.layer is None:
            data.layers = graph.layers
        else:
            data.layer = graph.layer
        if self.labels is not None:
            data.y = torch.tensor([_label(self.labels, trace_index)])
        return data

    def _prevalence(self) -> float | None:
        if self.labels is None:
            return None
        is_valid = self.labels.is_valid[self.trace_indices]
        values = self.labels.values[self.trace_indices][is_valid]
        return float(values.mean()) if len(values) else None

    def _trace_index(self, index: int) -> int:
        return int(self.trace_indices[range(len(self))[index] // self._graphs_a_trace])


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
