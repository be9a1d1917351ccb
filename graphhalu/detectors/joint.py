"""One regression on every block of features at once, each block under a penalty of its own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final

import numpy as np
from jaxtyping import Float

from graphhalu.core.splits import InnerFold
from graphhalu.detectors.base import card_attributes
from graphhalu.detectors.inner_search import Learned, Side, first_of_the_best
from graphhalu.detectors.linear import Scaling, l2_path
from graphhalu.detectors.probes import ProbeDetector

FAMILIES: Final[dict[str, list[str]]] = card_attributes("joint-probe")["families"]
"""Features of each family; the features of the last one are single numbers and count as one."""
MIXES: Final[tuple[dict[str, float], ...]] = (
    {"attention": 0.5, "hidden": 0.5, "likelihood": 0.1},
    {"attention": 0.8, "hidden": 0.2, "likelihood": 0.1},
    {"attention": 0.2, "hidden": 0.8, "likelihood": 0.1},
    {"attention": 0.5, "hidden": 0.5, "likelihood": 0.5},
)
"""Shares of the prior variance that are chosen from; a family that traces lack has none."""
STRENGTHS: Final = (1.0, 3.0, 10.0, 30.0, 100.0)
"""As of :func:`graphhalu.detectors.linear.l2_path`."""
_JITTER: Final = 1e-6


def learn_jointly(side: Side, folds: Sequence[InnerFold]) -> Learned:
    """Every layer, head and hidden state in one linear map: choose shares and penalty, then fit."""
    from scipy.linalg import solve_triangular

    scaling = Scaling.of(side.values)
    scaled = scaling.apply(side.values, np.float32)
    used = [column for column, is_used in zip(side.columns, scaling.is_used, strict=True) if is_used]
    roots = [np.sqrt(_shares(used, mix)) for mix in MIXES]
    # labels play no part in the coordinates, so the same ones serve all folds
    coordinates = [_coordinates(scaled * root) for root in roots]
    logits = np.full((len(MIXES), len(STRENGTHS), len(scaled)), np.nan)
    for place, factor in enumerate(coordinates):
        for train, held_out in folds:
            path = l2_path(factor[train], side.labels[train], STRENGTHS)
            logits[place][:, held_out] = [found.logits(factor[held_out]) for found in path]
    flat = logits.reshape(-1, len(scaled))
    best, inner_auroc = first_of_the_best(flat, side.labels, folds)
    mix, strength = divmod(best, len(STRENGTHS))
    found = l2_path(coordinates[mix], side.labels, STRENGTHS[: strength + 1])[-1]
    of_trace = solve_triangular(coordinates[mix], found.weight, lower=True, trans="T", check_finite=False)
    model = scaling.linear(np.square(roots[mix]) * (scaled.T @ of_trace), found.bias)
    report = {
        "shares": MIXES[mix],
        "strength": STRENGTHS[strength],
        "n_folds": len(folds),
        "n_candidates": len(flat),
        "inner_auroc": inner_auroc,
        "n_columns": len(used),
    }
    return Learned(model, flat[best], report)


JointProbe: Final = ProbeDetector.variant(
    "joint-probe", __name__, features=tuple(chain(*FAMILIES.values())), learn=learn_jointly
)

LiveProbe: Final = ProbeDetector.variant("live-probe", __name__, learn=learn_jointly)


def _coordinates(values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace trace"]:
    """Traces in as many coordinates as there are traces, with the same products.

    An L2 penalty does not notice the change, so 60,000 columns cost what the traces cost.
    """
    from scipy.linalg import cholesky

    kernel = (values @ values.T).astype(np.float64)
    jitter = max(_JITTER * float(np.trace(kernel)) / len(kernel), _JITTER)
    while True:
        try:
            return cholesky(kernel + jitter * np.eye(len(kernel)), lower=True, check_finite=False)
        except np.linalg.LinAlgError:  # rounding of thousands of traces in single precision
            jitter *= 10


def _shares(columns: Sequence[str], mix: Mapping[str, float]) -> Float[np.ndarray, "column"]:
    """Prior variance of each column: equal parts of its family's for each block, then each column."""
    family_of = {name: family for family, names in FAMILIES.items() for name in names}
    features = [column.partition(".")[0] for column in columns]
    blocks = ["likelihood" if family_of[name] == "likelihood" else name for name in features]
    n_columns = Counter(blocks)
    n_blocks = Counter(family_of.get(block, block) for block in n_columns)
    families = [family_of.get(block, block) for block in blocks]
    return np.array(
        [
            mix[family] / (n_blocks[family] * n_columns[block])
            for family, block in zip(families, blocks, strict=True)
        ],
        dtype=np.float32,
    )
