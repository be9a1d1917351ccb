"""What a user asks to see, as a view: which answers, which features, how many edges."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.features.matrix import require_level
from graphhalu.features.registry import FeatureSpec, as_specs
from graphhalu.traces.store import TraceStore
from graphhalu.viewer.maps import MOST_AXES, default_features
from graphhalu.viewer.page import MOST_EDGES, fitting_edges
from graphhalu.viewer.payload import View
from graphhalu.viewer.token_scores import shown_token_scores
from graphhalu.viewer.tokens import store_tokenizer
from graphhalu.viewer.verdicts import detector_scores, shown_labels


@dataclass(frozen=True)
class ViewRequest:
    """What is asked for.

    Attributes:
        trace_ids: Traces, or questions, whose best beam is meant; empty for the first ones.
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
    chosen = _chosen(store, request)
    notes: list[str] = []

    def note(text: str) -> None:
        notes.append(text)
        on_note(text)

    features = _features(store, request.features)
    return View(
        store=chosen,
        features=features,
        n_edges=_n_edges(chosen, request),
        tokenizer=store_tokenizer(store.configuration, request.tokenizer, note),
        labels=None if request.labeller is None else shown_labels(chosen, request.labeller),
        detector=None
        if request.run is None
        else detector_scores(request.run, chosen, request.detector_class),
        token_scores=None
        if request.token_scores is None
        else shown_token_scores(request.token_scores, chosen),
        notes=tuple(notes),
    )


def _chosen(store: TraceStore, request: ViewRequest) -> TraceStore:
    if len(store) == 0:
        message = f"there is no trace to show in {store.name}\n  Extract some first"
        raise NotEnoughDataError(message)
    if request.trace_ids:
        index = {trace_id: place for place, trace_id in enumerate(store.trace_ids)}
        wanted = dict.fromkeys(store.trace(name).trace_id for name in request.trace_ids)
        return store.select([index[name] for name in wanted])
    return store if request.limit is None else store[: request.limit]


def _features(store: TraceStore, names: Sequence[str] | None) -> tuple[FeatureSpec, ...]:
    if names is None:
        return default_features(store.arrays)
    specs = require_level(as_specs(names), "trace")
    for spec in specs:
        axes = [axis for axis in spec.feature.axes if axis not in spec.reduction]
        if len(axes) > MOST_AXES:
            message = (
                f"feature {str(spec)!r} has the axes {', '.join(axes)}; a map shows up to "
                f"{MOST_AXES}\n  Reduce one, as {spec.name}[{axes[-1]}=mean]"
            )
            raise UsageError(message)
    return specs


def _n_edges(store: TraceStore, request: ViewRequest) -> int:
    if request.n_edges is not None:
        if request.n_edges < 1:
            message = f"expected at least one edge a row, got {request.n_edges}"
            raise UsageError(message)
        return request.n_edges
    # a server sends one layer at a time
    is_page = request.trace_ids or request.limit is not None
    return fitting_edges(store.shape, store.records) if is_page else MOST_EDGES
