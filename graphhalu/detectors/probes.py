"""Probes: detectors that learn one weight a column of features; the joint probe, with a penalty a block."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from jaxtyping import Float, Int, Shaped
from pydantic import Field
from scipy.linalg import cholesky, solve_triangular

from graphhalu.core.splits import InnerFold, Split
from graphhalu.detectors.base import (
    Attribution,
    ChosenTraces,
    Detector,
    Scores,
    card_attributes,
    check_classes,
)
from graphhalu.detectors.columns import Layout, check_shape, columns_of, describe_shape, one_shape
from graphhalu.detectors.inner_search import (
    ALL_COMPONENTS,
    Grid,
    Learned,
    Side,
    choose_heads,
    first_of_the_best,
    folds_of,
    search,
)
from graphhalu.detectors.linear import LinearModel, Scaling, l2_path
from graphhalu.detectors.saved import TrainedConfig, TrainedDetector, read_arrays, write_arrays
from graphhalu.features.registry import FeatureSpec
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.traces.trace import Trace

Views = dict[str, Int[np.ndarray, "_"]]
_HEAD: Final = re.compile(r"\.l(\d+)\.h(\d+)")


class ProbeConfig(TrainedConfig):
    """Settings of a probe."""

    n_folds: Annotated[int, Field(ge=2)] = 3
    """Folds within the training side in which columns, components and penalty are chosen."""


class ProbeDetector(TrainedDetector):
    """A linear model of features; every choice is made in folds within the training side.

    Missing values are filled in with training medians, columns that most training traces lack
    are left out, and a trace without any column that is read has no valid score.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    config_class: ClassVar[type[TrainedConfig]] = ProbeConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("config", "columns", "model_shape")
    features: ClassVar[tuple[str, ...]]
    """Features that make the columns, as ``name`` or ``name[k=25]``."""
    learn: ClassVar[Callable[[Side, Sequence[InnerFold]], Learned]]
    """Chooses and fits on the training traces with a known column, given folds of them; there are no
    folds if there are too few traces."""
    is_shuffled: ClassVar[bool] = False
    """Whether labels are shuffled among questions, as a control."""
    model_class: ClassVar[Any] = LinearModel
    """What is learnt; of the same methods as a :class:`LinearModel`, without its parts."""

    config: ProbeConfig

    shape: Mapping[str, Any] = {}
    layout: tuple[Layout, ...] = ()
    out_of_fold: Mapping[int, float] = {}
    """Logit of each training trace from a fold's model that never saw its question."""

    @classmethod
    def specs(cls) -> tuple[FeatureSpec, ...]:
        """Features that make the columns."""
        return tuple(map(FeatureSpec.parse, cls.features))

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Choose and fit on the valid labels of ``split.train``; validation takes no part."""
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        kept = np.array(chosen.indices, dtype=np.int64)
        check_classes(labels.values[kept], self.card)
        columns, seed = columns_of(chosen, self.specs()), self.config.seed
        used = np.flatnonzero(np.isfinite(columns.values).any(axis=1))
        groups = question_groups([chosen[int(place)] for place in used]) if len(used) else used
        side = Side(columns.values[used], columns.names, labels.values[kept[used]], groups, seed)
        check_classes(side.labels, self.card, n_without=len(kept) - len(used))
        if self.is_shuffled:
            side = replace(side, labels=shuffled_by_group(side.labels, side.groups, seed=seed))
        folds = folds_of(side.labels, side.groups, n_folds=self.config.n_folds, seed=seed)
        learned = type(self).learn(side, folds)
        self.model, self.layout = learned.model, columns.layout
        self.shape = describe_shape(chosen[0].shape)
        self.out_of_fold = dict(zip(kept[used].tolist(), learned.out_of_fold.tolist(), strict=True))
        self.training_report = {
            "n_train": len(used),
            "n_without_features": len(kept) - len(used),
            "missing_share": float(np.isnan(side.values).mean()),
            **learned.report,
        }
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each trace, whatever the others are.

        Raises:
            DetectorMismatchError: If a trace is of a model of another shape.
        """
        model = self.fitted(self.model, traces)
        if not len(traces):
            return Scores.of(np.zeros(0))
        one_shape(traces)
        check_shape(traces[0], self.shape)
        columns = columns_of(traces, self.specs(), self.layout, unused=self._unused())
        return Scores.of(model.logits(columns.values))

    def attribute(self, trace: Trace) -> Attribution | None:
        """Exact parts of a linear model; ``None`` for others, and for a trace without a score."""
        model = self.fitted(self.model)
        if not isinstance(model, LinearModel):
            return None
        columns = columns_of([trace], self.specs(), self.layout)
        parts = model.parts(columns.values)[0]
        if np.isnan(parts).all():
            return None
        heads = np.zeros((trace.shape.n_layers, trace.shape.n_heads))
        features: dict[str, float] = {}
        for name, part in zip(columns.names, np.nan_to_num(parts).tolist(), strict=True):
            feature = name.partition(".")[0]
            features[feature] = features.get(feature, 0.0) + part
            place = _HEAD.search(name)
            if place is not None:
                heads[int(place[1]), int(place[2])] += part
        rest = model.bias + sum(features.values()) - float(heads.sum())
        return Attribution(heads, features, is_exact=True, rest=rest)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the model; describe its columns."""
        write_arrays(folder, self.fitted(self.model).arrays())
        columns = [layout._asdict() for layout in self.layout]
        return {"columns": columns, "model_shape": self.shape}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over weights and columns of a saved probe."""
        self.model = self.model_class.of_arrays(read_arrays(folder))
        self.shape = dict(values["model_shape"])
        self.layout = tuple(Layout(**entry) for entry in values["columns"])
        n_columns = sum(entry.n_columns for entry in self.layout)
        if len(self.model.is_used) != n_columns:
            raise ValueError(f"{len(self.model.is_used)} weights for {n_columns} columns")

    def _unused(self) -> frozenset[str]:
        """Features without a column that is read."""
        ends = np.cumsum([entry.n_columns for entry in self.layout])
        parts = zip(self.layout, np.split(self.model.is_used, ends[:-1]), strict=True)
        return frozenset(entry.feature for entry, is_used in parts if not is_used.any())


def all_columns(columns: Sequence[str]) -> Views:
    """One view: everything."""
    return {"all": np.arange(len(columns))}


def by_rank(columns: Sequence[str], ks: Sequence[int]) -> Views:
    """Views that keep the first ``k`` entries of the axis ``rank``, fewest first."""
    found = (re.search(r"\.r(\d+)$", name) for name in columns)
    rank = np.array([int(match[1]) for match in found if match])
    return {f"k={k}": np.flatnonzero(rank < k) for k in ks if k <= rank.max() + 1}


def by_layer(columns: Sequence[str]) -> Views:
    """One view a position and layer, of columns such as ``state_last_answer.n07.unit012``."""
    found: dict[str, list[int]] = {}
    for place, column in enumerate(columns):
        found.setdefault(column.rsplit(".", 1)[0], []).append(place)
    return {name: np.array(places) for name, places in found.items()}


def learn_plain(side: Side, folds: Sequence[InnerFold]) -> Learned:
    """Every column, L2."""
    return search(side, Grid(all_columns(side.columns)), folds)


def learn_pca(side: Side, folds: Sequence[InnerFold]) -> Learned:
    """Every column, principal components, L2."""
    return search(side, Grid(all_columns(side.columns), components=(16, 64, ALL_COMPONENTS)), folds)


def learn_sparse(side: Side, folds: Sequence[InnerFold]) -> Learned:
    """The largest 1, 5, 10 or 25 entries of each head, L1."""
    return search(side, Grid(by_rank(side.columns, (1, 5, 10, 25)), penalty="l1"), folds)


def learn_ranked(side: Side, folds: Sequence[InnerFold]) -> Learned:
    """The largest 5, 10, 25 or 50 entries of each head, principal components, L2."""
    return search(side, Grid(by_rank(side.columns, (5, 10, 25, 50)), components=(64, ALL_COMPONENTS)), folds)


def learn_one_layer(side: Side, folds: Sequence[InnerFold]) -> Learned:
    """One layer and position, principal components, L2."""
    grid = Grid(by_layer(side.columns), components=(64, ALL_COMPONENTS), n_screened=3)
    return search(side, grid, folds)


SinkProbeHeads: Final = ProbeDetector.variant("sink-probe-heads", learn=learn_pca)
Sinkprobe: Final = ProbeDetector.variant("sinkprobe", learn=learn_sparse)
Lapeigvals: Final = ProbeDetector.variant("lapeigvals", learn=learn_ranked)
Attneigvals: Final = ProbeDetector.variant("attneigvals", learn=learn_ranked)
AttnLogdetHeads: Final = ProbeDetector.variant("attn-logdet-heads", learn=learn_pca)
Lookback: Final = ProbeDetector.variant("lookback", learn=learn_plain)
InstabilityProbe: Final = ProbeDetector.variant("instability-probe", learn=learn_pca)
EntropyHeads: Final = ProbeDetector.variant("entropy-heads", learn=learn_pca)
LikelihoodProbe: Final = ProbeDetector.variant("likelihood-probe", learn=learn_plain)
HiddenProbe: Final = ProbeDetector.variant("hidden-probe", learn=learn_one_layer)
Hallushift: Final = ProbeDetector.variant("hallushift", learn=learn_pca)
Icr: Final = ProbeDetector.variant("icr", learn=learn_pca)
Summaries: Final = ProbeDetector.variant("summaries", learn=learn_plain)
Toha: Final = ProbeDetector.variant("toha", learn=choose_heads)
ShuffledLabels: Final = ProbeDetector.variant("shuffled-labels", learn=learn_pca, is_shuffled=True)


def shuffled_by_group(
    labels: Int[np.ndarray, "trace"], groups: Shaped[np.ndarray, "trace"], *, seed: int
) -> Int[np.ndarray, "trace"]:
    """The labels of all groups, one group after another, dealt to the groups in another order.

    Groups of one size swap their labels whole; at the seams of groups of different sizes a
    group can get labels of two.
    """
    _, group = np.unique(groups, return_inverse=True)
    place = np.random.default_rng(seed).permutation(int(group.max()) + 1)
    taken = np.argsort(place[group], kind="stable")
    shuffled = np.empty_like(labels)
    shuffled[np.argsort(group, kind="stable")] = labels[taken]
    return shuffled


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
