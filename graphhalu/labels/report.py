"""Labels of a store in numbers: shares, agreement, thresholds, categories, examples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np

from graphhalu.core.errors import TraceNotFoundError
from graphhalu.core.numerics import json_ready
from graphhalu.labels.labels import Labels
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
        labellers = {}
        for name, labels in self.labels.items():
            about = {"meaning": labels.meaning, "settings": labels.settings, **self.summaries[name]}
            labellers[name] = {**about, "categories": self.categories[name]}
        more = {"agreement": self.agreements, "sweeps": self.sweeps, "examples": self.examples}
        plain: dict[str, Any] = json_ready({"labellers": labellers, **more})
        return plain


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


def _stored(store: LabelledStore) -> list[str]:
    names = stored_labellers(store)
    if not names:
        folder = store.labels_folder.parent
        raise TraceNotFoundError(
            f"no labels in {folder}\n  Make some:  graphhalu labels {folder} --labellers match,rouge"
        )
    # the reference first: examples are drawn for the classes of the first labeller
    return sorted(names, key=lambda name: name != REFERENCE)


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
