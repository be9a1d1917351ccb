"""What the labels of a store are worth: shares, agreement, thresholds, categories, examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, NamedTuple

import numpy as np

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.labels.labels import MEANINGS, Labels
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import LabelledStore, named_labels, stored_labellers
from graphhalu.labels.summary import (
    agreement,
    draw_examples,
    summarise,
    summarise_categories,
    threshold_sweep,
)
from graphhalu.traces.schema import TraceRecord

THRESHOLDS: Final = tuple(step / 10 for step in range(1, 11))
REFERENCE: Final = "match"
"""Labeller that a sweep of thresholds is held against."""

_ABSENT: Final = "-"


class TextTable(NamedTuple):
    """A table of texts."""

    title: str
    columns: list[str]
    rows: list[list[str]]


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
    summaries: Mapping[str, dict[str, Any]]
    categories: Mapping[str, Mapping[str, dict[str, Any]]]
    agreements: tuple[dict[str, Any], ...]
    sweeps: Mapping[str, list[dict[str, Any]]]
    examples: tuple[dict[str, Any], ...]

    def values(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "labellers": {name: self._values_of(name) for name in self.labels},
            "agreement": list(self.agreements),
            "sweeps": dict(self.sweeps),
            "examples": list(self.examples),
        }

    def _values_of(self, name: str) -> dict[str, Any]:
        labels = self.labels[name]
        return {
            "meaning": labels.meaning,
            "settings": dict(labels.settings),
            **self.summaries[name],
            "categories": dict(self.categories[name]),
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
    categories = [_category(record) for record in records]
    return LabelReport(
        labels={each.labeller: each for each in found},
        summaries={each.labeller: summarise(each, groups) for each in found},
        categories={each.labeller: summarise_categories(each, groups, categories) for each in found},
        agreements=tuple(agreement(first, second) for first, second in combinations(found, 2)),
        sweeps=_sweeps(records, found),
        examples=tuple(draw_examples(records, found, n=n_examples, seed=seed)),
    )


def tables(report: LabelReport) -> list[TextTable]:
    """The report as tables of texts, without the examples."""
    made = [_shares(report), _reasons(report)]
    if report.agreements:
        made.append(_agreement_table(report.agreements))
    made += [_sweep_table(name, rows) for name, rows in report.sweeps.items()]
    made += [_category_table(name, found) for name, found in report.categories.items() if found]
    return made


def example_text(example: dict[str, Any]) -> str:
    """One answer to read, on a few lines."""
    more = example["n_gold"] - len(example["gold"])
    gold = "; ".join(example["gold"]) + (f" (and {more} more)" if more > 0 else "")
    said = "; ".join(f"{name}: {text}" for name, text in example["said"].items())
    lines = {
        "question": example["question"],
        "gold": gold or "none",
        "answer": example["answer"] or "(empty)",
        "labels": said,
    }
    body = "\n".join(f"  {name:<9} {' '.join(text.split())}" for name, text in lines.items())
    return f"{example['verdict']}  {example['trace_id']}\n{body}"


def _stored(store: LabelledStore) -> list[str]:
    names = stored_labellers(store)
    if not names:
        folder = store.labels_folder.parent
        message = f"no labels in {folder}\n"
        message += f"  Make some:  graphhalu labels {folder} --labellers match,rouge"
        raise TraceNotFoundError(message)
    # the reference first: examples are drawn for the classes of the first labeller
    return sorted(names, key=lambda name: name != REFERENCE)


def _category(record: TraceRecord) -> str | None:
    value = record.metadata.get("category")
    return None if value is None else str(value)


def _sweeps(records: Sequence[TraceRecord], found: Sequence[Labels]) -> dict[str, list[dict[str, Any]]]:
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


def _shares(report: LabelReport) -> TextTable:
    columns = ["labeller", "traces", "valid", "coverage", "prevalence [95 %]", "1 means"]
    rows = [
        [
            name,
            str(summary["n_traces"]),
            str(summary["n_valid"]),
            f"{summary['coverage']:.1%}",
            _prevalence(summary),
            MEANINGS[report.labels[name].meaning],
        ]
        for name, summary in report.summaries.items()
    ]
    return TextTable("Labels", columns, rows)


def _reasons(report: LabelReport) -> TextTable:
    rows = [
        [name, reason, str(count)]
        for name, summary in report.summaries.items()
        for reason, count in summary["reasons"].items()
    ]
    return TextTable("Reasons", ["labeller", "reason", "traces"], rows)


def _agreement_table(agreements: Sequence[dict[str, Any]]) -> TextTable:
    columns = ["first", "second", "both valid", "0/0", "0/1", "1/0", "1/1", "equal", "kappa"]
    rows = []
    for each in agreements:
        mark = "" if each["is_one_meaning"] else " (two meanings)"
        counts = [str(count) for row in each["confusion"] for count in row]
        share = _ABSENT if each["share"] is None else f"{each['share']:.1%}"
        rows.append(
            [each["first"], each["second"], str(each["n_both"]), *counts, share, _kappa(each["kappa"]) + mark]
        )
    return TextTable("Agreement; 0/1 = the first says 0, the second 1", columns, rows)


def _sweep_table(name: str, rows: Sequence[dict[str, Any]]) -> TextTable:
    cells = [
        [f"{row['threshold']:.1f}", f"{row['prevalence']:.1%}", str(row["n_both"]), _kappa(row["kappa"])]
        for row in rows
    ]
    columns = ["threshold", "prevalence", "both valid", f"kappa with {REFERENCE}"]
    return TextTable(f"{name} at other thresholds", columns, cells)


def _category_table(name: str, categories: Mapping[str, dict[str, Any]]) -> TextTable:
    rows = [
        [category, str(each["n_traces"]), str(each["n_valid"]), _prevalence(each)]
        for category, each in categories.items()
    ]
    columns = ["category", "traces", "valid", "prevalence [95 %]"]
    return TextTable(f"{name} by category", columns, rows)


def _prevalence(summary: dict[str, Any]) -> str:
    if summary["prevalence"] is None or summary["interval"] is None:
        return "none valid"
    low, high = summary["interval"]
    return f"{summary['prevalence']:.1%} [{low:.1%}, {high:.1%}]"


def _kappa(kappa: dict[str, Any]) -> str:
    return f"none: {kappa['reason']}" if kappa["value"] is None else f"{kappa['value']:.3f}"
