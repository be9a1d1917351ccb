"""Probes: detectors that learn one weight a column of features."""

import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field

from graphhalu.core.splits import Split
from graphhalu.detectors.attribution import Attribution
from graphhalu.detectors.base import Detector, Scores
from graphhalu.detectors.columns import Layout, check_shape, columns_of, describe_shape, one_shape
from graphhalu.detectors.identity import check_identity
from graphhalu.detectors.probes.logistic import LinearModel
from graphhalu.detectors.probes.search import Fold, Learned, Side, folds_of
from graphhalu.detectors.sides import ChosenTraces, check_classes
from graphhalu.detectors.trained import TrainedConfig, TrainedDetector
from graphhalu.features.spec import FeatureSpec
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

_HEAD: Final = re.compile(r"\.l(\d+)\.h(\d+)")


class ProbeConfig(TrainedConfig):
    """Settings of a probe."""

    n_folds: Annotated[int, Field(ge=2)] = 3
    """Folds within the training side in which columns, components and penalty are chosen."""


@runtime_checkable
class Model(Protocol):
    """What a probe learns."""

    @property
    def is_used(self) -> Bool[np.ndarray, "column"]:
        """Which of the columns that it was fitted on are read."""

    @property
    def n_parameters(self) -> int:
        """Numbers that it learnt, without the scaling of columns."""

    def logits(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace"]:
        """One logit a trace, whatever the others are; NaN where nothing that counts is known."""

    def arrays(self) -> dict[str, np.ndarray]:
        """All that a saved model holds."""

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Model":
        """Inverse of :meth:`arrays`."""


class ProbeDetector(TrainedDetector):
    """A linear model of features; every choice is made in folds within the training side.

    Missing values are filled in with training medians, columns that most training traces lack
    are left out, and a trace without any column that is read has no valid score.

    Args:
        seed: By default that of the configuration.
        config: Settings.
    """

    config_class: ClassVar[type[TrainedConfig]] = ProbeConfig
    saved_fields: ClassVar[tuple[str, ...]] = ("columns", "model_shape")
    model_class: ClassVar[type[Model]] = LinearModel
    stops_by_validation: ClassVar[bool] = False

    config: ProbeConfig

    def __init__(self, seed: int | None = None, config: TrainedConfig | None = None) -> None:
        super().__init__(seed, config)
        self.model: Model | None = None
        self.shape: dict[str, Any] = {}
        self.layout: tuple[Layout, ...] = ()

    @abstractmethod
    def specs(self) -> tuple[FeatureSpec, ...]:
        """Features that make the columns."""

    @abstractmethod
    def learn(self, side: Side, folds: Sequence[Fold], validation: Side | None) -> Learned:
        """Choose and fit on the training side.

        Args:
            side: Traces with at least one known column.
            folds: Within that side; none if it is too small.
            validation: For a network that stops early by it; ``None`` for all others.
        """

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Choose and fit on the valid labels of ``split.train``.

        The validation side takes no part, except that a network stops by it.
        """
        self.fit_side(traces, labels, split.train, split.validation)
        return self

    def fit_side(
        self,
        traces: Sequence[Trace],
        labels: Labels,
        indices: Int[np.ndarray, "side"],
        validation: Int[np.ndarray, "validation"] | None = None,
    ) -> tuple[Learned, Int[np.ndarray, "used"]]:
        """As :meth:`fit`; gives what was learnt and the traces that it was learnt from."""
        chosen = ChosenTraces.labelled(traces, labels, indices)
        kept = np.array(chosen.indices, dtype=np.int64)
        check_classes(labels.values[kept], self.card.name)
        side, layout, used = self._side(chosen, labels.values[kept])
        check_classes(side.labels, self.card.name, n_without=len(kept) - len(used))
        folds = folds_of(side.labels, side.groups, n_folds=self.config.n_folds, seed=self.config.seed)
        held_out = None
        if self.stops_by_validation and validation is not None:
            others = ChosenTraces.labelled(traces, labels, validation)
            places = np.array(others.indices, dtype=np.int64)
            held_out = self._side(others, labels.values[places], layout)[0] if len(others) else None
        learned = self.learn(side, folds, held_out)
        self.model, self.layout = learned.model, layout
        self.shape = describe_shape(chosen[0].shape)
        self.training_report = {
            "n_train": len(used),
            "n_without_features": len(kept) - len(used),
            "missing_share": float(np.isnan(side.values).mean()),
            **learned.report,
        }
        return learned, kept[used]

    def score(self, traces: Sequence[Trace]) -> Scores:
        """Logit of each trace, whatever the others are.

        Raises:
            DetectorMismatchError: If a trace is of a model of another shape.
        """
        model = self._fitted()
        check_identity(self.identity, traces)
        if not len(traces):
            return Scores.of(np.zeros(0))
        one_shape(traces)
        check_shape(traces[0], self.shape)
        columns = columns_of(traces, self.specs(), self.layout, unused=self._unused(model))
        return Scores.of(model.logits(columns.values))

    def attribute(self, trace: Trace) -> Attribution | None:
        """Exact parts of a linear model; ``None`` for others, and for a trace without a score."""
        model = self._fitted()
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

    @property
    def n_parameters(self) -> int | None:
        """Learnt weights that are not 0, and the bias."""
        return None if self.model is None else self.model.n_parameters

    def arrays(self) -> dict[str, np.ndarray]:
        """The weights of all columns."""
        return self._fitted().arrays()

    def description(self) -> dict[str, Any]:
        """The recipe of the columns."""
        columns = [layout._asdict() for layout in self.layout]
        return {"columns": columns, "model_shape": self.shape}

    def restore(self, arrays: Mapping[str, np.ndarray], values: Mapping[str, Any]) -> None:
        """Take over weights and columns of a saved probe."""
        self.model = self.model_class.of_arrays(arrays)
        self.shape = dict(values["model_shape"])
        self.layout = tuple(Layout(**entry) for entry in values["columns"])
        _check_size(self.model, self.layout)

    def _side(
        self, traces: Sequence[Trace], labels: Int[np.ndarray, "trace"], expected: Sequence[Layout] = ()
    ) -> tuple[Side, tuple[Layout, ...], Int[np.ndarray, "used"]]:
        """Traces with at least one known column, and their places among the given ones."""
        columns = columns_of(traces, self.specs(), expected)
        used = np.flatnonzero(np.isfinite(columns.values).any(axis=1))
        groups = question_groups([traces[int(place)] for place in used]) if len(used) else used
        side = Side(columns.values[used], columns.names, labels[used], groups)
        return side, columns.layout, used

    def _unused(self, model: Model) -> frozenset[str]:
        """Features without a column that is read."""
        ends = np.cumsum([entry.n_columns for entry in self.layout])
        parts = zip(self.layout, np.split(model.is_used, ends[:-1]), strict=True)
        return frozenset(entry.feature for entry, is_used in parts if not is_used.any())

    def _fitted(self) -> Model:
        if self.model is None:
            raise self.unfitted()
        return self.model


def _check_size(model: Model, layout: Sequence[Layout]) -> None:
    n_columns = sum(entry.n_columns for entry in layout)
    if len(model.is_used) != n_columns:
        message = f"{len(model.is_used)} weights for {n_columns} columns"
        raise ValueError(message)
