"""One regression on every block of features at once, each block under a penalty of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, NamedTuple, final

import numpy as np
from jaxtyping import Float, Int
from scipy.linalg import cholesky, solve_triangular

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.probes.base import ProbeDetector
from graphhalu.detectors.probes.hidden import STATES
from graphhalu.detectors.probes.likelihood import LIKELIHOOD
from graphhalu.detectors.probes.logistic import LinearModel, Scaling, l2_path
from graphhalu.detectors.probes.search import Fold, Learned, Side, mean_auroc, places_by
from graphhalu.features.spec import FeatureSpec

ATTENTION: Final = (
    "sink_mass_k4", "self_attention_log", "attention_entropy_mean", "lookback_ratio", "span_mass",
    "received_top", "lapeig_top",
)  # fmt: skip
"""Node and edge statistics of the attention graph of every layer and head."""
FAMILIES: Final[dict[str, tuple[str, ...]]] = {
    "attention": ATTENTION,
    "hidden": STATES,
    "likelihood": LIKELIHOOD,
}
"""Features of each family; the features of the last one are single numbers and count as one."""
MIXES: Final[tuple[dict[str, float], ...]] = (
    {"attention": 0.5, "hidden": 0.5, "likelihood": 0.1},
    {"attention": 0.8, "hidden": 0.2, "likelihood": 0.1},
    {"attention": 0.2, "hidden": 0.8, "likelihood": 0.1},
    {"attention": 0.5, "hidden": 0.5, "likelihood": 0.5},
)
"""Shares of the prior variance that are chosen from; a family that traces lack has none."""
STRENGTHS: Final = (1.0, 3.0, 10.0, 30.0, 100.0)
"""As of :func:`graphhalu.detectors.probes.logistic.l2_path`."""
_JITTER: Final = 1e-6
_CLEARLY: Final = 1e-3


class Choice(NamedTuple):
    """One point of the grid."""

    mix: int
    strength: float


@final
class JointProbe(ProbeDetector):
    """Every layer, head and hidden state in one linear map.

    Summary:
        one logistic regression on attention of all heads, all hidden layers, likelihood

    Source:
        Our own: an L2 penalty a block (a Gaussian prior whose variance is shared out among
        attention, hidden states and likelihood, then among their features), solved through the
        kernel of the traces, so that 60,000 columns cost what the traces cost. Shares and penalty
        are chosen in three grouped folds within the training side; classes are balanced. Columns
        are standardised by the training side without its labels.
    """

    card: ClassVar[DetectorCard] = DetectorCard.of(
        __doc__,
        "joint-probe",
        "attention",
        "hidden",
        "likelihood",
        reads=(
            "hidden",
            "received",
            "self_attention",
            "sink_keys",
            "span_mass",
            "row_entropy",
            "token_logprob",
            "token_entropy",
            "top1_margin",
        ),
    )

    def specs(self) -> tuple[FeatureSpec, ...]:
        """All features of all families."""
        return tuple(FeatureSpec(name) for names in FAMILIES.values() for name in names)

    def learn(self, side: Side, folds: Sequence[Fold], validation: Side | None) -> Learned:
        """Choose shares and penalty, then fit on the whole side."""
        blocks = _blocks(side)
        kernels = {name: block.values @ block.values.T for name, block in blocks.items()}
        logits = {
            Choice(place, strength): np.full(len(side.labels), np.nan)
            for place in range(len(MIXES))
            for strength in STRENGTHS
        }
        for place, mix in enumerate(MIXES):
            kernel = _mixed(kernels, _shares(blocks, mix))
            for fold in folds:
                for strength, row in _held_out(kernel, side.labels, fold):
                    logits[Choice(place, strength)][fold.held_out] = row
        scores = {choice: mean_auroc(row, side.labels, folds) for choice, row in logits.items()}
        best = max(scores.values())
        chosen = next(choice for choice, score in scores.items() if score >= best - _CLEARLY)
        model = _fit(side, blocks, kernels, chosen)
        report = {
            "shares": MIXES[chosen.mix], "strength": chosen.strength, "n_folds": len(folds),
            "n_candidates": len(logits), "inner_auroc": scores[chosen] if folds else None,
            "n_columns": int(model.is_used.sum()),
        }  # fmt: skip
        return Learned(model, logits[chosen], report)


class Block(NamedTuple):
    """The columns of one feature, or of a family of single numbers.

    Attributes:
        family: Whose share it takes part in.
        places: Columns within the side.
        scaling: Of these columns, by the whole side.
        values: Standardised, and divided so that a trace has a squared length of about 1.
    """

    family: str
    places: Int[np.ndarray, "column"]
    scaling: Scaling
    values: Float[np.ndarray, "trace kept"]


def _blocks(side: Side) -> dict[str, Block]:
    """Blocks with a column that says anything."""
    family_of = {name: family for family, names in FAMILIES.items() for name in names}

    def block_of(column: str) -> str:
        feature = column.split(".", 1)[0]
        return "likelihood" if family_of[feature] == "likelihood" else feature

    found = {}
    for name, places in places_by(block_of, side.columns).items():
        values = side.values[:, places]
        scaling = Scaling.of(values)
        n_used = int(scaling.is_used.sum())
        if n_used:
            scaled = scaling.apply(values).astype(np.float32) / np.float32(np.sqrt(n_used))
            found[name] = Block(family_of.get(name, name), places, scaling, scaled)
    return found


def _shares(blocks: Mapping[str, Block], mix: Mapping[str, float]) -> dict[str, float]:
    """Share of each block: equal parts of its family's."""
    counts = Counter(block.family for block in blocks.values())
    return {name: mix[block.family] / counts[block.family] for name, block in blocks.items()}


def _mixed(
    kernels: Mapping[str, Float[np.ndarray, "trace trace"]], shares: Mapping[str, float]
) -> Float[np.ndarray, "trace trace"]:
    return np.sum([share * kernels[name].astype(np.float64) for name, share in shares.items()], 0)


def _held_out(
    kernel: Float[np.ndarray, "trace trace"], labels: Int[np.ndarray, "trace"], fold: Fold
) -> list[tuple[float, Float[np.ndarray, "held_out"]]]:
    """Logits of the held-out traces for each strength."""
    factor = _factor(kernel[np.ix_(fold.train, fold.train)])
    across = kernel[np.ix_(fold.train, fold.held_out)]
    held_out = solve_triangular(factor, across, lower=True, check_finite=False)
    path = l2_path(factor, labels[fold.train], STRENGTHS)
    return [
        (strength, held_out.T @ found.weight + found.bias)
        for strength, found in zip(STRENGTHS, path, strict=True)
    ]


def _factor(kernel: Float[np.ndarray, "trace trace"]) -> Float[np.ndarray, "trace trace"]:
    """Traces in coordinates whose products are the kernel; an L2 penalty sees no rotation."""
    ridge = _JITTER * float(np.trace(kernel)) / len(kernel)
    factor: Float[np.ndarray, "trace trace"] = cholesky(
        kernel + max(ridge, _JITTER) * np.eye(len(kernel)), lower=True, check_finite=False
    )
    return factor


def _fit(
    side: Side,
    blocks: Mapping[str, Block],
    kernels: Mapping[str, Float[np.ndarray, "trace trace"]],
    chosen: Choice,
) -> LinearModel:
    """Weights of raw columns from the weights of the traces."""
    shares = _shares(blocks, MIXES[chosen.mix])
    factor = _factor(_mixed(kernels, shares))
    path = STRENGTHS[: STRENGTHS.index(chosen.strength) + 1]
    found = list(l2_path(factor, side.labels, path))[-1]
    of_trace = solve_triangular(factor, found.weight, lower=True, trans="T", check_finite=False)
    n_columns = side.values.shape[1]
    median, mean, weight = np.zeros((3, n_columns))
    is_used = np.zeros(n_columns, dtype=bool)
    for name, share in shares.items():
        block = blocks[name]
        n_used = block.values.shape[1]
        of_column = share / np.sqrt(n_used) * (block.values.T @ of_trace)
        model = block.scaling.linear(of_column, 0.0)
        median[block.places], mean[block.places] = model.median, model.mean
        weight[block.places], is_used[block.places] = model.weight, model.is_used
    return LinearModel(median, mean, weight, is_used, found.bias)
