"""Graph networks that are registered, each with its graphs and a card of ``cards.yaml``.

Edges of controls say nothing of who is attended to, or there are none.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, final

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import pad
from torch_geometric.data import Data

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces, Compared, Detector, DetectorCard
from graphhalu.detectors.gnn.config import QUICK, CHARMConfig, NetworkConfig, TokenNetworkConfig
from graphhalu.detectors.gnn.detector import NetworkDetector
from graphhalu.detectors.gnn.evidence import EvidenceConfig, TokenEvidence, TokenEvidenceNeighbours
from graphhalu.detectors.gnn.networks import CHARM, GAT, GCN, MLP
from graphhalu.detectors.probes import JointProbe
from graphhalu.detectors.samples import WAY_OUT, SampleAgreement, claimed_words, has_samples, likeness
from graphhalu.detectors.saved import TrainedConfig
from graphhalu.detectors.stack import Stack
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.graphs.storage import OF_NODE
from graphhalu.labels.labels import Labels
from graphhalu.traces.schema import N_SINK_KEYS
from graphhalu.traces.trace import Trace

STRATA: Final = (1, 9, 33)
"""Smallest distance of query and key in each stratum."""


def rewired(data: Data) -> Data:
    """Give every edge another key at about the same distance from its query.

    The tokens of each stratum of distance are permuted for each query, and edges go along with
    their attention. The first four tokens, which are sinks, stay as they are. So every query
    keeps how many edges end in it, what they carry, and about how far they reach. The same graph
    is always rewired alike.
    """
    seed = hashlib.sha256(f"{data.question_id} {data.trace_index}".encode()).digest()
    generator = np.random.default_rng(list(seed))
    n_tokens = int((data.layer_index == 0).sum())
    moved = data.clone()
    key, query = data.edge_index % n_tokens
    permuted = torch.from_numpy(_permutation(n_tokens, generator))
    moved.edge_index = torch.stack([data.edge_index[0] - key + permuted[query, key], data.edge_index[1]])
    return moved


def without_edges(data: Data) -> Data:
    """The same nodes without edges."""
    alone = data.clone()
    alone.edge_index, alone.edge_attr = data.edge_index[:, :0], data.edge_attr[:0]
    return alone


def _permutation(n_tokens: int, generator: np.random.Generator) -> np.ndarray:
    """New key of each query and key; only keys of one stratum change places."""
    token = np.arange(n_tokens)
    distance = token[:, None] - token
    stratum = np.searchsorted(STRATA, distance, side="right").astype(np.float64)
    stratum[:, :N_SINK_KEYS] = -1 - token[:N_SINK_KEYS]  # each in a stratum of its own
    natural = np.argsort(stratum, axis=1, kind="stable")
    shuffled = np.argsort(stratum + generator.uniform(0, 0.5, stratum.shape), axis=1)
    permuted = np.empty_like(natural)
    np.put_along_axis(permuted, natural, shuffled, axis=1)
    return permuted


Gcn: Final = NetworkDetector.variant("gcn", __name__, network_class=GCN)
Gat: Final = NetworkDetector.variant("gat", __name__, network_class=GAT)
Charm: Final = NetworkDetector.variant("charm", __name__, network_class=CHARM, config_class=CHARMConfig)
Mlp: Final = NetworkDetector.variant("mlp", __name__, network_class=MLP)
GatRewired: Final = NetworkDetector.variant("gat-rewired", __name__, network_class=GAT, transform=rewired)
_TOKENS: Final = {"network_class": CHARM, "config_class": TokenNetworkConfig}
TokenGraph: Final = NetworkDetector.variant("token-graph", __name__, **_TOKENS)
TokenNoEdges: Final = NetworkDetector.variant("token-no-edges", __name__, **_TOKENS, transform=without_edges)


RELATIONS: Final = ("is_same", "agreement")
"""What edges from a sample to the answer carry: whether the tokens are the same, and how alike the two
answers are (0 between tokens)."""
NODE_RELATIONS: Final = ("samples.is_sample", "samples.score")
"""Whether a node belongs to a sample, and the mean log-probability (nat) of its tokens."""


def question_graph(
    data: Data, *, traces: Sequence[Trace], pool: AttentionGraphs, samples: Mapping[str, list[int]]
) -> Data:
    """The graph of an answer with its samples beside it.

    Args:
        data: The graph of one of the traces.
        traces: Traces that graphs are asked for.
        pool: Graphs of these traces and of all samples.
        samples: Places in the pool of the samples of each question.
    """
    own = traces[data.trace_index].record
    places = samples.get(own.question_id, []) if own.is_on_policy else []
    made = data.clone()
    parts = [_widened(data, is_sample=False, score=own.beam_score or 0.0)]
    index, attr = [data.edge_index], [pad(data.edge_attr, (0, len(RELATIONS)))]
    n_nodes = data.num_nodes
    claims = claimed_words(own)
    for place in places:
        record = pool.traces[place].record
        if record.trace_id == own.trace_id:
            continue
        sample = pool.get(place)
        number = sample.is_answer.long().cumsum(0) - 1 + n_nodes
        part = _widened(sample, is_sample=True, score=record.beam_score or 0.0)
        parts.append({name: values[sample.is_answer] for name, values in part.items()})
        is_within = sample.is_answer[sample.edge_index].all(0)
        alike = float(likeness([claims, claimed_words(record)])[0, 1])
        across, weights = _across(data, sample, number, alike)
        index += [number[sample.edge_index[:, is_within]], across]
        attr += [pad(sample.edge_attr[is_within], (0, len(RELATIONS)))]
        attr += [pad(weights, (data.edge_attr.shape[1], 0))]
        n_nodes += int(sample.is_answer.sum())
    for name in OF_NODE:
        made[name] = torch.cat([part[name] for part in parts])
    made.edge_index, made.edge_attr = torch.cat(index, dim=1), torch.cat(attr)
    return made


def sample_places(traces: Sequence[Trace]) -> dict[str, list[int]]:
    """Places of the samples of each question."""
    found: dict[str, list[int]] = {}
    for place, trace in enumerate(traces):
        if trace.record.is_sample:
            found.setdefault(trace.record.question_id, []).append(place)
    return found


def _widened(data: Data, *, is_sample: bool, score: float) -> dict[str, Tensor]:
    """Node attributes with :data:`NODE_RELATIONS` as further features; a sample is never read out."""
    found = {name: data[name] for name in OF_NODE}
    more = data.x.new_tensor([float(is_sample), score]).expand(data.num_nodes, -1)
    found["x"] = torch.cat([data.x, more], dim=1)
    if is_sample:
        found["is_readout"] = torch.zeros_like(data.is_readout)
    return found


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
        made = AttentionGraphs.of_recipe(pool, layers, graphs.recipe)
        graphs.transform = partial(question_graph, traces=traces, pool=made, samples=sample_places(pool))
        return graphs


QuestionGat: Final = QuestionDetector.variant("question-gat", __name__, network_class=GAT)
QuestionAlone: Final = QuestionDetector.variant("question-alone", __name__, network_class=MLP)


Part = Literal["probe", "graph", "question", "samples"]
PARTS: Final[tuple[Part, ...]] = ("probe", "graph", "question", "samples")
OF_SAMPLES: Final = ("question", "samples")
"""Parts that are left out where questions have no samples."""


class StackConfig(NetworkConfig):
    """Settings of graphhalu: those of its graph network, and which parts are stacked."""

    parts: Annotated[tuple[Part, ...], Field(min_length=1)] = PARTS
    """``probe``: the joint probe of attention, hidden states and likelihood. ``graph``: gat. ``question``:
    the graph of the answer and its samples; ``samples``: their agreement. The last two are left out where
    no training question has samples."""

    @field_validator("parts")
    @classmethod
    def _differ(cls, parts: tuple[Part, ...]) -> tuple[Part, ...]:
        if len(set(parts)) < len(parts):
            raise ValueError(f"expected different parts, got {list(parts)}")
        return parts


class NetworkStack(Stack):
    """A stack with graph networks among its members.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    quick_settings: ClassVar[Mapping[str, Any]] = QUICK
    is_exact: ClassVar[bool] = False
    least_known: ClassVar[float] = 0.0
    new_field: ClassVar[str] = "joints"

    log_folder: Path | None = None
    """Where Lightning's logger writes; nothing is logged without."""

    @abstractmethod
    def unfitted(self, training: Sequence[Trace]) -> dict[str, Any]:
        """Members that are not fitted.

        Args:
            training: Traces with a valid label.
        """

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Fit every member on the training side, then join them; validation takes no part.

        Raises:
            NotEnoughDataError: If the training side lacks a class, or what the members read.
        """
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        members = self.unfitted(chosen)
        for member in members.values():
            if isinstance(member, NetworkDetector):
                member.log_folder = self.log_folder
            member.fit(traces, labels, split)
        self.join_members(members, labels, np.array(chosen.indices, dtype=np.int64))
        reports = {name: member.training_report for name, member in members.items()}
        self.training_report = {"n_train": len(chosen), **reports, "weights": self.weights()}
        return self


@final
class Graphhalu(NetworkStack):
    """Joint probe, graph networks and agreement of samples, joined on logits that are out of fold.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of("graphhalu")
    config_class: ClassVar[type[TrainedConfig]] = StackConfig

    config: StackConfig

    @property
    def compares(self) -> Compared | None:
        """Samples, where a part that reads them was fitted."""
        return "samples" if set(OF_SAMPLES) & set(self.members) else None

    def check(self, traces: Sequence[Trace]) -> None:
        """As :meth:`NetworkDetector.check`."""
        self._member("graph").check(traces)

    def unfitted(self, training: Sequence[Trace]) -> dict[str, Any]:
        """The parts that are asked for; those of samples only where a training question has some.

        Raises:
            NotEnoughDataError: If only parts of samples are asked for and there are none.
        """
        parts = [part for part in self.config.parts if part not in OF_SAMPLES or has_samples(training)]
        if not parts:
            raise NotEnoughDataError(f"no training question has samples\n  {WAY_OUT}")
        return {part: self._member(part) for part in parts}

    @classmethod
    def member_class(cls, name: str) -> type[Detector]:
        """The class of a part."""
        kinds: dict[str, type[Detector]] = {"probe": JointProbe, "graph": Gat}
        kinds |= {"question": QuestionGat, "samples": SampleAgreement}
        return kinds[name]

    def _member(self, part: Part) -> Any:
        """A part that is not fitted; graph networks take the settings of the whole."""
        kind: Any = self.member_class(part)
        if not issubclass(kind, NetworkDetector):
            return kind(seed=self.config.seed)
        # what is not asked for is decided by the traces
        unasked = {"prompt_edges"} - self.config.model_fields_set
        fields = self.config.model_dump(exclude={"parts", *unasked})
        return kind(config=NetworkConfig.model_validate(fields))


@final
class TokenGraphhalu(NetworkStack):
    """Networks on what tokens attend to and on their neighbours in the text, joined on logits out of fold.

    Args:
        seed: By default that of the configuration.
        config: Settings of both.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of("token-graphhalu")
    config_class: ClassVar[type[TrainedConfig]] = EvidenceConfig

    config: EvidenceConfig

    @classmethod
    def member_class(cls, name: str) -> type[NetworkDetector]:
        """The network of this name."""
        return {"attention": TokenEvidence, "text": TokenEvidenceNeighbours}[name]

    def check(self, traces: Sequence[Trace]) -> None:
        """As :meth:`NetworkDetector.check`."""
        TokenEvidence(config=self.config).check(traces)

    def unfitted(self, training: Sequence[Trace]) -> dict[str, Any]:
        """Both networks."""
        return {name: self.member_class(name)(config=self.config) for name in ("attention", "text")}
