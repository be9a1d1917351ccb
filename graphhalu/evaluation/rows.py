"""From the out-of-fold scores of a detector to its row and its per-sample scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Shaped
from pydantic import Field, field_validator

from graphhalu.config import Config
from graphhalu.detectors.base import DetectorCard
from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import percentile_interval, resample_metrics
from graphhalu.evaluation.crossfit import OutOfFold
from graphhalu.evaluation.metrics import METRICS, auroc, evaluate
from graphhalu.evaluation.result import SAMPLE_SCHEMA, DetectorRow, MetricValue
from graphhalu.labels.labels import Labels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace


class CompareConfig(Config):
    """Settings of a comparison."""

    n_folds: Annotated[int, Field(ge=3, le=50)] = 5
    """Folds of the cross-fit: one tests, one validates, the rest train."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of the folds and of detectors; metrics are means over seeds."""
    quick: bool = False
    """One grouped 60 / 20 / 20 split a seed in place of folds: a fifth of the traces is tested."""
    n_resamples: Annotated[int, Field(ge=100, le=1_000_000)] = 2000
    """Resamples of the question-level bootstrap."""
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Coverage of the intervals."""
    bootstrap_seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the resamples; all detectors see the same ones."""

    @field_validator("seeds")
    @classmethod
    def _differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            message = "seeds must differ: the same one twice would hide how results scatter"
            raise ValueError(message)
        return seeds


@dataclass(frozen=True)
class Compared:
    """What all detectors of a comparison share; folds are by seed."""

    traces: Sequence[Trace]
    labels: Labels
    groups: Shaped[np.ndarray, "trace"]
    folds: Mapping[int, list[Split]]
    config: CompareConfig


def failed_row(name: str, card: DetectorCard | None, failure: str) -> DetectorRow:
    """The row of a detector without metrics; its card may be unknown."""
    return DetectorRow(
        detector=name,
        inputs=card.inputs if card else (),
        is_supervised=card.is_supervised if card else None,
        is_control=card.is_control if card else False,
        failure=failure,
        metrics={},
    )


def detector_row(
    compared: Compared, name: str, card: DetectorCard, fits: Mapping[int, OutOfFold]
) -> DetectorRow:
    """The row of a detector from its scores of every seed.

    Raises:
        NotEnoughDataError: If the traces with a valid score lack a class, or nearly so.
    """
    found = list(fits.values())
    return DetectorRow(
        detector=name,
        inputs=card.inputs,
        is_supervised=card.is_supervised,
        is_control=card.is_control,
        failure=None,
        metrics=_metrics(compared, found),
        coverage=float(np.mean([fit.is_valid.sum() / fit.is_tested.sum() for fit in found])),
        auroc_invalid_at_median=float(np.mean([_auroc_at_median(compared, fit) for fit in found])),
        fit_s=float(np.mean([seconds for fit in found for seconds in fit.fit_s])),
        score_ms=1000
        * sum(fit.score_s for fit in found)
        / sum(fit.is_tested.sum() for fit in found),
    )


def _metrics(compared: Compared, fits: Sequence[OutOfFold]) -> dict[str, MetricValue]:
    """Means over seeds; each resample takes the same questions in every seed."""
    labels = compared.labels.values
    found = [evaluate(fit.values[fit.is_valid], labels[fit.is_valid]) for fit in fits]
    resampled = [_resampled(compared, fit) for fit in fits]
    within = _fold_means(compared, fits)
    metrics = {}
    for name in METRICS:
        of_seed = np.array([values[name] for values in found])
        mean_resampled = np.mean([values[name] for values in resampled], axis=0)
        metrics[name] = MetricValue(
            float(of_seed.mean()),
            *percentile_interval(mean_resampled, compared.config.level),
            seed_sd=float(of_seed.std(ddof=1)) if len(of_seed) > 1 else None,
            fold_mean=within.get(name),
        )
    return metrics


def _resampled(compared: Compared, fit: OutOfFold) -> dict[str, Float[np.ndarray, "resample"]]:
    kept = compared.labels.is_valid
    return resample_metrics(
        list(METRICS),
        fit.values[kept],
        compared.labels.values[kept],
        compared.groups[kept],
        is_valid=fit.is_valid[kept],
        n_resamples=compared.config.n_resamples,
        seed=compared.config.bootstrap_seed,
    )


def _fold_means(compared: Compared, fits: Sequence[OutOfFold]) -> dict[str, float]:
    """Mean of each metric over the folds that hold both classes; empty if none does."""
    found = []
    for fit in fits:
        for fold in range(int(fit.fold.max()) + 1):
            here = fit.is_valid & (fit.fold == fold)
            try:
                found.append(evaluate(fit.raw[here], compared.labels.values[here]))
            except NotEnoughDataError:
                continue
    return {name: float(np.mean([f[name] for f in found])) for name in METRICS} if found else {}


def _auroc_at_median(compared: Compared, fit: OutOfFold) -> float:
    """AUROC of all tested traces, those without a score put in the middle of the others."""
    scores = np.where(fit.is_valid, fit.values, np.median(fit.values[fit.is_valid]))
    return auroc(scores[fit.is_tested], compared.labels.values[fit.is_tested])


def sample_table(compared: Compared, name: str, fits: Mapping[int, OutOfFold]) -> pa.Table:
    """One line a seed and tested trace; a score that is not valid is null."""
    tables = [SAMPLE_SCHEMA.empty_table()]
    for seed, fit in fits.items():
        tested = np.flatnonzero(fit.is_tested)
        columns = {
            "detector": [name] * len(tested),
            "seed": [seed] * len(tested),
            "fold": fit.fold[tested],
            "trace_id": [compared.labels.trace_ids[index] for index in tested],
            "group": compared.groups[tested],
            "label": compared.labels.values[tested],
            "score": _nullable(fit.values[tested]),
            "raw_score": _nullable(fit.raw[tested]),
            "is_valid": fit.is_valid[tested],
        }
        tables.append(pa.table(columns, schema=SAMPLE_SCHEMA))
    return pa.concat_tables(tables)


def _nullable(values: Float[np.ndarray, "trace"]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))
