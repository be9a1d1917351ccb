"""Linear probes of answer tokens, and the controls that they must beat."""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from scipy.linalg import solve

from graphhalu.core.errors import DetectorMismatchError, TraceNotFoundError
from graphhalu.core.numerics import auroc
from graphhalu.core.splits import InnerFold, Split
from graphhalu.detectors.base import Detector, DetectorCard, Scores, check_classes
from graphhalu.detectors.columns import check_shape, describe_shape
from graphhalu.detectors.inner_search import folds_of, simplest, with_both_classes
from graphhalu.detectors.linear import LinearModel, Scaling, Solution
from graphhalu.detectors.probes import ProbeConfig
from graphhalu.detectors.saved import TrainedConfig, TrainedDetector, read_arrays, write_arrays
from graphhalu.detectors.token_features import View, expanded, view_columns, views_of
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

Values = Float[np.ndarray, "token column"]
Truth = Int[np.ndarray, "token"]
PerTrace = Int[np.ndarray, "_"]

STRENGTHS: Final = (1.0, 0.1, 0.01, 0.001)
"""Penalties, the strongest first: each times the number of columns is added to the diagonal of
their correlations."""
_SMALLEST: Final = 1e-6
_FALLBACK: Final = 0.1
"""The penalty where there are no folds to choose by."""

Views = tuple[View, ...]
Candidate = tuple[Views, float, float | None]
"""Views with their best penalty and its AUROC, as the folds see it."""


class TokenConfig(ProbeConfig):
    """Settings of a token detector that learns from a sample of tokens."""

    max_tokens: Annotated[int, Field(ge=10)] = 12_000
    """Tokens that are learnt from at most, hallucinated ones up to half of them."""


class Sample(NamedTuple):
    """Some answer tokens of some traces.

    Attributes:
        traces: Indices of the traces.
        tokens: Places of the chosen tokens within the answer of each of them.
        labels: Labels of the chosen tokens, trace after trace.
    """

    traces: tuple[int, ...]
    tokens: tuple[PerTrace, ...]
    labels: Truth


def sample_tokens(tokens: Sequence[PerTrace], traces: Sequence[int], *, n_most: int, seed: int) -> Sample:
    """At most so many tokens, drawn at random class by class.

    Hallucinated tokens are kept up to half of the number, since they are few.

    Args:
        tokens: Labels of the answer tokens of all traces.
        traces: Indices of those to draw from.
        n_most: How many tokens at most.
        seed: Seed of the draw.
    """
    values = np.concatenate([tokens[index] for index in traces])
    kept = np.ones(len(values), dtype=np.bool_)
    if len(values) > n_most:
        generator = np.random.default_rng(seed)
        of_class = [np.flatnonzero(values == label) for label in (0, 1)]
        n_positive = max(min(len(of_class[1]), n_most // 2), n_most - len(of_class[0]))
        kept[:] = False
        for members, n_drawn in zip(of_class, (n_most - n_positive, n_positive), strict=True):
            kept[generator.choice(members, min(n_drawn, len(members)), replace=False)] = True
    ends = np.cumsum([len(tokens[index]) for index in traces])[:-1]
    places = tuple(np.flatnonzero(part) for part in np.split(kept, ends))
    return Sample(tuple(traces), places, values[kept])


def training_sample(
    traces: Sequence[Trace],
    labels: Labels,
    indices: Int[np.ndarray, "train"],
    config: TokenConfig,
    card: DetectorCard,
) -> tuple[Sample, list[InnerFold]]:
    """Training tokens to learn from, and folds of them that part no context.

    There are no folds if there are too few contexts.

    Args:
        traces: All traces.
        labels: Labels of their tokens.
        indices: The training traces.
        config: How many tokens and folds, and the seed of both.
        card: Of the detector.

    Raises:
        UsageError: If only answers are labelled.
        NotEnoughDataError: If the tokens are all of one class.
    """
    tokens, seed = labels.token_labels(card.name), config.seed
    side = np.sort(indices[labels.is_valid[indices]])
    chosen: list[int] = side.tolist()
    values = labels.items[labels.places(side)]
    check_classes(values, card, way_out="Extract more answers with marked spans")
    sample = sample_tokens(tokens, chosen, n_most=config.max_tokens, seed=seed)
    groups = question_groups([traces[index] for index in chosen])
    folds = folds_of(labels.values[chosen], groups, n_folds=config.n_folds, seed=seed)
    owner = np.repeat(np.arange(len(chosen)), [len(each) for each in sample.tokens])
    return sample, [InnerFold(*(np.flatnonzero(np.isin(owner, part)) for part in fold)) for fold in folds]


def ridge_path(values: Values, labels: Truth, strengths: Sequence[float] = STRENGTHS) -> list[Solution]:
    """Linear discriminants of balanced classes under a ridge penalty, in closed form.

    Minimises ``sum_i s_i (y_i - z_i u - b)^2 + strength * columns * |u|^2`` over columns ``z``
    that are standardised under the weights ``s``, which sum to 1 and let both classes weigh
    alike, and ``y`` of -1 and 1. scikit-learn's ``Ridge`` would sum the products of the columns
    again for each strength, which is what takes the time.
    """
    from sklearn.utils.class_weight import compute_sample_weight

    share = compute_sample_weight("balanced", labels).astype(values.dtype) / len(labels)
    mean = share @ values
    centred = (values - mean) * np.sqrt(share)[:, None]
    covariance = (centred.T @ centred).astype(np.float64)
    used = np.flatnonzero(np.diag(covariance) > _SMALLEST)
    std = np.sqrt(np.diag(covariance)[used])
    correlation = covariance[np.ix_(used, used)] / np.outer(std, std)
    target = ((share * (2 * labels - 1)) @ values)[used] / std
    found = []
    for strength in strengths:
        ridge = correlation + strength * max(len(used), 1) * np.eye(len(used))
        weight = np.zeros(len(mean))
        try:
            weight[used] = solve(ridge, target, assume_a="pos", check_finite=False) / std
        except np.linalg.LinAlgError:  # rounding in single precision: not quite positive
            weight[used] = np.linalg.lstsq(ridge, target, rcond=None)[0] / std
        found.append(Solution(weight, -float(mean @ weight)))
    return found


class TokenProbeConfig(TokenConfig):
    """Settings of a linear token detector; family, row, window and penalty are chosen in folds."""

    windows: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 9)
    """Tokens that columns are averaged over, the token itself in their middle; one is chosen."""

    @field_validator("windows")
    @classmethod
    def _odd(cls, windows: tuple[int, ...]) -> tuple[int, ...]:
        if any(window % 2 == 0 for window in windows):
            raise ValueError(f"a window has the token in its middle: odd numbers expected, got {windows}")
        return windows


class LinearTokenDetector(TrainedDetector):
    """A linear model of columns of each token; every choice is made in folds by context.

    A token without any known column has no valid score; other missing values count as the median
    of the training tokens.
    """

    config_class: ClassVar[type[TrainedConfig]] = TokenProbeConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("config", "columns", "views", "model_shape")
    families: ClassVar[tuple[str, ...]]
    """What is read of a token; ``hidden`` means one family for each kept layer."""
    is_joint: ClassVar[bool] = False
    """Whether all families together compete with each alone."""
    is_shuffled: ClassVar[bool] = False
    """Whether labels are shuffled among the tokens, as a control."""

    config: TokenProbeConfig

    views: Views = ()
    names: tuple[str, ...] = ()
    shape: Mapping[str, Any] = {}

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Choose and fit on the labelled tokens of ``split.train``; validation takes no part."""
        sample, folds = training_sample(traces, labels, split.train, self.config, self.card)
        targets = sample.labels
        if self.is_shuffled:
            targets = np.random.default_rng(self.config.seed).permutation(targets)
        folds = with_both_classes(folds, targets)
        first = traces[sample.traces[0]]

        def read(views: Views) -> Values:
            pairs = list(zip(sample.traces, sample.tokens, strict=True))
            columns = [
                np.concatenate([view_columns(traces[index], view)[0][chosen] for index, chosen in pairs])
                for view in views
            ]
            return np.concatenate(columns, axis=1)

        families = [
            list(views_of(first, family, self.config.windows))
            for family in expanded(self.families, first.shape)
        ]
        views, strength, inner_auroc = choose(
            lambda views: _judged(read, targets, folds, views), families, is_joint=self.is_joint
        )
        values = read(views)
        scaling = Scaling.of(values)
        (found,) = ridge_path(scaling.apply(values, np.float32), targets, (strength,))
        self.model, self.views = scaling.linear(*found), views
        self.names = tuple(chain(*(view_columns(first, view)[1] for view in views)))
        self.shape = describe_shape(first.shape)
        self.training_report = {
            "n_traces": len(sample.traces),
            "n_tokens": len(targets),
            "n_hallucinated": int(targets.sum()),
            "n_columns": len(self.names),
            "n_folds": len(folds),
            "strength": strength,
            "inner_auroc": inner_auroc,
            "views": [view._asdict() for view in views],
        }
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each answer token; NaN for a trace that lacks what the columns are made of.

        Raises:
            DetectorMismatchError: If a trace is of a model of another shape.
        """
        self.fitted(self.model, traces)
        return Scores.ragged([self._logits(trace) for trace in traces])

    @property
    def token_reach(self) -> int | None:
        """Half the widest window, where only rows of the token itself are read."""
        kinds = {view.family.partition(".")[0] for view in self.views}
        if not self.views or kinds - {"attention", "hidden", "likelihood"}:
            return None
        return max(view.window for view in self.views) // 2

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the weights; describe the columns that they are of."""
        write_arrays(folder, self.fitted(self.model).arrays())
        views = [list(view) for view in self.views]
        return {"columns": list(self.names), "views": views, "model_shape": self.shape}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over weights and columns of a saved probe."""
        self.model = LinearModel.of_arrays(read_arrays(folder))
        self.views = tuple(View(*view) for view in values["views"])
        self.names, self.shape = tuple(values["columns"]), dict(values["model_shape"])
        if len(self.model.weight) != len(self.names):
            raise ValueError(f"{len(self.model.weight)} weights for {len(self.names)} columns")

    def _logits(self, trace: Trace) -> Float[np.ndarray, "token"]:
        check_shape(trace, self.shape)
        try:
            values, names = zip(*(view_columns(trace, view) for view in self.views), strict=True)
        except TraceNotFoundError:
            return np.full(trace.answer_length, np.nan)
        if tuple(chain(*names)) != self.names:
            raise DetectorMismatchError(
                f"trace {trace.trace_id!r} keeps other layers or features than {self.card.name} "
                f"was fitted on\n  Train it again on traces like this one"
            )
        return self.model.logits(np.concatenate(values, axis=1))


def choose(
    judge: Callable[[Views], Candidate], families: Sequence[Sequence[View]], *, is_joint: bool
) -> Candidate:
    """The best views and penalty by the mean AUROC of tokens over the folds.

    Each family is read in the way that is best for it alone; then the families compete, and all
    of them together where that is wanted. Among candidates within 0.001 of the best the first
    and most strongly penalised is taken.

    Args:
        judge: Finds the best penalty of some views.
        families: Every view of each family.
        is_joint: Whether the best views of all families together compete too; of hidden states
            only the best layer.
    """
    best = [_best([judge((view,)) for view in views]) for views in families]
    if is_joint and len(best) > 1:
        kinds: dict[str, tuple[float, View]] = {}
        for (view,), _, inner_auroc in best:
            kind, reached = view.family.partition(".")[0], inner_auroc or 0.0
            if kind not in kinds or reached > kinds[kind][0]:
                kinds[kind] = (reached, view)
        best.append(judge(tuple(view for _, view in kinds.values())))
    return _best(best)


def _judged(
    read: Callable[[Views], Values], labels: Truth, folds: Sequence[InnerFold], views: Views
) -> Candidate:
    """The best penalty of some views."""
    if not folds:
        return views, _FALLBACK, None
    raw = read(views)
    values = Scaling.of(raw, has_all_medians=False).apply(raw, np.float32)
    aurocs = np.mean(
        [
            [
                auroc(found.logits(values[held_out]), labels[held_out])
                for found in ridge_path(values[train], labels[train])
            ]
            for train, held_out in folds
        ],
        axis=0,
    )
    place = simplest(aurocs)
    return views, STRENGTHS[place], float(aurocs[place])


def _best(candidates: Sequence[Candidate]) -> Candidate:
    return candidates[simplest(np.array([inner_auroc or 0.0 for *_, inner_auroc in candidates]))]


TokenAttention: Final = LinearTokenDetector.variant("token-attention")
TokenHidden: Final = LinearTokenDetector.variant("token-hidden")
TokenProbe: Final = LinearTokenDetector.variant("token-probe", is_joint=True)
TokenPosition: Final = LinearTokenDetector.variant("token-position")
TokenLikelihood: Final = LinearTokenDetector.variant("token-likelihood")
TokenOverlap: Final = LinearTokenDetector.variant("token-overlap")
TokenShuffled: Final = LinearTokenDetector.variant("token-shuffled", is_shuffled=True)
