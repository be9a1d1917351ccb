"""Metrics of one detector, with intervals over questions: from its out-of-fold scores to its row."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.base import DetectorCard
from graphhalu.evaluation.bootstrap import EvaluationSet, percentile_interval
from graphhalu.evaluation.crossfit import OutOfFold
from graphhalu.evaluation.metrics import auroc, ece, evaluate
from graphhalu.evaluation.protocol import ComparisonData
from graphhalu.evaluation.result import SAMPLE_SCHEMA, DetectorRow, MetricValue, Subgroup
from graphhalu.evaluation.token_metrics import token_metrics
from graphhalu.evaluation.weighted_metrics import METRICS, ratio
from graphhalu.traces.schema import array_spec, stored_shape

RANK_METRICS: Final = {"answer": tuple(METRICS), "token": ("auroc", "auprc")}
"""Rank metrics at each level; of tokens nobody rejects some and keeps the others."""
_SUBGROUP_METRICS: Final = ("auroc", "auprc")
_MOST_SUBGROUPS: Final = 60
"""A field with more values than this is no category."""
_CARD_FIELDS: Final = ("inputs", "is_supervised", "is_control", "is_graph", "source", "reads")

Rows = Mapping[str, Float[np.ndarray, "row"]]
"""Metrics by name: the value of one seed first, and behind it the same on each resample."""


def failed_row(
    data: ComparisonData,
    name: str,
    card: DetectorCard | None,
    failure: str | None,
    settings: Mapping[str, Any],
) -> DetectorRow:
    """The row of a detector without metrics; its card may be unknown."""
    fields: dict[str, Any] = {"inputs": (), "is_supervised": None, "is_control": False}
    if card is not None:
        fields = {field: getattr(card, field) for field in _CARD_FIELDS}
    fields |= {"metrics": {}, "settings": dict(settings), "key": data.key(name, settings)}
    return DetectorRow(detector=name, failure=failure, **fields)


def detector_row(
    data: ComparisonData,
    name: str,
    card: DetectorCard,
    fits: Mapping[int, OutOfFold],
    settings: Mapping[str, Any],
) -> DetectorRow:
    """The row of a detector from its scores of every seed.

    Raises:
        NotEnoughDataError: If the traces with a valid score lack a class, or nearly so.
        UnknownNameError: If the card names an array that does not exist.
    """
    found, labels = list(fits.values()), data.labels
    n_tested = sum(len(np.unique(labels.owner[fit.is_tested])) for fit in found)
    metrics = detector_metrics(data, found)  # first: it refuses scores without both classes
    choices = tuple({"seed": seed, **each} for seed, fit in fits.items() for each in fit.choices)
    aurocs = [auroc(fit.median_filled[fit.is_tested], labels.items[fit.is_tested]) for fit in found]
    return replace(
        failed_row(data, name, card, None, settings),
        metrics=metrics,
        coverage=coverage(found),
        auroc_invalid_at_median=float(np.mean(aurocs)),
        fit_s=float(np.mean([seconds for fit in found for seconds in fit.fit_s])),
        score_ms=1000 * sum(fit.score_s for fit in found) / n_tested,
        n_parameters=found[-1].n_parameters,
        choices=choices if card.level == "token" else (),
        trace_bytes=_trace_bytes(card, data),
    )


def coverage(fits: Sequence[OutOfFold]) -> float:
    """Share of tested items with a valid score, mean over seeds."""
    return float(np.mean([fit.is_valid.sum() / fit.is_tested.sum() for fit in fits]))


def _trace_bytes(card: DetectorCard, data: ComparisonData) -> float | None:
    """Bytes that a detector needs of one trace, mean: arrays as stored, before compression.

    0 for a detector of text or length alone; ``None`` for one that does not say what it reads.

    Raises:
        UnknownNameError: If the card names an array that does not exist.
    """
    if not card.reads:
        return 0.0 if set(card.inputs) <= {"text", "length"} else None
    kept = np.flatnonzero(data.labels.is_valid).tolist()
    sizes = [
        np.dtype(spec.dtype).itemsize * np.prod(stored_shape(spec, trace.shape, trace.record))
        for trace in (data.traces[index] for index in kept)
        for spec in map(array_spec, card.reads)
    ]
    return float(np.sum(sizes) / len(kept))


def detector_metrics(data: ComparisonData, fits: Sequence[OutOfFold]) -> dict[str, MetricValue]:
    """Every metric, mean over seeds; each resample takes the same questions in every seed.

    A metric that is not defined in every seed is left out.

    Raises:
        NotEnoughDataError: If the items with a valid score lack a class, or nearly so.
    """
    names = RANK_METRICS[data.labels.level]
    seeds: list[Rows] = []
    for fit in fits:
        scores, is_valid = fit.values[data.is_kept], fit.is_valid[data.is_kept]
        found = _rank_rows(data.kept_items, names, scores, is_valid)
        found |= _probability_rows(data, fit)
        if data.labels.level == "token":
            tested = np.unique(data.labels.owner[fit.is_tested]).tolist()
            marked = {index: data.marked[index] for index in tested}
            positive = fit.is_predicted_positive
            found |= token_metrics(fit.values, positive, data.labels, marked, data.answers)
        seeds.append(found)
    within = _fold_means(data, fits)
    metrics = _mean_metrics(seeds, data.config.level)
    return {n: replace(m, fold_mean=within.get(n)) if n in names else m for n, m in metrics.items()}


def _rank_rows(
    items: EvaluationSet,
    names: Sequence[str],
    scores: Float[np.ndarray, "item"],
    is_valid: Bool[np.ndarray, "item"],
) -> dict[str, Float[np.ndarray, "row"]]:
    """Rank metrics of one seed over the items that count.

    Raises:
        NotEnoughDataError: If the items that count lack a class.
    """
    found = evaluate(scores[is_valid], items.labels[is_valid])
    drawn = items.resample(names, scores, is_valid)
    return {name: np.append(found[name], drawn[name]) for name in names}


def _probability_rows(data: ComparisonData, fit: OutOfFold) -> Rows:
    """F1, Brier score and calibration error of the items with a probability, if there are any."""
    known, labels = fit.is_valid & np.isfinite(fit.probability), data.labels.items
    if not known.any():
        return {}
    error = np.where(known, fit.probability, 0.0) - labels
    is_positive = fit.is_predicted_positive
    columns = [2.0 * (is_positive & (labels == 1)), is_positive + labels, error**2, np.ones(len(labels))]
    stacked = np.stack(columns, axis=1) * known[:, None]
    twice_hits, positive_or_true, squared, n_items = data.kept_items.sums(stacked[data.is_kept]).T
    return {
        "f1": ratio(twice_hits, positive_or_true),
        "brier": ratio(squared, n_items),
        # resampling would only enlarge it, so it has no interval
        "ece": np.array([ece(fit.probability[known], labels[known])]),
    }


def _mean_metrics(seeds: Sequence[Rows], level: float) -> dict[str, MetricValue]:
    """Means over seeds of the metrics that are defined in every one.

    Raises:
        NotEnoughDataError: If more than half of the resamples lack a class.
    """
    names = [n for n in seeds[0] if all(n in seed and np.isfinite(seed[n][0]) for seed in seeds)]
    return {name: _mean_metric(name, [seed[name] for seed in seeds], level) for name in names}


def _mean_metric(name: str, rows: Sequence[Float[np.ndarray, "row"]], level: float) -> MetricValue:
    of_seed, resampled = [float(row[0]) for row in rows], np.mean(rows, axis=0)[1:]
    low, high, n_used = None, None, 0
    if len(resampled):
        try:
            low, high, n_used = percentile_interval(resampled, level)
        except NotEnoughDataError:
            if name in METRICS:
                raise
            # too few resamples have it: a value without an interval
    sd = float(np.std(of_seed, ddof=1)) if len(of_seed) > 1 else None
    return MetricValue(float(np.mean(of_seed)), low, high, n_used, sd, None)


def _fold_means(data: ComparisonData, fits: Sequence[OutOfFold]) -> dict[str, float]:
    """Mean of each metric over the folds that hold both classes; empty if none does."""
    found = []
    for fit in fits:
        for fold in range(int(fit.fold.max()) + 1):
            here = fit.is_valid & (fit.fold == fold)
            with suppress(NotEnoughDataError):
                found.append(evaluate(fit.raw[here], data.labels.items[here]))
    return {name: float(np.mean([f[name] for f in found])) for name in METRICS} if found else {}


def subgroups(
    data: ComparisonData, scores: Mapping[str, Sequence[Float[np.ndarray, "item"]]]
) -> tuple[Subgroup, ...]:
    """AUROC and AUPRC of every detector within each category; none without categories.

    Args:
        data: The data of the comparison.
        scores: What :func:`median_filled_scores` gives.
    """
    field = data.config.subgroups
    if field is None:
        return ()
    of_trace = np.array([str(trace.record.metadata.get(field, "")) for trace in data.traces])
    names = of_trace[data.labels.owner][data.is_kept]
    found = [name for name in np.unique(names).tolist() if name]
    if not 1 < len(found) <= _MOST_SUBGROUPS:
        return ()
    return tuple(
        _subgroup(data.kept_items, seeds, names == name, detector=detector, field=field, name=name)
        for detector, seeds in scores.items()
        for name in found
    )


def _subgroup(
    items: EvaluationSet,
    seeds: Sequence[Float[np.ndarray, "item"]],
    is_member: Bool[np.ndarray, "item"],
    **names: str,
) -> Subgroup:
    members = [np.isfinite(scores) & is_member for scores in seeds]
    metrics: dict[str, MetricValue] = {}
    with suppress(NotEnoughDataError):
        pairs = zip(seeds, members, strict=True)
        rows = [_rank_rows(items, _SUBGROUP_METRICS, scores, here) for scores, here in pairs]
        metrics = _mean_metrics(rows, items.level)
    return Subgroup(
        **names,
        n_traces=float(np.mean([here.sum() for here in members])),
        prevalence=float(np.mean([items.labels[here].mean() if here.any() else 0.0 for here in members])),
        metrics=metrics,
    )


def sample_table(data: ComparisonData, name: str, fits: Mapping[int, OutOfFold]) -> pa.Table:
    """One row a seed and tested item; a score that is not valid is null."""
    labels, tables = data.labels, [SAMPLE_SCHEMA.empty_table()]
    for seed, fit in fits.items():
        tested = np.flatnonzero(fit.is_tested)
        owner, probability = labels.owner[tested], fit.probability[tested]
        is_token = labels.level == "token"
        columns = {
            "detector": [name] * len(tested),
            "seed": [seed] * len(tested),
            "fold": fit.fold[tested],
            "trace_id": [labels.trace_ids[index] for index in owner.tolist()],
            "group": data.groups[owner],
            "label": labels.items[tested],
            "score": pa.array(fit.values[tested], from_pandas=True),
            "raw_score": pa.array(fit.raw[tested], from_pandas=True),
            "is_valid": fit.is_valid[tested],
            "probability": pa.array(probability, from_pandas=True),
            "is_predicted_positive": pa.array(fit.is_predicted_positive[tested], mask=np.isnan(probability)),
            "token": labels.place_in_trace[tested] if is_token else pa.nulls(len(tested), pa.int64()),
        }
        tables.append(pa.table(columns, schema=SAMPLE_SCHEMA))
    return pa.concat_tables(tables)


def median_filled_scores(
    data: ComparisonData, samples: pa.Table
) -> dict[str, list[Float[np.ndarray, "item"]]]:
    """Scores of all kept items by detector and seed, with the median where there is no valid score.

    NaN where an item was not tested. It reads nothing but the table of samples, so that detectors
    taken over from an earlier run are judged together with new ones.
    """
    labels = data.labels
    starts = labels.owner.searchsorted(np.arange(len(labels.values)))
    first = np.append(0, data.is_kept.cumsum())[starts]
    found: dict[str, list[Float[np.ndarray, "item"]]] = {}
    for name in pc.unique(samples["detector"]).to_pylist():
        mine = samples.filter(pc.field("detector") == name)
        seeds, known = mine["seed"].to_numpy(), mine["score"].to_numpy().astype(np.float64)
        trace = pc.index_in(mine["trace_id"], pa.array(labels.trace_ids)).to_numpy()
        places = first[trace] + pc.fill_null(mine["token"], 0).to_numpy()
        found[name] = []
        for seed in dict.fromkeys(seeds.tolist()):
            here, scores = seeds == seed, np.full(len(data.kept_items.labels), np.nan)
            median = np.median(known[here & np.isfinite(known)])
            scores[places[here]] = np.where(np.isfinite(known[here]), known[here], median)
            found[name].append(scores)
    return found
