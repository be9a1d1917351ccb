"""Detectors by name."""

from importlib import import_module
from typing import Any, Final

from graphhalu.core.registry import Registry
from graphhalu.detectors.base import Detector, DetectorCard, class_name
from graphhalu.labels.labels import Level


def _adapted(found: Any) -> Any:
    """A detector that trains the network, where a user names a torch module; else the same."""
    from torch import nn

    if isinstance(found, type) and issubclass(found, nn.Module):
        # by its name, like every detector below
        return import_module("graphhalu.detectors.gnn.detector").network_detector(found)
    return found


_MODULES: Final = (
    ("scalars", "sink-mass sink-mass-k1 head-std head-std-logit focus attention-logdet rauq"),
    ("scalars", "perplexity min-logprob entropy likelihood length hidden-score eigenscore"),
    ("probes", "sink-probe-heads sinkprobe lapeigvals attneigvals attn-logdet-heads lookback"),
    ("probes", "instability-probe entropy-heads toha likelihood-probe hidden-probe"),
    ("published_probes", "saplma haloscope"),
    ("samples", "semantic-entropy lexical-similarity eigv deg ecc kernel-entropy"),
    ("samples", "selfcheck-ngram token-sar sentence-sar sample-agreement p-true selfcheck-prompt"),
    ("scalars", "gasp lumina"),
    ("probes", "hallushift icr joint-probe live-probe"),
    ("stack", "all-features"),
    ("text", "tfidf"),
    ("category", "category-prior"),
    ("probes", "shuffled-labels"),
    ("gnn.detectors", "gcn gat charm question-gat graphhalu mlp gat-rewired question-alone"),
    ("token_probes", "token-position token-likelihood"),
    ("text", "token-text"),
    ("token_probes", "token-overlap token-shuffled token-attention token-hidden token-probe"),
    ("gnn.detectors", "token-graph token-no-edges"),
    ("gnn.evidence", "token-evidence token-evidence-streaming token-evidence-alone"),
    ("gnn.evidence", "token-evidence-neighbours token-evidence-random"),
    ("gnn.detectors", "token-graphhalu"),
    ("scalars", "token-contrast token-shift token-residual token-cortex"),
    ("smoothing", "token-smoothed token-hidden-smoothed token-overlap-smoothed"),
)
"""Modules and the detectors in them, those of answers first, in the order in which they are shown."""


DETECTORS: Final[Registry[type[Detector]]] = Registry(
    "detector",
    {
        name: f"graphhalu.detectors.{module}:{class_name(name)}"
        for module, names in _MODULES
        for name in names.split()
    },
    Detector,
    card=DetectorCard,
    adapt=_adapted,
)
"""Every class also has ``settings(**values)``: plain values to the arguments of its constructor."""

CATEGORY_CONTROL: Final = "category-prior"
"""How far the category of the question alone ranks answers."""
POSITION_CONTROL: Final = "token-position"
"""What token detectors are tested against: the place of a token alone finds hallucinated ones."""


def detector_names(level: Level) -> list[str]:
    """Registered detectors of one level, in the order of the table.

    One that cannot be imported counts among those of answers, where a comparison tells why.
    """
    found, _ = DETECTORS.load_all()
    levels = {name: found[name].card.level if name in found else "answer" for name in DETECTORS.names()}
    return [name for name, of_detector in levels.items() if of_detector == level]
