"""Audit of a labelled store: what ranks its answers without any detector, and what it can show.

Each signal is a number a trace that needs no look into the model: how long an answer is, how much of
it the prompt says already, how often its category is wrong. A detector that does no better than the
best of them has not been shown to detect hallucination.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from scipy.stats import norm
from sklearn.feature_extraction.text import TfidfVectorizer

from graphhalu.core.documents import FileFormat
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.splits import grouped_folds
from graphhalu.datasets.question import question_key
from graphhalu.detectors.category import Categories, drawn_shares, question_categories
from graphhalu.evaluation.bootstrap import Estimate, bootstrap_interval
from graphhalu.evaluation.metrics import Floats, Groups, Ints, auroc, check_classes
from graphhalu.evaluation.result import TEXTS
from graphhalu.evaluation.significance import auroc_influence, grouped_delong_test
from graphhalu.labels.labels import Labels
from graphhalu.labels.match import kind_of
from graphhalu.traces.schema import TraceRecord

KIND: Final = FileFormat("graphhalu-audit", 1, "Run:  graphhalu audit STORE")
AUDIT_FILE: Final = "audit.json"
SIMILAR: Final = 0.8
"""TF-IDF cosine from which two questions count as paraphrases of each other."""
METHOD_FACTOR: Final = 1.4
"""How much larger a difference between methods must be than one between fitted scorers: the ratio of
their standard errors in simulations of two learners of equal quality."""
_ASSUMED: Final = {"auroc": 0.75, "correlation": 0.8, "power": 0.8}
_LEVEL: Final = 0.95
_N_DRAWS: Final = 20
_N_FOLDS: Final = 10
_BLOCK: Final = 512
_WORD: Final = re.compile(r"\w+")


@dataclass(frozen=True)
class Signal:
    """How well one number ranks the answers.

    Attributes:
        name: Of the signal.
        meaning: What a high value says.
        auroc: Of the number as a score of hallucination, over questions; below 0.5 where low values
            are hallucinated more often.
        advice: What to do about it, in a sentence.
    """

    name: str
    meaning: str
    auroc: Estimate
    advice: str

    @property
    def distance(self) -> float:
        """How far the AUROC is from chance, in either direction."""
        return abs(self.auroc.value - 0.5)

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes chance."""
        return self.auroc.excludes(0.5)


@dataclass(frozen=True)
class Audit:
    """An audit of a store.

    Attributes:
        store: Where the traces are from.
        labeller: Name and settings of the rule that labelled them.
        n_traces: All traces.
        n_valid: Those with a valid label, which the signals are about.
        n_groups: Their question groups.
        n_hallucinated: Hallucinated ones among them.
        kinds: How often each kind of answer came; see :data:`graphhalu.labels.match.KINDS`.
        signals: The farthest from chance first.
        categories: Where categories come from, and how many there are; ``None`` where nothing names one.
        duplicates: Pairs of similar questions in different groups, and the share of questions with one.
        overlap: Share of tested questions with a similar one on the training side, in five grouped folds.
        smallest: Smallest difference of AUROC that the store can show at 80 % power, between fitted
            ``scorers`` and between ``methods``.
    """

    store: Mapping[str, Any]
    labeller: Mapping[str, Any]
    n_traces: int
    n_valid: int
    n_groups: int
    n_hallucinated: int
    kinds: Mapping[str, int]
    signals: tuple[Signal, ...]
    categories: Mapping[str, Any] | None
    duplicates: Mapping[str, float]
    overlap: float | None
    smallest: Mapping[str, float] | None

    @property
    def prevalence(self) -> float:
        """Share of hallucinated answers among those with a valid label."""
        return self.n_hallucinated / self.n_valid


class _Data(NamedTuple):
    records: Sequence[TraceRecord]
    labels: Ints
    groups: Groups
    categories: Categories | None


def audit(
    records: Sequence[TraceRecord],
    labels: Labels,
    groups: Groups,
    *,
    store: Mapping[str, Any],
    category: str = "auto",
    n_resamples: int = 2000,
    seed: int = 0,
) -> Audit:
    """Look for what ranks the answers of a store without a detector.

    Args:
        records: Records of the traces, in the order of the labels.
        labels: Of the answers.
        groups: Question group of each trace.
        store: Where the traces are from, for the record.
        category: As of :func:`graphhalu.detectors.category.question_categories`.
        n_resamples: Resamples of questions for the intervals.
        seed: Seed of resamples, folds and simulated scores.

    Raises:
        NotEnoughDataError: If the valid labels lack a class.
        UsageError: If the records have no such field.
    """
    kept = np.flatnonzero(labels.is_valid)
    values = labels.values[kept].astype(np.int64)
    check_classes(values, "an audit needs right and hallucinated answers")
    chosen = [records[index] for index in kept.tolist()]
    data = _Data(chosen, values, groups[kept], question_categories(chosen, groups[kept], category))
    similar = similar_questions(chosen, data.groups)
    in_pair, n_groups = {index for pair in similar for index in pair}, len(np.unique(data.groups))
    categories = data.categories and {"rule": data.categories.rule, "n": data.categories.n}
    smallest = None
    if np.bincount(values).min() > 1:  # a variance needs two of each
        scorers = smallest_difference(values, data.groups, seed=seed)
        smallest = {"scorers": scorers, "methods": METHOD_FACTOR * scorers, **_ASSUMED}
    return Audit(
        store=store,
        labeller={"name": labels.labeller, "settings": dict(labels.settings), "meaning": labels.meaning},
        n_traces=len(records),
        n_valid=len(kept),
        n_groups=n_groups,
        n_hallucinated=int(values.sum()),
        kinds=dict(Counter(map(kind_of, labels.reasons)).most_common()),
        signals=_signals(data, n_resamples=n_resamples, seed=seed),
        categories=categories,
        duplicates={"threshold": SIMILAR, "n_pairs": len(similar), "share": len(in_pair) / n_groups},
        overlap=_overlap(data, similar, seed),
        smallest=smallest,
    )


def _signals(data: _Data, **draws: int) -> tuple[Signal, ...]:
    """Signals that the records have, the farthest from chance first."""
    texts, found = TEXTS["audit"], list[Signal]()
    for name, function in SIGNALS.items():
        values = None
        with suppress(NotEnoughDataError):  # too few questions for folds
            values = function(data)
        if values is None or np.ptp(values) == 0:  # equal values rank nothing
            continue
        estimate = Estimate(auroc(values, data.labels))
        with suppress(NotEnoughDataError):  # an interval needs more questions of the rarer class
            interval = bootstrap_interval("auroc", values, data.labels, data.groups, level=_LEVEL, **draws)
            estimate = Estimate(estimate.value, *interval)
        meaning, advice = texts["signals"][name]
        found.append(Signal(name, meaning, estimate, advice if estimate.excludes(0.5) else texts["fine"]))
    return tuple(sorted(found, key=lambda each: -each.distance))


def _shown(record: TraceRecord) -> str:
    """What the prompt says that differs between questions."""
    return f"{record.context or ''} {record.question}"


def _overlap_with_prompt(data: _Data) -> Floats:
    shares = []
    for record in data.records:
        words, shown = _WORD.findall(record.answer.casefold()), _WORD.findall(_shown(record).casefold())
        shares.append(float(np.isin(words, shown).sum()) / max(len(words), 1))
    return np.array(shares)


def _likeness_to_prompt(data: _Data) -> Floats | None:
    texts = [*map(_shown, data.records), *(record.answer for record in data.records)]
    try:
        vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(texts)
    except ValueError:  # no words at all
        return None
    prompts, answers = vectors[: len(data.records)], vectors[len(data.records) :]
    return np.asarray(prompts.multiply(answers).sum(axis=1), dtype=np.float64).ravel()


SIGNALS: Final[Mapping[str, Callable[[_Data], Floats | None]]] = {
    "answer length": lambda data: np.array([float(r.length - r.prompt_length) for r in data.records]),
    "prompt length": lambda data: np.array([float(each.prompt_length) for each in data.records]),
    "position in the data set": lambda data: np.arange(len(data.records), dtype=np.float64),
    "overlap with the prompt": _overlap_with_prompt,
    "likeness to the prompt": _likeness_to_prompt,
    "category prior": lambda data: (
        data.categories and cross_fitted_rate(data.labels, data.categories.names, data.groups)
    ),
    "same answer elsewhere": lambda data: cross_fitted_rate(
        data.labels, np.array([question_key(each.answer) for each in data.records]), data.groups
    ),
}
"""What could rank answers without a detector; ``None`` where the records do not say."""


def similar_questions(
    records: Sequence[TraceRecord], groups: Groups, threshold: float = SIMILAR
) -> list[tuple[int, int]]:
    """Pairs of traces in different groups whose questions are near-duplicates or paraphrases.

    Args:
        records: The traces; of each group the first counts.
        groups: Question group of each.
        threshold: Cosine of TF-IDF vectors of characters (3 to 5 within words) from which two
            questions are similar.

    Returns:
        Places of both traces, the first before the second.
    """
    first = np.sort(np.unique(groups, return_index=True)[1])
    texts = [_shown(records[index]) for index in first.tolist()]
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit_transform(texts)
    found = []
    for start in range(0, len(first), _BLOCK):
        block = (vectors[start : start + _BLOCK] @ vectors.T).tocoo()
        found.append(np.stack([block.row + start, block.col], axis=1)[block.data >= threshold])
    pairs = first[np.concatenate(found)]
    return sorted((one, other) for one, other in pairs.tolist() if one < other)


def _overlap(data: _Data, pairs: Sequence[tuple[int, int]], seed: int) -> float | None:
    with suppress(NotEnoughDataError):
        folds = grouped_folds(data.labels, data.groups, seed=seed)
        seen = {tested: split.train for split in folds for tested in split.test.tolist()}
        found = {tested for pair in pairs for tested, near in (pair, pair[::-1]) if near in seen[tested]}
        return len(found) / len(np.unique(data.groups))
    return None


def smallest_difference(labels: Ints, groups: Groups, *, seed: int = 0) -> float:
    """The smallest difference of AUROC between two scorers that a test on these answers can show.

    At a level of .05 and a power of .8, for scorers with an AUROC of .75 whose scores correlate by .8
    within a class, which is about as much as those of two probes of one model do.

    Args:
        labels: 1 = hallucinated; two of each class or more.
        groups: Question group of each answer.
        seed: Seed of the simulated scores.

    Source:
        Sum of the normal quantiles of level and power times the standard error of DeLong et al. 1988,
        influences summed by group (Obuchowski 1997); mean over 20 draws of binormal scores.
    """
    generator, errors = np.random.default_rng(seed), []
    shift, correlation = float(np.sqrt(2) * norm.ppf(_ASSUMED["auroc"])), _ASSUMED["correlation"]
    for _ in range(_N_DRAWS):
        shared, own = generator.normal(size=len(labels)), generator.normal(size=(2, len(labels)))
        noise = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
        first, second = (auroc_influence(each + shift * labels, labels) for each in noise)
        errors.append(grouped_delong_test(0.0, first - second, groups)[0])
    quantiles = float(norm.ppf(1 - (1 - _LEVEL) / 2) + norm.ppf(_ASSUMED["power"]))
    return quantiles * float(np.mean(errors))


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
