"""A profile as tables of heads, and as roles that graphs and detectors take."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from scipy.stats import rankdata

from graphhalu.core.errors import UsageError
from graphhalu.graphs.recipe import HeadRoles
from graphhalu.heads.table import HeadTable, Trial
from graphhalu.weights.tables import WeightProfile

QUANTITIES: Final = (
    "logit_variance",
    "self_logit",
    "v_norm",
    "ov_norm",
    "ov_stable_rank",
    "copying",
    "q_composition",
    "k_composition",
    "v_composition",
)
"""What is handed on by default."""


def head_tables(profile: WeightProfile, quantities: Sequence[str] = QUANTITIES) -> list[HeadTable]:
    """One table a quantity, with the weights as its one trial: there is nothing to resample.

    Raises:
        UnknownNameError: If there is no such quantity.
    """
    missing = np.full((profile.n_layers, profile.n_heads), np.nan)
    return [
        HeadTable(
            role=f"weights_{quantity}",
            layers=tuple(range(profile.n_layers)),
            trials=(Trial("weights", "weights"),),
            scores=profile.of_heads(quantity)[None],
            chance=missing,
            # the identity of a loaded model says more, and tables of one model must agree
            settings={"quantity": quantity, "model": dict(profile.model), **profile.settings},
        )
        for quantity in quantities
    ]


def head_roles(profile: WeightProfile, quantities: Sequence[str]) -> HeadRoles:
    """Weights of heads for graphs: of each quantity the share of heads that one lies above.

    Raises:
        UnknownNameError: If there is no such quantity.
        UsageError: If a head does not have it.
    """
    columns = []
    for quantity in quantities:
        values = profile.of_heads(quantity)
        if not np.isfinite(values).all():
            raise UsageError(
                f"{quantity} is missing for {int((~np.isfinite(values)).sum())} heads: it cannot "
                f"be a role of all of them"
            )
        shares = (rankdata(values) - 1) / max(1, values.size - 1)
        columns.append(shares.reshape(values.shape))
    return HeadRoles(tuple(f"weights_{name}" for name in quantities), np.stack(columns, axis=-1))
