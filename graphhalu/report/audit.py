"""Reports of a store without a detector: its audit, its labels, and the topology of its graphs."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from graphhalu.evaluation.audit import Audit
from graphhalu.evaluation.univariate import FALSE_DISCOVERIES
from graphhalu.graphs.topology import MEASURES
from graphhalu.labels.labels import MEANINGS
from graphhalu.report import drawing
from graphhalu.report.page import Page, data, figure_words, frame, make_page, read_text, say
from graphhalu.report.plots import heat_maps, intervals
from graphhalu.report.tables import Table, make_table

_say = partial(say, "audit")


def audit_page(found: Audit) -> Page:
    """The page of an audit."""
    smallest = found.smallest or {}
    worst = found.signals[0] if found.signals else None
    rows = [{"signal": each, "clear": "yes" if each.is_clear else "no"} for each in found.signals]
    kinds = [{"kind": kind, "count": n, "share": n / found.n_traces} for kind, n in found.kinds.items()]
    categories = found.categories or {"rule": "nothing names one", "n": 0}
    ready = {**frame({}, {}, found.store), "data": [data(found.store)]}
    return make_page(
        "audit",
        headline(found),
        figures={"signals": partial(signals_figure, found)} if worst else {},
        tables={"signals": rows, "kinds": kinds},
        ready=ready,
        found=found,
        categories=categories,
        overlap="not known" if found.overlap is None else f"{found.overlap:.1%}",
        scorers=f"{smallest['scorers']:.3f}" if smallest else "not known",
        methods=f"{smallest['methods']:.3f}" if smallest else "not known",
    )


def headline(found: Audit) -> tuple[str, str]:
    """What ranks the answers best without a detector, and what the store can show."""
    clear = [each for each in found.signals if each.is_clear]
    first = _say("worst", worst=clear[0], n_clear=len(clear)) if clear else _say("fine")
    if found.smallest is None:
        return first, _say("unknown")
    return first, _say("smallest", **found.smallest)


def signals_figure(found: Audit) -> Figure:
    """AUROC of each signal with its interval; chance is the line."""
    rows = [{"name": each.name, "signal": each} for each in found.signals]
    texts = [f"{each.auroc:.3f}" for each in found.signals]
    return intervals(rows, figure_words("audit", "signals"), texts=texts)


KINDS: Final = {"raw": "as measured", "adjusted": "length-adjusted"}


def topology_table(report: Mapping[str, Any], n_rows: int = 20) -> Table:
    """The largest length-adjusted effects; a star says that it counts after false discoveries.

    Args:
        report: What :func:`graphhalu.evaluation.univariate.compare_topology` gives.
        n_rows: Rows of the table.
    """
    known = [row for row in report["rows"] if row["adjusted"] and row["raw"]]
    known.sort(key=lambda row: -abs(row["adjusted"]["value"]))
    rows = []
    for row in known[:n_rows]:
        effects = {kind: _text(row[kind]) for kind in KINDS}
        rows.append({**row, **effects, "layer": str(row["layer"]), "meaning": MEASURES[row["measure"]]})
    described = read_text("topology")["tables"]["topology"]
    counts = {"n_counting": sum(_counts(row["adjusted"]) for row in known), "n_all": len(report["rows"])}
    return make_table("topology", described, rows, limit=FALSE_DISCOVERIES, report=report, **counts)


def topology_figure(report: Mapping[str, Any]) -> Figure:
    """Cliff's delta of every measure (down) in every layer (across), raw and length-adjusted.

    A dot marks an effect that counts after false-discovery control.
    """
    shape, panels = (len(report["layers"]), len(MEASURES)), list[dict[str, Any]]()
    for kind, title in KINDS.items():
        effects = [row[kind] for row in report["rows"]]
        values = np.array([np.nan if e is None else e["value"] for e in effects]).reshape(shape)
        dots = np.array([_counts(e) for e in effects]).reshape(shape)
        panels.append({"values": values.T, "title": title, "dots": dots.T})
    largest = max(0.1, *(float(np.nanmax(np.abs(panel["values"]), initial=0.0)) for panel in panels))
    same: dict[str, Any] = {"norm": Normalize(-largest, largest), "rows": list(MEASURES)}
    same |= {"bar": "Cliff's delta (yellow: hallucinated answers have more)", "columns": report["layers"]}
    return heat_maps(panels, cell_in=0.3, n_columns=2, labels=("layer", ""), **same)


def save_figure(figure: Figure, folder: Path) -> list[Path]:
    """Write the figure as ``topology.png`` and ``topology.svg``; the same in every run."""
    return [drawing.save_figure(figure, folder / name) for name in ("topology.png", "topology.svg")]


def _counts(effect: Mapping[str, float] | None) -> bool:
    """Whether an effect counts after false-discovery control."""
    return effect is not None and effect["q_value"] < FALSE_DISCOVERIES


def _text(effect: Mapping[str, float]) -> str:
    star = "*" if _counts(effect) else ""
    return f"{effect['value']:+.3f} [{effect['low']:+.3f}, {effect['high']:+.3f}]{star}"


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
