"""Features by name: the table, how a feature is asked for, and what the table says of each."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from graphhalu.core.errors import UsageError
from graphhalu.core.registry import Registry
from graphhalu.features.base import Feature, Level
from graphhalu.features.block import TraceBlock

REDUCTIONS: Final = ("mean", "std", "max")

_TEXT: Final = re.compile(r"(\w+)(?:\[([^\[\]]*)\])?")

_MODULES: Final = (
    ("row_statistics", "span_mass span_mass_all token_span_mass"),
    ("sinks", "sink_mass_k1 sink_mass_k4 sink_mass_k1_all sink_mass_k4_all token_sink_mass sink_rate"),
    ("sinks", "sink_count sink_count_answer sink_share sink_share_answer sink_first_answer"),
    ("sinks", "sink_largest_answer"),
    ("row_statistics", "received_top received_later_top token_received value_received_top value_sink_k1"),
    ("row_statistics", "value_sink_k4"),
    ("spectral", "self_attention_log self_attention_log_all self_attention_clipped self_attention_mean"),
    ("spectral", "token_self_attention attneig_top lapeig_top lapeig_top_cut"),
    ("row_statistics", "lookback_ratio lookback_ratio_context token_lookback_ratio attention_entropy_mean"),
    ("row_statistics", "attention_entropy_std token_attention_entropy"),
    ("instability", "head_std_sink head_std_system head_std_context head_std_question head_std_answer"),
    ("instability", "head_logit_std_sink head_logit_std_system head_logit_std_context"),
    ("instability", "head_logit_std_question head_logit_std_answer head_bounded_std_sink"),
    ("instability", "head_bounded_std_system head_bounded_std_context head_bounded_std_question"),
    ("instability", "head_bounded_std_answer layer_std_sink token_head_std"),
    ("likelihood", "logprob_mean logprob_min logprob_sum logprob_std perplexity output_entropy_mean"),
    ("likelihood", "output_entropy_max output_entropy_std margin_mean margin_min token_logprob"),
    ("likelihood", "token_output_entropy token_margin answer_length prompt_length"),
    ("spectral", "mst_divergence"),
    ("layer_shift", "layer_divergence hallushift_attention_distance hallushift_attention_cosine"),
    ("layer_shift", "hallushift_hidden_distance hallushift_hidden_cosine"),
    ("instability", "head_agreement share_agreement"),
    ("earlier_tokens", "previous_token_mass duplicate_mass induction_mass rauq"),
    ("layer_shift", "icr"),
    ("hidden", "hidden_norm hidden_shift hidden_cosine_mean hidden_cosine_max hidden_effective_rank"),
    ("hidden", "hidden_score massive_activations massive_answer_activations state_last_prompt"),
    ("hidden", "state_last_answer state_mean_answer"),
    ("likelihood", "beam_std_logprob_mean beam_std_answer_length beam_std_output_entropy_mean"),
    ("likelihood", "beam_std_sink_mass_k4 beam_std_lookback_ratio beam_std_attention_entropy_mean"),
    ("likelihood", "beam_eigenscore"),
)
"""Modules and the features in them, in the order in which they are shown."""

FEATURES: Final[Registry[Feature]] = Registry(
    "feature",
    {name: f"graphhalu.features.{module}:{name}" for module, names in _MODULES for name in names.split()},
    Feature,
)


@dataclass(frozen=True)
class FeatureSpec:
    """A feature with its parameters; ``str`` of it can be read back by :meth:`parse`.

    Attributes:
        name: A name in ``FEATURES``.
        parameters: Parameters that differ from their defaults.
        reduction: Axes over which the values are reduced, and how; what is missing does not
            count, and what has nothing left is missing.
    """

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    reduction: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "FeatureSpec":
        """A feature as text: ``received_top``, or ``received_top[k=25,head=mean]``.

        Raises:
            UsageError: If the text cannot be read, or names no axis or parameter of the feature.
            UnknownNameError: If there is no such feature; lists the nearest names.
        """
        found = _TEXT.fullmatch(text.strip())
        if not found:
            raise UsageError(f"expected a feature as name or name[k=25,head=mean], got {text!r}")
        feature = FEATURES.get(found[1])
        settings = dict(_setting(item, text) for item in (found[2] or "").split(",") if item)
        reduction = {axis: settings.pop(axis) for axis in feature.axes if axis in settings}
        spec = cls(feature.name, settings, reduction)
        spec.check()
        return spec

    def __str__(self) -> str:
        settings = {**self.parameters, **self.reduction}
        listed = ",".join(f"{name}={settings[name]}" for name in sorted(settings))
        return f"{self.name}[{listed}]" if listed else self.name

    @property
    def feature(self) -> Feature:
        """The feature of this name.

        Raises:
            UnknownNameError: If there is none; lists the nearest names.
        """
        return FEATURES.get(self.name)

    def check(self) -> None:
        """Refuse parameters, axes and reductions that there are not.

        Raises:
            UsageError: If there is one.
        """
        self.feature.settings(self.parameters)
        for axis, how in self.reduction.items():
            if axis not in self.feature.axes or how not in REDUCTIONS:
                axes = ", ".join(self.feature.axes) or "none"
                raise UsageError(
                    f"feature {self.name!r} cannot be reduced by {axis}={how}: its axes "
                    f"are {axes}, reductions are {', '.join(REDUCTIONS)}"
                )

    def compute(self, block: TraceBlock) -> "FeatureMatrix":
        """The columns of this feature for every trace, or every stored row, of a block.

        Raises:
            UsageError: If there is no such parameter or axis.
            TraceNotFoundError: If the traces do not keep what the feature reads.
        """
        self.check()
        feature = self.feature
        values = feature.values(block, **self.parameters)
        labels = dict(zip(feature.axes, feature.labels(values.shape[1:], block.shape), strict=True))
        for axis in reversed(feature.axes):
            if axis in self.reduction:
                place = 1 + feature.axes.index(axis)
                values = reduce(values, place, self.reduction[axis])
                del labels[axis]
        name = str(self)
        names = tuple(".".join((name, *entry)) for entry in product(*labels.values()))
        return FeatureMatrix(values.reshape(len(values), len(names)), names)


class FeatureMatrix(NamedTuple):
    """Features of traces or of their stored rows, side by side.

    Attributes:
        values: Missing values are NaN.
        columns: Name of each column, as ``feature.l03.h05.r02``: model layer 3, head 5, third largest.
    """

    values: Float32[np.ndarray, "item column"]
    columns: tuple[str, ...]


def split_text(text: str) -> list[str]:
    """Features separated by commas or spaces; those in brackets separate nothing."""
    return re.findall(r"\w+(?:\[[^\[\]]*\])?|[^\s,]+", text)


def as_specs(features: Sequence["str | FeatureSpec"]) -> tuple[FeatureSpec, ...]:
    """Features given as text or as specification.

    Raises:
        UsageError: If none is given, or one is given twice.
    """
    specs = tuple(FeatureSpec.parse(each) if isinstance(each, str) else each for each in features)
    names = [str(spec) for spec in specs]
    if not names or len(set(names)) < len(names):
        raise UsageError(f"expected features, each of them once, got {', '.join(names) or 'none'}")
    return specs


def reduce(values: Float[np.ndarray, "..."], axis: int, how: str) -> Float32[np.ndarray, "..."]:
    """Reduce one axis; missing values do not count, and where all are missing so is the result.

    Args:
        values: What is reduced.
        axis: Which axis.
        how: ``"mean"``, ``"std"`` or ``"max"``.
    """
    if how == "max":
        return np.fmax.reduce(values, axis=axis, initial=np.nan).astype(np.float32)
    reduction: Callable[..., np.ndarray] = np.nanmean if how == "mean" else np.nanstd
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # all are missing
        return reduction(values.astype(np.float64), axis=axis).astype(np.float32)


def _setting(item: str, text: str) -> tuple[str, Any]:
    name, is_given, value = item.partition("=")
    if not is_given:
        raise UsageError(f"expected name=value in the brackets of {text!r}, got {item!r}")
    return name.strip(), _plain(value.strip())


def _plain(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def reads_beams(specs: Sequence[FeatureSpec]) -> bool:
    """Whether one of them reads the other beams of a trace's question."""
    return any(spec.feature.reads_beams for spec in specs)


def available_features(
    arrays: Sequence[str], *, per_token: bool = False, with_matrices: bool = False
) -> list[str]:
    """Features of one level for which these arrays suffice.

    Args:
        arrays: Names of stored arrays.
        per_token: Whether features of stored rows are meant.
        with_matrices: Whether those that read whole attention or hidden states are among them.
    """
    kept = set(arrays)
    kept |= {"attention"} if "attention_fixed" in kept else set()
    level: Level = "token" if per_token else "trace"
    return [
        feature.name
        for feature in FEATURES.load_all()[0].values()
        if feature.level == level
        and all(kept.intersection(either.split(" | ")) for either in feature.reads)
        and (with_matrices or feature.cost == "stream")
    ]


FEATURE_COLUMNS: Final = ("name", "what it is", "formula", "a higher value", "shape", "reads", "source")


def feature_cells(feature: Feature) -> tuple[str, ...]:
    """One feature in the columns of :data:`FEATURE_COLUMNS`."""
    item = "trace" if feature.level == "trace" else "row"
    return (
        feature.name,
        feature.summary,
        feature.formula,
        feature.direction,
        f"[{', '.join((item, *feature.axes))}]",
        ", ".join(feature.reads) or "lengths",
        feature.source,
    )


def markdown_table() -> str:
    """All features as a Markdown table, one row each."""
    lines = [f"| {' | '.join(FEATURE_COLUMNS)} |", "|" + "---|" * len(FEATURE_COLUMNS)]
    for feature in FEATURES.load_all()[0].values():
        cells = (cell.replace("|", "\\|") for cell in feature_cells(feature))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
