"""Categories of questions: what to hold out whole, and how well the category alone does."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from graphhalu.core.errors import UsageError
from graphhalu.core.splits import grouped_folds
from graphhalu.detectors.category import N_CLUSTERS, cluster_centres, cluster_names, drawn_shares
from graphhalu.evaluation.metrics import Floats, Groups, Ints
from graphhalu.labels.labels import Labels
from graphhalu.traces.schema import TraceRecord

WORDS: Final = "words"
"""Name that asks for clusters of the words of the questions."""
_N_FOLDS: Final = 10
_RULE: Final = f"{N_CLUSTERS} clusters of the questions' words (k-means, seed 0), since no field names one"
LEAST_CATEGORIES: Final = 8
"""With fewer, whole categories cannot be held out."""


class Categories(NamedTuple):
    """The category of each trace.

    Attributes:
        names: One a trace.
        rule: Where they come from, in words.
    """

    names: Groups
    rule: str

    @property
    def n(self) -> int:
        """How many there are."""
        return len(np.unique(self.names))

    def n_among(self, labels: Labels) -> int:
        """How many there are among the traces with a valid label."""
        return len(np.unique(self.names[labels.is_valid]))


def question_categories(
    records: Sequence[TraceRecord], groups: Groups, field: str = "auto"
) -> Categories | None:
    """The category of each question, or ``None`` where nothing names one.

    Args:
        records: The traces.
        groups: Question group of each: the category of a group is that of most of its traces, so that
            a group is never divided.
        field: Field of the metadata; ``"words"`` for clusters of the questions' words; ``"auto"`` for
            what the data set says (:attr:`TraceRecord.category`), if it says so of every question and
            there are at least two questions a category; ``"none"``.

    Raises:
        UsageError: If not every record has the field.
    """
    if field == "none":
        return None
    if field == WORDS:
        texts = [record.question for record in records]
        values, rule = cluster_names(texts, cluster_centres(texts)), _RULE
    elif field == "auto":
        values = [str(record.category) for record in records if record.category is not None]
        rule = "the data set"
        if len(values) < len(records):
            return None
    else:
        if n_without := sum(field not in record.metadata for record in records):
            known = sorted({name for record in records for name in record.metadata})
            raise UsageError(
                f"{n_without} of {len(records)} traces have no field {field!r}; "
                f"there are {', '.join(known) or 'none'}, or {WORDS!r} for clusters of words"
            )
        values, rule = [str(record.metadata[field]) for record in records], f"field {field!r}"
    # the most frequent value of a group, of equally frequent ones the first
    by_group = pd.Series(list(values)).groupby(groups).agg(lambda each: Counter(each).most_common(1)[0][0])
    found = Categories(np.array(by_group.loc[groups].tolist()), rule)
    return found if field != "auto" or 1 < found.n <= len(by_group) / 2 else None


def cross_fitted_rate(labels: Ints, categories: Groups, groups: Groups, *, seed: int = 0) -> Floats:
    """Share of hallucinated answers of a trace's category, among traces of other folds.

    This is how well the category alone can rank answers. Shares are drawn towards that of all traces,
    as by one more trace, which is what a category without traces in other folds has.

    Args:
        labels: 1 = hallucinated.
        categories: Category of each trace.
        groups: Question group of each trace; they are never divided between folds.
        seed: Seed of the folds.

    Raises:
        NotEnoughDataError: If there are fewer groups than folds.

    Source:
        Ten grouped folds with equal shares of hallucinated answers: leaving out one trace at a time would
        give hallucinated answers lower shares than right ones in the same category, since their own label
        is missing.
    """
    category = np.unique(categories, return_inverse=True)[1]
    overall, rates = float(labels.mean()), np.empty(len(labels))
    for fold in grouped_folds(labels, groups, n_folds=_N_FOLDS, seed=seed):
        known = np.concatenate([fold.train, fold.validation])
        shares = drawn_shares(labels[known], category[known], int(category.max()) + 1, overall)
        rates[fold.test] = shares[category[fold.test]]
    return rates
