"""All features by name, those that a store suffices for, and the table that shows them."""

from collections.abc import Sequence
from typing import Final

from graphhalu.core.registry import Registry
from graphhalu.features.base import Feature, Level

_MODULES: Final = (
    ("row_statistics", "span_mass span_mass_all token_span_mass"),
    ("sinks", "sink_mass_k1 sink_mass_k4 sink_mass_k1_all sink_mass_k4_all token_sink_mass"),
    ("sinks", "sink_rate sink_count sink_count_answer sink_share sink_share_answer"),
    ("sinks", "sink_first_answer sink_largest_answer"),
    ("received", "received_top received_later_top token_received"),
    ("received", "value_received_top value_sink_k1 value_sink_k4"),
    ("spectral", "self_attention_log self_attention_log_all self_attention_clipped"),
    ("spectral", "self_attention_mean token_self_attention"),
    ("spectral", "attneig_top lapeig_top lapeig_top_cut"),
    ("row_statistics", "lookback_ratio lookback_ratio_context token_lookback_ratio"),
    ("row_statistics", "attention_entropy_mean attention_entropy_std token_attention_entropy"),
    ("instability", "head_std_sink head_std_system head_std_context head_std_question"),
    ("instability", "head_std_answer head_logit_std_sink head_logit_std_system"),
    ("instability", "head_logit_std_context head_logit_std_question head_logit_std_answer"),
    ("instability", "head_bounded_std_sink head_bounded_std_system head_bounded_std_context"),
    ("instability", "head_bounded_std_question head_bounded_std_answer"),
    ("instability", "layer_std_sink token_head_std"),
    ("likelihood", "logprob_mean logprob_min logprob_sum logprob_std perplexity"),
    ("likelihood", "output_entropy_mean output_entropy_max output_entropy_std"),
    ("likelihood", "margin_mean margin_min token_logprob token_output_entropy token_margin"),
    ("likelihood", "answer_length prompt_length"),
    ("spectral", "mst_divergence"),
    ("layer_shift", "layer_divergence hallushift_attention_distance"),
    ("layer_shift", "hallushift_attention_cosine hallushift_hidden_distance"),
    ("layer_shift", "hallushift_hidden_cosine"),
    ("instability", "head_agreement share_agreement"),
    ("earlier_tokens", "previous_token_mass duplicate_mass induction_mass rauq"),
    ("icr", "icr"),
    ("hidden", "hidden_norm hidden_shift hidden_cosine_mean hidden_cosine_max"),
    ("hidden", "hidden_effective_rank hidden_score massive_activations"),
    ("hidden", "massive_answer_activations state_last_prompt state_last_answer"),
    ("hidden", "state_mean_answer"),
    ("beams", "beam_std_logprob_mean beam_std_answer_length beam_std_output_entropy_mean"),
    ("beams", "beam_std_sink_mass_k4 beam_std_lookback_ratio beam_std_attention_entropy_mean"),
    ("beams", "beam_eigenscore"),
)
"""Modules and the features in them, in the order in which they are shown."""

FEATURES: Final[Registry[Feature]] = Registry(
    "feature",
    {name: f"graphhalu.features.{module}:{name}" for module, names in _MODULES for name in names.split()},
    Feature,
)


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
