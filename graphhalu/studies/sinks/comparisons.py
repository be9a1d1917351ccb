"""Runs side by side: whether the shift depends on model size, task, chat template or window."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from typing import Final, NamedTuple

import numpy as np
from scipy.stats import chi2, spearmanr

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.labels.labels import Meaning
from graphhalu.models.cards import MODEL_CARDS
from graphhalu.studies.sinks.effects import Resampling, Sample, pearson
from graphhalu.studies.sinks.records import SinkRecord, SinkRun, SinkTable
from graphhalu.studies.sinks.result import (
    Findings,
    RunResult,
    Scaling,
    ScalingPoint,
    Sensitivity,
    TaskRow,
    Tasks,
)

SETTINGS: Final = ("chat", "sink_tokens", "query_mode", "quantization")
LEAST_BOTH: Final = 10
_LEAST_MODELS: Final = 4
_UNITS: Final = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_NORMAL_WIDTH: Final = 2 * 1.959963984540054
_LABELS: Final[dict[str, Callable[[RunResult, Findings], str]]] = {
    "model": lambda run, _: run.model,
    "task": lambda run, _: run.task,
    "meaning": lambda _, found: f"label: {found.meaning}",
    "sink_tokens": lambda run, _: f"K = {run.sink_tokens}",
    "query_mode": lambda run, _: f"queries: {run.query_mode}",
    "chat": lambda run, _: f"chat {run.chat}",
    "quantization": lambda run, _: f"quantisation {run.quantization}",
}
"""What runs of one series share, in words."""


class Analysed(NamedTuple):
    """A run with what was found in it."""

    run: SinkRun
    result: RunResult


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
                run=run.name,
                model=run.model,
                chat=run.chat,
                n_parameters=run.n_parameters,
                cohens_d=f.shift.cohens_d,
                auroc=f.prediction.auroc,
                probe_auroc=probe.auroc,
            )
            for (_, run), f in members
            if run.n_parameters is not None and (probe := f.model("heads")) is not None
        ]
        if len({point.model for point in points}) < 2:  # noqa: PLR2004
            continue
        points.sort(key=lambda point: point.n_parameters)
        note = f"{len(points)} models of different families, not one family in several sizes"
        value, p_value = float("nan"), float("nan")
        if len(points) >= _LEAST_MODELS:
            sizes, effects = zip(*((p.n_parameters, p.cohens_d.value) for p in points), strict=True)
            value, p_value = map(float, spearmanr(sizes, effects))
        if np.isnan(value):
            note += f"; a correlation needs {_LEAST_MODELS}"
        found.append(Scaling(name, tuple(points), value, p_value, note))
    return tuple(found)


def tasks(analysed: Sequence[Analysed]) -> tuple[Tasks, ...]:
    """Tasks of one model that share everything else."""
    found = []
    for name, members in _series(analysed, leave_out=("task", "meaning")):
        rows = tuple(
            TaskRow(
                run=run.name,
                task=run.task,
                meaning=f.meaning,
                cohens_d=f.shift.cohens_d,
                adjusted_d=f.shift.adjusted_d,
                auroc=f.prediction.auroc,
            )
            for (_, run), f in members
        )
        if len({(row.task, row.meaning) for row in rows}) > 1:
            n_positive = sum(row.cohens_d.value > 0 for row in rows)
            test = heterogeneity([row.cohens_d for row in rows])
            found.append(Tasks(name, rows, *test, n_positive))
    return tuple(found)


def heterogeneity(effects: Sequence[Estimate]) -> tuple[float, float, float]:
    """Cochran's Q of effects, its p-value and I²; each interval gives the variance of its effect.

    NaN for a single effect, and where one has no interval.

    Source:
        Cochran 1954; Higgins and Thompson 2002 (I²). The variance is that of a normal with the
        width of the bootstrap interval.
    """
    values = np.array([each.value for each in effects])
    errors = np.array([(each.high - each.low) / _NORMAL_WIDTH for each in effects])
    if len(values) < 2 or not (errors > 0).all():  # noqa: PLR2004
        return float("nan"), float("nan"), float("nan")
    weights = 1 / errors**2
    centre = (weights * values).sum() / weights.sum()
    q = float((weights * (values - centre) ** 2).sum())
    freedom = len(values) - 1
    return q, float(chi2.sf(q, freedom)), max(0.0, (q - freedom) / q) if q > 0 else 0.0


def sensitivities(analysed: Sequence[Analysed], how: Resampling) -> tuple[Sensitivity, ...]:
    """Every pair of runs that differ in one setting only."""
    found = []
    for setting in SETTINGS:
        for series, members in _series(analysed, leave_out=(setting,)):
            for (one, f), (other, _) in combinations(members, 2):
                values = [str(getattr(each.result, setting)) for each in (one, other)]
                pairs = _pairs(one.run, other.run, f.meaning)
                if values[0] != values[1] and len(pairs) >= LEAST_BOTH:
                    with suppress(NotEnoughDataError):
                        between = (setting, values[0], values[1], series)
                        found.append(_sensitivity(between, pairs, f.meaning, how))
    return tuple(found)


def _sensitivity(
    between: tuple[str, str, str, str],
    pairs: Sequence[tuple[SinkRecord, SinkRecord]],
    meaning: Meaning,
    how: Resampling,
) -> Sensitivity:
    """Setting, both values and series, with what the records of both runs say."""
    a, b = (SinkTable.of(side, meaning) for side in zip(*pairs, strict=True))
    answers = [(x.pred, y.pred) for x, y in pairs if None not in (x.pred, y.pred)]
    samples = [Sample(each.labels, a.groups, how) for each in (a, b)]
    effects = [s.class_effects(t.mass)[1] for s, t in zip(samples, (a, b), strict=True)]
    labels = [[r.labels.get("hallucinated") for r in pair] for pair in pairs]
    accuracy = None
    if not any(value is None for pair in labels for value in pair):
        wrong = np.array(labels, dtype=np.float64)
        accuracy = Estimate.of(samples[0].mean(wrong[:, 0] - wrong[:, 1]))
    return Sensitivity(
        *between,
        meaning=meaning,
        n_both=len(pairs),
        mass_difference=Estimate.of(samples[0].mean(b.mass - a.mass)),
        mass_pearson=pearson(a.mass, b.mass),
        accuracy_difference=accuracy,
        share_changed=float(np.mean([x != y for x, y in answers])) if answers else None,
        d_first=float(effects[0][0]),
        d_second=float(effects[1][0]),
        d_difference=Estimate.of(effects[1] - effects[0]),
    )


def _series(
    analysed: Sequence[Analysed], *, leave_out: tuple[str, ...]
) -> Iterator[tuple[str, list[tuple[Analysed, Findings]]]]:
    """Runs, once for each label, that share all but some settings."""
    shared = [label for key, label in _LABELS.items() if key not in leave_out]
    groups: dict[str, list[tuple[Analysed, Findings]]] = defaultdict(list)
    for each in analysed:
        for found in each.result.findings:
            name = ", ".join(label(each.result, found) for label in shared)
            groups[name].append((each, found))
    yield from ((name, members) for name, members in groups.items() if len(members) > 1)


def _pairs(first: SinkRun, second: SinkRun, meaning: Meaning) -> list[tuple[SinkRecord, SinkRecord]]:
    """Records of the same question, and the same given answer, in both runs."""
    of_second = {_key(record): record for record in second.labelled(meaning)}
    return [
        (record, of_second[_key(record)]) for record in first.labelled(meaning) if _key(record) in of_second
    ]


def _key(record: SinkRecord) -> tuple[str, int]:
    return str(record.meta.get("question_id") or record.group), int(record.meta.get("place") or 0)
