"""From the out-of-fold scores of a detector to its row and its per-sample scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float, Int, Shaped

from graphhalu.core.config import config_hash
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import json_ready
from graphhalu.core.provenance import installed_version
from graphhalu.core.splits import Split
from graphhalu.detectors.base import DetectorCard
from graphhalu.evaluation.bootstrap import percentile_interval
from graphhalu.evaluation.crossfit import OutOfFold
from graphhalu.evaluation.metrics import auroc, ece, evaluate
from graphhalu.evaluation.records import SAMPLE_SCHEMA, DetectorRow, MetricValue
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.significance import CommonGround
from graphhalu.evaluation.token_metrics import TOKEN_METRICS, token_metrics
from graphhalu.evaluation.token_spans import MarkedAnswer, marked_answer
from graphhalu.evaluation.weighted_metrics import METRICS, ratio
from graphhalu.labels.labels import Labels
from graphhalu.traces.schema import array_spec, stored_shape
from graphhalu.traces.trace import Trace

CALL_METRICS: Final = ("f1", "brier", "ece")
"""Metrics of calls and probabilities, which the validation side decides."""
RANK_METRICS: Final = {"answer": tuple(METRICS), "token": ("auroc", "auprc")}
"""Metrics of ranks at each level; of tokens nobody rejects some and keeps the others."""


@dataclass(frozen=True)
class Compared:
    """What all detectors of a comparison share; folds are by seed, groups by trace."""

    traces: Sequence[Trace]
    labels: Labels
    groups: Shaped[np.ndarray, "trace"]
    folds: Mapping[int, list[Split]]
    config: CompareConfig

    @cached_property
    def item_groups(self) -> Shaped[np.ndarray, "item"]:
        """Question group of each item."""
        return self.groups[self.labels.owner]

    @cached_property
    def is_kept(self) -> Bool[np.ndarray, "item"]:
        """Items of traces with a valid label."""
        return self.labels.is_valid[self.labels.owner]

    @cached_property
    def ground(self) -> CommonGround:
        """The items of traces with a valid label, on which all detectors are evaluated."""
        return self._ground(self.labels.items[self.is_kept], self.item_groups[self.is_kept])

    @cached_property
    def answers(self) -> CommonGround:
        """All traces, for metrics of token detectors by answer."""
        return self._ground(self.labels.values, self.groups)

    def _ground(self, labels: Int[np.ndarray, "item"], groups: Shaped[np.ndarray, "item"]) -> CommonGround:
        known = self.config
        draws = {"n_resamples": known.n_resamples, "seed": known.bootstrap_seed}
        return CommonGround(labels, groups, level=known.level, margin=known.margin, **draws)

    @cached_property
    def marked(self) -> list[MarkedAnswer]:
        """Characters of the answers, for detectors of tokens."""
        return [marked_answer(trace.record) for trace in self.traces]

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What decides the figures of a detector beside its own code and settings."""
        labels = [self.labels.items.tolist(), self.labels.is_valid.tolist()]
        return {
            "graphhalu": installed_version("graphhalu"),
            "config": {**self.config.deciding(), "seeds": list(self.config.seeds)},
            "traces": config_hash({"ids": self.labels.trace_ids}),
            "labels": config_hash({"labels": labels}),
            "groups": config_hash({"groups": self.groups.tolist()}),
        }

    def key(self, name: str, settings: Mapping[str, Any]) -> str:
        """Identity of one finished detector."""
        whole = {**self.identity, "detector": name, "settings": json_ready(settings)}
        return config_hash(whole)


def failed_row(
    name: str,
    card: DetectorCard | None,
    failure: str | None,
    *,
    settings: Mapping[str, Any] | None = None,
    key: str = "",
) -> DetectorRow:
    """The row of a detector without metrics; its card may be unknown."""
    fields: dict[str, Any] = {"inputs": (), "is_supervised": None, "is_control": False}
    if card is not None:
        known = ("inputs", "is_supervised", "is_control", "is_graph", "source", "reads")
        fields = {field: getattr(card, field) for field in known}
    fields |= {"metrics": {}, "settings": dict(settings or {}), "key": key}
    return DetectorRow(detector=name, failure=failure, **fields)


def detector_row(
    compared: Compared,
    name: str,
    card: DetectorCard,
    fits: Mapping[int, OutOfFold],
    *,
    settings: Mapping[str, Any] | None = None,
) -> DetectorRow:
    """The row of a detector from its scores of every seed.

    Raises:
        NotEnoughDataError: If the traces with a valid score lack a class, or nearly so.
        UnknownNameError: If the card names an array that does not exist.
    """
    found = list(fits.values())
    owner = compared.labels.owner
    n_tested = sum(len(np.unique(owner[fit.is_tested])) for fit in found)
    row = failed_row(name, card, None, settings=settings, key=compared.key(name, settings or {}))
    return replace(
        row,
        metrics=fit_metrics(compared, found),
        coverage=coverage(found),
        auroc_invalid_at_median=float(np.mean([_auroc_at_median(compared, fit) for fit in found])),
        fit_s=float(np.mean([seconds for fit in found for seconds in fit.fit_s])),
        score_ms=1000 * sum(fit.score_s for fit in found) / n_tested,
        n_parameters=found[-1].n_parameters,
        choices=_choices(fits) if card.level == "token" else (),
        trace_bytes=trace_bytes(card, compared.traces, compared.labels.is_valid),
    )


def coverage(fits: Sequence[OutOfFold]) -> float:
    """Share of tested items with a valid score, mean over seeds."""
    return float(np.mean([fit.is_valid.sum() / fit.is_tested.sum() for fit in fits]))


def _choices(fits: Mapping[int, OutOfFold]) -> tuple[dict[str, Any], ...]:
    return tuple({"seed": seed, **each} for seed, fit in fits.items() for each in fit.choices)


def trace_bytes(
    card: DetectorCard, traces: Sequence[Trace], is_kept: Bool[np.ndarray, "trace"]
) -> float | None:
    """Bytes that a detector needs of one trace, mean: arrays as stored, before compression.

    0 for a detector of text or length alone; ``None`` for one that does not say what it reads.

    Raises:
        UnknownNameError: If the card names an array that does not exist.
    """
    if not card.reads:
        return 0.0 if set(card.inputs) <= {"text", "length"} else None
    specs = [array_spec(name) for name in card.reads]
    sizes = [
        np.dtype(spec.dtype).itemsize * np.prod(stored_shape(spec, trace.shape, trace.record))
        for trace in (traces[int(index)] for index in np.flatnonzero(is_kept))
        for spec in specs
    ]
    return float(np.sum(sizes) / is_kept.sum())


def fit_metrics(compared: Compared, fits: Sequence[OutOfFold]) -> dict[str, MetricValue]:
    """Every metric, mean over seeds; each resample takes the same questions in every seed.

    Raises:
        NotEnoughDataError: If the items with a valid score lack a class, or nearly so.
    """
    kept, within = compared.is_kept, _fold_means(compared, fits)
    scored = [(fit.values[kept], fit.is_valid[kept]) for fit in fits]
    ranked = rank_metrics(compared.ground, RANK_METRICS[compared.labels.level], scored)
    metrics = {name: replace(each, fold_mean=within.get(name)) for name, each in ranked.items()}
    if all((fit.is_valid & np.isfinite(fit.probability)).any() for fit in fits):
        metrics |= _call_metrics(compared, fits)
    if compared.labels.level == "token":
        metrics |= _token_metrics(compared, fits)
    return metrics


def rank_metrics(
    ground: CommonGround,
    names: Sequence[str],
    scored: Sequence[tuple[Float[np.ndarray, "item"], Bool[np.ndarray, "item"]]],
) -> dict[str, MetricValue]:
    """Metrics of ranks, mean over seeds.

    Args:
        ground: What detectors are evaluated on.
        names: Of :data:`graphhalu.evaluation.weighted_metrics.METRICS`.
        scored: For each seed the scores of all items, and which of them count.

    Raises:
        NotEnoughDataError: If the items that count lack a class, or nearly so.
    """
    seeds = []
    for scores, is_valid in scored:
        found = evaluate(scores[is_valid], ground.labels[is_valid])
        drawn = ground.resample(names, scores, is_valid)
        seeds.append({name: np.append(found[name], drawn[name]) for name in names})
    return {name: metric_value([seed[name] for seed in seeds], ground.level) for name in names}


def _token_metrics(compared: Compared, fits: Sequence[OutOfFold]) -> dict[str, MetricValue]:
    """Metrics by answer and by span; those that are not defined in every seed are left out."""
    level = compared.config.level
    seeds = [token_metrics(fit, compared.labels, compared.marked, compared.answers) for fit in fits]
    found = {}
    for name in TOKEN_METRICS:
        rows = [seed[name] for seed in seeds]
        if not np.isfinite([row[0] for row in rows]).all():
            continue
        try:
            found[name] = metric_value(rows, level)
        except NotEnoughDataError:  # too few resamples have it: a value without an interval
            found[name] = metric_value([row[:1] for row in rows], level)
    return found


def metric_value(rows: Sequence[Float[np.ndarray, "row"]], level: float) -> MetricValue:
    """Means over seeds, of each of which the first row is the value and the others its resamples.

    There is no interval where nothing was resampled.
    """
    of_seed, resampled = [float(row[0]) for row in rows], np.mean(rows, axis=0)[1:]
    low, high, n_used = percentile_interval(resampled, level) if len(resampled) else (None, None, 0)
    sd = float(np.std(of_seed, ddof=1)) if len(of_seed) > 1 else None
    return MetricValue(float(np.mean(of_seed)), low, high, n_used, sd, None)


def _call_metrics(compared: Compared, fits: Sequence[OutOfFold]) -> dict[str, MetricValue]:
    """F1, Brier score and calibration error of the items with a probability."""
    labels, seeds = compared.labels.items, []
    for fit in fits:
        known = fit.is_valid & np.isfinite(fit.probability)
        columns = _call_columns(fit, labels, known)[compared.is_kept]
        twice_hits, called_or_true, squared, n_items = compared.ground.sums(columns).T
        seeds.append(
            {
                "f1": ratio(twice_hits, called_or_true),
                "brier": ratio(squared, n_items),
                "ece": np.array([ece(fit.probability[known], labels[known])]),
            }
        )
    return {
        name: metric_value([seed[name] for seed in seeds], compared.config.level)
        for name in CALL_METRICS
        if np.isfinite([seed[name][0] for seed in seeds]).all()
    }


def _call_columns(
    fit: OutOfFold, labels: Shaped[np.ndarray, "item"], known: Bool[np.ndarray, "item"]
) -> Float[np.ndarray, "item column"]:
    """Twice the hits, calls plus hallucinated ones, squared errors, and one for each item."""
    error = np.where(known, fit.probability, 0.0) - labels
    is_positive = fit.is_predicted_positive
    columns = [2.0 * (is_positive & (labels == 1)), is_positive + labels, error**2]
    return np.stack([*columns, np.ones(len(labels))], axis=1) * known[:, None]


def _fold_means(compared: Compared, fits: Sequence[OutOfFold]) -> dict[str, float]:
    """Mean of each metric over the folds that hold both classes; empty if none does."""
    found = []
    for fit in fits:
        for fold in range(int(fit.fold.max()) + 1):
            here = fit.is_valid & (fit.fold == fold)
            try:
                found.append(evaluate(fit.raw[here], compared.labels.items[here]))
            except NotEnoughDataError:
                continue
    return {name: float(np.mean([f[name] for f in found])) for name in METRICS} if found else {}


def _auroc_at_median(compared: Compared, fit: OutOfFold) -> float:
    """AUROC of all tested items, those without a score put in the middle of the others."""
    scores = np.where(fit.is_valid, fit.values, np.median(fit.values[fit.is_valid]))
    return auroc(scores[fit.is_tested], compared.labels.items[fit.is_tested])


def sample_table(compared: Compared, name: str, fits: Mapping[int, OutOfFold]) -> pa.Table:
    """One line a seed and tested item; a score that is not valid is null."""
    labels, tables = compared.labels, [SAMPLE_SCHEMA.empty_table()]
    for seed, fit in fits.items():
        tested = np.flatnonzero(fit.is_tested)
        is_positive, owner = fit.is_predicted_positive[tested], labels.owner[tested]
        columns = {
            "detector": [name] * len(tested),
            "seed": [seed] * len(tested),
            "fold": fit.fold[tested],
            "trace_id": [labels.trace_ids[index] for index in owner.tolist()],
            "group": compared.groups[owner],
            "label": labels.items[tested],
            "score": _nullable(fit.values[tested]),
            "raw_score": _nullable(fit.raw[tested]),
            "is_valid": fit.is_valid[tested],
            "probability": _nullable(fit.probability[tested]),
            "is_predicted_positive": pa.array(is_positive, mask=np.isnan(fit.probability[tested])),
            "token": pa.nulls(len(tested), pa.int64()),
        }
        if labels.level == "token":
            columns["token"] = labels.place_in_trace[tested]
        tables.append(pa.table(columns, schema=SAMPLE_SCHEMA))
    return pa.concat_tables(tables)


def _nullable(values: Float[np.ndarray, "item"]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))
