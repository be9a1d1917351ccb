"""Detectors by name."""

from typing import Any, Final

from graphhalu.core.errors import GraphhaluError
from graphhalu.core.registry import Registry
from graphhalu.detectors.base import Detector, DetectorCard
from graphhalu.labels.labels import Level


def _adapted(found: Any) -> Any:
    """A detector that trains the network, where a user names a torch module; else the same."""
    from torch import nn

    if isinstance(found, type) and issubclass(found, nn.Module):
        from graphhalu.detectors.gnn.detector import network_detector

        return network_detector(found)
    return found


DETECTORS: Final[Registry[type[Detector]]] = Registry(
    "detector",
    {
        "sink-mass": "graphhalu.detectors.scalar.attention:SinkMass",
        "sink-mass-k1": "graphhalu.detectors.scalar.attention:SinkMassK1",
        "head-std": "graphhalu.detectors.scalar.attention:HeadStd",
        "head-std-logit": "graphhalu.detectors.scalar.attention:HeadStdLogit",
        "focus": "graphhalu.detectors.scalar.attention:Focus",
        "attention-logdet": "graphhalu.detectors.scalar.attention:AttentionLogDet",
        "rauq": "graphhalu.detectors.scalar.attention:Rauq",
        "perplexity": "graphhalu.detectors.scalar.likelihood:Perplexity",
        "min-logprob": "graphhalu.detectors.scalar.likelihood:MinLogprob",
        "entropy": "graphhalu.detectors.scalar.likelihood:Entropy",
        "likelihood": "graphhalu.detectors.scalar.likelihood:Likelihood",
        "length": "graphhalu.detectors.scalar.likelihood:AnswerLength",
        "hidden-score": "graphhalu.detectors.scalar.hidden:HiddenScore",
        "eigenscore": "graphhalu.detectors.scalar.hidden:EigenScore",
        "sink-probe-heads": "graphhalu.detectors.probes.attention:SinkProbeHeads",
        "sinkprobe": "graphhalu.detectors.probes.attention:SinkProbe",
        "lapeigvals": "graphhalu.detectors.probes.attention:LapEigvals",
        "attneigvals": "graphhalu.detectors.probes.attention:AttnEigvals",
        "attn-logdet-heads": "graphhalu.detectors.probes.attention:AttnLogDetHeads",
        "lookback": "graphhalu.detectors.probes.attention:Lookback",
        "instability-probe": "graphhalu.detectors.probes.attention:InstabilityProbe",
        "entropy-heads": "graphhalu.detectors.probes.attention:EntropyHeads",
        "toha": "graphhalu.detectors.probes.attention:Toha",
        "likelihood-probe": "graphhalu.detectors.probes.likelihood:LikelihoodProbe",
        "hidden-probe": "graphhalu.detectors.probes.hidden:HiddenProbe",
        "saplma": "graphhalu.detectors.probes.network:Saplma",
        "haloscope": "graphhalu.detectors.probes.hidden:HaloScope",
        "hallushift": "graphhalu.detectors.probes.hidden:HalluShift",
        "icr": "graphhalu.detectors.probes.hidden:IcrProbe",
        "joint-probe": "graphhalu.detectors.probes.joint:JointProbe",
        "all-features": "graphhalu.detectors.ensemble:AllFeatures",
        "tfidf": "graphhalu.detectors.controls.text:TfidfText",
        "shuffled-labels": "graphhalu.detectors.controls.shuffled:ShuffledLabels",
        "gcn": "graphhalu.detectors.gnn.detectors:GCNDetector",
        "gat": "graphhalu.detectors.gnn.detectors:GATDetector",
        "charm": "graphhalu.detectors.gnn.detectors:CHARMDetector",
        "graphhalu": "graphhalu.detectors.gnn.own:GraphhaluDetector",
        "mlp": "graphhalu.detectors.gnn.detectors:MLPDetector",
        "gat-rewired": "graphhalu.detectors.gnn.detectors:RewiredGATDetector",
        "token-position": "graphhalu.detectors.token_probes:TokenPosition",
        "token-likelihood": "graphhalu.detectors.token_probes:TokenLikelihood",
        "token-text": "graphhalu.detectors.controls.text:TokenText",
        "token-overlap": "graphhalu.detectors.token_probes:TokenOverlap",
        "token-shuffled": "graphhalu.detectors.token_probes:TokenShuffled",
        "token-attention": "graphhalu.detectors.token_probes:TokenAttention",
        "token-hidden": "graphhalu.detectors.token_probes:TokenHidden",
        "token-probe": "graphhalu.detectors.token_probes:TokenProbe",
        "token-graph": "graphhalu.detectors.gnn.detectors:TokenGraphDetector",
        "token-no-edges": "graphhalu.detectors.gnn.detectors:TokenNoEdges",
    },
    Detector,
    card=DetectorCard,
    adapt=_adapted,
)
"""Every class also has ``settings(**values)``: plain values to the arguments of its constructor."""

POSITION_CONTROL: Final = "token-position"
"""What token detectors are tested against: the place of a token alone finds hallucinated ones."""


def detector_names(level: Level) -> list[str]:
    """Registered detectors of one level, in the order of the table.

    One that cannot be imported counts among those of answers, where a comparison tells why.
    """
    return [name for name in DETECTORS.names() if _level(name) == level]


def _level(name: str) -> Level:
    try:
        return DETECTORS.get(name).card.level
    except GraphhaluError:
        return "answer"
