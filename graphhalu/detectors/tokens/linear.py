"""Token detectors that learn one weight a column."""

from abc import ABC
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator

from graphhalu.detectors.columns import check_shape, describe_shape
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.logistic import LinearModel
from graphhalu.detectors.probes.search import folds_of
from graphhalu.detectors.saved import (
    damaged,
    read_arrays,
    read_description,
    required,
    write_arrays,
    write_description,
)
from graphhalu.detectors.tokens.base import TokenConfig, TokenDetector, TokenScores, labelled
from graphhalu.detectors.tokens.families import expanded
from graphhalu.detectors.tokens.search import Tokens, Views, choose, described, fitted
from graphhalu.detectors.tokens.views import (
    Sample,
    View,
    sample_tokens,
    sampled_values,
    view_names,
    view_values,
    views_of,
)
from graphhalu.errors import DetectorMismatchError
from graphhalu.labels.groups import question_groups
from graphhalu.labels.tokens import TokenLabels
from graphhalu.splits import Split
from graphhalu.traces.trace import Trace


class TokenProbeConfig(TokenConfig):
    """Settings of a linear token detector."""

    n_folds: Annotated[int, Field(ge=2)] = 3
    """Folds within the training side in which family, row, window and penalty are chosen."""
    windows: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 9)
    """Tokens that columns are averaged over, the token itself in their middle; one is chosen."""
    max_tokens: Annotated[int, Field(ge=10)] = 12_000
    """Tokens that are learnt from at most, hallucinated ones up to half of them."""

    @field_validator("windows")
    @classmethod
    def _odd(cls, windows: tuple[int, ...]) -> tuple[int, ...]:
        if any(window % 2 == 0 for window in windows):
            message = f"a window has the token in its middle: odd numbers expected, got {windows}"
            raise ValueError(message)
        return windows


class LinearTokenDetector(TokenDetector, ABC):
    """A linear model of columns of each token; every choice is made in folds by context.

    A token without any known column has no valid score; other missing values count as the mean
    of the training tokens.
    """

    config_class: ClassVar[type[TokenConfig]] = TokenProbeConfig
    families: ClassVar[tuple[str, ...]]
    """What is read of a token; ``hidden`` stands for one family a kept layer."""
    is_joint: ClassVar[bool] = False
    """Whether all families together compete with each alone."""

    config: TokenProbeConfig

    def __init__(self, seed: int | None = None, config: TokenConfig | None = None) -> None:
        super().__init__(seed, config)
        self.model: LinearModel | None = None
        self.views: Views = ()
        self.names: tuple[str, ...] = ()
        self.shape: dict[str, Any] = {}

    def targets(self, labels: Int[np.ndarray, "token"]) -> Int[np.ndarray, "token"]:
        """What is learnt of the chosen tokens: their labels."""
        return labels

    def fit(self, traces: Sequence[Trace], labels: TokenLabels, split: Split) -> TokenDetector:
        """Choose and fit on the labelled tokens of ``split.train``; validation takes no part."""
        chosen = labelled(labels, split.train, self.card.name)
        config = self.config
        sample = sample_tokens(labels, chosen, n_most=config.max_tokens, seed=config.seed)
        first = traces[chosen[0]]
        tokens = self._tokens(traces, labels, sample)
        families = [
            list(views_of(first, family, config.windows))
            for family in expanded(self.families, first.shape)
        ]
        best = choose(tokens, families, is_joint=self.is_joint)
        self.model, self.views = fitted(tokens, best), best.views
        self.names = _names(first, best.views)
        self.shape = describe_shape(first.shape)
        self.training_report = {
            "n_traces": len(chosen), "n_tokens": len(tokens.labels),
            "n_hallucinated": int(tokens.labels.sum()), "n_columns": len(self.names),
            "n_folds": tokens.n_parts if tokens.n_parts > 1 else 0, **described(best),
        }  # fmt: skip
        return self

    def score_tokens(self, traces: Sequence[Trace]) -> TokenScores:
        """Logit of each answer token.

        Raises:
            DetectorMismatchError: If a trace is of a model of another shape.
        """
        if self.model is None:
            raise self.unfitted()
        check_identity(self.identity, traces)
        return TokenScores.of([self._logits(self.model, trace) for trace in traces])

    def save(self, folder: Path) -> None:
        """Write the weights of all columns, and which columns they are."""
        if self.model is None:
            raise self.unfitted()
        write_arrays(folder, self.model.arrays())
        values = {
            "config": self.config.model_dump(mode="json"), "columns": list(self.names),
            "views": [list(view) for view in self.views], "model_shape": self.shape,
            "training": self.training_report,
        }  # fmt: skip
        write_description(folder, self.card.name, values)

    @classmethod
    def load(cls, folder: Path) -> TokenDetector:
        """Read what :meth:`save` wrote."""
        values = read_description(folder, cls.card.name)
        keys = ("config", "columns", "views", "model_shape")
        config, names, views, shape = (required(values, key, folder) for key in keys)
        arrays = read_arrays(folder)
        try:
            detector = cls(**cls.settings(**config))
            detector.model = LinearModel.of_arrays(arrays)
            detector.views = tuple(View(*view) for view in views)
            detector.names, detector.shape = tuple(names), dict(shape)
            _check_size(detector.model, detector.names)
        except (KeyError, TypeError, ValueError) as error:
            raise damaged(folder, error) from None
        detector.training_report = dict(values.get("training") or {})
        return detector

    def _tokens(self, traces: Sequence[Trace], labels: TokenLabels, sample: Sample) -> Tokens:
        """The sampled tokens, in parts that share no context."""
        members = [traces[index] for index in sample.traces]
        groups = question_groups(members)
        answers = labels.answers[list(sample.traces)]
        folds = folds_of(answers, groups, n_folds=self.config.n_folds, seed=self.config.seed)
        part = np.zeros(len(members), dtype=np.int64)
        for number, fold in enumerate(folds):
            part[fold.held_out] = number
        values = self.targets(sample.labels(labels))
        of_token = part[sample.owner()]
        n_parts = _usable_parts(of_token, values, len(folds))
        return Tokens(
            lambda views: np.concatenate(
                [sampled_values(traces, sample, view) for view in views], axis=1
            ),
            values,
            of_token if n_parts > 1 else np.zeros_like(of_token),
            n_parts,
        )

    def _logits(self, model: LinearModel, trace: Trace) -> Float[np.ndarray, "token"]:
        check_shape(trace, self.shape)
        if _names(trace, self.views) != self.names:
            message = (
                f"trace {trace.trace_id!r} keeps other layers or features than {self.card.name} "
                f"was fitted on\n  Train it again on traces like this one"
            )
            raise DetectorMismatchError(message)
        values = [view_values(trace, view) for view in self.views]
        return model.logits(np.concatenate(values, axis=1))


def _usable_parts(
    part: Int[np.ndarray, "token"], labels: Int[np.ndarray, "token"], n_folds: int
) -> int:
    """The number of parts where each holds tokens of both classes; else 1."""
    has_both = [len(np.unique(labels[part == number])) > 1 for number in range(n_folds)]
    return n_folds if n_folds > 1 and all(has_both) else 1


def _check_size(model: LinearModel, names: Sequence[str]) -> None:
    if len(model.weight) != len(names):
        message = f"{len(model.weight)} weights for {len(names)} columns"
        raise ValueError(message)


def _names(trace: Trace, views: Views) -> tuple[str, ...]:
    return tuple(name for view in views for name in view_names(trace, view))
