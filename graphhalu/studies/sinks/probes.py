"""Cross-fitted models on a few columns or on every head, and what one adds to another.

Outer folds are grouped by question and stratified. Within the training side of a fold, grouped
inner folds choose principal components and penalty; the logits that these inner folds give of
records that they did not see set the scale on which folds are pooled, and the calibration. So no
record takes part in any choice, scale or calibration by which it is judged.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int, Shaped

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.search import ALL_COMPONENTS, Grid, Side, folds_of, search
from graphhalu.evaluation.bootstrap import Estimate, EvaluationSet, two_sided_p
from graphhalu.evaluation.calibration import Calibration
from graphhalu.evaluation.crossfit import cross_fit_folds, standardise
from graphhalu.evaluation.metrics import auroc, log_losses
from graphhalu.studies.rows import Row
from graphhalu.studies.sinks.effects import Sample
from graphhalu.studies.sinks.records import SinkTable
from graphhalu.studies.sinks.settings import ANSWER, HEADS, NESTED, AnalyzeConfig

Scores = Float[np.ndarray, "seed trace"]

N_FOLDS: Final = 5
N_INNER_FOLDS: Final = 3
COMPONENTS: Final = (16, 64, ALL_COMPONENTS)
MAX_LETTERS: Final = 26
GAINS: Final = (
    (HEADS, "sink"),
    (HEADS, ANSWER),
    ("entropy+sink", "entropy"),
    ("entropy+length+sink", "entropy+length"),
    (f"entropy+{HEADS}", "entropy"),
    (f"entropy+length+{HEADS}", "entropy+length"),
)
"""Larger and smaller model of each comparison."""


FoldScores = tuple[Float[np.ndarray, "train"], Float[np.ndarray, "test"]]
"""Logits of one outer fold: of its training side, each from an inner fold that did not see the
record, and of its test side."""


Fitted = tuple[dict[str, Scores], dict[str, Scores]]
"""By model: out-of-fold scores that can be pooled over folds, and probabilities calibrated within the
training side of the fold."""


def fit_models(
    table: SinkTable, names: Sequence[str] = NESTED, *, seeds: Sequence[int] = (0, 1, 2)
) -> Fitted:
    """Cross-fit models on the same folds.

    Args:
        table: Records with both classes.
        names: Some of :data:`NESTED`.
        seeds: Seeds of the folds.

    Raises:
        NotEnoughDataError: If a class has too few questions for the folds.
    """
    columns = _columns(table)
    shape = (len(seeds), len(table.labels))
    scores, probability = ({name: np.full(shape, np.nan) for name in names} for _ in range(2))
    is_valid = np.ones(shape[1], dtype=np.bool_)
    for row, seed in enumerate(seeds):
        folds = cross_fit_folds(table.labels, table.groups, is_valid, n_folds=N_FOLDS, seed=seed)
        for fold in folds:
            side = np.sort(np.concatenate([fold.train, fold.validation]))
            for name, (train, test) in _fit_fold(names, columns, table, (side, fold.test), seed).items():
                calibration = Calibration.fit(train, table.labels[side], method="platt")
                scores[name][row, fold.test] = standardise(test, train)
                probability[name][row, fold.test] = calibration.probability(test)
    return scores, probability


def models_of(
    fitted: Fitted, table: SinkTable, how: AnalyzeConfig
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Metrics of every model, and what one adds to another, with intervals.

    Returns:
        Models: ``name``, ``n_columns`` that it reads, ``auroc`` and ``log_loss`` (nat), means over
        seeds, and ``seed_sd`` of the AUROC. Gains of a ``model`` over a smaller ``baseline`` on the
        same resamples, positive where it is better: ``auroc``, ``log_loss``, and two-sided
        bootstrap p-values ``p_auroc`` and ``p_log_loss``.
    """
    scores, probability = fitted
    columns, sample = _columns(table), Sample(table.labels, table.groups, how)
    aurocs = {name: _aurocs(each, table, how) for name, each in scores.items()}
    losses = {
        name: sample.mean(np.mean([log_losses(row, table.labels) for row in each], axis=0))
        for name, each in probability.items()
    }
    models = tuple(
        Row(
            name=name,
            n_columns=sum(columns[part].shape[1] for part in name.split("+")),
            auroc=Estimate.of(rows.mean(axis=0)),
            log_loss=Estimate.of(losses[name]),
            seed_sd=float(np.std(rows[:, 0], ddof=1)) if len(rows) > 1 else 0.0,
        )
        for name, rows in aurocs.items()
    )
    gains = []
    for larger, smaller in GAINS:
        if {larger, smaller} <= scores.keys():
            row: dict[str, Any] = {"model": larger, "baseline": smaller}
            of_auroc = aurocs[larger].mean(axis=0) - aurocs[smaller].mean(axis=0)
            of_loss = losses[smaller] - losses[larger]
            for metric, values in (("auroc", of_auroc), ("log_loss", of_loss)):
                row |= {metric: Estimate.of(values), f"p_{metric}": two_sided_p(values[1:])}
            gains.append(Row(**row))
    return models, tuple(gains)


def _fit_fold(
    names: Sequence[str],
    columns: Mapping[str, Float[np.ndarray, "trace _"]],
    table: SinkTable,
    sides: tuple[Int[np.ndarray, "train"], Int[np.ndarray, "test"]],
    seed: int,
) -> dict[str, FoldScores]:
    labels, groups = table.labels[sides[0]], table.groups[sides[0]]
    parts = {name: [each[side] for side in sides] for name, each in columns.items()}
    found: dict[str, FoldScores] = {}
    if any(HEADS in name.split("+") for name in names):
        found[HEADS] = fit_columns(parts[HEADS], labels, groups, seed=seed, components=COMPONENTS)
        # of the heads a second-level model reads one logit, in training that of an inner fold
        parts[HEADS] = [logits[:, None] for logits in found[HEADS]]
    for name in names:
        if name != HEADS:
            chosen = zip(*(parts[part] for part in name.split("+")), strict=True)
            both = [np.concatenate(side, axis=1) for side in chosen]
            found[name] = fit_columns(both, labels, groups, seed=seed)
    return {name: found[name] for name in names}


def fit_columns(
    columns: Sequence[Float[np.ndarray, "_ column"]],
    labels: Int[np.ndarray, "train"],
    groups: Shaped[np.ndarray, "train"],
    *,
    seed: int,
    components: tuple[int, ...] = (ALL_COMPONENTS,),
) -> FoldScores:
    """Choose in inner folds, fit on the whole training side, and score the test side.

    Args:
        columns: Those of the training side and those of the test side.
        labels: Of the training side.
        groups: Question of each record of the training side.
        seed: Of the inner folds.
        components: Numbers of principal components to choose from.

    Raises:
        NotEnoughDataError: If no inner fold holds both classes.
    """
    train, test = columns
    names = tuple(map(str, range(train.shape[1])))
    side = Side(train, names, labels, groups)
    folds = folds_of(labels, groups, n_folds=N_INNER_FOLDS, seed=seed)
    if len(folds) < N_INNER_FOLDS:
        raise NotEnoughDataError(
            f"{len(labels)} records with {int(labels.sum())} of label 1 are too few for "
            f"{N_INNER_FOLDS} folds inside of {N_FOLDS}"
        )
    if not (train.std(axis=0) > 0).any():
        return np.zeros(len(train)), np.zeros(len(test))
    grid = Grid({"all": np.arange(train.shape[1])}, components=components)
    learned = search(side, grid, folds)
    logits: Float[np.ndarray, test] = learned.model.logits(test)
    return learned.out_of_fold, logits


def _columns(table: SinkTable) -> dict[str, Float[np.ndarray, "trace _"]]:
    """Columns of each part by name; of the heads those that every record has, none is imputed."""
    heads = table.by_head.reshape(len(table.labels), -1)
    letters = np.unique(table.answers)
    if len(letters) <= MAX_LETTERS:
        answer = (table.answers[:, None] == letters[None]).astype(np.float64)
    else:  # answers in words, not letters
        answer = np.zeros((len(heads), 1))
    return {
        "length": np.log(table.length)[:, None],
        "entropy": table.entropy[:, None],
        "sink": table.mass[:, None],
        ANSWER: answer,
        HEADS: heads[:, np.isfinite(heads).all(axis=0)],
    }


def _aurocs(scores: Scores, table: SinkTable, how: AnalyzeConfig) -> Float[np.ndarray, "seed row"]:
    """AUROC of the sample, then of each resample, for each seed."""
    tested = EvaluationSet(table.labels, table.groups, how.n_resamples, how.seed)
    every = np.ones(len(table.labels), dtype=np.bool_)
    drawn = [tested.resample(["auroc"], row, every)["auroc"] for row in scores]
    return np.stack([np.append(auroc(row, table.labels), d) for row, d in zip(scores, drawn, strict=True)])
