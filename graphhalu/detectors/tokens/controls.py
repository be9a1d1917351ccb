"""Controls that a token detector must beat."""

from typing import ClassVar, final

import numpy as np
from jaxtyping import Int

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.tokens.linear import LinearTokenDetector


@final
class TokenPosition(LinearTokenDetector):
    """The place of a token in the answer, and the length of the answer."""

    families: ClassVar[tuple[str, ...]] = ("position",)
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-position",
        summary="linear model of a token's place in the answer and of the answer's length",
        source="Control: nothing that a model computed. Place and what is left, plain and in logs.",
        inputs=("length",),
        is_supervised=True,
        is_control=True,
    )


@final
class TokenLikelihood(LinearTokenDetector):
    """How likely the replaying model finds a token."""

    families: ClassVar[tuple[str, ...]] = ("likelihood",)
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-likelihood",
        summary="linear model of surprise, entropy and margin, averaged over a window or not",
        source="Control: what an ordinary forward pass gives without attention or hidden states.",
        inputs=("likelihood",),
        is_supervised=True,
        is_control=True,
        reads=("token_logprob", "token_entropy", "top1_margin"),
    )


@final
class TokenOverlap(LinearTokenDetector):
    """Whether a token, and it with those before it, stands in the prompt."""

    families: ClassVar[tuple[str, ...]] = ("overlap",)
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-overlap",
        summary="linear model of whether one, two and three tokens running are in the prompt",
        source="Control: looks the answer up in the prompt, and needs no model.",
        inputs=("text",),
        is_supervised=True,
        is_control=True,
    )


@final
class TokenShuffled(LinearTokenDetector):
    """The attention probe on labels shuffled among the training tokens."""

    families: ClassVar[tuple[str, ...]] = ("attention",)
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-shuffled",
        summary="token-attention fitted on labels shuffled among training tokens",
        source=(
            "Control: what is above 0.5 here is leakage or chance. Where few directions hold most "
            "of what differs, one fit can be far from 0.5 to either side: look at several seeds."
        ),
        inputs=("attention",),
        is_supervised=True,
        is_control=True,
        reads=("span_mass", "sink_keys", "self_attention", "row_entropy"),
    )

    def targets(self, labels: Int[np.ndarray, "token"]) -> Int[np.ndarray, "token"]:
        """The labels in another order."""
        return np.random.default_rng(self.config.seed).permutation(labels)
