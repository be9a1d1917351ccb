"""Categories of questions, and the control that reads them: how often answers of one are hallucinated."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int, Shaped
from scipy.sparse import csr_matrix
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.metrics import pairwise_distances_argmin

from graphhalu.core.errors import UsageError
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces, Detector, DetectorCard, Scores, check_classes
from graphhalu.detectors.saved import TrainedDetector, read_arrays, write_arrays
from graphhalu.labels.labels import Labels
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.trace import Trace

N_CLUSTERS: Final = 20
"""Clusters of the questions' words that stand for categories where no field names one."""
_N_TERMS: Final = 4096
Centres = Float[np.ndarray, "cluster term"]
Groups = Shaped[np.ndarray, "item"]


def cluster_centres(texts: Sequence[str]) -> Centres:
    """Clusters of texts by their words: k-means on hashed word counts in logs, seed 0.

    :data:`N_CLUSTERS` of them, or as many as there are different texts.
    """
    n_clusters = min(N_CLUSTERS, len(set(texts)))
    with warnings.catch_warnings():
        # texts that differ in case alone leave fewer clusters than were asked for
        warnings.simplefilter("ignore", ConvergenceWarning)
        return KMeans(n_clusters, n_init=3, random_state=0).fit(_terms(texts)).cluster_centers_


def cluster_names(texts: Sequence[str], centres: Centres) -> list[str]:
    """The cluster of each text."""
    nearest = pairwise_distances_argmin(_terms(texts), centres)
    return [f"cluster {index}" for index in nearest.tolist()]


def _terms(texts: Sequence[str]) -> csr_matrix:
    counts = HashingVectorizer(n_features=_N_TERMS, alternate_sign=False, norm=None).transform(texts)
    return TfidfTransformer(use_idf=False, sublinear_tf=True).fit_transform(counts)


def drawn_shares(
    values: Int[np.ndarray, "known"], place: Int[np.ndarray, "known"], n_places: int, overall: float
) -> Float[np.ndarray, "place"]:
    """Share of ones in each place, drawn towards that of all as by one more value.

    Args:
        values: 0 or 1.
        place: Where each belongs, below ``n_places``; a place without any has the share of all.
        n_places: How many places there are.
        overall: The share of all.
    """
    ones = np.bincount(place, weights=values, minlength=n_places)
    return (ones + overall) / (np.bincount(place, minlength=n_places) + 1)


WORDS: Final = "words"
"""Name that asks for clusters of the words of the questions."""
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


class CategoryPrior(TrainedDetector):
    """Share of hallucinated training answers in the category of the question; see the card."""

    card: ClassVar[DetectorCard] = DetectorCard.of("category-prior")
    saved_fields: ClassVar[tuple[str, ...]] = ("config", "shares", "overall")

    shares: dict[str, float] | None = None
    overall: float = 0.0
    centres: Centres | None = None
    """Of clusters of questions, where they have no categories."""

    @property
    def n_parameters(self) -> int:
        """One share a category."""
        return len(self.fitted(self.shares))

    def fit(self, traces: Sequence[Trace], labels: Labels, split: Split) -> Detector:
        """Count on the valid labels of ``split.train``; validation takes no part."""
        chosen = ChosenTraces.labelled(traces, labels, split.train)
        values = labels.values[np.array(chosen.indices, dtype=np.int64)]
        check_classes(values, self.card)
        self.centres = None
        if any(trace.record.category is None for trace in chosen):
            self.centres = cluster_centres([trace.record.question for trace in chosen])
        names, place = np.unique(self._categories(chosen), return_inverse=True)
        self.overall = float(values.mean())
        shares = drawn_shares(values, place, len(names), self.overall)
        self.shares = dict(zip(names.tolist(), shares.tolist(), strict=True))
        self.training_report = {"n_train": len(values), "n_categories": len(names)}
        return self

    def score(self, traces: Sequence[Trace]) -> Scores:
        """The share of each trace's category; that of all answers for one without training answers.

        A trace without an answer has no score.
        """
        shares = self.fitted(self.shares, traces)
        found = [shares.get(name, self.overall) for name in self._categories(traces)]
        has_answer = [bool(trace.record.answer.strip()) for trace in traces]
        return Scores.of(np.where(np.array(has_answer, dtype=bool), np.array(found), np.nan))

    def _categories(self, traces: Sequence[Trace]) -> list[str]:
        if self.centres is None:
            return [str(trace.record.category) for trace in traces]
        return cluster_names([trace.record.question for trace in traces], self.centres) if len(traces) else []

    def write(self, folder: Path) -> dict[str, Any]:
        """Describe the shares; write the clusters, if there are any."""
        self.fitted(self.shares)
        if self.centres is not None:
            write_arrays(folder, {"centres": self.centres})
        names = ("shares", "overall")
        return {"has_clusters": self.centres is not None} | {name: getattr(self, name) for name in names}

    def restore(self, folder: Path, values: Mapping[str, Any]) -> None:
        """Take over the shares and the clusters of a saved control."""
        self.shares = {str(name): float(share) for name, share in values["shares"].items()}
        self.overall = float(values["overall"])
        if values.get("has_clusters"):
            self.centres = read_arrays(folder)["centres"]
