"""What a comparison found, in two plain sentences."""

from graphhalu.evaluation.result import Comparison, Result
from graphhalu.report.forest import difference_text, ordered_tests, p_text

_LEVEL = 0.05


def headline(result: Result) -> tuple[str, str]:
    """What won, by how much and against which baseline; and how that baseline came about."""
    done = [row for row in result.ranked() if row.failure is None]
    if not done:
        return ("No detector has a score: all of them failed.", "Their reasons stand below.")
    if result.baseline is None or not result.comparisons:
        best = done[0]
        return (
            (
                f"The highest AUROC is {_auroc(result, best.detector)}, of {best.detector}"
                f"{_control_note(result, best.detector)}."
            ),
            "No difference was tested against a baseline, so this says nothing of chance.",
        )
    tests = ordered_tests(result)
    better = [test for test in tests if test.low > 0]
    first = _won(result, better) if better else _none_won(result, tests[0])
    return first, f"The baseline is {result.baseline.detector}: {result.baseline.rule}."


def _won(result: Result, better: list[Comparison]) -> str:
    best = better[0]
    others = len(better) - 1
    more = f", and {others} more {'does' if others == 1 else 'do'} so too" if others else ""
    caution = (
        ""
        if best.p_holm is not None and best.p_holm < _LEVEL
        else f"; after Holm's correction over {len(result.comparisons)} tests it is not significant"
    )
    return (
        f"{best.detector}{_control_note(result, best.detector)} beats the baseline "
        f"{best.baseline} by an interval that excludes zero: AUROC "
        f"{_auroc(result, best.detector)} against {_auroc(result, best.baseline)}, a difference "
        f"of {difference_text(best)} (Holm p {p_text(best.p_holm)}){more}{caution}."
    )


def _none_won(result: Result, nearest: Comparison) -> str:
    return (
        f"No detector beats the baseline by an interval that excludes zero: {nearest.baseline} has "
        f"AUROC {_auroc(result, nearest.baseline)}, the best of the others is {nearest.detector}"
        f"{_control_note(result, nearest.detector)}, with a difference of "
        f"{difference_text(nearest)}."
    )


def _auroc(result: Result, detector: str) -> str:
    """The value that detectors are ranked by: traces without a score at the median."""
    row = next(row for row in result.rows if row.detector == detector)
    value = row.auroc_invalid_at_median
    return "-" if value is None else f"{value:.3f}"


def _control_note(result: Result, detector: str) -> str:
    is_control = any(row.detector == detector and row.is_control for row in result.rows)
    return " (a control)" if is_control else ""
