"""A store as it is shown: what a user asks to see, as plain JSON values and lines of base64."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float32, Shaped

from graphhalu.core.axes import SPAN_NAMES
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.features.block import TraceBlock, block_of
from graphhalu.features.matrix import require_level
from graphhalu.features.registry import FeatureSpec, as_specs, available_features
from graphhalu.labels.labels import MEANINGS
from graphhalu.report.tables import cut
from graphhalu.report.theme import RISING
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace, attention_kept
from graphhalu.viewer.heads import HIDDEN_SINKS, fitting_edges, layer_text, most_edges, weight_format
from graphhalu.viewer.scores import (
    DetectorScores,
    ShownTokenScores,
    StoredLabels,
    detector_scores,
    held_out_traces,
    shown_labels,
    shown_token_scores,
)
from graphhalu.viewer.text import hallucinated_tokens, piece_starts, store_tokenizer, token_texts

FORMAT: Final = "graphhalu-view"
FORMAT_VERSION: Final = 1

_SHORT: Final = 160
_STREAMS: Final = {
    "log-probability": "token_logprob",
    "entropy": "token_entropy",
    "top-1 margin": "top1_margin",
}


@dataclass(frozen=True)
class ViewRequest:
    """What is asked for.

    Attributes:
        trace_ids: Traces, or questions, whose best beam is meant; empty for the first ones, with a
            detector those that it was not trained on first.
        limit: How many are taken where none is named; ``None`` for all.
        labeller: Whose labels are shown; ``None`` for none.
        run: Folder of a trained detector; ``None`` for no scores.
        token_scores: Folder of a comparison of token detectors, whose out-of-fold scores colour
            the answer; ``None`` for none.
        features: What is mapped; ``None`` for all that the store gives without whole matrices.
        n_edges: Edges of a row; ``None`` for as many as make a page of a good size.
        tokenizer: Alias, hub id or folder, where the store's model cannot be had by its name.
        detector_class: ``module:Class`` of a detector that is not registered.
    """

    trace_ids: tuple[str, ...] = ()
    limit: int | None = None
    labeller: str | None = "match"
    run: Path | None = None
    token_scores: Path | None = None
    features: tuple[str, ...] | None = None
    n_edges: int | None = None
    tokenizer: str | None = None
    detector_class: str | None = None


@dataclass(frozen=True)
class View:
    """A store as it is shown.

    Attributes:
        store: All traces that the page lists.
        features: What is mapped.
        n_edges: Edges of a row, first tokens and own token aside.
        tokenizer: Of the model, or ``None`` where it cannot be had.
        labels: In the order of the store, and whether they are stored; ``None`` for no labels.
        detector: What it says, in the order of the store; ``None`` for no detector.
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
        shape, labeller, tokens = self.store.shape, None, self.token_scores
        if self.labels is not None:
            labels, is_stored = self.labels
            labeller = {"name": labels.labeller, "meaning": labels.meaning, "is_stored": is_stored}
            labeller["words"] = MEANINGS[labels.meaning]
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "is_served": is_served,
            "title": self.title,
            "notes": list(self.notes),
            "layers": list(self.layers),
            "n_heads": shape.n_heads,
            "n_kv_heads": shape.n_kv_heads,
            "windows": list(shape.layer_windows),
            "weights": weight_format(self.store.arrays),
            "keeps": attention_kept(self.store.arrays),
            "hidden_sinks": list(HIDDEN_SINKS),
            "span_names": list(SPAN_NAMES),
            "rising": list(RISING),
            "labeller": labeller,
            "detector": self.detector and self.detector[0],
            "token_scores": tokens
            and {"run": tokens.run, "scales": {name: list(ends) for name, ends in tokens.scales.items()}},
            "answers": [self._entry(index) for index in range(len(self.store))],
        }

    def trace(self, index: int) -> dict[str, Any]:
        """Everything of one answer but the weights."""
        trace = self.store[index]
        record, texts = trace.record, token_texts(trace, self.tokenizer)
        maps, numbers = feature_maps(trace, self.features)
        is_hallucinated = hallucinated_tokens(trace)
        streams = {shown: trace.stream(name) for shown, name in _STREAMS.items() if name in trace.arrays}
        streams |= self.token_scores.of(trace) if self.token_scores is not None else {}
        return {
            "texts": list(texts),
            "spans": _packed(trace.span_code),
            "prompt_length": record.prompt_length,
            "row_start": record.row_start,
            "n_edges": min(self.n_edges, most_edges(trace)),
            "pieces": list(_pieces(trace, texts)),
            "question": record.question,
            "gold": list(record.answers),
            "answer": record.answer,
            "is_on_policy": record.is_on_policy,
            "is_finished": record.is_finished,
            "streams": {name: _packed(values.astype("<f4")) for name, values in streams.items()},
            "hallucinated": None if is_hallucinated is None else _packed(is_hallucinated),
            "maps": [{**each, "values": _packed(each["values"].astype("<f4"))} for each in maps],
            "numbers": numbers,
        }

    def layer(self, index: int, layer: int) -> str:
        """The weights of one model layer of an answer, one line of base64 a head."""
        trace = self.store[index]
        return layer_text(trace, layer, self.n_edges, _pieces(trace, token_texts(trace, self.tokenizer)))

    def _entry(self, index: int) -> dict[str, Any]:
        record = self.store.records[index]
        entry: dict[str, Any] = {
            "id": record.trace_id,
            "question": cut(record.question, _SHORT),
            "answer": cut(record.answer, _SHORT),
            "length": record.length,
            "label": None,
            "reason": "",
            "score": None,
            "probability": None,
            "is_tested": None,
        }
        if self.labels is not None:
            labels = self.labels[0]
            entry["label"] = int(labels.values[index]) if labels.is_valid[index] else None
            entry["reason"] = labels.reasons[index]
        if self.detector is not None:
            entry |= self.detector[1][index]
        return entry


def make_view(
    store: TraceStore, request: ViewRequest, on_note: Callable[[str], None] = lambda _: None
) -> View:
    """Everything that a page of a store needs.

    Args:
        store: The traces.
        request: What is asked for.
        on_note: Told what could not be had, in one line each.

    Raises:
        NotEnoughDataError: If the store is empty.
        TraceNotFoundError: If a trace is named that is not there.
        UsageError: If a feature or the number of edges cannot be used.
        DetectorMismatchError: If the detector belongs to another model or prompt.
    """
    chosen, notes = _chosen(store, request), list[str]()
    features = _features(store, request.features)
    n_edges = _n_edges(chosen, request)
    tokenizer = store_tokenizer(store.configuration, request.tokenizer, notes.append)
    for text in notes:
        on_note(text)
    labels = detector = tokens = None
    if request.labeller is not None:
        labels = shown_labels(chosen, request.labeller)
    if request.run is not None:
        detector = detector_scores(request.run, chosen, request.detector_class)
    if request.token_scores is not None:
        tokens = shown_token_scores(request.token_scores, chosen)
    return View(chosen, features, n_edges, tokenizer, labels, detector, tokens, tuple(notes))


def _chosen(store: TraceStore, request: ViewRequest) -> TraceStore:
    if len(store) == 0:
        raise NotEnoughDataError(f"there is no trace to show in {store.name}\n  Extract some first")
    if request.trace_ids:
        index = {trace_id: place for place, trace_id in enumerate(store.trace_ids)}
        wanted = dict.fromkeys(store.trace(name).trace_id for name in request.trace_ids)
        return store.select([index[name] for name in wanted])
    if request.run is not None and (held_out := held_out_traces(request.run)):
        order = sorted(range(len(store)), key=lambda place: store.trace_ids[place] not in held_out)
        store = store.select(order)
    return store if request.limit is None else store[: request.limit]


def _features(store: TraceStore, names: Sequence[str] | None) -> tuple[FeatureSpec, ...]:
    if names is None:
        return default_features(store.arrays)
    specs = require_level(as_specs(names), "trace")
    for spec in specs:
        axes = [axis for axis in spec.feature.axes if axis not in spec.reduction]
        if len(axes) > MOST_AXES:
            raise UsageError(
                f"feature {str(spec)!r} has the axes {', '.join(axes)}; a map shows up to "
                f"{MOST_AXES}\n  Reduce one, as {spec.name}[{axes[-1]}=mean]"
            )
    return specs


def _n_edges(store: TraceStore, request: ViewRequest) -> int:
    if request.n_edges is not None:
        if request.n_edges < 1:
            raise UsageError(f"expected at least one edge a row, got {request.n_edges}")
        return request.n_edges
    # a server sends one layer at a time
    is_page = request.trace_ids or request.limit is not None
    return fitting_edges(store.shape, store.records if is_page else ())


def _pieces(trace: Trace, texts: Sequence[str]) -> tuple[int, ...]:
    return piece_starts(texts, trace.span_code) if trace.has_attention else ()


def _packed(values: Shaped[np.ndarray, "..."]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


MOST_SHEETS: Final = 6
"""Maps that a feature with a third axis gives, as one for each of the six spans."""

MOST_AXES: Final = 3

Picks = Literal["head", "kv_head", "layer", "nothing"]
"""What a cell of a map chooses: its head, the heads that share its keys, its layer, nothing."""


def default_features(arrays: Sequence[str]) -> tuple[FeatureSpec, ...]:
    """Every feature of an answer that these arrays give without reading whole matrices.

    Features across beams are left out: one answer alone has no others beside it.
    """
    names = [name for name in available_features(arrays) if not name.startswith("beam_")]
    specs = [FeatureSpec(name) for name in names]
    return tuple(spec for spec in specs if len(spec.feature.axes) <= MOST_AXES)


def feature_maps(
    trace: Trace, specs: Sequence[FeatureSpec]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The features of one answer, as a page gets them; those without any value are left out.

    Returns:
        Maps over two axes: ``name`` (behind a point the entry of a third axis), ``summary``,
        ``direction``, the names of ``rows`` and ``columns``, ``values`` with NaN for missing ones,
        and what a cell ``picks``. And features that are one number: ``name``, ``summary``, ``value``.

    Raises:
        UsageError: If a feature has one value a row of attention.
        TraceNotFoundError: If the trace does not keep what a feature reads.
    """
    block = block_of([trace])
    found = [each for spec in specs for each in _of_feature(spec, block)]
    return [each for each in found if "rows" in each], [each for each in found if "value" in each]


def _of_feature(spec: FeatureSpec, block: TraceBlock) -> list[dict[str, Any]]:
    feature, columns = spec.feature, spec.compute(block)
    axes = [axis for axis in feature.axes if axis not in spec.reduction]
    values = columns.values[0]
    if not np.isfinite(values).any():
        return []
    if not axes:
        return [{"name": str(spec), "summary": feature.summary, "value": float(values[0])}]
    # names of the entries of each axis, in order, from those of the columns
    parts = [name.split(".")[-len(axes) :] for name in columns.columns]
    rows, names, others = [*(list(dict.fromkeys(axis)) for axis in zip(*parts, strict=True)), [""], [""]][:3]
    sheets = values.reshape(len(rows), len(names), -1)
    told = {"summary": feature.summary, "direction": feature.direction, "rows": rows, "columns": names}
    return [
        {
            "name": f"{spec}.{other}" if other else str(spec),
            **told,
            "picks": _picks(axes),
            "values": np.ascontiguousarray(sheets[..., place]),
        }
        for place, other in enumerate(others[:MOST_SHEETS])
        if _says_something(sheets[..., place], is_entry=bool(other))
    ]


def _says_something(sheet: Float32[np.ndarray, "row column"], *, is_entry: bool) -> bool:
    """Whether there is a value; an entry that is 0 throughout, as an absent span, has none."""
    there = sheet[np.isfinite(sheet)]
    return bool(there.any() if is_entry else there.size)


def _picks(axes: Sequence[str]) -> Picks:
    if axes[0] != "layer":
        return "nothing"
    if len(axes) > 1 and axes[1] in ("head", "kv_head"):
        return "head" if axes[1] == "head" else "kv_head"
    return "layer"
