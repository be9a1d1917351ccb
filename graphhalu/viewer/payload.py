"""What a page is told of a store: plain JSON values, and one line of base64 a head."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Shaped

from graphhalu.core.axes import SPAN_NAMES
from graphhalu.features.registry import FeatureSpec
from graphhalu.labels.labels import MEANINGS
from graphhalu.report.theme import RISING
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace
from graphhalu.viewer.heads import HIDDEN_SINKS, layer_text, most_edges, weight_format
from graphhalu.viewer.maps import FeatureMap, feature_maps
from graphhalu.viewer.pieces import piece_starts
from graphhalu.viewer.token_scores import ShownTokenScores
from graphhalu.viewer.tokens import hallucinated_tokens, token_texts
from graphhalu.viewer.verdicts import DetectorScores, StoredLabels

FORMAT: Final = "graphhalu-view"
FORMAT_VERSION: Final = 1

_SHORT: Final = 160
_STREAMS: Final = {
    "log-probability": "token_logprob",
    "entropy": "token_entropy",
    "top-1 margin": "top1_margin",
}


@dataclass(frozen=True)
class View:
    """A store as it is shown.

    Attributes:
        store: All traces that the page lists.
        features: What is mapped.
        n_edges: Edges of a row, first tokens and own token aside.
        tokenizer: Of the model, or ``None`` where it cannot be had.
        labels: In the order of the store; ``None`` for no labels.
        detector: Scores in the order of the store; ``None`` for no detector.
        token_scores: Of the answer tokens; ``None`` for no token detector.
        notes: What a reader should know, one sentence each.
    """

    store: TraceStore
    features: tuple[FeatureSpec, ...]
    n_edges: int
    tokenizer: Any | None = None
    labels: StoredLabels | None = None
    detector: DetectorScores | None = None
    token_scores: ShownTokenScores | None = None
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """Model and data set, as far as the store says them."""
        configuration = self.store.configuration
        names = [(configuration.get(part) or {}).get("name") for part in ("model", "dataset")]
        said = " on ".join(str(name) for name in names if name)
        return f"{said}: answers" if said else "Answers"

    @property
    def layers(self) -> tuple[int, ...]:
        """Model layers whose attention the store keeps."""
        return self.store.shape.attention_layers

    def overview(self, *, is_served: bool) -> dict[str, Any]:
        """What the page knows from the start.

        Args:
            is_served: Whether the page asks for each answer when it is chosen.
        """
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "is_served": is_served,
            "title": self.title,
            "notes": list(self.notes),
            "layers": list(self.layers),
            "n_heads": self.store.shape.n_heads,
            "n_kv_heads": self.store.shape.n_kv_heads,
            "windows": list(self.store.shape.layer_windows),
            "weights": weight_format(self.store.arrays),
            "keeps": _keeps(self.store.arrays),
            "hidden_sinks": list(HIDDEN_SINKS),
            "span_names": list(SPAN_NAMES),
            "rising": list(RISING),
            "labeller": self._labeller(),
            "detector": self._detector(),
            "token_scores": self._token_scores(),
            "answers": [self._entry(index) for index in range(len(self.store))],
        }

    def trace(self, index: int) -> dict[str, Any]:
        """Everything of one answer but the weights."""
        trace = self.store[index]
        record, code = trace.record, trace.span_code
        texts = token_texts(trace, self.tokenizer)
        maps, numbers = feature_maps(trace, self.features)
        is_hallucinated = hallucinated_tokens(trace)
        return {
            "texts": list(texts),
            "spans": _packed(code),
            "prompt_length": record.prompt_length,
            "row_start": record.row_start,
            "n_edges": min(self.n_edges, most_edges(trace)),
            "pieces": list(self._pieces(trace, texts)),
            "question": record.question,
            "gold": list(record.answers),
            "answer": record.answer,
            "is_on_policy": record.is_on_policy,
            "is_finished": record.is_finished,
            "streams": {**_streams(trace), **self._streams_of_scores(trace)},
            "hallucinated": None if is_hallucinated is None else _packed(is_hallucinated),
            "maps": [_map_values(each) for each in maps],
            "numbers": [
                {"name": each.name, "summary": each.summary, "value": each.value} for each in numbers
            ],
        }

    def layer(self, index: int, layer: int) -> str:
        """The weights of one model layer of an answer, one line of base64 a head."""
        trace = self.store[index]
        starts = self._pieces(trace, token_texts(trace, self.tokenizer))
        return layer_text(trace, layer, self.n_edges, starts)

    def _pieces(self, trace: Trace, texts: Sequence[str]) -> tuple[int, ...]:
        return piece_starts(texts, trace.span_code) if trace.has_attention else ()

    def _entry(self, index: int) -> dict[str, Any]:
        record = self.store.records[index]
        return {
            "id": record.trace_id,
            "question": _short(record.question),
            "answer": _short(record.answer),
            "length": record.length,
            **self._label_of(index),
            **self._score_of(index, record),
        }

    def _label_of(self, index: int) -> dict[str, Any]:
        if self.labels is None:
            return {"label": None, "reason": ""}
        labels = self.labels.labels
        is_valid = bool(labels.is_valid[index])
        return {"label": int(labels.values[index]) if is_valid else None, "reason": labels.reasons[index]}

    def _score_of(self, index: int, record: TraceRecord) -> dict[str, Any]:
        if self.detector is None:
            return {"score": None, "probability": None, "is_tested": None}
        found, tested = self.detector, self.detector.tested
        is_valid = bool(found.scores.is_valid[index])
        has_probability = is_valid and found.probabilities is not None
        return {
            "score": float(found.scores.values[index]) if is_valid else None,
            "probability": float(found.probabilities[index])
            if has_probability and found.probabilities is not None
            else None,
            "is_tested": None if tested is None else record.trace_id in tested,
        }

    def _labeller(self) -> dict[str, Any] | None:
        if self.labels is None:
            return None
        labels = self.labels.labels
        return {
            "name": labels.labeller,
            "meaning": labels.meaning,
            "words": MEANINGS[labels.meaning],
            "is_stored": self.labels.is_stored,
        }

    def _streams_of_scores(self, trace: Trace) -> dict[str, str]:
        if self.token_scores is None:
            return {}
        found = self.token_scores.of(trace)
        return {name: _packed(values.astype("<f4")) for name, values in found.items()}

    def _token_scores(self) -> dict[str, Any] | None:
        if self.token_scores is None:
            return None
        scales = {name: list(ends) for name, ends in self.token_scores.scales.items()}
        return {"run": self.token_scores.run, "scales": scales}

    def _detector(self) -> dict[str, Any] | None:
        if self.detector is None:
            return None
        found = self.detector
        return {"name": found.name, "run": found.run, "threshold": found.threshold}


def _keeps(arrays: Sequence[str]) -> str:
    """How much of the attention a store with these arrays keeps."""
    if not {"attention", "attention_fixed"}.isdisjoint(arrays):
        return "full"
    return "edges" if "edge_key" in arrays else "streams"


def _streams(trace: Trace) -> dict[str, str]:
    """Values of each token, by what they are called."""
    return {
        shown: _packed(trace.stream(name).astype("<f4"))
        for shown, name in _STREAMS.items()
        if name in trace.arrays
    }


def _map_values(found: FeatureMap) -> dict[str, Any]:
    return {
        "name": found.name,
        "summary": found.summary,
        "direction": found.direction,
        "rows": list(found.rows),
        "columns": list(found.columns),
        "picks": found.picks,
        "values": _packed(found.values.astype("<f4")),
    }


def _packed(values: Shaped[np.ndarray, "..."]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _short(text: str) -> str:
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"
