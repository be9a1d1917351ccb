"""From per-sample scores of all detectors to the tests and the subgroups of a comparison.

It reads nothing but the table of samples, so that detectors taken over from an earlier run are
judged together with new ones.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from graphhalu.detectors.registry import POSITION_CONTROL
from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import resample_metrics
from graphhalu.evaluation.metrics import evaluate
from graphhalu.evaluation.records import DetectorRow, Subgroup
from graphhalu.evaluation.rows import Compared, metric_value
from graphhalu.evaluation.significance import (
    NAMED_RULE,
    POSITION_RULE,
    RULE,
    Baseline,
    CommonGround,
    Comparison,
    SeedScores,
    compare_to_baseline,
)
from graphhalu.labels.labels import Level

_SUBGROUP_METRICS: Final = ("auroc", "auprc")
_MOST_SUBGROUPS: Final = 60
"""A field with more values than this is no category."""


def seed_scores(compared: Compared, samples: pa.Table) -> dict[str, list[SeedScores]]:
    """Scores by detector and seed; the places count among items of traces with a valid label."""
    labels = compared.labels
    ids, starts = (
        pa.array(labels.trace_ids),
        labels.owner.searchsorted(np.arange(len(labels.values))),
    )
    first = np.append(0, compared.is_kept.cumsum())[starts]
    found: dict[str, list[SeedScores]] = {}
    for name in pc.unique(samples["detector"]).to_pylist():
        mine = samples.filter(pc.field("detector") == name)
        seeds = mine["seed"].to_numpy()
        trace = pc.index_in(mine["trace_id"], pa.array(ids)).to_numpy()
        places = first[trace] + pc.fill_null(mine["token"], 0).to_numpy()
        scores = mine["score"].to_numpy().astype(np.float64)
        filled = [_filled(scores[seeds == seed]) for seed in dict.fromkeys(seeds.tolist())]
        parts = [places[seeds == seed] for seed in dict.fromkeys(seeds.tolist())]
        found[name] = [SeedScores(*pair) for pair in zip(parts, filled, strict=True)]
    return found


def baseline_tests(
    compared: Compared, rows: Sequence[DetectorRow], scores: Mapping[str, Sequence[SeedScores]]
) -> tuple[Baseline | None, tuple[Comparison, ...]]:
    """The baseline, and the test of every other detector against it.

    Without a baseline that has scores, or with fewer than two items of a class, there are none.
    """
    config = compared.config
    baseline = choose_baseline(rows, config.against, level=compared.labels.level)
    if baseline is None or baseline.detector not in scores:
        return baseline, ()
    kept = compared.is_kept
    tested = CommonGround(
        compared.labels.items[kept], compared.item_groups[kept],
        config.n_resamples, config.bootstrap_seed, config.level, config.margin,
    )  # fmt: skip
    done = {row.detector: scores[row.detector] for row in rows if row.failure is None}
    try:
        return baseline, tuple(compare_to_baseline(done, baseline.detector, tested))
    except NotEnoughDataError:
        return baseline, ()


def choose_baseline(
    rows: Sequence[DetectorRow], against: str | None = None, *, level: Level = "answer"
) -> Baseline | None:
    """The named detector, or the strongest control or detector that is no graph network.

    Of token detectors it is the position control, where that was run.
    """
    if against is not None:
        return Baseline(against, NAMED_RULE)
    if level == "token" and any(row.detector == POSITION_CONTROL for row in rows):
        return Baseline(POSITION_CONTROL, POSITION_RULE)
    candidates = [
        row for row in rows if row.failure is None and (row.is_control or not row.is_graph)
    ]
    if not candidates:
        return None
    best = max(candidates, key=lambda row: row.auroc_invalid_at_median or 0.0)
    return Baseline(best.detector, RULE)


def subgroups(
    compared: Compared, scores: Mapping[str, Sequence[SeedScores]]
) -> tuple[Subgroup, ...]:
    """AUROC and AUPRC of every detector within each category; none without categories.

    Traces without a valid score stand at the median of the detector's others.
    """
    field = compared.config.subgroups
    if field is None:
        return ()
    of_trace = np.array([str(trace.record.metadata.get(field, "")) for trace in compared.traces])
    names = of_trace[compared.labels.owner][compared.is_kept]
    found = [name for name in np.unique(names).tolist() if name]
    if not 1 < len(found) <= _MOST_SUBGROUPS:
        return ()
    return tuple(
        _subgroup(compared, detector, seeds, (field, name), np.flatnonzero(names == name))
        for detector, seeds in scores.items()
        for name in found
    )


def _subgroup(
    compared: Compared,
    detector: str,
    seeds: Sequence[SeedScores],
    named: tuple[str, str],
    members: np.ndarray,
) -> Subgroup:
    kept, config = compared.is_kept, compared.config
    labels, groups = compared.labels.items[kept], compared.item_groups[kept]
    is_member = np.zeros(len(labels), dtype=bool)
    is_member[members] = True
    values, resampled, sizes, shares = [], [], [], []
    for places, scores in seeds:
        here = is_member[places]
        sizes.append(int(here.sum()))
        shares.append(float(labels[places[here]].mean()) if here.any() else 0.0)
        spread, is_tested = np.full(len(labels), np.nan), np.zeros(len(labels), dtype=bool)
        spread[places[here]], is_tested[places[here]] = scores[here], True
        try:
            values.append(evaluate(scores[here], labels[places[here]]))
        except NotEnoughDataError:
            continue
        resampled.append(
            resample_metrics(
                _SUBGROUP_METRICS,
                spread,
                labels,
                groups,
                is_valid=is_tested,
                n_resamples=config.n_resamples,
                seed=config.bootstrap_seed,
            )
        )
    metrics = {}
    if len(values) == len(seeds):
        try:
            metrics = {
                name: metric_value(
                    [v[name] for v in values], [r[name] for r in resampled], config.level
                )
                for name in _SUBGROUP_METRICS
            }
        except NotEnoughDataError:
            metrics = {}
    return Subgroup(detector, *named, float(np.mean(sizes)), float(np.mean(shares)), metrics)


def _filled(scores: np.ndarray) -> np.ndarray:
    """Scores with the median of the valid ones where there is none."""
    return np.where(np.isfinite(scores), scores, np.median(scores[np.isfinite(scores)]))
