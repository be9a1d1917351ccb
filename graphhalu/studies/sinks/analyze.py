"""Analysis of files of records: H1 to H4 of every run, and comparisons between runs.

Runs that share all but one setting show whether the shift depends on model size, task, chat
template, window or quantisation.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.stats import chi2, spearmanr

from graphhalu.core.documents import FileFormat
from graphhalu.core.errors import GraphhaluError, NotEnoughDataError
from graphhalu.core.provenance import provenance
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.evaluation.bootstrap import Estimate, EvaluationSet
from graphhalu.heads.files import read_table
from graphhalu.heads.table import HeadTable
from graphhalu.labels.labels import MEANINGS, Meaning
from graphhalu.models.cards import MODEL_CARDS
from graphhalu.studies.rows import Row, StudyResult, find_row
from graphhalu.studies.sinks.effects import class_effects, localise, mean, pearson, prediction, shift
from graphhalu.studies.sinks.probes import N_FOLDS, fit_models, models_of
from graphhalu.studies.sinks.records import SETTINGS, SinkRecord, SinkRun, SinkTable, find_runs, read_run
from graphhalu.studies.sinks.settings import SERIES, VARIED, AnalyzeConfig

LEAST_OF_CLASS: Final = 3 * N_FOLDS
"""Questions of the rarer class below which inner folds lack a class."""
_DIGITS: Final = 6
LEAST_BOTH: Final = 10
_LEAST_MODELS: Final = 4
_UNITS: Final = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_NORMAL_WIDTH: Final = 2 * 1.959963984540054


class RunResult(Row):
    """One file of records: its settings and counts, see :func:`analyze_run`, and its findings."""

    name: str
    """Name of the file."""
    findings: tuple[Row, ...]
    """One for each label that can be analysed, see :func:`findings`."""
    left_out: dict[Meaning, str]
    """Meaning of a label to the reason why it could not."""


class SinksResult(StudyResult):
    """An analysis of one or several runs, as one JSON file that the figures are drawn from.

    Positive is the class with label 1: hallucinated answers, or inputs that the data set calls bad.
    A difference is positive minus negative.
    """

    kind = FileFormat("graphhalu-sinks-analysis", 1, "Run:  graphhalu sinks analyze")
    file = "sinks.json"

    runs: tuple[RunResult, ...]
    """The files of records."""
    scaling: tuple[Row, ...]
    """Comparisons of models, see :func:`scaling`."""
    tasks: tuple[Row, ...]
    """Comparisons of tasks, see :func:`tasks`."""
    sensitivity: tuple[Row, ...]
    """Pairs of runs that differ in one setting, see :func:`sensitivities`."""
    settings: dict[str, Any]
    """Of the analysis."""
    provenance: dict[str, Any]
    """Versions, machine, code state."""
    notes: tuple[str, ...] = ()
    """What a reader must know."""


Analysed = tuple[SinkRun, RunResult]
"""A run with its results."""
Pair = tuple[SinkRecord, SinkRecord]
Found = tuple[Analysed, Row]
"""One of its findings beside it."""


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
    notes, analysed = dict[str, None](), list[Analysed]()
    for path in files:
        on_progress(len(analysed), len(files))
        run = read_run(path)
        if role is not None and not _fits(role, run):
            owner = role.model.get("name") or "an unknown model"
            other = f"were not compared with {run.first.model}: another model"
            notes[f"the {role.role} heads of {owner} {other}"] = None
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
    """One run under every label that it has; a table of another model's heads is ignored.

    Returns:
        The settings of the run; ``n_records``, and ``n_usable`` without NaN, since all others are left
        out of everything but the ``accuracy``, the share of right answers; ``n_parameters`` of the
        model, ``None`` where neither description nor name say it; ``commonest_answer``, what the
        model answered most often where it chose among letters, and ``commonest_share`` of it: near
        1 the label says more of the input than of the model.
    """
    first, found, left_out = run.first, list[Row](), dict[Meaning, str]()
    roles = () if role is None or not _fits(role, run) else (role,)
    for meaning in config.meanings:
        try:
            found.append(findings(run.labelled(meaning), meaning, config, roles))
        except NotEnoughDataError as error:
            has_any = any(record.labels.get(meaning) is not None for record in run.records)
            left_out[meaning] = str(error) if has_any else "no record has this label"
        except GraphhaluError as error:
            error.add_note(f"in {run.name}")
            raise
    values: dict[str, Any] = {name: getattr(first, name) for name in SETTINGS if name != "chat_mode"}
    values |= dict(zip(("n_layers", "n_heads"), first.by_head.shape, strict=True)) | {"chat": first.chat_mode}
    values |= {"n_records": len(run.records), "n_usable": len(run.usable), "accuracy": run.accuracy()}
    commonest = run.commonest_answer() or (None, None)
    values |= dict(zip(("commonest_answer", "commonest_share"), commonest, strict=True))
    values["n_parameters"] = model_size(first.model, run.meta.get("n_parameters"))
    return RunResult(name=run.name, findings=tuple(found), left_out=left_out, **values)


def findings(
    records: Sequence[SinkRecord], meaning: Meaning, config: AnalyzeConfig, roles: Sequence[HeadTable] = ()
) -> Row:
    """H1 to H4 of the records of one run under one label.

    Args:
        records: Usable ones that have the label.
        meaning: Meaning of a label of 1.
        config: Resamples and folds.
        roles: Tables of the same model's heads.

    Returns:
        The ``meaning``; records ``n_positive`` and ``n_negative`` and their ``n_groups`` questions; H1
        in ``shift``, H2 in ``prediction``, H3 in ``models`` and ``gains``, H4 in ``localisation``: see
        the functions that make them; sink masses of both classes, rounded, for the figures.

    Raises:
        NotEnoughDataError: If a class has too few questions.
    """
    n_questions = [len({r.group for r in records if r.labels[meaning] == label}) for label in (1, 0)]
    if min(n_questions) < LEAST_OF_CLASS:
        counted = f"{n_questions[0]} questions of label 1 and {n_questions[1]} of label 0"
        fault = f"{len(records)} usable records with a label ({MEANINGS[meaning]}): {counted}"
        raise NotEnoughDataError(f"{fault}; an analysis needs {LEAST_OF_CLASS} of each")
    table = SinkTable.of(records, meaning)
    fitted = fit_models(table, config.models, seeds=config.fold_seeds)
    models, gains = models_of(fitted, table, config)
    positive, negative = (np.sort(np.round(table.mass, _DIGITS)[table.labels == c]) for c in (1, 0))
    return Row(
        meaning=meaning,
        n_positive=len(positive),
        n_negative=len(negative),
        n_groups=len(np.unique(table.groups)),
        shift=shift(table, config),
        prediction=prediction(table, fitted[1]["sink"], config),
        models=models,
        gains=gains,
        localisation=localise(table, config, roles=roles),
        masses_positive=positive.tolist(),
        masses_negative=negative.tolist(),
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


def scaling(analysed: Sequence[Analysed]) -> tuple[Row, ...]:
    """Models that share everything but the chat template, by size.

    Returns:
        Of each ``series`` its ``points`` by rising size (``run``, ``model``, ``chat``,
        ``n_parameters``, ``cohens_d``, ``auroc`` of sink mass, and ``probe_auroc`` of the model on
        all heads), ``spearman`` of size and Cohen's d with ``p_spearman``, NaN below four points,
        and a ``note`` that must be known to read it.
    """
    found = []
    for name, members in _series(analysed, "model", "chat"):
        points = [
            _effects(run, f, "model", "chat", "n_parameters", probe_auroc=probe.auroc)
            for (_, run), f in members
            if run.n_parameters is not None and (probe := find_row(f.models, name="heads")) is not None
        ]
        if len({point.model for point in points}) < 2:  # noqa: PLR2004
            continue
        points.sort(key=lambda point: point.n_parameters)
        note = f"{len(points)} models of different families, not one family in several sizes"
        value = p_value = float("nan")
        if len(points) >= _LEAST_MODELS:
            effects = [point.cohens_d.value for point in points]
            value, p_value = map(float, spearmanr([point.n_parameters for point in points], effects))
        if np.isnan(value):
            note += f"; a correlation needs {_LEAST_MODELS}"
        found.append(Row(series=name, points=points, spearman=value, p_spearman=p_value, note=note))
    return tuple(found)


def tasks(analysed: Sequence[Analysed]) -> tuple[Row, ...]:
    """Tasks of one model that share everything else.

    Returns:
        Of each ``series`` its ``rows``, one a ``task`` and ``meaning`` of the label (``run``,
        ``cohens_d``, ``adjusted_d`` with the length taken away, ``auroc``); the ``cochran_q`` of
        Cohen's d, its ``p_value`` and ``i_squared``, see :func:`heterogeneity`; and ``n_positive_d``
        tasks with a positive d: a sign that changes is not a rule.
    """
    found = []
    for name, members in _series(analysed, "task", "meaning"):
        rows = [
            _effects(run, f, "task", meaning=f.meaning, adjusted_d=f.shift.adjusted_d)
            for (_, run), f in members
        ]
        if len({(row.task, row.meaning) for row in rows}) > 1:
            effects = [row.cohens_d for row in rows]
            test = dict(zip(("cochran_q", "p_value", "i_squared"), heterogeneity(effects), strict=True))
            n_positive = sum(effect.value > 0 for effect in effects)
            found.append(Row(series=name, rows=rows, **test, n_positive_d=n_positive))
    return tuple(found)


def _effects(run: RunResult, found: Row, *names: str, **more: Any) -> Row:
    """The name of a run, some of its settings, its effects, and more."""
    about = {"run": run.name, **{name: getattr(run, name) for name in names}}
    return Row(**about, cohens_d=found.shift.cohens_d, auroc=found.prediction.auroc, **more)


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
        return (float("nan"),) * 3
    weights, freedom = 1 / errors**2, len(values) - 1
    centre = (weights * values).sum() / weights.sum()
    q = float((weights * (values - centre) ** 2).sum())
    return q, float(chi2.sf(q, freedom)), max(0.0, (q - freedom) / q) if q > 0 else 0.0


def sensitivities(analysed: Sequence[Analysed], how: AnalyzeConfig) -> tuple[Row, ...]:
    """Every pair of runs that differ in one setting only, on the questions that both have.

    Returns:
        The ``setting`` (``chat``, ``sink_tokens``, ``query_mode`` or ``quantization``), its value in the
        ``first`` and the ``second`` run, the ``series`` that they belong to, and what
        :func:`_compared_pairs` gives.
    """
    found = []
    for setting in VARIED:
        for series, members in _series(analysed, setting):
            for ((run, first), f), ((other, second), _) in combinations(members, 2):
                values = [str(getattr(result, setting)) for result in (first, second)]
                there = {_key(record): record for record in other.labelled(f.meaning)}
                pairs = [(r, there[_key(r)]) for r in run.labelled(f.meaning) if _key(r) in there]
                if values[0] == values[1] or len(pairs) < LEAST_BOTH:
                    continue
                about = {"setting": setting, "first": values[0], "second": values[1], "series": series}
                with suppress(NotEnoughDataError):
                    found.append(Row(**about, meaning=f.meaning, **_compared_pairs(pairs, f.meaning, how)))
    return tuple(found)


def _key(record: SinkRecord) -> tuple[str, int]:
    """The question and, for given answers, which one."""
    return str(record.meta.get("question_id") or record.group), int(record.meta.get("place") or 0)


def _compared_pairs(pairs: Sequence[Pair], meaning: Meaning, how: AnalyzeConfig) -> dict[str, Any]:
    """The same questions in two runs, second minus first where it is a difference.

    Returns:
        ``n_both`` records; ``mass_difference`` and ``mass_pearson`` of their sink masses;
        ``accuracy_difference``; ``share_changed`` of the answers; Cohen's d of each run and
        ``d_difference`` on the same resamples.
    """
    a, b = (SinkTable.of(side, meaning) for side in zip(*pairs, strict=True))
    answers = [(x.pred, y.pred) for x, y in pairs if None not in (x.pred, y.pred)]
    sample = EvaluationSet(a.labels, a.groups, how.n_resamples, how.seed)
    again = replace(sample, labels=b.labels)
    first, second = class_effects(sample, a.mass)[1], class_effects(again, b.mass)[1]
    wrong = np.array([[r.labels.get("hallucinated") for r in pair] for pair in pairs], dtype=np.float64)
    accuracy = Estimate.of(mean(sample, wrong[:, 0] - wrong[:, 1])) if np.isfinite(wrong).all() else None
    return {
        "n_both": len(pairs),
        "mass_difference": Estimate.of(mean(sample, b.mass - a.mass)),
        "mass_pearson": pearson(a.mass, b.mass),
        "accuracy_difference": accuracy,
        "share_changed": float(np.mean([x != y for x, y in answers])) if answers else None,
        "d_first": float(first[0]),
        "d_second": float(second[0]),
        "d_difference": Estimate.of(second - first),
    }


def _series(analysed: Sequence[Analysed], *leave_out: str) -> Iterator[tuple[str, list[Found]]]:
    """Runs, once for each label, that share all but some settings."""
    shared = ", ".join(label for key, label in SERIES.items() if key not in leave_out)
    groups = defaultdict[str, list[Found]](list)
    for each in analysed:
        for found in each[1].findings:
            groups[shared.format(run=each[1], found=found)].append((each, found))
    yield from ((name, members) for name, members in groups.items() if len(members) > 1)
