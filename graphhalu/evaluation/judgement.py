"""From per-sample scores of all detectors to the tests and the subgroups of a comparison.

It reads nothing but the table of samples, so that detectors taken over from an earlier run are
judged together with new ones.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.registry import POSITION_CONTROL
from graphhalu.evaluation.records import DetectorRow, MetricValue, Subgroup
from graphhalu.evaluation.rows import Compared, rank_metrics
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
    starts = labels.owner.searchsorted(np.arange(len(labels.values)))
    first = np.append(0, compared.is_kept.cumsum())[starts]
    found: dict[str, list[SeedScores]] = {}
    for name in pc.unique(samples["detector"]).to_pylist():
        mine = samples.filter(pc.field("detector") == name)
        seeds, scores = mine["seed"].to_numpy(), mine["score"].to_numpy().astype(np.float64)
        trace = pc.index_in(mine["trace_id"], pa.array(labels.trace_ids)).to_numpy()
        places = first[trace] + pc.fill_null(mine["token"], 0).to_numpy()
        found[name] = [
            SeedScores(places[seeds == seed], _filled(scores[seeds == seed]))
            for seed in dict.fromkeys(seeds.tolist())
        ]
    return found


def baseline_tests(
    compared: Compared, rows: Sequence[DetectorRow], scores: Mapping[str, Sequence[SeedScores]]
) -> tuple[Baseline | None, tuple[Comparison, ...]]:
    """The baseline, and the test of every other detector against it.

    Without a baseline that has scores, or with fewer than two items of a class, there are none.
    """
    baseline = choose_baseline(rows, compared.config.against, level=compared.labels.level)
    if baseline is None or baseline.detector not in scores:
        return baseline, ()
    done = {row.detector: scores[row.detector] for row in rows if row.failure is None}
    try:
        return baseline, tuple(compare_to_baseline(done, baseline.detector, compared.ground))
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
    candidates = [row for row in rows if row.failure is None and (row.is_control or not row.is_graph)]
    if not candidates:
        return None
    best = max(candidates, key=lambda row: row.auroc_invalid_at_median or 0.0)
    return Baseline(best.detector, RULE)


def subgroups(compared: Compared, scores: Mapping[str, Sequence[SeedScores]]) -> tuple[Subgroup, ...]:
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
        _subgroup(compared.ground, seeds, names == name, detector=detector, field=field, name=name)
        for detector, seeds in scores.items()
        for name in found
    )


def _subgroup(
    ground: CommonGround, seeds: Sequence[SeedScores], is_member: Bool[np.ndarray, "item"], **names: str
) -> Subgroup:
    spread = [seed.spread(len(ground.labels)) for seed in seeds]
    scored = [(scores, is_tested & is_member) for scores, is_tested in spread]
    shares = [ground.labels[here].mean() if here.any() else 0.0 for _, here in scored]
    metrics: dict[str, MetricValue] = {}
    with suppress(NotEnoughDataError):
        metrics = rank_metrics(ground, _SUBGROUP_METRICS, scored)
    return Subgroup(
        **names,
        n_traces=float(np.mean([here.sum() for _, here in scored])),
        prevalence=float(np.mean(shares)),
        metrics=metrics,
    )


def _filled(scores: np.ndarray) -> np.ndarray:
    """Scores with the median of the valid ones where there is none."""
    return np.where(np.isfinite(scores), scores, np.median(scores[np.isfinite(scores)]))
