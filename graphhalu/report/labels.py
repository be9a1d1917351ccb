"""Labels of a store as tables, and its examples as text."""

from collections.abc import Mapping
from typing import Any

from graphhalu.labels.labels import MEANINGS
from graphhalu.report.page import read_text
from graphhalu.report.tables import Table, make_table


def tables(report: Mapping[str, Any]) -> list[Table]:
    """What :func:`graphhalu.labels.summary.label_report` gives, as tables without the examples."""
    texts = read_text("labels")["tables"]
    summaries = [_summary_row(summary, labeller=name) for name, summary in report["labellers"].items()]
    shares = [{**row, "meaning": MEANINGS[row["meaning"]]} for row in summaries]
    reasons = [{**row, "reason": why, "count": n} for row in summaries for why, n in row["reasons"].items()]
    pairs = [
        {**pair, "kappa": _kappa(pair["kappa"]) + ("" if pair["is_one_meaning"] else " (two meanings)")}
        for pair in report["agreement"]
    ]
    made = [("shares", shares, ""), ("reasons", reasons, ""), ("agreement", pairs, "")]
    for name, sweep in report["sweeps"].items():
        made.append(("sweep", [{**row, "kappa": _kappa(row["kappa"])} for row in sweep], name))
    for row in summaries:
        found = [_summary_row(each, category=key) for key, each in row["categories"].items()]
        made.append(("categories", found, row["labeller"]))
    return [make_table(key, texts[key], rows, name=name) for key, rows, name in made if rows]


def example_text(example: Mapping[str, Any]) -> str:
    """One answer to read, on a few lines."""
    more = example["n_gold"] - len(example["gold"])
    gold = "; ".join(example["gold"]) + (f" (and {more} more)" if more > 0 else "")
    said = "; ".join(f"{name}: {text}" for name, text in example["said"].items())
    answer = example["answer"] or "(empty)"
    lines = {"question": example["question"], "gold": gold or "none", "answer": answer, "labels": said}
    body = "\n".join(f"  {name:<9} {' '.join(text.split())}" for name, text in lines.items())
    return f"{example['verdict']}  {example['trace_id']}\n{body}"


def _summary_row(summary: Mapping[str, Any], **names: str) -> dict[str, Any]:
    prevalence = "none valid"
    if summary["interval"] is not None:
        low, high = summary["interval"]
        prevalence = f"{summary['prevalence']:.1%} [{low:.1%}, {high:.1%}]"
    return {**summary, "prevalence": prevalence, **names}


def _kappa(kappa: Mapping[str, Any]) -> str:
    return f"none: {kappa['reason']}" if kappa["value"] is None else f"{kappa['value']:.3f}"
