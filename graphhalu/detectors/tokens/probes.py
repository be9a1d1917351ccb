"""Linear probes of what the model computed on each token."""

from typing import ClassVar, Final, final

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.tokens.linear import LinearTokenDetector

_METHOD: Final = (
    "Linear discriminant with a ridge penalty, classes balanced. Row, window and penalty are "
    "chosen in three folds by context within the training side, at most 12,000 tokens are learnt "
    "from. "
)
_ATTENTION: Final = ("span_mass", "sink_keys", "self_attention", "row_entropy")
_LIKELIHOOD: Final = ("token_logprob", "token_entropy", "top1_margin")


@final
class TokenAttention(LinearTokenDetector):
    """Attention of every head in the row of a token."""

    families: ClassVar[tuple[str, ...]] = ("attention",)
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-attention",
        summary="linear probe of sink, context, lookback, own weight and entropy of every head",
        source=(
            _METHOD + "The lookback ratio is that of Chuang et al. 2024, arXiv:2407.07071, "
            "without the first four tokens."
        ),
        inputs=("attention",),
        is_supervised=True,
        reads=_ATTENTION,
    )


@final
class TokenHidden(LinearTokenDetector):
    """The hidden state of one layer in the row of a token."""

    families: ClassVar[tuple[str, ...]] = ("hidden",)
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-hidden",
        summary="linear probe of the hidden state of the best kept layer",
        source=_METHOD + "As SAPLMA (Azaria and Mitchell 2023), token by token and linear.",
        inputs=("hidden",),
        is_supervised=True,
        reads=("hidden_rows",),
    )


@final
class TokenProbe(LinearTokenDetector):
    """Attention, hidden states, likelihood, or all of them, as the folds choose."""

    families: ClassVar[tuple[str, ...]] = ("attention", "hidden", "likelihood")
    is_joint: ClassVar[bool] = True
    card: ClassVar[DetectorCard] = DetectorCard(
        name="token-probe",
        summary="linear probe of attention, hidden states and likelihood, alone or together",
        source=_METHOD + "Which of the families are read is chosen there too.",
        inputs=("attention", "hidden", "likelihood"),
        is_supervised=True,
        reads=(*_ATTENTION, "hidden_rows", *_LIKELIHOOD),
    )
