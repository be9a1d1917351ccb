"""Analysis of files of records: H1 to H4 of every run, and comparisons between runs.

Runs that share all but one setting show whether the shift depends on model size, task, chat
template, window or quantisation.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.stats import chi2, spearmanr

from graphhalu.core.errors import GraphhaluError, NotEnoughDataError
from graphhalu.core.provenance import provenance
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.heads.files import read_table
from graphhalu.heads.table import HeadTable
from graphhalu.labels.labels import MEANINGS, Meaning
from graphhalu.models.cards import MODEL_CARDS
from graphhalu.studies.rows import Row
from graphhalu.studies.sinks.effects import Sample, localise, pearson, prediction, shift
from graphhalu.studies.sinks.probes import N_FOLDS, fit_models, models_of
from graphhalu.studies.sinks.records import SETTINGS, SinkRecord, SinkRun, SinkTable, find_runs, read_run
from graphhalu.studies.sinks.result import Findings, RunResult, Scaling, SinksResult, Tasks
from graphhalu.studies.sinks.settings import AnalyzeConfig

LEAST_OF_CLASS: Final = 3 * N_FOLDS
"""Questions of the rarer class below which inner folds lack a class."""
_DIGITS: Final = 6
_VARIED: Final = ("chat", "sink_tokens", "query_mode", "quantization")
LEAST_BOTH: Final = 10
_LEAST_MODELS: Final = 4
_UNITS: Final = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_NORMAL_WIDTH: Final = 2 * 1.959963984540054
_LABELS: Final = {
    "model": "{run.model}",
    "task": "{run.task}",
    "meaning": "label: {found.meaning}",
    "sink_tokens": "K = {run.sink_tokens}",
    "query_mode": "queries: {run.query_mode}",
    "chat": "chat {run.chat}",
    "quantization": "quantisation {run.quantization}",
}
"""Descriptions of the settings that runs of one series share."""
Analysed = tuple[SinkRun, RunResult]
"""A run with its results."""


def analyze(
    paths: Sequence[Path], config: AnalyzeConfig | None = None, *, on_progress: Progress = no_progress
) -> SinksResult:
    """Analyse files of records, and folders of them.

    Raises:
        UsageError: If there is no such file, or the table of heads lacks the role.
        DataFileError: If a file cannot be used.
    """
    config = config or AnalyzeConfig()
    files = find_runs(paths)
    role = None if config.heads is None else read_table(config.heads, config.role)
    notes: dict[str, None] = {}
    analysed: list[Analysed] = []
    for done, path in enumerate(files):
        on_progress(done, len(files))
        run = read_run(path)
        if role is not None and not _fits(role, run):
            named = role.model.get("name") or "an unknown model"
            notes[
                f"the {role.role} heads of {named} were not compared with {run.first.model}: another model"
            ] = None
        analysed.append((run, analyze_run(run, config, role)))
    on_progress(len(files), len(files))
    return SinksResult(
        runs=tuple(result for _, result in analysed),
        scaling=scaling(analysed),
        tasks=tasks(analysed),
        sensitivity=sensitivities(analysed, config),
        settings=config.model_dump(mode="json", exclude={"heads"}),
        provenance=provenance(),
        notes=tuple(notes),
    )


def analyze_run(run: SinkRun, config: AnalyzeConfig, role: HeadTable | None = None) -> RunResult:
    """One run under every label that it has; a table of another model's heads is ignored."""
    first = run.first
    of_run = {name: getattr(first, name) for name in SETTINGS if name != "chat_mode"}
    roles = () if role is None or not _fits(role, run) else (role,)
    found: list[Findings] = []
    left_out: dict[Meaning, str] = {}
    for meaning in config.meanings:
        if all(record.labels.get(meaning) is None for record in run.records):
            left_out[meaning] = "no record has this label"
            continue
        try:
            found.append(findings(run.labelled(meaning), meaning, config, roles))
        except NotEnoughDataError as error:
            left_out[meaning] = str(error)
        except GraphhaluError as error:
            error.add_note(f"in {run.name}")
            raise
    commonest, share = run.commonest_answer() or (None, None)
    return RunResult(
        **of_run,
        name=run.name,
        chat=first.chat_mode,
        n_layers=first.by_head.shape[0],
        n_heads=first.by_head.shape[1],
        n_records=len(run.records),
        n_usable=len(run.usable),
        accuracy=run.accuracy(),
        n_parameters=model_size(first.model, run.meta.get("n_parameters")),
        commonest_answer=commonest,
        commonest_share=share,
        findings=tuple(found),
        left_out=left_out,
    )


def findings(
    records: Sequence[SinkRecord], meaning: Meaning, config: AnalyzeConfig, roles: Sequence[HeadTable] = ()
) -> Findings:
    """H1 to H4 of the records of one run under one label.

    Args:
        records: Usable ones that have the label.
        meaning: Meaning of a label of 1.
        config: Resamples and folds.
        roles: Tables of the same model's heads.

    Raises:
        NotEnoughDataError: If a class has too few questions.
    """
    n_questions = [len({r.group for r in records if r.labels[meaning] == label}) for label in (1, 0)]
    if min(n_questions) < LEAST_OF_CLASS:
        raise NotEnoughDataError(
            f"{len(records)} usable records with a label ({MEANINGS[meaning]}): "
            f"{n_questions[0]} questions of label 1 and {n_questions[1]} of label 0; an analysis "
            f"needs {LEAST_OF_CLASS} of each"
        )
    table = SinkTable.of(records, meaning)
    fitted = fit_models(table, config.models, seeds=config.fold_seeds)
    models, gains = models_of(fitted, table, config)
    rounded = np.round(table.mass, _DIGITS)
    masses = [np.sort(rounded[table.labels == label]) for label in (1, 0)]
    return Findings(
        meaning=meaning,
        n_positive=len(masses[0]),
        n_negative=len(masses[1]),
        n_groups=len(np.unique(table.groups)),
        shift=shift(table, config),
        prediction=prediction(table, fitted[1]["sink"], config),
        models=models,
        gains=gains,
        localisation=localise(table, config, roles=roles),
        masses_positive=masses[0],
        masses_negative=masses[1],
    )


def _fits(role: HeadTable, run: SinkRun) -> bool:
    """Whether a table of heads belongs to the run's model."""
    is_named = role.model.get("name") in (None, run.first.model)
    return is_named and role.mean.shape == run.first.by_head.shape


def model_size(name: str, stated: object = None) -> float | None:
    """Parameters of a model, from its run, its card or its name.

    ``7B`` and ``135M`` are read from a name, but not ``8x7B``, since the product is wrong.
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
            Row(
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
            Row(
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


def sensitivities(analysed: Sequence[Analysed], how: AnalyzeConfig) -> tuple[Row, ...]:
    """Every pair of runs that differ in one setting only, on the questions that both have."""
    found = []
    for setting in _VARIED:
        for series, members in _series(analysed, leave_out=(setting,)):
            for ((run, first), f), ((other, second), _) in combinations(members, 2):
                values = [str(getattr(result, setting)) for result in (first, second)]
                in_other = {_key(record): record for record in other.labelled(f.meaning)}
                keyed = [(record, in_other.get(_key(record))) for record in run.labelled(f.meaning)]
                pairs = [(record, again) for record, again in keyed if again is not None]
                if values[0] != values[1] and len(pairs) >= LEAST_BOTH:
                    with suppress(NotEnoughDataError):
                        compared = _compared_pairs(pairs, f.meaning, how)
                        between = {"setting": setting, "first": values[0], "second": values[1]}
                        found.append(Row(**between, series=series, meaning=f.meaning, **compared))
    return tuple(found)


def _key(record: SinkRecord) -> tuple[str, int]:
    """The question and, for given answers, which one."""
    return str(record.meta.get("question_id") or record.group), int(record.meta.get("place") or 0)


def _compared_pairs(
    pairs: Sequence[tuple[SinkRecord, SinkRecord]], meaning: Meaning, how: AnalyzeConfig
) -> dict[str, Any]:
    """The same questions in two runs, second minus first where it is a difference.

    Returns:
        ``n_both`` records; ``mass_difference`` and ``mass_pearson`` of their sink masses;
        ``accuracy_difference``; ``share_changed`` of the answers; Cohen's d of each run and
        ``d_difference`` on the same resamples.
    """
    a, b = (SinkTable.of(side, meaning) for side in zip(*pairs, strict=True))
    answers = [(x.pred, y.pred) for x, y in pairs if None not in (x.pred, y.pred)]
    samples = [Sample(each.labels, a.groups, how) for each in (a, b)]
    effects = [s.class_effects(t.mass)[1] for s, t in zip(samples, (a, b), strict=True)]
    wrong = np.array([[r.labels.get("hallucinated") for r in pair] for pair in pairs], dtype=np.float64)
    is_labelled = bool(np.isfinite(wrong).all())
    return {
        "n_both": len(pairs),
        "mass_difference": Estimate.of(samples[0].mean(b.mass - a.mass)),
        "mass_pearson": pearson(a.mass, b.mass),
        "accuracy_difference": Estimate.of(samples[0].mean(wrong[:, 0] - wrong[:, 1]))
        if is_labelled
        else None,
        "share_changed": float(np.mean([x != y for x, y in answers])) if answers else None,
        "d_first": float(effects[0][0]),
        "d_second": float(effects[1][0]),
        "d_difference": Estimate.of(effects[1] - effects[0]),
    }


def _series(
    analysed: Sequence[Analysed], *, leave_out: tuple[str, ...]
) -> Iterator[tuple[str, list[tuple[Analysed, Findings]]]]:
    """Runs, once for each label, that share all but some settings."""
    shared = ", ".join(label for key, label in _LABELS.items() if key not in leave_out)
    groups: dict[str, list[tuple[Analysed, Findings]]] = defaultdict(list)
    for each in analysed:
        for found in each[1].findings:
            groups[shared.format(run=each[1], found=found)].append((each, found))
    yield from ((name, members) for name, members in groups.items() if len(members) > 1)
