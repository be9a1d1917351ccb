"""Names of metrics and words for numbers, the same in every report."""

from typing import Final, NamedTuple


class MetricName(NamedTuple):
    """How a metric is called, and what it says."""

    title: str
    meaning: str


METRIC_NAMES: Final = {
    "auroc": MetricName(
        "AUROC", "Chance that a hallucinated answer scores above a correct one; 0.5 is chance."
    ),
    "auprc": MetricName(
        "AUPRC",
        "Average precision with hallucinated answers as the positive class; chance is the "
        "prevalence, so it says little where nearly all answers are hallucinated.",
    ),
    "prr_50": MetricName(
        "PRR 50 %",
        "How much of the ideal gain in quality is reached by rejecting up to half of the answers; "
        "0 is random, 1 an oracle.",
    ),
    "tpr_at_5_fpr": MetricName(
        "TPR at 5 % FPR",
        "Share of hallucinations found while at most 5 % of the correct answers are flagged.",
    ),
    "tpr_at_1_fpr": MetricName(
        "TPR at 1 % FPR", "The same while at most 1 % of the correct answers are flagged."
    ),
    "f1": MetricName("F1", "F1 of the calls at the threshold that the validation side chose."),
    "brier": MetricName("Brier", "Mean squared error of the calibrated probability; low is good."),
    "ece": MetricName(
        "ECE",
        "Mean distance of calibrated probability and share of hallucinated answers in 15 bins of "
        "equal mass; low is good. It has no interval, which resampling would only enlarge.",
    ),
    "aurc": MetricName(
        "AURC",
        "Share of hallucinated answers among the kept ones, averaged over all shares that can be "
        "kept; low is good.",
    ),
    "e_aurc": MetricName("E-AURC", "AURC above that of an oracle; low is good."),
    "within_auroc": MetricName(
        "AUROC in answer", "AUROC over the tokens of one hallucinated answer, mean over these answers."
    ),
    "char_f1": MetricName(
        "char F1",
        "F1 of the characters of predicted tokens against those of marked spans, white space "
        "aside, as RAGTruth measures it.",
    ),
    "char_precision": MetricName("char P", "Share of predicted characters that are marked."),
    "char_recall": MetricName("char R", "Share of marked characters that are predicted."),
    "span_f1": MetricName("span F1", "F1 of predicted spans against marked ones."),
    "span_precision": MetricName("span P", "Share of predicted spans that are right."),
    "span_recall": MetricName("span R", "Share of marked spans that are found."),
    "answer_auroc_max": MetricName(
        "answers, highest token", "AUROC over answers by their highest token score."
    ),
    "answer_auroc_mean": MetricName("answers, mean token", "AUROC over answers by their mean token score."),
}
"""In the order of a table."""

_KILO: Final = 1024
_SHORT: Final = 10
_SMALL: Final = 0.01


def metric_names(found: set[str]) -> list[str]:
    """Metrics in the order of a table; those without a name of their own come last."""
    known = [name for name in METRIC_NAMES if name in found]
    return known + sorted(found - METRIC_NAMES.keys())


def metric_title(name: str) -> str:
    """How a metric is called."""
    return METRIC_NAMES[name].title if name in METRIC_NAMES else name


def size_text(n_bytes: float) -> str:
    """Bytes as KiB or MiB."""
    if n_bytes < _KILO:
        return f"{n_bytes:.0f} B"
    if n_bytes < _KILO**2:
        return f"{n_bytes / _KILO:,.1f} KiB"
    return f"{n_bytes / _KILO**2:,.1f} MiB"


def short_text(value: float) -> str:
    """Two digits after the point below 10, none above; never the exponent form."""
    if value < _SMALL:
        return "<0.01"
    return f"{value:.2f}" if value < _SHORT else f"{value:,.0f}"


def few(names: list[str], most: int = 6) -> str:
    """Names with commas; of many the first few and how many more."""
    listed = ", ".join(names[:most])
    return listed + (f" and {len(names) - most} more" if len(names) > most else "")
