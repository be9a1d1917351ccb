"""graphhalu's own detector: a linear map of everything, and messages for what that leaves."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar, Final, final

import numpy as np
from jaxtyping import Float

from graphhalu.detectors.attribution import Attribution
from graphhalu.detectors.base import Detector, DetectorCard
from graphhalu.detectors.graph_detector import GraphDetector
from graphhalu.detectors.graph_schema import NetworkConfig, ResidualConfig
from graphhalu.detectors.networks.base import GraphNetwork, NetworkShape, NetworkSize
from graphhalu.detectors.probes.joint import JointProbe
from graphhalu.detectors.saved import damaged
from graphhalu.detectors.sides import ChosenTraces
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace

_START: Final = "start"
"""Folder of the saved joint probe."""


@final
class GraphhaluDetector(GraphDetector):
    """A joint probe, and a graph network that is trained on what the probe leaves."""

    config_class: ClassVar[type[NetworkConfig]] = ResidualConfig
    card: ClassVar[DetectorCard] = DetectorCard(
        name="graphhalu",
        summary="joint probe of attention, hidden states and likelihood, plus messages over tokens",
        source=(
            "Our own. Its start is joint-probe; training traces start from logits of inner folds "
            "that never saw their question. A network adds to that: attention graphs of three "
            "layers without their sink (every head renormalised), rounds of GATv2 with all heads "
            "on the edges, a recurrent unit over layers for each token, attention over layers. It "
            "begins as zero and is kept as it began unless the validation side says otherwise, "
            "so messages must earn their place. Each part can be switched off (has_start, "
            "has_recurrence, has_layer_attention, sinks=keep)."
        ),
        inputs=("attention", "hidden", "likelihood"),
        is_supervised=True,
        reads=(
            "attention", "hidden", "span_code", "span_mass", "received", "sink_keys",
            "self_attention", "row_entropy", "token_logprob", "token_entropy", "top1_margin",
        ),
        is_graph=True,
    )  # fmt: skip

    def __init__(self, seed: int | None = None, config: NetworkConfig | None = None) -> None:
        super().__init__(seed, config)
        self.probe: JointProbe | None = None

    @property
    def options(self) -> ResidualConfig:
        """The settings, of the kind that this detector has."""
        assert isinstance(self.config, ResidualConfig)
        return self.config

    def make_network(self, shape: NetworkShape, size: NetworkSize) -> GraphNetwork:
        """A network that begins as zero."""
        from graphhalu.detectors.networks.residual import ResidualNetwork

        return ResidualNetwork(
            shape,
            size,
            has_recurrence=self.options.has_recurrence,
            has_layer_attention=self.options.has_layer_attention,
        )

    def fit_start(
        self, traces: Sequence[Trace], labels: Labels, split: Split
    ) -> Callable[[Sequence[int]], list[float]]:
        """Fit the joint probe on the training side; validation takes no part in it."""
        if not self.options.has_start:
            return super().fit_start(traces, labels, split)
        probe = JointProbe(seed=self.config.seed)
        learned, used = probe.fit_side(traces, labels, split.train)
        self.probe = probe
        out_of_fold = dict(zip(used.tolist(), learned.out_of_fold.tolist(), strict=True))

        def start(indices: Sequence[int]) -> list[float]:
            unseen = tuple(index for index in indices if index not in out_of_fold)
            scores = probe.score(ChosenTraces(traces, unseen)).values.tolist()
            known = out_of_fold | dict(zip(unseen, scores, strict=True))
            # a trace that the probe cannot read starts undecided
            logits: list[float] = np.nan_to_num([known[index] for index in indices]).tolist()
            return logits

        return start

    def starting_logits(self, traces: Sequence[Trace]) -> Float[np.ndarray, "trace"]:
        """What the joint probe says."""
        if self.probe is None:
            return super().starting_logits(traces)
        return self.probe.score(traces).values

    def attribute(self, trace: Trace) -> Attribution | None:
        """Exact parts of the probe, and effects of edges and heads in the network."""
        network = super().attribute(trace)
        if self.probe is None or network is None:
            return network
        found = self.probe.attribute(trace)
        if found is None:
            return None
        return Attribution(
            heads=found.heads + network.heads,
            features={**found.features, "network": network.rest},
            is_exact=False,
            rest=found.rest,
            edges=network.edges,
        )

    @property
    def n_parameters(self) -> int | None:
        """Weights of the network, and of the probe that it adds to."""
        own = super().n_parameters
        return own if own is None or self.probe is None else own + (self.probe.n_parameters or 0)

    def save(self, folder: Path) -> None:
        """Write the network, and the joint probe into a folder of its own."""
        super().save(folder)
        if self.probe is not None:
            self.probe.save(folder / _START)

    @classmethod
    def load(cls, folder: Path) -> Detector:
        """Read what :meth:`save` wrote."""
        detector = super().load(folder)
        assert isinstance(detector, GraphhaluDetector)
        if detector.options.has_start:
            probe = JointProbe.load(folder / _START)
            if not isinstance(probe, JointProbe):
                raise damaged(folder, TypeError(type(probe).__name__))
            detector.probe = probe
        return detector
