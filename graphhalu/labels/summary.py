"""Summaries of labels: shares, reasons, agreement, thresholds, categories and examples."""

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from scipy.stats import norm
from sklearn.metrics import cohen_kappa_score

from graphhalu.core.errors import StoreMismatchError, TraceNotFoundError
from graphhalu.core.numerics import json_ready
from graphhalu.labels.labels import Labels
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import named_labels, stored_labellers
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.store import TraceStore

Values = Int[np.ndarray, "trace"]

VERDICTS: Final = ("hallucinated", "correct", "undecided")
"""The classes of a label, in the order in which examples are shown."""

THRESHOLDS: Final = tuple(step / 10 for step in range(1, 11))
REFERENCE: Final = "match"
"""Labeller that a sweep of thresholds is held against."""
_INPUT_VERDICTS: Final = {"hallucinated": "input bad", "correct": "input good"}

Interval = tuple[float, float]
"""Both ends of an interval of a share."""


def summarise(labels: Labels, groups: Shaped[np.ndarray, "trace"]) -> dict[str, Any]:
    """Labels in numbers.

    Args:
        labels: Labels of at least one trace.
        groups: Question group of each trace: answers to one question are alike, and the
            interval allows for it.

    Returns:
        All traces and those with a valid label (``n_traces``, ``n_valid``), their share
        (``coverage``), the share of ones among the valid labels (``prevalence``) with its 95 %
        ``interval``, both ``None`` without a valid label, and how often each of the ``reasons``
        came, the most frequent first.
    """
    kept = labels.is_valid
    values = labels.values[kept].astype(np.int64)
    return {
        "n_traces": len(kept),
        "n_valid": int(kept.sum()),
        "coverage": labels.coverage,
        "prevalence": labels.prevalence if kept.any() else None,
        "interval": share_interval(values, groups[kept]) if kept.any() else None,
        "reasons": dict(Counter(labels.reasons).most_common()),
    }


def summarise_categories(
    labels: Labels, groups: Shaped[np.ndarray, "trace"], categories: Sequence[str | None]
) -> dict[str, dict[str, Any]]:
    """The summary of each category, in alphabetical order; traces without one are left out."""
    found = {}
    for name in sorted({category for category in categories if category is not None}):
        places = [index for index, category in enumerate(categories) if category == name]
        found[name] = summarise(labels.select(places), groups[places])
    return found


def wilson_interval(n_ones: float, n: float, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share of ``n_ones`` in ``n``, in [0, 1].

    Args:
        n_ones: Ones; need not be whole, since an effective number need not be.
        n: Observations, above 0.
        level: Coverage, in (0, 1).

    Source:
        Wilson 1927; no continuity correction.
    """
    z = float(norm.ppf((1 + level) / 2))
    share = n_ones / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


def share_interval(values: Values, groups: Shaped[np.ndarray, "trace"], level: float = 0.95) -> Interval:
    """Interval of a share of ones in grouped observations.

    Wilson's interval for the number of independent observations that would have the same
    variance. With one trace a group that is the number of traces; with equal values within each
    group it is the number of groups. Where all values are equal the number of groups is taken.

    Args:
        values: 0 or 1 for each trace; at least one.
        groups: Question group of each trace.
        level: Coverage, in (0, 1).

    Source:
        Linearised variance of a ratio under cluster sampling without a finite-sample factor
        (Cochran 1977, chapter 11); the effective number as in Korn and Graubard 1998.
    """
    share = float(values.mean())
    group_index = np.unique(groups, return_inverse=True)[1]
    n_groups = int(group_index.max()) + 1
    residuals = np.bincount(group_index, weights=values - share)
    variance = float((residuals**2).sum()) / len(values) ** 2
    n_effective = share * (1 - share) / variance if variance > 0 else float(n_groups)
    # values that differ within groups can look better than independent; that is not to be had
    n_effective = min(n_effective, float(len(values)))
    return wilson_interval(share * n_effective, n_effective, level)


def verdicts(labels: Labels) -> list[str]:
    """The class of every label, one of :data:`VERDICTS`."""
    pairs = zip(labels.values.tolist(), labels.is_valid.tolist(), strict=True)
    return [VERDICTS[1 - value] if is_valid else VERDICTS[2] for value, is_valid in pairs]


def draw_examples(
    records: Sequence[TraceRecord], labels: Sequence[Labels], *, n: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Random answers to read: up to ``n`` of each class of the first labeller.

    Args:
        records: The traces.
        labels: Labels by one or more labellers, each in the order of the traces.
        n: How many of each class.
        seed: Seed of the draw; the same store, labels and seed give the same answers.

    Returns:
        Of each answer its trace, its class by the first labeller, question, answer, the first
        gold answers, how many there are, and what every labeller says with its reason.
    """
    order = np.random.default_rng(seed).permutation(len(records)).tolist()
    found = verdicts(labels[0])
    drawn = [place for verdict in VERDICTS for place in [i for i in order if found[i] == verdict][:n]]
    texts = {each.labeller: _verdict_texts(each) for each in labels}
    return [
        {
            "trace_id": records[place].trace_id,
            "verdict": found[place],
            "question": records[place].question,
            "gold": records[place].answers[:3],
            "n_gold": len(records[place].answers),
            "answer": records[place].answer,
            "said": {name: said[place] for name, said in texts.items()},
        }
        for place in drawn
    ]


def _verdict_texts(labels: Labels) -> list[str]:
    """The class and the reason of every label."""
    words = {} if labels.meaning == "hallucinated" else _INPUT_VERDICTS
    pairs = zip(verdicts(labels), labels.reasons, strict=True)
    return [f"{words.get(verdict, verdict)} ({reason})" for verdict, reason in pairs]


def cohen_kappa(
    first: Values, second: Values, names: tuple[str, str] = ("the first", "the second")
) -> dict[str, Any]:
    """Agreement of two labellers beyond chance: 1 = full, 0 = as by chance, below 0 = worse.

    A labeller that gives one class only has no kappa: the formula would give 0, or divide by
    zero, whatever the other says.

    Args:
        first: 0 or 1 for each trace.
        second: 0 or 1 for each trace.
        names: What to call them in the reason.

    Returns:
        The ``value``, or ``None`` and the ``reason`` why it is not defined.

    Source:
        Cohen 1960.
    """
    constant = (
        [name for name, values in zip(names, (first, second), strict=True) if np.ptp(values) == 0]
        if len(first)
        else []
    )
    if not len(first) or constant:
        reason = f"{constant[0]} gives one class only" if constant else "no answer is valid for both"
        return {"value": None, "reason": reason}
    return {"value": float(cohen_kappa_score(first, second)), "reason": None}


def agreement(first: Labels, second: Labels) -> dict[str, Any]:
    """Compare two labellers on the traces that both could decide.

    Returns:
        Names of both, how many traces both could decide (``n_both``), the counts ``confusion``
        ``[label of the first][label of the second]``, the ``share`` of equal labels, ``kappa``,
        and ``is_one_meaning``: whether a 1 means the same to both.

    Raises:
        StoreMismatchError: If their traces differ, or stand in another order.
    """
    if first.trace_ids != second.trace_ids:
        raise StoreMismatchError(
            f"the labels by {first.labeller!r} and {second.labeller!r} belong to different "
            f"traces ({len(first.trace_ids)} and {len(second.trace_ids)}); label the store again"
        )
    both = first.is_valid & second.is_valid
    one, other = first.values[both].astype(np.int64), second.values[both].astype(np.int64)
    return {
        "first": first.labeller,
        "second": second.labeller,
        "n_both": len(one),
        "confusion": np.bincount(2 * one + other, minlength=4).reshape(2, 2).tolist(),
        "share": float((one == other).mean()) if len(one) else None,
        "kappa": cohen_kappa(one, other, (first.labeller, second.labeller)),
        "is_one_meaning": first.meaning == second.meaning,
    }


def threshold_sweep(
    scores: Float[np.ndarray, "trace"],
    is_decided: Bool[np.ndarray, "trace"],
    reference: Labels,
    thresholds: Sequence[float],
) -> list[dict[str, Any]]:
    """What each threshold would label; empty without a score.

    Args:
        scores: Likeness to a gold answer; below the threshold means hallucinated.
        is_decided: Which answers a threshold decides.
        reference: Labels of another rule for the same traces.
        thresholds: Thresholds to try.

    Returns:
        Of each ``threshold`` the ``prevalence`` of hallucinated answers, how many answers the
        reference decided too (``n_both``), and ``kappa`` with it on those.
    """
    both = is_decided & reference.is_valid
    expected = reference.values[both].astype(np.int64)
    names = ("the threshold", reference.labeller)
    return [
        {
            "threshold": float(threshold),
            "prevalence": float((scores < threshold)[is_decided].mean()),
            "n_both": int(both.sum()),
            "kappa": cohen_kappa((scores < threshold)[both].astype(np.int64), expected, names),
        }
        for threshold in (thresholds if is_decided.any() else ())
    ]


def label_report(
    store: TraceStore, names: Sequence[str] = (), *, n_examples: int = 20, seed: int = 0
) -> dict[str, Any]:
    """Everything about the labels of a store, as plain values.

    Args:
        store: The traces.
        names: Labellers; those of the registry are made where there are none. By default all
            labels that are there.
        n_examples: Answers of each class of the first labeller.
        seed: Seed of the examples.

    Returns:
        ``labellers`` by name, each with its meaning, settings, summary and ``categories`` (empty where
        traces have none); the ``agreement`` of every pair; what other thresholds of a ROUGE labeller
        would label (``sweeps``, empty where there are no labels by the reference, or a threshold
        decides nothing); random ``examples`` to read.

    Raises:
        TraceNotFoundError: If no name is given and there are no labels.
        UnknownNameError: If there are no labels of a name, and no such labeller.
    """
    found = [named_labels(store, name) for name in dict.fromkeys(names or _stored(store))]
    records = list(store.records)
    groups = np.array([record.group_id for record in records])
    given = [record.metadata.get("category") for record in records]
    categories = [None if category is None else str(category) for category in given]
    labellers = {
        each.labeller: {
            "meaning": each.meaning,
            "settings": dict(each.settings),
            **summarise(each, groups),
            "categories": summarise_categories(each, groups, categories),
        }
        for each in found
    }
    plain: dict[str, Any] = json_ready(
        {
            "labellers": labellers,
            "agreement": [agreement(first, second) for first, second in combinations(found, 2)],
            "sweeps": _sweeps(records, found),
            "examples": draw_examples(records, found, n=n_examples, seed=seed),
        }
    )
    return plain


def _stored(store: TraceStore) -> list[str]:
    names = stored_labellers(store)
    if not names:
        folder = store.labels_folder.parent
        raise TraceNotFoundError(f"no labels in {folder}\n  Make some:  graphhalu label {folder}")
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
