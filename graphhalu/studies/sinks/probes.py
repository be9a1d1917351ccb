"""Cross-fitted models on a few columns or on every head, and what one adds to another.

Outer folds are grouped by question and stratified. Within the training side of a fold, grouped
inner folds choose principal components and penalty; the logits that these inner folds give of
records that they did not see set the scale on which folds are pooled, and the calibration. So no
record takes part in any choice, scale or calibration by which it is judged.
"""

import logging
from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Int, Shaped

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.inner_search import ALL_COMPONENTS, Grid, Side, folds_of, search
from graphhalu.detectors.linear import Scaling
from graphhalu.evaluation.bootstrap import Estimate, two_sided_p
from graphhalu.evaluation.calibration import Calibration
from graphhalu.evaluation.crossfit import cross_fit_folds, standardise
from graphhalu.evaluation.metrics import auroc, log_losses
from graphhalu.studies.rows import Row
from graphhalu.studies.sinks.effects import drawn_from, mean
from graphhalu.studies.sinks.records import SinkTable
from graphhalu.studies.sinks.settings import ANSWER, GAINS, HEADS, AnalyzeConfig

Scores = Float[np.ndarray, "seed trace"]

N_FOLDS: Final = 5
N_INNER_FOLDS: Final = 3
COMPONENTS: Final = (16, 64, ALL_COMPONENTS)
MAX_LETTERS: Final = 26
_LOG: Final = logging.getLogger(__name__)
Columns = Sequence[Float[np.ndarray, "_ column"]]
Truth = tuple[Int[np.ndarray, "train"], Shaped[np.ndarray, "train"]]
FoldScores = tuple[Float[np.ndarray, "train"], Float[np.ndarray, "test"]]
"""Logits of one outer fold: of its training side, each from an inner fold that did not see the
record, and of its test side."""
Fitted = tuple[dict[str, Scores], dict[str, Scores]]
"""By model: out-of-fold scores that can be pooled over folds, and probabilities calibrated within the
training side of the fold."""


def fit_models(table: SinkTable, names: Sequence[str], *, seeds: Sequence[int] = (0, 1, 2)) -> Fitted:
    """Cross-fit models on the same folds.

    Args:
        table: Records with both classes.
        names: Some of :data:`graphhalu.studies.sinks.settings.NESTED`.
        seeds: Seeds of the folds.

    Raises:
        NotEnoughDataError: If a class has too few questions for the folds.
    """
    columns, shape = _columns(table), (len(seeds), len(table.labels))
    scores, probability = ({name: np.full(shape, np.nan) for name in names} for _ in range(2))
    is_valid = np.ones(shape[1], dtype=np.bool_)
    for part in sorted({part for name in names for part in name.split("+")} - {ANSWER}):
        if not _varies(columns[part]):
            told = f"{part} is the same in all {shape[1]} records"
            _LOG.info("%s: a model that reads nothing else ranks no record above another", told)
    # of the heads a second-level model reads one logit, in training that of an inner fold
    ordered = [HEADS] if any(HEADS in name.split("+") for name in names) else []
    ordered += [name for name in names if name != HEADS]
    for row, seed in enumerate(seeds):
        for fold in cross_fit_folds(table.labels, table.groups, is_valid, n_folds=N_FOLDS, seed=seed):
            side = np.sort(np.concatenate([fold.train, fold.validation]))
            truth = table.labels[side], table.groups[side]
            parts = {name: (each[side], each[fold.test]) for name, each in columns.items()}
            for name in ordered:
                sides = zip(*(parts[part] for part in name.split("+")), strict=True)
                both, is_heads = [np.concatenate(each, axis=1) for each in sides], name == HEADS
                components = COMPONENTS if is_heads else (ALL_COMPONENTS,)
                train, test = fit_columns(both, truth, seed, components)
                parts |= {HEADS: (train[:, None], test[:, None])} if is_heads else {}
                if name in scores:
                    calibration = Calibration.fit(train, truth[0], method="platt")
                    scores[name][row, fold.test] = standardise(test, train)
                    probability[name][row, fold.test] = calibration.probability(test)
    return scores, probability


def models_of(fitted: Fitted, table: SinkTable, how: AnalyzeConfig) -> tuple[list[Row], list[Row]]:
    """Metrics of every model, and what one adds to another, with intervals.

    Returns:
        Models: ``name``, ``n_columns`` that it reads, ``auroc`` and ``log_loss`` (nat), means over
        seeds, and ``seed_sd`` of the AUROC. Gains of a ``model`` over a smaller ``baseline`` on the
        same resamples, positive where it is better: ``auroc``, ``log_loss``, and two-sided
        bootstrap p-values ``p_auroc`` and ``p_log_loss``.
    """
    columns, sample = _columns(table), drawn_from(table, how)
    models, aurocs, losses = [], {}, {}
    for name, scores in fitted[0].items():
        drawn = [np.append(auroc(s, table.labels), sample.resample(["auroc"], s)["auroc"]) for s in scores]
        aurocs[name] = np.stack(drawn).mean(axis=0)
        losses[name] = mean(sample, np.mean([log_losses(p, table.labels) for p in fitted[1][name]], axis=0))
        metrics = {"auroc": Estimate.of(aurocs[name]), "log_loss": Estimate.of(losses[name])}
        seed_sd = float(np.std([each[0] for each in drawn], ddof=1)) if len(drawn) > 1 else 0.0
        n_columns = sum(columns[part].shape[1] for part in name.split("+"))
        models.append(Row(name=name, n_columns=n_columns, **metrics, seed_sd=seed_sd))
    gains = []
    for larger, smaller in GAINS:
        if {larger, smaller} <= aurocs.keys():
            pair = {"auroc": aurocs[larger] - aurocs[smaller], "log_loss": losses[smaller] - losses[larger]}
            p_values = {f"p_{metric}": two_sided_p(rows[1:]) for metric, rows in pair.items()}
            estimates = {metric: Estimate.of(rows) for metric, rows in pair.items()}
            gains.append(Row(model=larger, baseline=smaller, **estimates, **p_values))
    return models, gains


def fit_columns(columns: Columns, truth: Truth, seed: int, components: tuple[int, ...]) -> FoldScores:
    """Choose in inner folds, fit on the whole training side, and score the test side.

    Args:
        columns: Those of the training side and those of the test side.
        truth: Label and question of each record of the training side.
        seed: Of the inner folds.
        components: Numbers of principal components to choose from.

    Raises:
        NotEnoughDataError: If no inner fold holds both classes.
    """
    (train, test), labels = columns, truth[0]
    side = Side(train, tuple(map(str, range(train.shape[1]))), *truth)
    folds = folds_of(*truth, n_folds=N_INNER_FOLDS, seed=seed)
    if len(folds) < N_INNER_FOLDS:
        counted = f"{len(labels)} records with {int(labels.sum())} of label 1"
        raise NotEnoughDataError(f"{counted} are too few for {N_INNER_FOLDS} folds inside of {N_FOLDS}")
    if not _varies(train):
        return np.zeros(len(train)), np.zeros(len(test))
    grid = Grid({"all": np.arange(train.shape[1])}, components=components)
    learned = search(side, grid, folds)
    logits: Float[np.ndarray, test] = learned.model.logits(test)
    return learned.out_of_fold, logits


def _varies(columns: Float[np.ndarray, "trace _"]) -> bool:
    """Whether a model uses any of the columns: rounding alone is no spread."""
    return bool(Scaling.of(columns).is_used.any())


def _columns(table: SinkTable) -> dict[str, Float[np.ndarray, "trace _"]]:
    """Columns of each part by name; of the heads those that every record has, none is imputed."""
    heads = table.by_head.reshape(len(table.labels), -1)
    letters = np.unique(table.answers)
    # answers in words are not letters
    is_letter = np.zeros((len(heads), 1)) if len(letters) > MAX_LETTERS else table.answers[:, None] == letters
    return {
        "length": np.log(table.length)[:, None],
        "entropy": table.entropy[:, None],
        "sink": table.mass[:, None],
        ANSWER: is_letter.astype(np.float64),
        HEADS: heads[:, np.isfinite(heads).all(axis=0)],
    }
