"""What ``graphhalu instability`` prints."""

from typing import TYPE_CHECKING

from graphhalu.cli.output import print_json, print_table

if TYPE_CHECKING:
    from graphhalu.evaluation.bootstrap import Estimate
    from graphhalu.studies.instability.calibration import Calibration
    from graphhalu.studies.instability.detect import Verdict


def print_calibration(found: "Calibration") -> None:
    """Methods, operating points and what was chosen."""
    from graphhalu.evaluation.bootstrap import Estimate

    print_table(
        ["method", "nested AUROC", "in sample", "difference", "p"],
        [
            [
                row.name,
                _interval(row.auroc),
                _interval(Estimate(value=row.in_sample.value)),
                "" if row.difference is None else _interval(row.difference, "+"),
                "" if row.p_holm is None else _p_text(row.p_holm),
            ]
            for row in found.rows
        ],
        title=f"{found.n_attack} attacks, {found.n_benign} benign prompts, {found.n_groups} "
        f"groups; {found.n_left_out} left out",
    )
    main = found.rows[0]
    print_table(
        ["aim FPR", "FPR", "TPR", "in-sample TPR", "threshold"],
        [
            [
                f"{point.aim:.0%}",
                _interval(point.fpr),
                _interval(point.tpr),
                f"{point.in_sample_tpr:.3f}",
                f"{point.threshold:.5f}",
            ]
            for point in main.points
        ],
        title="instability: operating points, achieved on unseen prompts",
    )
    print("difference: nested AUROC minus that of instability; p after Holm's correction")
    way = "higher" if found.window.direction > 0 else "lower"
    print(f"chosen on all prompts: {found.window.window.text()}; attacks are {way}")
    print(f"nested F1 {_interval(main.f1)}, in sample {main.in_sample_f1:.3f}")


def print_verdicts(verdicts: "list[Verdict]", method: str, threshold: float, json: bool) -> None:
    """A line a prompt, and why one has no score."""
    from dataclasses import asdict

    if json:
        values = [asdict(verdict) for verdict in verdicts]
        print_json({"method": method, "threshold": threshold, "prompts": values})
        return
    print_table(
        ["prompt", "score", "verdict", "crossed at", "text"],
        [
            [
                verdict.prompt_id,
                "-" if verdict.score is None else f"{verdict.score:.5f}",
                {True: "attack", False: "benign", None: "no score"}[verdict.is_attack],
                "-" if verdict.crossed_at is None else f"step {verdict.crossed_at}",
                _short(verdict.text),
            ]
            for verdict in verdicts
        ],
        title=f"{method}: attack from {threshold:.5f} on",
    )
    for verdict in verdicts:
        if verdict.reason is not None:
            print(f"  {verdict.prompt_id}: {verdict.reason}")


def _short(text: str, limit: int = 30) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit - 1]}…"


def _interval(estimate: "Estimate", sign: str = "") -> str:
    """A share with its interval, without leading zeros: five columns must fit 80 characters."""
    import re

    interval = estimate.interval(f"{sign}.2f").replace(", ", ",")
    return re.sub(r"\b0\.", ".", f"{estimate.value:{sign}.3f} {interval}".strip())


def _p_text(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}".lstrip("0")  # noqa: PLR2004
