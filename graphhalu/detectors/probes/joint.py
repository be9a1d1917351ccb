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
from graphhalu.detectors.probes.search import Fold, Learned, Side, first_of_the_best, places_by
from graphhalu.features.spec import FeatureSpec

ATTENTION: Final = (
    "sink_mass_k4",
    "self_attention_log",
    "attention_entropy_mean",
    "lookback_ratio",
    "span_mass",
    "received_top",
    "lapeig_top",
)
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
        kernels = [_mixed(blocks, mix) for mix in MIXES]
        logits = np.full((len(MIXES), len(STRENGTHS), len(side.labels)), np.nan)
        for place, kernel in enumerate(kernels):
            for fold in folds:
                logits[place][:, fold.held_out] = _held_out(kernel, side.labels, fold)
        flat = logits.reshape(-1, len(side.labels))
        chosen, inner_auroc = first_of_the_best(flat, side.labels, folds)
        mix, strength = divmod(chosen, len(STRENGTHS))
        model = _fit(side, blocks, MIXES[mix], kernels[mix], STRENGTHS[: strength + 1])
        report = {
            "shares": MIXES[mix],
            "strength": STRENGTHS[strength],
            "n_folds": len(folds),
            "n_candidates": len(flat),
            "inner_auroc": inner_auroc,
            "n_columns": int(model.is_used.sum()),
        }
        return Learned(model, flat[chosen], report)


class Block(NamedTuple):
    """The columns of one feature, or of a family of single numbers.

    Attributes:
        family: Whose share it takes part in.
        places: Columns within the side.
        scaling: Of these columns, by the whole side.
        values: Standardised, and divided so that a trace has a squared length of about 1.
        kernel: Products of the traces.
    """

    family: str
    places: Int[np.ndarray, "column"]
    scaling: Scaling
    values: Float[np.ndarray, "trace kept"]
    kernel: Float[np.ndarray, "trace trace"]


def _blocks(side: Side) -> list[Block]:
    """Blocks with a column that says anything."""
    family_of = {name: family for family, names in FAMILIES.items() for name in names}

    def block_of(column: str) -> str:
        feature = column.split(".", 1)[0]
        return "likelihood" if family_of[feature] == "likelihood" else feature

    found = []
    for name, places in places_by(block_of, side.columns).items():
        values = side.values[:, places]
        scaling = Scaling.of(values)
        n_used = int(scaling.is_used.sum())
        if n_used:
            scaled = scaling.apply(values).astype(np.float32) / np.float32(np.sqrt(n_used))
            kernel = (scaled @ scaled.T).astype(np.float64)
            found.append(Block(family_of.get(name, name), places, scaling, scaled, kernel))
    return found


def _shares(blocks: Sequence[Block], mix: Mapping[str, float]) -> list[float]:
    """Share of each block: equal parts of its family's."""
    counts = Counter(block.family for block in blocks)
    return [mix[block.family] / counts[block.family] for block in blocks]


def _mixed(blocks: Sequence[Block], mix: Mapping[str, float]) -> Float[np.ndarray, "trace trace"]:
    pairs = zip(_shares(blocks, mix), blocks, strict=True)
    return np.sum([share * block.kernel for share, block in pairs], axis=0)


def _held_out(
    kernel: Float[np.ndarray, "trace trace"], labels: Int[np.ndarray, "trace"], fold: Fold
) -> list[Float[np.ndarray, "held_out"]]:
    """Logits of the held-out traces for each strength."""
    factor = _factor(kernel[np.ix_(fold.train, fold.train)])
    across = kernel[np.ix_(fold.train, fold.held_out)]
    held_out = solve_triangular(factor, across, lower=True, check_finite=False).T
    return [found.logits(held_out) for found in l2_path(factor, labels[fold.train], STRENGTHS)]


def _factor(kernel: Float[np.ndarray, "trace trace"]) -> Float[np.ndarray, "trace trace"]:
    """Traces in coordinates whose products are the kernel; an L2 penalty sees no rotation."""
    ridge = _JITTER * float(np.trace(kernel)) / len(kernel)
    positive = kernel + max(ridge, _JITTER) * np.eye(len(kernel))
    return cholesky(positive, lower=True, check_finite=False)


def _fit(
    side: Side,
    blocks: Sequence[Block],
    mix: Mapping[str, float],
    kernel: Float[np.ndarray, "trace trace"],
    strengths: Sequence[float],
) -> LinearModel:
    """Weights of raw columns from the weights of the traces."""
    factor = _factor(kernel)
    found = l2_path(factor, side.labels, strengths)[-1]
    of_trace = solve_triangular(factor, found.weight, lower=True, trans="T", check_finite=False)
    n_columns = side.values.shape[1]
    parts = []
    for share, block in zip(_shares(blocks, mix), blocks, strict=True):
        of_column = share / np.sqrt(block.values.shape[1]) * (block.values.T @ of_trace)
        parts.append(block.scaling.widened(block.places, n_columns).linear(of_column, 0.0))
    median, mean, weight, is_used = (
        np.sum([getattr(part, name) for part in parts], axis=0)
        for name in ("median", "mean", "weight", "is_used")
    )
    return LinearModel(median, mean, weight, is_used > 0, found.bias)
