"""Cross-fitted models on a few columns or on every head, and what one adds to another.

Outer folds are grouped by question and stratified. Within the training side of a fold, grouped
inner folds choose principal components and penalty; the logits that these inner folds give of
records that they did not see set the scale on which folds are pooled, and the calibration. So no
record takes part in any choice, scale or calibration by which it is judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from graphhalu.detectors.probes.search import ALL_COMPONENTS, Grid, Side, folds_of, search
from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.bootstrap import (
    percentile_interval,
    resample_metrics,
    resample_sums,
    two_sided_p,
)
from graphhalu.evaluation.calibration import Calibration
from graphhalu.evaluation.crossfit import standardise
from graphhalu.evaluation.metrics import auroc
from graphhalu.evaluation.probability import log_losses
from graphhalu.evaluation.splits import cross_fit_folds
from graphhalu.studies.sinks.effects import LEVEL, Resampling
from graphhalu.studies.sinks.findings import Estimate, Gain, Model
from graphhalu.studies.sinks.records import SinkTable

N_FOLDS: Final = 5
N_INNER_FOLDS: Final = 3
COMPONENTS: Final = (16, 64, ALL_COMPONENTS)
HEADS: Final = "heads"
ANSWER: Final = "answer"
"""Which of a few letters the model chose: a control, since a model is wrong more often with some of
them, and heads that look at the options know the letter."""
MAX_LETTERS: Final = 26
NESTED: Final = (
    "length", ANSWER, "entropy", "sink", HEADS, "entropy+length", "entropy+sink",
    "entropy+length+sink", f"entropy+{HEADS}", f"entropy+length+{HEADS}",
)  # fmt: skip
"""Every model that is fitted; what it reads is joined by ``+``."""
GAINS: Final = (
    (HEADS, "sink"), (HEADS, ANSWER), ("entropy+sink", "entropy"),
    ("entropy+length+sink", "entropy+length"), (f"entropy+{HEADS}", "entropy"),
    (f"entropy+length+{HEADS}", "entropy+length"),
)  # fmt: skip
"""Larger and smaller model of each comparison."""


class FoldScores(NamedTuple):
    """Logits of one outer fold.

    Attributes:
        train: Of the training side, each from an inner fold that did not see the record.
        test: Of the test side.
    """

    train: Float[np.ndarray, "train"]
    test: Float[np.ndarray, "test"]


@dataclass(frozen=True)
class Fitted:
    """Out-of-fold scores of one model.

    Attributes:
        scores: That can be pooled over folds, a row a seed.
        probability: Calibrated within the training side of the fold.
        n_columns: How many columns the model reads.
    """

    scores: Float[np.ndarray, "seed trace"]
    probability: Float[np.ndarray, "seed trace"]
    n_columns: int

    def losses(self, labels: Int[np.ndarray, "trace"]) -> Float[np.ndarray, "trace"]:
        """Log-loss of each record, mean over seeds."""
        found: Float[np.ndarray, trace] = np.mean(
            [log_losses(row, labels) for row in self.probability], axis=0
        )
        return found


def fit_models(
    table: SinkTable, names: Sequence[str] = NESTED, *, seeds: Sequence[int] = (0, 1, 2)
) -> dict[str, Fitted]:
    """Cross-fit models on the same folds.

    Args:
        table: Records with both classes.
        names: Some of :data:`NESTED`.
        seeds: Seeds of the folds.

    Raises:
        NotEnoughDataError: If a class has too few questions for the folds.
    """
    bases, heads = _columns(table)
    n_traces = len(table.labels)
    scores = {name: np.full((len(seeds), n_traces), np.nan) for name in names}
    probability = {name: np.full((len(seeds), n_traces), np.nan) for name in names}
    is_valid = np.ones(n_traces, dtype=np.bool_)
    for row, seed in enumerate(seeds):
        folds = cross_fit_folds(table.labels, table.groups, is_valid, n_folds=N_FOLDS, seed=seed)
        for fold in folds:
            side = np.sort(np.concatenate([fold.train, fold.validation]))
            parts = _Parts(bases, heads, side, fold.test)
            found = _fit_fold(names, parts, table, seed)
            for name, each in found.items():
                calibration = Calibration.fit(each.train, table.labels[side], method="platt")
                scores[name][row, fold.test] = standardise(each.test, each.train)
                probability[name][row, fold.test] = calibration.probability(each.test)
    widths = {HEADS: heads.shape[1], **{name: each.shape[1] for name, each in bases.items()}}
    n_columns = {name: sum(widths[part] for part in name.split("+")) for name in names}
    return {name: Fitted(scores[name], probability[name], n_columns[name]) for name in names}


def models_of(
    fitted: Mapping[str, Fitted], table: SinkTable, how: Resampling
) -> tuple[tuple[Model, ...], tuple[Gain, ...]]:
    """AUROC and log-loss of every model, and what one adds to another, with intervals."""
    aurocs = {name: _aurocs(each, table, how) for name, each in fitted.items()}
    losses = {name: _losses(each, table, how) for name, each in fitted.items()}
    models = tuple(
        Model(
            name=name, n_columns=each.n_columns,
            auroc=_estimate(aurocs[name]), log_loss=_estimate(losses[name]),
            seed_sd=_seed_sd(each, table.labels),
        )
        for name, each in fitted.items()
    )  # fmt: skip
    gains = tuple(
        _gain(pair, aurocs[pair[0]] - aurocs[pair[1]], losses[pair[1]] - losses[pair[0]])
        for pair in GAINS
        if set(pair) <= fitted.keys()
    )
    return models, gains


class _Parts(NamedTuple):
    """Columns by name, every head, and the two sides of a fold."""

    bases: Mapping[str, Float[np.ndarray, "trace _"]]
    heads: Float[np.ndarray, "trace column"]
    train: Int[np.ndarray, "train"]
    test: Int[np.ndarray, "test"]


def _fit_fold(
    names: Sequence[str], parts: _Parts, table: SinkTable, seed: int
) -> dict[str, FoldScores]:
    train, test = parts.train, parts.test
    labels, groups = table.labels[train], table.groups[train]
    columns = {name: (each[train], each[test]) for name, each in parts.bases.items()}
    found: dict[str, FoldScores] = {}
    if any(HEADS in name.split("+") for name in names):
        heads = (parts.heads[train], parts.heads[test])
        found[HEADS] = fit_columns(heads, labels, groups, seed=seed, components=COMPONENTS)
        # of the heads a second-level model reads one logit, in training that of an inner fold
        columns[HEADS] = (found[HEADS].train[:, None], found[HEADS].test[:, None])
    for name in names:
        if name != HEADS:
            chosen = [columns[part] for part in name.split("+")]
            sides = [np.concatenate(side, axis=1) for side in zip(*chosen, strict=True)]
            found[name] = fit_columns((sides[0], sides[1]), labels, groups, seed=seed)
    return {name: found[name] for name in names}


def fit_columns(
    columns: tuple[Float[np.ndarray, "train column"], Float[np.ndarray, "test column"]],
    labels: Int[np.ndarray, "train"],
    groups: Shaped[np.ndarray, "train"],
    *,
    seed: int,
    components: tuple[int, ...] = (ALL_COMPONENTS,),
) -> FoldScores:
    """Choose in inner folds, fit on the whole training side, and score the test side.

    Raises:
        NotEnoughDataError: If no inner fold holds both classes.
    """
    train, test = columns
    names = tuple(map(str, range(train.shape[1])))
    side = Side(train, names, labels, groups)
    folds = folds_of(labels, groups, n_folds=N_INNER_FOLDS, seed=seed)
    if len(folds) < N_INNER_FOLDS:
        message = (
            f"{len(labels)} records with {int(labels.sum())} of label 1 are too few for "
            f"{N_INNER_FOLDS} folds inside of {N_FOLDS}"
        )
        raise NotEnoughDataError(message)
    if not (train.std(axis=0) > 0).any():
        return FoldScores(np.zeros(len(train)), np.zeros(len(test)))
    grid = Grid({"all": np.arange(train.shape[1])}, components=components)
    learned = search(side, grid, folds)
    logits: Float[np.ndarray, test] = learned.model.logits(test)
    return FoldScores(learned.out_of_fold, logits)


def _columns(
    table: SinkTable,
) -> tuple[dict[str, Float[np.ndarray, "trace _"]], Float[np.ndarray, "trace column"]]:
    """Columns of each part by name, and the heads that every record has: nothing is imputed."""
    heads = table.by_head.reshape(len(table.labels), -1)
    single = {"length": np.log(table.length), "entropy": table.entropy, "sink": table.mass}
    bases = {name: values[:, None] for name, values in single.items()}
    letters = np.unique(table.answers)
    if len(letters) <= MAX_LETTERS:
        bases[ANSWER] = (table.answers[:, None] == letters[None]).astype(np.float64)
    else:  # answers in words, not letters
        bases[ANSWER] = np.zeros((len(heads), 1))
    return bases, heads[:, np.isfinite(heads).all(axis=0)]


def _aurocs(fitted: Fitted, table: SinkTable, how: Resampling) -> Float[np.ndarray, "row"]:
    """Mean over seeds of the sample, then of each resample."""
    rows = []
    for scores in fitted.scores:
        drawn = resample_metrics(
            ["auroc"], scores, table.labels, table.groups,
            n_resamples=how.n_resamples, seed=how.seed,
        )["auroc"]  # fmt: skip
        rows.append(np.append(auroc(scores, table.labels), drawn))
    found: Float[np.ndarray, row] = np.mean(rows, axis=0)
    return found


def _losses(fitted: Fitted, table: SinkTable, how: Resampling) -> Float[np.ndarray, "row"]:
    losses = fitted.losses(table.labels)
    columns = np.stack([losses, np.ones(len(losses))], axis=1)
    sums = resample_sums(columns, table.groups, n_resamples=how.n_resamples, seed=how.seed)
    whole = np.concatenate([columns.sum(axis=0, keepdims=True), sums])
    found: Float[np.ndarray, row] = whole[:, 0] / whole[:, 1]
    return found


def _gain(
    pair: tuple[str, str],
    of_auroc: Float[np.ndarray, "row"],
    of_loss: Float[np.ndarray, "row"],
) -> Gain:
    return Gain(
        model=pair[0], baseline=pair[1],
        auroc=_estimate(of_auroc), p_auroc=two_sided_p(of_auroc[1:]),
        log_loss=_estimate(of_loss), p_log_loss=two_sided_p(of_loss[1:]),
    )  # fmt: skip


def _seed_sd(fitted: Fitted, labels: Int[np.ndarray, "trace"]) -> float:
    found = [auroc(scores, labels) for scores in fitted.scores]
    return float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def _estimate(rows: Float[np.ndarray, "row"]) -> Estimate:
    low, high, _ = percentile_interval(rows[1:], LEVEL)
    return Estimate(float(rows[0]), low, high)
