"""Token graphs of many traces as a PyTorch Geometric data set."""

import copy
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch_geometric.data import Data, Dataset

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.core.splits import Split, check_groups, grouped_split
from graphhalu.graphs.build import TokenGraph, build_graphs
from graphhalu.graphs.edges import DEFAULT_EDGES, DEFAULT_NODES, EdgeRule, GraphRecipe, HeadRoles
from graphhalu.graphs.nodes import check_blocks
from graphhalu.graphs.storage import Names, storage_of
from graphhalu.labels.labels import Labels, as_labels, question_groups
from graphhalu.traces.part import ChunkCache
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.store import TraceStore, as_traces
from graphhalu.traces.trace import Trace

DEFAULT_DEPTHS: Final = (1 / 2, 1 / 3, 2 / 3)
"""Shares of the depth; the first one chooses its layer first."""


class AttentionGraphs(Dataset):
    """Graphs of traces in their order: one for each trace and layer, or one a trace.

    A ``torch_geometric.data.Dataset``: ``graphs[3]`` is a graph, ``graphs[2:5]`` and lists of
    indices give views, ``transform`` changes a graph when it is asked for, and
    ``torch_geometric.loader.DataLoader`` batches it, workers included. Graphs are built when
    they are first asked for, 32 traces at a time, and kept in contiguous tensors: up to 1 GiB in
    memory, further ones in files that are mapped into memory.

    Each ``Data`` has ``x [node, feature]``, ``edge_index [2, edge]`` (from the attended key to
    the attending query, sorted by query, so ``data.is_sorted(sort_by_row=False)``),
    ``edge_attr [edge, channel]``, ``span [node]`` (integer of :class:`graphhalu.core.axes.Span`),
    ``token_id [node]``, ``is_answer [node]``, ``is_readout [node]`` (answer tokens and the last
    prompt token, whose row produces the first of them), ``layer_index [node]`` (place of the node's
    layer among :attr:`layers`), ``kept_mass [node]``, ``trace_index``, ``question_id`` and, with
    labels, ``y``. :attr:`node_feature_names` and :attr:`edge_feature_names` name the columns.

    Args:
        traces: A store, its path, or a list of traces.
        view: ``"layers"``: one graph a layer, with the heads of that layer on the edges.
            ``"stacked"``: one graph a trace, the graphs of all layers side by side.
            ``"multiplex"``: one graph a trace, with the heads of all layers on the edges.
        layers: Model layers; by default :func:`default_layers`.
        edges: Rule that chooses edges.
        nodes: Blocks of node features; by default all but hidden states and roles.
        labels: Labels of the same traces in the same order; ``y`` is NaN where one is invalid,
            and absent without labels. Labels of tokens give one value an answer token.
        prompt_edges: Whether rows of the prompt have edges.
        importance: What an edge rule looks at: ``"mean"``, ``"max"`` or ``"weighted"`` over heads.
        channels: What an edge carries of a layer: ``"heads"``, ``"mean"``, ``"max"``,
            ``"weighted"``.
        roles: Weights of heads, for ``"weighted"`` and the node block ``roles``.
        sinks: ``"remove"``: no edges from the first four tokens; ``"renormalise"``: also divides
            weights by what is left.
        cache: Folder where built graphs are kept for other processes.
        transform: Called with each graph; see ``torch_geometric.transforms``.

    Raises:
        UsageError: If a layer is not kept, the labels are of others, or ``traces`` is neither a
            store nor a list of traces.
        UnknownNameError: If the view, a node block or another name is unknown.
        NotEnoughDataError: If there is no trace.
    """

    def __init__(  # noqa: PLR0913 - one keyword a setting
        self,
        traces: Sequence[Trace] | Path | str,
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
        transform: Callable[[Data], Data] | None = None,
    ) -> None:
        super().__init__(transform=transform)
        nodes = DEFAULT_NODES if nodes is None else tuple(nodes)
        self.recipe = GraphRecipe(edges, nodes, prompt_edges, importance, view, channels, roles, sinks)
        check_blocks(self.recipe.nodes)
        self.traces = as_traces(traces)
        if not len(self.traces):
            raise NotEnoughDataError("there is no trace to make graphs of: the list or store is empty")
        self.labels = None if labels is None else _checked_labels(labels, self.traces)
        self.layers = _checked_layers(layers, self.traces[0].shape)
        folder = None if cache is None else Path(cache)
        self.storage = storage_of(self.traces, self.layers, self.recipe, folder)

    @classmethod
    def of_recipe(
        cls, traces: Sequence[Trace], layers: Sequence[int], recipe: GraphRecipe, labels: Labels | None = None
    ) -> "AttentionGraphs":
        """The graphs of a recipe; see the class."""
        return cls(traces, layers=layers, labels=labels, **vars(recipe))

    def len(self) -> int:
        """Graphs of all traces, whatever the view."""
        return len(self.traces) * self.storage.graphs_per_trace

    def get(self, idx: int) -> Data:
        """One graph by its place among those of all traces, before ``transform``."""
        trace_index, place = divmod(idx, self.storage.graphs_per_trace)
        data = self.storage.get(self.traces, trace_index, place)
        if self.recipe.view == "layers":
            data.layer = self.layers[place]
        else:
            data.layers = self.layers
        if self.labels is not None:
            data.y = _label(self.labels, trace_index)
        return data

    @property
    def trace_indices(self) -> Int[np.ndarray, "trace"]:
        """The traces of this view, in its order."""
        owner = np.asarray(self.indices(), dtype=np.int64) // self.storage.graphs_per_trace
        _, first = np.unique(owner, return_index=True)
        return owner[np.sort(first)]

    @property
    def node_feature_names(self) -> tuple[str, ...]:
        """``block.column`` for every column of ``x``; see :class:`TokenGraph`."""
        return self._names[0]

    @property
    def edge_feature_names(self) -> tuple[str, ...]:
        """One name for every column of ``edge_attr``."""
        return self._names[1]

    def token_graph(self, index: int) -> TokenGraph:
        """A graph as arrays with its names, built anew; of a stacked graph its first layer."""
        trace_index, place = divmod(self.indices()[index], self.storage.graphs_per_trace)
        return build_graphs(self.traces[trace_index], self.layers, self.recipe)[place]

    @property
    def groups(self) -> Shaped[np.ndarray, "trace"]:
        """Group of every trace of this view, merged where two groups ask the same question."""
        return question_groups([self.traces[int(i)] for i in self.trace_indices])

    def select(self, trace_indices: Sequence[int] | Int[np.ndarray, "trace"]) -> "AttentionGraphs":
        """A view of some traces, by their index in :attr:`traces`."""
        n_graphs = self.storage.graphs_per_trace
        chosen = np.asarray(trace_indices, dtype=np.int64)
        graphs = (chosen[:, None] * n_graphs + np.arange(n_graphs)).reshape(-1)
        view = copy.copy(self)
        view.__dict__["_indices"] = graphs.tolist()  # as PyG's own index_select does
        return view

    def labelled(self) -> "AttentionGraphs":
        """A view of the traces with a valid label.

        Raises:
            UsageError: If there are no labels.
        """
        if self.labels is None:
            raise UsageError("these graphs have no labels: give labels=… to AttentionGraphs")
        traces = self.trace_indices
        return self.select(traces[self.labels.is_valid[traces]])

    def split(
        self, seed: int = 0, *, ids: Sequence[Collection[str]] | None = None
    ) -> tuple["AttentionGraphs", "AttentionGraphs", "AttentionGraphs"]:
        """Views for training, validation and test; all traces of a group stay together.

        Args:
            seed: Seed of a random split, 60 / 20 / 20.
            ids: Instead the question ids of each side; traces of other questions are in none.

        Raises:
            NotEnoughDataError: If there are fewer than three groups.
            UsageError: If ``ids`` are not three sides, or a question is on two of them.
        """
        traces, groups = self.trace_indices, self.groups
        values = np.zeros(len(traces), dtype=np.int64) if self.labels is None else self.labels.values[traces]
        split = grouped_split(values, groups, seed=seed) if ids is None else self._sides(ids)
        try:
            check_groups(split, groups)
        except ValueError as error:
            raise UsageError(str(error)) from None
        sides = (split.train, split.validation, split.test)
        train, validation, test = (self.select(traces[side]) for side in sides)
        return train, validation, test

    def stats(self) -> dict[str, Any]:
        """Sizes and kept attention, by going through every graph once.

        Returns:
            ``n_graphs``, ``n_traces``, ``nodes_mean``, ``edges_mean``, ``kept_mass_mean`` (over
            the rows that may have edges) and ``prevalence`` (over valid labels; ``None``
            without any).

        Raises:
            NotEnoughDataError: If the view is empty.
        """
        if not len(self):
            raise NotEnoughDataError("there is no graph in this view to take a mean over")
        kept, sizes = [], []
        for index in self.indices():
            data = self.get(index)
            first_row = self.recipe.first_row(self.traces[data.trace_index].record)
            sizes.append((data.num_nodes, data.num_edges))
            per_layer = data.kept_mass.view(int(data.layer_index.unique().numel()), -1)
            kept.append(per_layer[:, first_row:].flatten())
        nodes_mean, edges_mean = np.mean(sizes, axis=0).tolist()
        known = [] if self.labels is None else self.labels.values[self.labelled().trace_indices]
        return {
            "n_graphs": len(self),
            "n_traces": len(self.trace_indices),
            "nodes_mean": nodes_mean,
            "edges_mean": edges_mean,
            "kept_mass_mean": float(torch.cat(kept).mean()),
            "prevalence": float(np.mean(known)) if len(known) else None,
        }

    def __repr__(self) -> str:
        return (
            f"AttentionGraphs({len(self)} graphs of {len(self.trace_indices)} traces, "
            f"view={self.recipe.view!r}, layers={list(self.layers)})"
        )

    def __getstate__(self) -> dict[str, Any]:
        """For a worker process: a store goes along without its decoded chunks."""
        state = dict(self.__dict__)
        if isinstance(self.traces, TraceStore):
            state["traces"] = copy.copy(self.traces)
            state["traces"].cache = ChunkCache()
        return state

    @property
    def _names(self) -> Names:
        if not self.storage.names[0]:  # known from the first graph on
            self.get(self.indices()[0])
        return self.storage.names

    def _sides(self, ids: Sequence[Collection[str]]) -> Split:
        if isinstance(ids, str) or len(ids) != 3:  # noqa: PLR2004
            raise UsageError(
                f"expected question ids of three sides (train, validation, test), got {ids!r}"[:300]
            )
        names = np.array([self.traces[int(index)].record.question_id for index in self.trace_indices])
        return Split(*(np.flatnonzero(np.isin(names, list(side))) for side in ids))


def default_layers(shape: TraceShape) -> tuple[int, ...]:
    """Three kept layers, nearest to 1/3, 1/2 and 2/3 of the depth; fewer where fewer are kept.

    The middle one chooses first; a tie goes to the lower layer.

    Raises:
        UsageError: If no layer is kept.
    """
    if not shape.attention_layers:
        raise UsageError("the traces keep attention of no layer\n  Extract them again with layers")
    left = sorted(shape.attention_layers)
    chosen: list[int] = []
    for depth in DEFAULT_DEPTHS:
        if left:
            chosen.append(min(left, key=lambda layer: abs(layer - depth * shape.n_layers)))
            left.remove(chosen[-1])
    return tuple(sorted(chosen))


def _checked_layers(layers: Sequence[int] | None, shape: TraceShape) -> tuple[int, ...]:
    if layers is None:
        return default_layers(shape)
    missing = [layer for layer in layers if layer not in shape.attention_layers]
    if missing or not layers:
        kept = ", ".join(map(str, shape.attention_layers))
        raise UsageError(f"expected layers that the traces keep ({kept}), got {list(layers)}")
    return tuple(layers)


def _checked_labels(labels: Labels, traces: Sequence[Trace]) -> Labels:
    labels = as_labels(labels)
    if len(labels.trace_ids) != len(traces):
        raise UsageError(f"expected a label for each of {len(traces)} traces, got {len(labels.trace_ids)}")
    for index, labelled in enumerate(labels.trace_ids):
        if (trace_id := traces[index].trace_id) != labelled:
            raise UsageError(
                f"expected labels in the order of the traces: trace {index} is {trace_id!r}, "
                f"its label is of {labelled!r}\n  Label these traces again"
            )
    return labels


def _label(labels: Labels, trace_index: int) -> torch.Tensor:
    """``[1]``, or ``[answer_token]`` of labelled tokens; NaN where there is no valid label."""
    values = np.array([labels.values[trace_index]])
    if labels.tokens is not None:
        values = labels.tokens[trace_index]
    if not labels.is_valid[trace_index]:
        values = np.full(len(values), np.nan)
    return torch.from_numpy(values.astype(np.float32))
