"""Explanation of a score: what changes without a token, a head or an edge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float

from graphhalu.core.errors import NonFiniteError
from graphhalu.detectors.base import Attribution, Detector, EdgeEffect
from graphhalu.traces.trace import Trace, without_tokens

SHARE: Final = 0.2
"""Share of the answer's tokens that the fidelity check takes out."""
N_RANDOM: Final = 20
"""Random choices of as many tokens that it compares with."""


@dataclass(frozen=True)
class Explanation:
    """What a score is made of.

    Attributes:
        score: The score.
        tokens: Score minus the score without the token, for each token of the answer; NaN where
            that has none, and for the only token of an answer.
        parts: Heads, features and edges; ``None`` where the detector cannot say.
        fidelity: Whether the tokens of the largest contributions matter more than others: how many are
            taken out together (``n_taken``), the absolute ``change`` of the score, ``random_mean`` and
            ``random_std`` of its change without as many random tokens, and as ``rank`` the share of random
            choices that change it less; 0.5 is chance. ``None`` for an answer of fewer than three tokens.
        texts: The text of each token.
    """

    score: float
    texts: tuple[str, ...]
    tokens: Float[np.ndarray, "answer_token"]
    parts: Attribution | None
    fidelity: Mapping[str, Any] | None

    def strongest(self, n: int = 5) -> dict[str, list[str]]:
        """What weighs most, each with its number, by kind."""
        pairs = zip(self.texts, self.tokens, strict=True)
        kinds = {"tokens": {f"{text.strip()!r}": float(value) for text, value in pairs if np.isfinite(value)}}
        if self.parts is not None:
            places = np.argwhere(self.parts.heads != 0).tolist()
            kinds["heads"] = {f"L{i}H{j}": float(self.parts.heads[i, j]) for i, j in places}
            kinds["features"] = self.parts.features
            if self.parts.edges:
                kinds["edges"] = {_edge_name(edge): edge.effect for edge in self.parts.edges}
        return {kind: _largest(values, n) for kind, values in kinds.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        pairs = zip(self.texts, self.tokens.tolist(), strict=True)
        names = ("heads", "features", "rest", "is_exact", "edges")
        parts: dict[str, Any] = dict.fromkeys(names)
        if self.parts is not None:
            parts = {name: getattr(self.parts, name) for name in names}
            parts["heads"] = self.parts.heads.tolist()
            parts["edges"] = [edge._asdict() for edge in self.parts.edges[:100]]
        return {
            "tokens": [{"text": text, "contribution": value} for text, value in pairs],
            "fidelity": self.fidelity,
            **parts,
        }


def _edge_name(edge: EdgeEffect) -> str:
    return f"{'' if edge.layer is None else f'L{edge.layer} '}{edge.key}->{edge.query}"


def _largest(values: dict[str, float], n: int) -> list[str]:
    ordered = sorted(values.items(), key=lambda item: -abs(item[1]))[:n]
    return [f"{name} {value:+.3g}" for name, value in ordered if value]


def explain(detector: Detector, trace: Trace, *, seed: int = 0) -> Explanation:
    """Take the score of a trace apart.

    A token is taken out of what was recorded (:func:`graphhalu.traces.trace.without_tokens`):
    what later tokens saw of it stays. So a contribution says what the detector reads at the
    token, not what the model would have said without it.

    Args:
        detector: Fitted or loaded.
        trace: With a valid score.
        seed: Of the random tokens of the fidelity check.

    Raises:
        NonFiniteError: If the detector has no score for the trace.
    """
    score = float(detector.score([trace]).highest().values[0])
    if not np.isfinite(score):
        raise NonFiniteError(f"{detector.card.name} has no score for trace {trace.trace_id!r} to explain")
    answer, texts = list(range(trace.prompt_length, trace.length)), _texts(trace)
    parts = detector.attribute(trace)
    if len(answer) == 1:
        return Explanation(score, texts, np.array([np.nan]), parts, None)
    without = [without_tokens(trace, [position]) for position in answer]
    tokens = score - detector.score(without).highest().values
    fidelity = _fidelity(detector, trace, score, tokens, seed=seed)
    return Explanation(score, texts, tokens, parts, fidelity)


def _texts(trace: Trace) -> tuple[str, ...]:
    """Text of each answer token; its number where the trace does not say."""
    record = trace.record
    if len(record.answer_offsets) != trace.length - trace.prompt_length:
        return tuple(f"[{position}]" for position in range(trace.prompt_length, trace.length))
    ends = [start for start, _ in record.answer_offsets[1:]] + [len(record.answer)]
    starts = [start for start, _ in record.answer_offsets]
    return tuple(record.answer[a:b] for a, b in zip(starts, ends, strict=True))


def _fidelity(
    detector: Detector, trace: Trace, score: float, tokens: Float[np.ndarray, "answer_token"], *, seed: int
) -> dict[str, Any] | None:
    known = np.flatnonzero(np.isfinite(tokens))
    n_taken = max(1, round(SHARE * len(tokens)))
    if len(known) < 3 or n_taken >= len(known):  # noqa: PLR2004
        return None
    strongest = known[np.argsort(-np.abs(tokens[known]), kind="stable")[:n_taken]]
    generator = np.random.default_rng(seed)
    draws = [generator.choice(known, n_taken, replace=False) for _ in range(N_RANDOM)]
    positions = (trace.prompt_length + chosen for chosen in (strongest, *draws))
    masked = [without_tokens(trace, each.tolist()) for each in positions]
    changes = np.abs(score - detector.score(masked).highest().values)
    random = changes[1:][np.isfinite(changes[1:])]
    return {
        "n_taken": n_taken,
        "change": float(changes[0]),
        "random_mean": random.mean(),
        "random_std": random.std(),
        "rank": float(np.mean((random < changes[0]) / 2 + (random <= changes[0]) / 2)),
    }
