"""Linear probes of answer tokens, and the controls that they must beat."""

from abc import ABC
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, final

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator

from graphhalu.core.errors import DetectorMismatchError, TraceNotFoundError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import Detector, DetectorCard, Scores
from graphhalu.detectors.columns import check_shape, describe_shape
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.logistic import LinearModel
from graphhalu.detectors.probes.search import Fold
from graphhalu.detectors.token_features import View, expanded, view_names, view_values, views_of
from graphhalu.detectors.token_ridge import Tokens, Views, choose, described, fitted
from graphhalu.detectors.token_samples import Sample, TokenConfig, training_sample
from graphhalu.detectors.trained import TrainedConfig, TrainedDetector
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

_METHOD: Final = (
    "Linear discriminant with a ridge penalty, classes balanced. Row, window and penalty are "
    "chosen in three folds by context within the training side, at most 12,000 tokens are learnt "
    "from. "
)
_ATTENTION: Final = ("span_mass", "sink_keys", "self_attention", "row_entropy")
_LIKELIHOOD: Final = ("token_logprob", "token_entropy", "top1_margin")


class TokenProbeConfig(TokenConfig):
    """Settings of a linear token detector; family, row, window and penalty are chosen in folds."""

    windows: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 9)
    """Tokens that columns are averaged over, the token itself in their middle; one is chosen."""

    @field_validator("windows")
    @classmethod
    def _odd(cls, windows: tuple[int, ...]) -> tuple[int, ...]:
        if any(window % 2 == 0 for window in windows):
            message = f"a window has the token in its middle: odd numbers expected, got {windows}"
            raise ValueError(message)
        return windows


class LinearTokenDetector(TrainedDetector, ABC):
    """A linear model of columns of each token; every choice is made in folds by context.

    A token without any known column has no valid score; other missing values count as the mean
    of the training tokens.
    """

    config_class: ClassVar[type[TrainedConfig]] = TokenProbeConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("columns", "views", "model_shape")
    families: ClassVar[tuple[str, ...]]
    """What is read of a token; ``hidden`` stands for one family a kept layer."""
    is_joint: ClassVar[bool] = False
    """Whether all families together compete with each alone."""

    config: TokenProbeConfig

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
        self.model: LinearModel | None = None
        self.views: Views = ()
        self.names: tuple[str, ...] = ()
        self.shape: dict[str, Any] = {}

    def targets(self, labels: Int[np.ndarray, "token"]) -> Int[np.ndarray, "token"]:
        """What is learnt of the chosen tokens: their labels."""
        return labels

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Choose and fit on the labelled tokens of ``split.train``; validation takes no part."""
        sample, folds = training_sample(traces, labels, split.train, self.config, self.card.name)
        first = traces[sample.traces[0]]
        tokens = self._tokens(traces, sample, folds)
        families = [
            list(views_of(first, family, self.config.windows))
            for family in expanded(self.families, first.shape)
        ]
        best = choose(tokens, families, is_joint=self.is_joint)
        self.model, self.views = fitted(tokens, best), best.views
        self.names = _names(first, best.views)
        self.shape = describe_shape(first.shape)
        self.training_report = {
            "n_traces": len(sample.traces),
            "n_tokens": len(tokens.labels),
            "n_hallucinated": int(tokens.labels.sum()),
            "n_columns": len(self.names),
            "n_folds": tokens.n_parts if tokens.n_parts > 1 else 0,
            **described(best),
        }
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each answer token; NaN for a trace that lacks what the columns are made of.

        Raises:
            DetectorMismatchError: If a trace is of a model of another shape.
        """
        if self.model is None:
            raise self.unfitted()
        check_identity(self.identity, traces)
        return Scores.ragged([self._logits(self.model, trace) for trace in traces])

    @property
    def n_parameters(self) -> int | None:
        """Weights that are not 0, and the bias."""
        return None if self.model is None else self.model.n_parameters

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights of all columns."""
        if self.model is None:
            raise self.unfitted()
        return self.model.arrays()

    def description(self) -> dict[str, Any]:
        """Which columns the weights are of."""
        views = [list(view) for view in self.views]
        return {"columns": list(self.names), "views": views, "model_shape": self.shape}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take over weights and columns of a saved probe."""
        self.model = LinearModel.of_arrays(arrays)
        self.views = tuple(View(*view) for view in values["views"])
        self.names, self.shape = tuple(values["columns"]), dict(values["model_shape"])
        if len(self.model.weight) != len(self.names):
            message = f"{len(self.model.weight)} weights for {len(self.names)} columns"
            raise ValueError(message)

    def _tokens(self, traces: Sequence[Trace], sample: Sample, folds: Sequence[Fold]) -> Tokens:
        """The sampled tokens, in parts that share no context."""
        part = np.zeros(len(sample.traces), dtype=np.int64)
        for number, fold in enumerate(folds):
            part[fold.held_out] = number
        values = self.targets(sample.labels)
        of_token = part[sample.owner()]
        n_parts = _usable_parts(of_token, values, len(folds))
        return Tokens(
            lambda views: _sampled(traces, sample, views),
            values,
            of_token if n_parts > 1 else np.zeros_like(of_token),
            n_parts,
        )

    def _logits(self, model: LinearModel, trace: Trace) -> Float[np.ndarray, "token"]:
        check_shape(trace, self.shape)
        try:
            values = [view_values(trace, view) for view in self.views]
        except TraceNotFoundError:
            return np.full(trace.answer_length, np.nan)
        if _names(trace, self.views) != self.names:
            message = (
                f"trace {trace.trace_id!r} keeps other layers or features than {self.card.name} "
                f"was fitted on\n  Train it again on traces like this one"
            )
            raise DetectorMismatchError(message)
        return model.logits(np.concatenate(values, axis=1))


def _usable_parts(part: Int[np.ndarray, "token"], labels: Int[np.ndarray, "token"], n_folds: int) -> int:
    """The number of parts where each holds tokens of both classes; else 1."""
    has_both = [len(np.unique(labels[part == number])) > 1 for number in range(n_folds)]
    return n_folds if n_folds > 1 and all(has_both) else 1


def _sampled(traces: Sequence[Trace], sample: Sample, views: Views) -> Float[np.ndarray, "token column"]:
    """Some views of the sampled tokens side by side, trace after trace."""
    pairs = list(zip(sample.traces, sample.tokens, strict=True))
    columns = [
        np.concatenate([view_values(traces[index], view)[chosen] for index, chosen in pairs])
        for view in views
    ]
    return np.concatenate(columns, axis=1)


def _names(trace: Trace, views: Views) -> tuple[str, ...]:
    return tuple(name for view in views for name in view_names(trace, view))


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
        level="token",
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
        level="token",
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
        level="token",
        reads=(*_ATTENTION, "hidden_rows", *_LIKELIHOOD),
    )


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
        level="token",
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
        level="token",
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
        level="token",
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
        level="token",
        is_control=True,
        reads=("span_mass", "sink_keys", "self_attention", "row_entropy"),
    )

    def targets(self, labels: Int[np.ndarray, "token"]) -> Int[np.ndarray, "token"]:
        """The labels in another order."""
        return np.random.default_rng(self.config.seed).permutation(labels)
