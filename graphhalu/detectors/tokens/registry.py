"""Token detectors by name."""

from typing import Final

from graphhalu.detectors.tokens.base import TokenDetector
from graphhalu.registry import Registry

TOKEN_DETECTORS: Final[Registry[type[TokenDetector]]] = Registry(
    "token detector",
    {
        "token-position": "graphhalu.detectors.tokens.controls:TokenPosition",
        "token-likelihood": "graphhalu.detectors.tokens.controls:TokenLikelihood",
        "token-text": "graphhalu.detectors.tokens.text:TokenText",
        "token-overlap": "graphhalu.detectors.tokens.controls:TokenOverlap",
        "token-shuffled": "graphhalu.detectors.tokens.controls:TokenShuffled",
        "token-attention": "graphhalu.detectors.tokens.probes:TokenAttention",
        "token-hidden": "graphhalu.detectors.tokens.probes:TokenHidden",
        "token-probe": "graphhalu.detectors.tokens.probes:TokenProbe",
        "token-graph": "graphhalu.detectors.tokens.nodes:TokenGraphDetector",
        "token-no-edges": "graphhalu.detectors.tokens.nodes:TokenNoEdges",
    },
)
"""Every class also has ``settings(**values)``: plain values to the arguments of its constructor."""

POSITION_CONTROL: Final = "token-position"
"""What all others are tested against: the place of a token alone finds hallucinated ones."""
