"""Pattern heads: what heads do on repeated random tokens, ``[BOS, x, x]``.

On text without meaning only form is left: the token before, the same token earlier, the token
after the same token earlier.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphhalu.core.axes import RowRange
from graphhalu.core.errors import UsageError
from graphhalu.heads.runs import RowsObserver, measured_table, run_observed
from graphhalu.heads.settings import PatternSettings
from graphhalu.heads.table import HeadScores, HeadTable
from graphhalu.models.load import LoadedModel

PATTERNS: Final = ("previous_token", "self", "duplicate", "induction", "sink", "local")


def find_pattern_heads(
    loaded: LoadedModel,
    settings: PatternSettings | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[HeadTable]:
    """One table a pattern, measured on repeated random tokens.

    Raises:
        UsageError: If a sequence does not fit the model's context, or its vocabulary.
    """
    settings = settings or PatternSettings()
    sequences = random_sequences(loaded, settings)
    found: dict[str, list[HeadScores]] = {name: [] for name in PATTERNS}
    for done, token_ids in enumerate(sequences, start=1):
        observer = RowsObserver(RowRange(0, len(token_ids)), partial(_padded, len(token_ids)))
        run_observed(loaded.model, token_ids, observer)
        layers = list(zip(observer.stacked(), loaded.layer_windows, strict=True))
        for name, scores in found.items():
            each = [pattern_score(layer, name, settings, window=window) for layer, window in layers]
            scores.append(HeadScores(*map(np.stack, zip(*each, strict=True))))
        on_progress(done, len(sequences))
    trials = [(f"sequence {number}",) * 2 for number in range(len(sequences))]
    return [measured_table(loaded, name, trials, scores, settings=settings) for name, scores in found.items()]


def pattern_score(
    attention: Float[np.ndarray, "head query key"],
    pattern: str,
    settings: PatternSettings,
    *,
    window: int | None = None,
) -> HeadScores:
    """Mean over rows of the attention to a row's keys in a pattern.

    With the period ``n`` and the first token at position 0 (the start mark):
    ``previous_token`` A[i, i-1]; ``self`` A[i, i]; ``duplicate`` A[i, i-n]; ``induction``
    A[i, i-n+1]; ``sink`` A[i, 0]; ``local`` the sum over the window before ``i``. Rows count
    that see the whole pattern; for duplicate and induction those of the second half, and for
    sink those after it.

    Args:
        attention: Of one layer on ``[BOS, x, x]``.
        pattern: Name in ``PATTERNS``.
        settings: Period and local window.
        window: Sliding window of the layer.

    Raises:
        UsageError: If there is no such pattern.

    Source:
        Olsson et al. 2022, arXiv:2209.11895 (induction, previous token); positions as in
        TransformerLens ``head_detector.py``. Chance is that of uniform attention.
    """
    is_member = pattern_keys(attention.shape[-1], pattern, settings)
    keys = np.arange(attention.shape[-1])
    distance = keys[:, None] - keys
    visible = (distance >= 0) & (distance < (window or len(keys)))
    is_row = is_member.any(1) & ~(is_member & ~visible).any(1)
    if not is_row.any():
        return HeadScores(*np.full((2, len(attention)), np.nan))
    rows = np.flatnonzero(is_row)
    mass = (attention[:, rows] * is_member[rows]).sum(-1).mean(-1)
    chance = (is_member[rows].sum(1) / visible[rows].sum(1)).mean()
    return HeadScores(mass.astype(np.float64), np.full(len(mass), chance))


def pattern_keys(n_tokens: int, pattern: str, settings: PatternSettings) -> Bool[np.ndarray, "query key"]:
    """Which keys of each row belong to a pattern; a row without any does not count.

    Raises:
        UsageError: If there is no such pattern.
    """
    rows, keys = np.arange(n_tokens)[:, None], np.arange(n_tokens)
    period, width = settings.period, settings.local_window
    members: dict[str, Bool[np.ndarray, "query key"]] = {
        "previous_token": (keys == rows - 1) & (rows > 1),
        "self": (keys == rows) & (rows > 0),
        "duplicate": (keys == rows - period) & (rows > period),
        "induction": (keys == rows - period + 1) & (rows > period),
        "sink": (keys == 0) & (rows > 0),
        "local": (keys >= rows - width) & (keys < rows) & (rows > width),
    }
    if pattern not in members:
        raise UsageError(f"no pattern named {pattern!r}; known: {', '.join(PATTERNS)}")
    return members[pattern]


def random_sequences(loaded: LoadedModel, settings: PatternSettings) -> list[Int[np.ndarray, "token"]]:
    """Sequences ``[BOS, x, x]`` of tokens that are neither special nor twice in ``x``.

    A model without a start mark gets a random token in its place.

    Raises:
        UsageError: If one does not fit the model's context, or its vocabulary.
    """
    length = 2 * settings.period + 1
    if loaded.max_positions is not None and length > loaded.max_positions:
        raise UsageError(
            f"a period of {settings.period} makes {length} tokens, the context of "
            f"{loaded.spec.name} has {loaded.max_positions}\n  Use a smaller --period"
        )
    special = set(loaded.tokenizer.all_special_ids)
    plain = np.array([i for i in range(len(loaded.tokenizer)) if i not in special])
    n_known = loaded.model.get_input_embeddings().weight.shape[0]
    plain = plain[plain < n_known]
    if len(plain) <= settings.period:
        raise UsageError(
            f"a period of {settings.period} needs {settings.period + 1} different tokens, the "
            f"vocabulary has {len(plain)}\n  Use a smaller --period"
        )
    generator = np.random.default_rng(settings.seed)
    sequences = []
    for _ in range(settings.n_sequences):
        drawn = generator.choice(plain, settings.period + 1, replace=False)
        bos = loaded.tokenizer.bos_token_id
        first = drawn[-1] if bos is None else bos
        sequences.append(np.concatenate([[first], drawn[:-1], drawn[:-1]]).astype(np.int64))
    return sequences


def _padded(n_keys: int, weights: Float[Tensor, "head row key"]) -> Float[Tensor, "head row all_keys"]:
    """Chunks end at their last key; with zeros behind it they can be put together."""
    return torch.nn.functional.pad(weights, (0, n_keys - weights.shape[-1]))
