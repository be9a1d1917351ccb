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

from graphhalu.core.config import Config
from graphhalu.core.documents import FileFormat, plain_values, read_document, write_document
from graphhalu.core.errors import GraphhaluError, NotEnoughDataError
from graphhalu.core.files import reading
from graphhalu.core.provenance import provenance
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.evaluation.bootstrap import Estimate, EvaluationSet
from graphhalu.heads.files import read_table
from graphhalu.heads.table import HeadTable
from graphhalu.labels.labels import MEANINGS, Meaning
from graphhalu.models.cards import MODEL_CARDS
from graphhalu.studies.rows import Row, find_row
from graphhalu.studies.sinks.effects import class_effects, localise, mean, pearson, prediction, shift
from graphhalu.studies.sinks.probes import N_FOLDS, fit_models, models_of
from graphhalu.studies.sinks.records import SETTINGS, SinkRecord, SinkRun, SinkTable, find_runs, read_run
from graphhalu.studies.sinks.settings import AnalyzeConfig

RESULT_FILE: Final = "sinks.json"
KIND: Final = FileFormat("graphhalu-sinks-analysis", 1, "Run:  graphhalu sinks analyze")
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


class RunResult(Row):
    """One file of records: its settings and counts, see :func:`analyze_run`, and its findings."""

    name: str
    """Name of the file."""
    findings: tuple[Row, ...]
    """One for each label that can be analysed, see :func:`findings`."""
    left_out: dict[Meaning, str]
    """Meaning of a label to the reason why it could not."""


class SinksResult(Config):
    """An analysis of one or several runs, as one JSON file that the figures are drawn from.

    Positive is the class with label 1: hallucinated answers, or inputs that the data set calls bad.
    A difference is positive minus negative.
    """

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

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return plain_values(self, KIND)

    def write(self, folder: Path) -> Path:
        """Write ``sinks.json``, whole or not at all."""
        return write_document(folder / RESULT_FILE, self, KIND)


Analysed = tuple[SinkRun, RunResult]
"""A run with its results."""


def read_sinks(path: Path) -> SinksResult:
    """Read what :meth:`SinksResult.write` wrote.

    Args:
        path: The file, or its folder.

    Raises:
        DataFileError: If there is none, or it is of another version or does not validate.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    # numbers beyond float64 are not fault that pydantic reports
    with reading(f"{file} cannot be read as an analysis"):
        return read_document(file, SinksResult, KIND)


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
    for path in files:
        on_progress(len(analysed), len(files))
        run = read_run(path)
        if role is not None and not _fits(role, run):
            named = role.model.get("name") or "an unknown model"
            other = f"were not compared with {run.first.model}: another model"
            notes[f"the {role.role} heads of {named} {other}"] = None
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
    values: dict[str, Any] = {name: getattr(first, name) for name in SETTINGS if name != "chat_mode"}
    values |= {
        "chat": first.chat_mode,
        "n_layers": first.by_head.shape[0],
        "n_heads": first.by_head.shape[1],
        "n_records": len(run.records),
        "n_usable": len(run.usable),
        "accuracy": run.accuracy(),
        "n_parameters": model_size(first.model, run.meta.get("n_parameters")),
        "commonest_answer": commonest,
        "commonest_share": share,
    }
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
        raise NotEnoughDataError(
            f"{len(records)} usable records with a label ({MEANINGS[meaning]}): "
            f"{n_questions[0]} questions of label 1 and {n_questions[1]} of label 0; an analysis "
            f"needs {LEAST_OF_CLASS} of each"
        )
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
    for name, members in _series(analysed, leave_out=("model", "chat")):
        points = [
            Row(
                **_of_run(run, "model", "chat", "n_parameters"),
                cohens_d=f.shift.cohens_d,
                auroc=f.prediction.auroc,
                probe_auroc=probe.auroc,
            )
            for (_, run), f in members
            if run.n_parameters is not None and (probe := find_row(f.models, name="heads")) is not None
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
    for name, members in _series(analysed, leave_out=("task", "meaning")):
        rows = [
            Row(
                **_of_run(run, "task"),
                meaning=f.meaning,
                cohens_d=f.shift.cohens_d,
                adjusted_d=f.shift.adjusted_d,
                auroc=f.prediction.auroc,
            )
            for (_, run), f in members
        ]
        if len({(row.task, row.meaning) for row in rows}) > 1:
            effects = [row.cohens_d for row in rows]
            test = dict(zip(("cochran_q", "p_value", "i_squared"), heterogeneity(effects), strict=True))
            n_positive = sum(effect.value > 0 for effect in effects)
            found.append(Row(series=name, rows=rows, **test, n_positive_d=n_positive))
    return tuple(found)


def _of_run(run: RunResult, *names: str) -> dict[str, Any]:
    return {"run": run.name, **{name: getattr(run, name) for name in names}}


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
    """Every pair of runs that differ in one setting only, on the questions that both have.

    Returns:
        The ``setting`` (``chat``, ``sink_tokens``, ``query_mode`` or ``quantization``), its value in the
        ``first`` and the ``second`` run, the ``series`` that they belong to, and what
        :func:`_compared_pairs` gives.
    """
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
    sample = EvaluationSet(a.labels, a.groups, how.n_resamples, how.seed)
    both = ((sample, a), (replace(sample, labels=b.labels), b))
    effects = [class_effects(each, table.mass)[1] for each, table in both]
    wrong = np.array([[r.labels.get("hallucinated") for r in pair] for pair in pairs], dtype=np.float64)
    accuracy = Estimate.of(mean(sample, wrong[:, 0] - wrong[:, 1])) if np.isfinite(wrong).all() else None
    return {
        "n_both": len(pairs),
        "mass_difference": Estimate.of(mean(sample, b.mass - a.mass)),
        "mass_pearson": pearson(a.mass, b.mass),
        "accuracy_difference": accuracy,
        "share_changed": float(np.mean([x != y for x, y in answers])) if answers else None,
        "d_first": float(effects[0][0]),
        "d_second": float(effects[1][0]),
        "d_difference": Estimate.of(effects[1] - effects[0]),
    }


def _series(
    analysed: Sequence[Analysed], *, leave_out: tuple[str, ...]
) -> Iterator[tuple[str, list[tuple[Analysed, Row]]]]:
    """Runs, once for each label, that share all but some settings."""
    shared = ", ".join(label for key, label in _LABELS.items() if key not in leave_out)
    groups: dict[str, list[tuple[Analysed, Row]]] = defaultdict(list)
    for each in analysed:
        for found in each[1].findings:
            groups[shared.format(run=each[1], found=found)].append((each, found))
    yield from ((name, members) for name, members in groups.items() if len(members) > 1)
