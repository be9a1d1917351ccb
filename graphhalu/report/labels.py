"""Labels of a store in numbers: shares, agreement, thresholds, categories, examples."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.labels.labels import MEANINGS, Labels
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import LabelledStore, named_labels, stored_labellers
from graphhalu.labels.summary import (
    Agreement,
    Kappa,
    LabelExample,
    LabelSummary,
    SweepRow,
    agreement,
    draw_examples,
    summarise,
    summarise_categories,
    threshold_sweep,
)
from graphhalu.report.page import read_text
from graphhalu.report.tables import Row, Table, make_table
from graphhalu.traces.schema import TraceRecord

THRESHOLDS: Final = tuple(step / 10 for step in range(1, 11))
REFERENCE: Final = "match"
"""Labeller that a sweep of thresholds is held against."""


@dataclass(frozen=True)
class LabelReport:
    """Everything about the labels of a store.

    Attributes:
        labels: The labels, by name.
        summaries: Their numbers, by name.
        categories: Their numbers by name and category; empty where traces have no category.
        agreements: Every pair of labellers.
        sweeps: What other thresholds would label, by the name of a ROUGE labeller; empty where
            there are no labels by the reference, or a threshold decides nothing.
        examples: Random answers to read.
    """

    labels: Mapping[str, Labels]
    summaries: Mapping[str, LabelSummary]
    categories: Mapping[str, Mapping[str, LabelSummary]]
    agreements: tuple[Agreement, ...]
    sweeps: Mapping[str, list[SweepRow]]
    examples: tuple[LabelExample, ...]

    def values(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "labellers": {name: self._values_of(name) for name in self.labels},
            "agreement": [asdict(each) for each in self.agreements],
            "sweeps": {name: [asdict(row) for row in rows] for name, rows in self.sweeps.items()},
            "examples": [asdict(example) for example in self.examples],
        }

    def _values_of(self, name: str) -> dict[str, Any]:
        labels = self.labels[name]
        return {
            "meaning": labels.meaning,
            "settings": dict(labels.settings),
            **asdict(self.summaries[name]),
            "categories": {category: asdict(summary) for category, summary in self.categories[name].items()},
        }


def label_report(
    store: LabelledStore, names: Sequence[str] = (), *, n_examples: int = 20, seed: int = 0
) -> LabelReport:
    """Look at the labels of a store.

    Args:
        store: The traces.
        names: Labellers; those of the registry are made where there are none. By default all
            labels that are there.
        n_examples: Answers of each class of the first labeller.
        seed: Seed of the examples.

    Raises:
        TraceNotFoundError: If no name is given and there are no labels.
        UnknownNameError: If there are no labels of a name, and no such labeller.
    """
    found = [named_labels(store, name) for name in dict.fromkeys(names or _stored(store))]
    records = list(store.records)
    groups = np.array([record.group_id for record in records])
    given = [record.metadata.get("category") for record in records]
    categories = [None if category is None else str(category) for category in given]
    return LabelReport(
        labels={each.labeller: each for each in found},
        summaries={each.labeller: summarise(each, groups) for each in found},
        categories={each.labeller: summarise_categories(each, groups, categories) for each in found},
        agreements=tuple(agreement(first, second) for first, second in combinations(found, 2)),
        sweeps=_sweeps(records, found),
        examples=tuple(draw_examples(records, found, n=n_examples, seed=seed)),
    )


def tables(report: LabelReport) -> list[Table]:
    """The report as tables, without the examples."""
    texts = read_text("labels")["tables"]
    summaries = [_summary_row(summary, labeller=name) for name, summary in report.summaries.items()]
    shares = [{**row, "meaning": MEANINGS[report.labels[row["labeller"]].meaning]} for row in summaries]
    reasons = [
        {**row, "reason": reason, "count": count}
        for row in summaries
        for reason, count in row["summary"].reasons.items()
    ]
    made = [("shares", shares, ""), ("reasons", reasons, "")]
    made += [("agreement", [_pair_row(each) for each in report.agreements], "")]
    for name, sweep in report.sweeps.items():
        made.append(("sweep", [{"row": row, "kappa": _kappa(row.kappa)} for row in sweep], name))
    for name, found in report.categories.items():
        made.append(("categories", [_summary_row(each, category=key) for key, each in found.items()], name))
    return [make_table(key, texts[key], rows, name=name) for key, rows, name in made if rows]


def example_text(example: LabelExample) -> str:
    """One answer to read, on a few lines."""
    more = example.n_gold - len(example.gold)
    gold = "; ".join(example.gold) + (f" (and {more} more)" if more > 0 else "")
    said = "; ".join(f"{name}: {text}" for name, text in example.said.items())
    lines = {
        "question": example.question,
        "gold": gold or "none",
        "answer": example.answer or "(empty)",
        "labels": said,
    }
    body = "\n".join(f"  {name:<9} {' '.join(text.split())}" for name, text in lines.items())
    return f"{example.verdict}  {example.trace_id}\n{body}"


def _stored(store: LabelledStore) -> list[str]:
    names = stored_labellers(store)
    if not names:
        folder = store.labels_folder.parent
        message = f"no labels in {folder}\n"
        message += f"  Make some:  graphhalu labels {folder} --labellers match,rouge"
        raise TraceNotFoundError(message)
    # the reference first: examples are drawn for the classes of the first labeller
    return sorted(names, key=lambda name: name != REFERENCE)


def _sweeps(records: Sequence[TraceRecord], found: Sequence[Labels]) -> dict[str, list[SweepRow]]:
    reference = next((each for each in found if each.labeller == REFERENCE), None)
    if reference is None:
        return {}
    swept = {}
    for each in found:
        if each.settings.get("labeller", each.labeller) == "rouge":
            # labels from before there were two metrics do not name theirs
            rouge: Any = make_labeller("rouge", metric=each.settings.get("metric", "rougeL_f1"))
            scores, is_decided = rouge.best_scores(records)
            rows = threshold_sweep(scores, is_decided, reference, THRESHOLDS)
            swept.update({each.labeller: rows} if rows else {})
    return swept


def _pair_row(each: Agreement) -> Row:
    mark = "" if each.is_one_meaning else " (two meanings)"
    return {"pair": each, "kappa": f"{_kappa(each.kappa)}{mark}"}


def _summary_row(summary: LabelSummary, **names: str) -> dict[str, Any]:
    prevalence = "none valid"
    if summary.prevalence is not None and summary.interval is not None:
        low, high = summary.interval
        prevalence = f"{summary.prevalence:.1%} [{low:.1%}, {high:.1%}]"
    return {"summary": summary, "prevalence": prevalence, **names}


def _kappa(kappa: Kappa) -> str:
    return f"none: {kappa.reason}" if kappa.value is None else f"{kappa.value:.3f}"
