"""The answers to a question in one graph: an answer, its samples, and what they share.

The graph of the answer is that of ``gat``. The answer tokens of each sample come beside it, with the
attention among them. A token of a sample is joined with the same tokens of the answer, and the last
token of a sample with the last of the answer by how alike the two are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

import torch
from torch import Tensor
from torch_geometric.data import Data

from graphhalu.detectors.base import ChosenTraces
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.networks import GAT, MLP
from graphhalu.detectors.samples import claimed_words, likeness
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.graphs.storage import OF_NODE
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

RELATIONS: Final = ("is_same", "agreement")
"""What edges from a sample to the answer carry: whether the tokens are the same, and how alike the two
answers are (0 between tokens)."""
NODE_RELATIONS: Final = ("samples.is_sample", "samples.score")
"""Whether a node belongs to a sample, and the mean log-probability (nat) of its tokens."""


@dataclass(frozen=True)
class QuestionGraph:
    """Joins the graph of an answer with those of its samples.

    Attributes:
        traces: Traces that graphs are asked for.
        pool: Graphs of these traces and of all samples.
    """

    traces: Sequence[Trace]
    pool: AttentionGraphs

    @cached_property
    def samples(self) -> Mapping[str, list[int]]:
        """Places in the pool of the samples of each question."""
        found: dict[str, list[int]] = {}
        for place, trace in enumerate(self.pool.traces):
            if trace.record.is_sample:
                found.setdefault(trace.record.question_id, []).append(place)
        return found

    def __call__(self, data: Data) -> Data:
        """The graph of an answer with its samples beside it."""
        own = self.traces[data.trace_index].record
        places = self.samples.get(own.question_id, []) if own.is_on_policy else []
        others = [place for place in places if self.pool.traces[place].trace_id != own.trace_id]
        made = data.clone()
        parts = [_widened(data, is_sample=False, score=own.beam_score or 0.0)]
        index, attr = [data.edge_index], [_relations(data.edge_attr)]
        n_nodes = data.num_nodes
        claims = claimed_words(own)
        for place in others:
            sample, record = self.pool.get(place), self.pool.traces[place].record
            number = sample.is_answer.long().cumsum(0) - 1 + n_nodes
            part = _widened(sample, is_sample=True, score=record.beam_score or 0.0)
            parts.append({name: values[sample.is_answer] for name, values in part.items()})
            is_within = sample.is_answer[sample.edge_index].all(0)
            index.append(number[sample.edge_index[:, is_within]])
            attr.append(_relations(sample.edge_attr[is_within]))
            alike = float(likeness([claims, claimed_words(record)])[0, 1])
            across, weights = _across(data, sample, number, alike)
            index.append(across)
            attr.append(
                torch.cat([data.edge_attr.new_zeros(len(weights), data.edge_attr.shape[1]), weights], 1)
            )
            n_nodes += int(sample.is_answer.sum())
        for name in OF_NODE:
            made[name] = torch.cat([part[name] for part in parts])
        made.edge_index, made.edge_attr = torch.cat(index, dim=1), torch.cat(attr)
        return made


def _widened(data: Data, *, is_sample: bool, score: float) -> dict[str, Tensor]:
    """Node attributes with :data:`NODE_RELATIONS` as further features; a sample is never read out."""
    found = {name: data[name] for name in OF_NODE}
    more = data.x.new_tensor([float(is_sample), score]).expand(data.num_nodes, -1)
    found["x"] = torch.cat([data.x, more], dim=1)
    if is_sample:
        found["is_readout"] = torch.zeros_like(data.is_readout)
    return found


def _relations(attention: Tensor) -> Tensor:
    """Attention with :data:`RELATIONS` of 0 beside it."""
    return torch.cat([attention, attention.new_zeros(len(attention), len(RELATIONS))], dim=1)


def _across(own: Data, sample: Data, number: Tensor, alike: float) -> tuple[Tensor, Tensor]:
    """Edges from a sample's tokens to the same tokens of the answer, and from its last to the last."""
    answer = own.is_answer.nonzero()[:, 0]
    tokens = sample.is_answer.nonzero()[:, 0]
    is_same = sample.token_id[tokens][:, None] == own.token_id[answer][None]
    key, query = is_same.nonzero().T
    pairs = torch.stack([number[tokens[key]], answer[query]])
    last = torch.stack([number[tokens[-1]], answer[-1]])[:, None]
    weights = own.edge_attr.new_zeros(pairs.shape[1] + 1, len(RELATIONS))
    weights[:-1, 0], weights[-1, 1] = 1, alike
    return torch.cat([pairs, last], dim=1), weights


class QuestionDetector(NetworkDetector):
    """A graph network on the answer and its samples."""

    relations: ClassVar[tuple[str, ...]] = RELATIONS
    node_relations: ClassVar[tuple[str, ...]] = NODE_RELATIONS

    def _graphs(
        self, traces: Sequence[Trace], layers: tuple[int, ...], labels: Labels | None
    ) -> AttentionGraphs:
        graphs = super()._graphs(traces, layers, labels)
        pool = traces.pool if isinstance(traces, ChosenTraces) else traces
        graphs.transform = QuestionGraph(traces, AttentionGraphs.of_recipe(pool, layers, graphs.recipe))
        return graphs


QuestionGat: Final = QuestionDetector.variant("question-gat", __name__, network_class=GAT)
QuestionAlone: Final = QuestionDetector.variant("question-alone", __name__, network_class=MLP)
