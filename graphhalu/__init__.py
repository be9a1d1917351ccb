"""graphhalu finds hallucinations of language models in the graphs that their attention draws."""

from importlib import import_module
from typing import Any

from graphhalu.core.errors import missing_extra

__version__ = "0.1.0"

_EXPORTS: dict[str, str] = {
    "AnswerScorer": "graphhalu.scoring.scorer",
    "AttentionGraphs": "graphhalu.graphs.dataset",
    "CumulativeMass": "graphhalu.graphs.edges",
    "Calibration": "graphhalu.evaluation.calibration",
    "ExtractConfig": "graphhalu.extract.settings",
    "GraphRecipe": "graphhalu.graphs.edges",
    "HeadMask": "graphhalu.heads.table",
    "HeadTable": "graphhalu.heads.table",
    "Labels": "graphhalu.labels.labels",
    "Question": "graphhalu.datasets.question",
    "Scores": "graphhalu.detectors.base",
    "Threshold": "graphhalu.graphs.edges",
    "TokenGraph": "graphhalu.graphs.build",
    "TopK": "graphhalu.graphs.edges",
    "Trace": "graphhalu.traces.trace",
    "TraceStore": "graphhalu.traces.store",
    "build_graph": "graphhalu.graphs.build",
    "compare": "graphhalu.evaluation.compare",
    "feature_matrix": "graphhalu.features.matrix",
    "feature_table": "graphhalu.features.table",
    "extract_traces": "graphhalu.extract.run",
    "load_detector": "graphhalu.scoring.scorer",
    "load_questions": "graphhalu.datasets.registry",
    "open_traces": "graphhalu.traces.store",
    "read_heads": "graphhalu.heads.files",
    "read_labels": "graphhalu.labels.run",
    "topology": "graphhalu.graphs.topology",
    "to_networkx": "graphhalu.graphs.topology",
}
"""Public name to the module that defines it; imported when first asked for."""
_RENAMED = {"extract_traces": "extract"}
"""Names there, where a folder of the package has the same."""

__all__ = sorted([*_EXPORTS, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'graphhalu' has no attribute {name!r}")
    try:
        return getattr(import_module(_EXPORTS[name]), _RENAMED.get(name, name))
    except ModuleNotFoundError as error:
        raise missing_extra(error) or error from None


def __dir__() -> list[str]:
    return list(__all__)
