"""Categories of questions: what to hold out whole, and how well the category alone does."""

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from sklearn.feature_extraction.text import TfidfVectorizer

from graphhalu.core.errors import UsageError
from graphhalu.core.splits import grouped_folds
from graphhalu.evaluation.metrics import Floats, Groups, Ints
from graphhalu.traces.schema import TraceRecord

CATEGORY_FIELDS: Final = ("category", "relation", "subject", "title", "source")
"""Fields of the questions' metadata that name a category, the first that serves is taken."""
WORDS: Final = "words"
"""Name that asks for clusters of the words of the questions."""
N_CLUSTERS: Final = 20
_N_FOLDS: Final = 10
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


def question_categories(
    records: Sequence[TraceRecord], groups: Groups, field: str | None = None
) -> Categories | None:
    """The category of each question, or ``None`` where nothing names one.

    By default the first of :data:`CATEGORY_FIELDS` that every record has, with at least
    :data:`LEAST_CATEGORIES` values, and half as many values as there are groups at most: a field with
    a value a question, such as a title, tells nothing that the question does not.

    Args:
        records: The traces.
        groups: Question group of each: the category of a group is that of most of its traces, so that
            a group is never divided.
        field: Field of the metadata, or ``"words"`` for clusters of the questions' words.

    Raises:
        UsageError: If not every record has the field.
    """
    if field == WORDS:
        return Categories(_one_a_group(_word_clusters(records), groups), _CLUSTER_RULE)
    if field is not None:
        n_without = sum(field not in record.metadata for record in records)
        if n_without:
            known = sorted({name for record in records for name in record.metadata})
            raise UsageError(
                f"{n_without} of {len(records)} traces have no field {field!r}; "
                f"there are {', '.join(known) or 'none'}, or {WORDS!r} for clusters of words"
            )
        return Categories(_one_a_group(_values(records, field), groups), f"field {field!r}")
    most = len(np.unique(groups)) / 2
    for name in CATEGORY_FIELDS:
        if all(name in record.metadata for record in records):
            found = Categories(_one_a_group(_values(records, name), groups), f"field {name!r}")
            if LEAST_CATEGORIES <= found.n <= most:
                return found
    return None


_CLUSTER_RULE: Final = (
    f"{N_CLUSTERS} clusters of the questions' words (k-means on TF-IDF, seed 0), since no field names one"
)


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
    overall, rates = labels.mean(), np.empty(len(labels))
    for fold in grouped_folds(labels, groups, n_folds=_N_FOLDS, seed=seed):
        known = np.concatenate([fold.train, fold.validation])
        n = np.bincount(category[known], minlength=category.max() + 1)
        ones = np.bincount(category[known], weights=labels[known], minlength=category.max() + 1)
        rates[fold.test] = ((ones + overall) / (n + 1))[category[fold.test]]
    return rates


def _values(records: Sequence[TraceRecord], field: str) -> list[str]:
    return [str(record.metadata[field]) for record in records]


def _word_clusters(records: Sequence[TraceRecord]) -> list[str]:
    words = TfidfVectorizer(sublinear_tf=True, min_df=2).fit_transform(r.question for r in records)
    n_clusters = min(N_CLUSTERS, len({record.question for record in records}))
    found = KMeans(n_clusters, n_init=3, random_state=0).fit_predict(words)
    return [f"cluster {index}" for index in found.tolist()]


def _one_a_group(values: Sequence[str], groups: Groups) -> Groups:
    """The most frequent value of each trace's group; of equally frequent ones the first."""
    by_group: dict[object, list[str]] = {}
    for group, value in zip(groups.tolist(), values, strict=True):
        by_group.setdefault(group, []).append(value)
    chosen = {group: Counter(found).most_common(1)[0][0] for group, found in by_group.items()}
    return np.array([chosen[group] for group in groups.tolist()])
