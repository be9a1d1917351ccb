"""Detectors by name."""

from typing import Final

from graphhalu.detectors.base import Detector
from graphhalu.registry import Registry

DETECTORS: Final[Registry[type[Detector]]] = Registry(
    "detector",
    {
        "sink-mass": "graphhalu.detectors.scalar:SinkMass",
        "head-std": "graphhalu.detectors.scalar:HeadStd",
        "perplexity": "graphhalu.detectors.scalar:Perplexity",
        "length": "graphhalu.detectors.scalar:AnswerLength",
        "gcn": "graphhalu.detectors.graph_detector:GCNDetector",
        "gat": "graphhalu.detectors.graph_detector:GATDetector",
    },
)
"""Every class also has ``settings(**values)``: plain values to the arguments of its constructor."""
