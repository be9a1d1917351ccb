"""Several runs side by side: does the shift depend on model size, task, chat template or window?"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import chi2, spearmanr

from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import percentile_interval, resample_sums
from graphhalu.labels.labels import Meaning
from graphhalu.models.cards import MODEL_CARDS
from graphhalu.studies.sinks.effects import LEVEL, Resampling, class_moments, pearson
from graphhalu.studies.sinks.findings import Estimate, Findings, RunResult
from graphhalu.studies.sinks.records import SinkRecord, SinkRun, SinkTable
from graphhalu.studies.sinks.result import Scaling, ScalingPoint, Sensitivity, TaskRow, Tasks

SETTINGS: Final = ("chat", "sink_tokens", "query_mode", "quantization")
LEAST_BOTH: Final = 10
_LEAST_MODELS: Final = 4
_UNITS: Final = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_NORMAL_WIDTH: Final = 2 * 1.959963984540054


class Analysed(NamedTuple):
    """A run with what was found in it."""

    run: SinkRun
    result: RunResult


class Question(NamedTuple):
    """What two runs are compared by.

    Attributes:
        setting: What they differ in.
        series: What they share.
        meaning: What a label of 1 says.
    """

    setting: str
    series: str
    meaning: Meaning


def model_size(name: str, stated: object = None) -> float | None:
    """Parameters of a model: as its run states them, as its card says, or as its name says.

    ``7B`` and ``135M`` are read; of ``Mixtral-8x7B`` nothing, since the product is wrong.
    """
    if isinstance(stated, int | float) and stated > 0:
        return float(stated)
    card = next((c for c in MODEL_CARDS.values() if name in (c.alias, c.hub_id)), None)
    text = card.n_parameters if card is not None else name
    found = re.search(r"(?<![\dxX.])(\d+(?:\.\d+)?)([kmbt])(?![a-z])", text, re.IGNORECASE)
    return float(found[1]) * _UNITS[found[2].lower()] if found else None


def scaling(analysed: Sequence[Analysed]) -> tuple[Scaling, ...]:
    """Models that share everything but the chat template, by size."""
    found = []
    for name, members in _series(analysed, leave_out=("model", "chat")):
        points = [
            ScalingPoint(
                run=each.result.name, model=each.result.model, chat=each.result.chat,
                n_parameters=size,
                cohens_d=f.shift.cohens_d, auroc=f.prediction.auroc, probe_auroc=probe.auroc,
            )
            for each, f in members
            if (size := each.result.n_parameters) is not None
            and (probe := f.model("heads")) is not None
        ]  # fmt: skip
        if len({point.model for point in points}) < 2:  # noqa: PLR2004
            continue
        points.sort(key=lambda point: point.n_parameters)
        value, p_value = _rank_correlation(points)
        note = f"{len(points)} models of different families, not one family in several sizes" + (
            "" if value is not None else f"; a correlation needs {_LEAST_MODELS}"
        )
        found.append(Scaling(name, tuple(points), value, p_value, note))
    return tuple(found)


def tasks(analysed: Sequence[Analysed]) -> tuple[Tasks, ...]:
    """Tasks of one model that share everything else."""
    found = []
    for name, members in _series(analysed, leave_out=("task", "meaning")):
        rows = tuple(
            TaskRow(
                run=each.result.name, task=each.result.task, meaning=f.meaning,
                cohens_d=f.shift.cohens_d, adjusted_d=f.shift.adjusted_d, auroc=f.prediction.auroc,
            )
            for each, f in members
        )  # fmt: skip
        if len({(row.task, row.meaning) for row in rows}) < 2:  # noqa: PLR2004
            continue
        q, p_value, share = heterogeneity([row.cohens_d for row in rows])
        n_positive = sum(row.cohens_d.value > 0 for row in rows)
        found.append(Tasks(name, rows, q, p_value, share, n_positive))
    return tuple(found)


def heterogeneity(
    effects: Sequence[Estimate],
) -> tuple[float | None, float | None, float | None]:
    """Cochran's Q of effects, its p-value and I²; each interval gives the variance of its effect.

    Source:
        Cochran 1954; Higgins and Thompson 2002 (I²). The variance is that of a normal with the
        width of the bootstrap interval.
    """
    values = np.array([each.value for each in effects])
    errors = np.array([(each.high - each.low) / _NORMAL_WIDTH for each in effects])
    if len(values) < 2 or not (errors > 0).all():  # noqa: PLR2004
        return None, None, None
    weights = 1 / errors**2
    centre = (weights * values).sum() / weights.sum()
    q = float((weights * (values - centre) ** 2).sum())
    freedom = len(values) - 1
    return q, float(chi2.sf(q, freedom)), max(0.0, (q - freedom) / q) if q > 0 else 0.0


def sensitivities(analysed: Sequence[Analysed], how: Resampling) -> tuple[Sensitivity, ...]:
    """Every pair of runs that differ in one setting only."""
    found = []
    for setting in SETTINGS:
        for name, members in _series(analysed, leave_out=(setting,)):
            for (one, f), (other, _) in combinations(members, 2):
                if getattr(one.result, setting) == getattr(other.result, setting):
                    continue
                compared = sensitivity(one, other, Question(setting, name, f.meaning), how)
                found += [compared] if compared is not None else []
    return tuple(found)


def sensitivity(
    first: Analysed, second: Analysed, asked: Question, how: Resampling
) -> Sensitivity | None:
    """Two runs on the records that both have; ``None`` where these are too few."""
    meaning = asked.meaning
    pairs = _pairs(first.run, second.run, meaning)
    if len(pairs) < LEAST_BOTH:
        return None
    ones, others = ([pair[side] for pair in pairs] for side in (0, 1))
    a, b = SinkTable.of(ones, meaning), SinkTable.of(others, meaning)
    answered = [(x.pred, y.pred) for x, y in pairs if x.pred is not None and y.pred is not None]
    try:
        d = [class_moments(t.mass, t.labels, a.groups, how).cohens_d() for t in (a, b)]
        return Sensitivity(
            **asked._asdict(), n_both=len(pairs),
            first=str(getattr(first.result, asked.setting)),
            second=str(getattr(second.result, asked.setting)),
            mass_difference=_mean_estimate(b.mass - a.mass, a, how),
            mass_pearson=pearson(a.mass, b.mass),
            accuracy_difference=_accuracy_difference(ones, others, a, how),
            share_changed=float(np.mean([x != y for x, y in answered])) if answered else None,
            d_first=float(d[0][0]), d_second=float(d[1][0]), d_difference=_estimate(d[1] - d[0]),
        )  # fmt: skip
    except NotEnoughDataError:
        return None


def _series(
    analysed: Sequence[Analysed], *, leave_out: tuple[str, ...]
) -> Iterator[tuple[str, list[tuple[Analysed, Findings]]]]:
    """Runs, once for each label, that share all but some settings."""
    words: dict[str, Callable[[RunResult, Findings], str]] = {
        "model": lambda r, _: r.model, "task": lambda r, _: r.task,
        "meaning": lambda _, f: f"label: {f.meaning}",
        "sink_tokens": lambda r, _: f"K = {r.sink_tokens}",
        "query_mode": lambda r, _: f"queries: {r.query_mode}",
        "chat": lambda r, _: f"chat {r.chat}",
        "quantization": lambda r, _: f"quantisation {r.quantization}",
    }  # fmt: skip
    groups: dict[str, list[tuple[Analysed, Findings]]] = defaultdict(list)
    for each in analysed:
        for found in each.result.findings:
            parts = [
                word(each.result, found) for key, word in words.items() if key not in leave_out
            ]
            groups[", ".join(parts)].append((each, found))
    yield from ((name, members) for name, members in groups.items() if len(members) > 1)


def _pairs(
    first: SinkRun, second: SinkRun, meaning: Meaning
) -> list[tuple[SinkRecord, SinkRecord]]:
    """Records of the same question, and the same given answer, in both runs."""
    of_second = {_key(record): record for record in second.labelled(meaning)}
    return [
        (record, of_second[_key(record)])
        for record in first.labelled(meaning)
        if _key(record) in of_second
    ]


def _key(record: SinkRecord) -> tuple[str, int]:
    return str(record.meta.get("question_id") or record.group), int(record.meta.get("place") or 0)


def _accuracy_difference(
    ones: Sequence[SinkRecord], others: Sequence[SinkRecord], table: SinkTable, how: Resampling
) -> Estimate | None:
    labels = [[r.labels.get("hallucinated") for r in side] for side in (ones, others)]
    if any(value is None for side in labels for value in side):
        return None
    wrong = np.array(labels, dtype=np.float64)
    return _mean_estimate(wrong[0] - wrong[1], table, how)


def _mean_estimate(
    values: Float[np.ndarray, "trace"], table: SinkTable, how: Resampling
) -> Estimate:
    columns = np.stack([values, np.ones(len(values))], axis=1)
    sums = resample_sums(columns, table.groups, n_resamples=how.n_resamples, seed=how.seed)
    whole = np.concatenate([columns.sum(axis=0, keepdims=True), sums])
    return _estimate(whole[:, 0] / whole[:, 1])


def _rank_correlation(points: Sequence[ScalingPoint]) -> tuple[float | None, float | None]:
    if len(points) < _LEAST_MODELS:
        return None, None
    sizes = [point.n_parameters for point in points]
    value, p_value = spearmanr(sizes, [point.cohens_d.value for point in points])
    return (float(value), float(p_value)) if np.isfinite(value) else (None, None)


def _estimate(rows: Float[np.ndarray, "row"]) -> Estimate:
    low, high, _ = percentile_interval(rows[1:], LEVEL)
    return Estimate(float(rows[0]), low, high)
