"""Metrics of one detector, with intervals over questions: from its out-of-fold scores to its row.

At token level predicted tokens are also held against the spans that people marked, by character,
span and answer.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.registry import CATEGORY_CONTROL
from graphhalu.evaluation.bootstrap import EvaluationSet, Rows, percentile_interval
from graphhalu.evaluation.calibration import MarkedAnswer
from graphhalu.evaluation.crossfit import ComparisonData, OutOfFold, SplitKey
from graphhalu.evaluation.metrics import METRICS, Floats, Mask, auroc, ece, evaluate, ratio, recalibration
from graphhalu.evaluation.result import SAMPLE_SCHEMA, TEXTS, DetectorRow, MetricValue, Subgroup, TokenCounts
from graphhalu.labels.stated import n_lost_spans

RANK_METRICS: Final = {"answer": tuple(METRICS), "token": ("auroc", "auprc")}
"""Rank metrics at each level; of tokens nobody rejects some and keeps the others."""
HALF: Final = 0.5
"""Share of characters from which on a span is found, or right."""
_OF_SUBGROUPS: Final = ("auroc", "auprc")
_MOST_SUBGROUPS: Final = 60
"""A field with more values than this is not a category."""


def detector_metrics(data: ComparisonData, fits: Sequence[OutOfFold]) -> dict[str, MetricValue]:
    """Every metric, mean over seeds; each resample takes the same questions in every seed.

    A metric that is not defined in every seed is left out.

    Raises:
        NotEnoughDataError: If the items with a valid score lack a class, or nearly so.
    """
    names = RANK_METRICS[data.labels.level]
    seeds: list[dict[str, Rows]] = []
    for fit in fits:
        scores, is_valid = fit.values[data.is_kept], fit.is_valid[data.is_kept]
        found = _rank_rows(data.kept_items, names, scores, is_valid) | _probability_rows(data, fit)
        if data.categories is not None:
            category = np.unique(data.categories.names, return_inverse=True)[1]
            # a model of another fold has seen other labels: pairs across folds would count a
            # category's own share against it
            strata = (category + len(category) * fit.fold)[data.is_kept]
            found["within_category_auroc"] = data.kept_items.stratified_auroc(scores, strata, is_valid)
        seeds.append(found | (_token_rows(data, fit) if data.labels.level == "token" else {}))
    within = _fold_means(data, fits)
    metrics = _mean_metrics(seeds, data.config.level)
    return {n: replace(m, fold_mean=within.get(n)) if n in names else m for n, m in metrics.items()}


def _rank_rows(items: EvaluationSet, names: Sequence[str], scores: Floats, is_valid: Mask) -> dict[str, Rows]:
    """Rank metrics of one seed over the items that count.

    Raises:
        NotEnoughDataError: If the items that count lack a class.
    """
    found = evaluate(scores[is_valid], items.labels[is_valid])
    drawn = items.resample(names, scores, is_valid)
    return {name: np.append(found[name], drawn[name]) for name in names}


def _probability_rows(data: ComparisonData, fit: OutOfFold) -> dict[str, Rows]:
    """F1, Brier score and calibration error of the items with a probability, if there are any."""
    known, labels = fit.is_valid & np.isfinite(fit.probability), data.labels.items
    if not known.any():
        return {}
    error, is_positive = np.where(known, fit.probability, 0.0) - labels, fit.is_predicted_positive
    columns = [2.0 * (is_positive & (labels == 1)), is_positive + labels, error**2, np.ones(len(labels))]
    stacked = np.stack(columns, axis=1) * known[:, None]
    twice_hits, positive_or_true, squared, n_items = data.kept_items.sums(stacked[data.is_kept]).T
    probability, truth = fit.probability[known], labels[known]
    slope, intercept = recalibration(probability, truth)
    # resampling would only enlarge the calibration error, so it has no interval
    alone = {"ece": ece(probability, truth), "calibration_slope": slope, "calibration_intercept": intercept}
    found = {"f1": ratio(twice_hits, positive_or_true), "brier": ratio(squared, n_items)}
    return found | {name: np.array([value]) for name, value in alone.items()}


def _mean_metrics(seeds: Sequence[Mapping[str, Rows]], level: float) -> dict[str, MetricValue]:
    """Means over seeds of the metrics that are defined in every one.

    Raises:
        NotEnoughDataError: If more than half of the resamples lack a class.
    """
    found = {}
    for name in seeds[0]:
        if not all(name in seed and np.isfinite(seed[name][0]) for seed in seeds):
            continue
        rows, low, high, n_used = [seed[name] for seed in seeds], None, None, 0
        of_seed, resampled = [float(row[0]) for row in rows], np.mean(rows, axis=0)[1:]
        try:
            if len(resampled):
                low, high, n_used = percentile_interval(resampled, level)
        except NotEnoughDataError:
            if name in METRICS:
                raise
            # too few resamples have it: a value without an interval
        sd = float(np.std(of_seed, ddof=1)) if len(of_seed) > 1 else None
        found[name] = MetricValue(float(np.mean(of_seed)), low, high, n_used, sd)
    return found


def _fold_means(data: ComparisonData, fits: Sequence[OutOfFold]) -> dict[str, float]:
    """Mean of each metric over the folds that hold both classes; empty if none does."""
    found = []
    for fit, fold in product(fits, range(max(int(fit.fold.max()) for fit in fits) + 1)):
        here = fit.is_valid & (fit.fold == fold)
        with suppress(NotEnoughDataError):
            found.append(evaluate(fit.raw[here], data.labels.items[here]))
    return {name: float(np.mean([f[name] for f in found])) for name in METRICS} if found else {}


def subgroups(data: ComparisonData, scores: Mapping[str, Sequence[Floats]]) -> tuple[Subgroup, ...]:
    """AUROC and AUPRC of every detector within each category; none without categories.

    Args:
        data: The data of the comparison.
        scores: What :func:`median_filled_scores` gives.
    """
    field, items, found = data.config.subgroups or "", data.kept_items, []
    of_trace = np.array([str(trace.record.metadata.get(field, "")) for trace in data.traces])
    categories = of_trace[data.labels.owner][data.is_kept]
    names = [name for name in np.unique(categories).tolist() if name]
    if not field or not 1 < len(names) <= _MOST_SUBGROUPS:
        return ()
    for detector, name in product(scores, names):
        members = [(seed, np.isfinite(seed) & (categories == name)) for seed in scores[detector]]
        metrics: dict[str, MetricValue] = {}
        with suppress(NotEnoughDataError):
            rows = [_rank_rows(items, _OF_SUBGROUPS, *member) for member in members]
            metrics = _mean_metrics(rows, items.level)
        n_traces = float(np.mean([here.sum() for _, here in members]))
        shares = [items.labels[here].mean() if here.any() else 0.0 for _, here in members]
        found.append(Subgroup(detector, field, name, n_traces, float(np.mean(shares)), metrics))
    return tuple(found)


def count_spans(answer: MarkedAnswer, is_predicted_positive: Bool[np.ndarray, "token"]) -> tuple[int, ...]:
    """Characters and spans of one answer; a span counts from :data:`HALF` of its characters on.

    Tokens of white space alone neither make a span nor part one.

    Returns:
        Characters predicted positive that are marked, characters predicted positive, marked
        characters; predicted spans that are right, predicted spans; marked spans that are found,
        marked spans.
    """
    of_token = np.flatnonzero(answer.size > 0)
    is_positive = is_predicted_positive[of_token]
    edges = np.diff(is_positive.astype(np.int8), prepend=0, append=0)
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    size, marked = (np.append(0, each[of_token].cumsum()) for each in (answer.size, answer.marked))
    is_right = marked[stops] - marked[starts] >= HALF * (size[stops] - size[starts])
    covered = answer.spans[:, is_predicted_positive].sum(axis=1)
    is_found = (covered >= HALF * answer.span_size) & (answer.span_size > 0)
    right, predicted = (int(each[is_predicted_positive].sum()) for each in (answer.marked, answer.size))
    n_right, n_found = int(is_right.sum()), int(is_found.sum())
    return right, predicted, answer.n_marked, n_right, len(starts), n_found, len(answer.span_size)


def _token_rows(data: ComparisonData, fit: OutOfFold) -> dict[str, Rows]:
    """Metrics that only token scores have, over the answers that one seed tested.

    Returns:
        The metric, NaN where it is not defined, and behind it the same on each resample.
    """
    labels, tested = data.labels, np.unique(data.labels.owner[fit.is_tested])
    answers = replace(data.kept_items, labels=labels.values[tested], groups=data.groups[tested])
    within, counts, known = np.zeros((len(tested), 2)), [], []
    for row, index in enumerate(tested.tolist()):
        own = labels.places(tested[row : row + 1])
        counts.append(count_spans(data.marked[index], fit.is_predicted_positive[own]))
        own = own[np.isfinite(fit.values[own])]
        known.append(fit.values[own])
        # the tokens of one hallucinated answer, whatever other answers score
        if 0 < labels.items[own].sum() < len(own):
            within[row] = auroc(fit.values[own], labels.items[own]), 1.0
    found = {"within_auroc": ratio(*answers.sums(within).T), **_span_rows(counts, answers)}
    for name, reduce in (("max", np.max), ("mean", np.mean)):
        values = np.array([reduce(each) if len(each) else np.nan for each in known])
        found[f"answer_auroc_{name}"] = np.full(1 + answers.n_resamples, np.nan)
        with suppress(NotEnoughDataError):
            rows = _rank_rows(answers, ["auroc"], values, np.isfinite(values))
            found[f"answer_auroc_{name}"] = rows["auroc"]
    return found


def _span_rows(counts: Sequence[Sequence[int]], answers: EvaluationSet) -> dict[str, Rows]:
    """Precision, recall and F1 of characters and spans, summed over answers."""
    sums = answers.sums(np.array(counts, dtype=np.float64)).T
    right, predicted, marked, right_spans, predicted_spans, found_spans, marked_spans = sums
    precision, recall = ratio(right_spans, predicted_spans), ratio(found_spans, marked_spans)
    # without a predicted span there is no precision, and F1 is 0 as long as anything is marked
    known = np.nan_to_num(precision)
    both = known + recall
    return {
        "char_precision": ratio(right, predicted),
        "char_recall": ratio(right, marked),
        "char_f1": ratio(2 * right, predicted + marked),
        "span_precision": precision,
        "span_recall": recall,
        "span_f1": np.where(both == 0, both, ratio(2 * known * recall, both)),
    }


def token_counts(data: ComparisonData, n_groups: int) -> TokenCounts:
    """Answers, tokens and spans of a comparison of token detectors.

    Args:
        data: Answers without a valid label are left out.
        n_groups: Contexts of the answers with a valid label.
    """
    labels, kept = data.labels, np.flatnonzero(data.labels.is_valid).tolist()
    records, truth = [data.traces[index].record for index in kept], labels.values[kept]
    given = [record.metadata.get("given") for record in records]
    sources = [str((isinstance(each, Mapping) and each.get("source")) or "unknown") for each in given]
    by_writer = pd.Series(truth).groupby(np.array(sources), sort=False).agg(["size", "mean"])
    by_writer = by_writer.sort_values("size", ascending=False, kind="stable")
    n_characters = sum(len("".join(record.answer.split())) for record in records)
    return TokenCounts(
        n_traces=len(kept),
        n_left_out=dict(Counter(np.array(labels.reasons, dtype=object)[~labels.is_valid].tolist())),
        n_groups=n_groups,
        n_hallucinated=int(truth.sum()),
        n_tokens=int(data.is_kept.sum()),
        n_hallucinated_tokens=int(labels.items[data.is_kept].sum()),
        n_spans=sum(len(record.given_spans) for record in records),
        n_lost_spans=sum(map(n_lost_spans, records)),
        character_share=sum(data.marked[index].n_marked for index in kept) / max(n_characters, 1),
        n_on_policy=sum(record.is_on_policy for record in records),
        writers={name: (int(n), float(share)) for name, n, share in by_writer.itertuples()},
    )


def token_notes(counts: TokenCounts) -> tuple[str, ...]:
    """Caveats that a reader must know before trusting a number."""
    n_others = counts.n_traces - counts.n_on_policy
    is_told = {"spans": True, "off_policy": n_others > 0, "writers": len(counts.writers) > 1}
    numbers = {"n_others": n_others, "n_traces": counts.n_traces}
    return tuple(TEXTS[name].format(**numbers) for name, told in is_told.items() if told)


def category_notes(rows: Sequence[DetectorRow]) -> tuple[str, ...]:
    """How much of the best detector's score is the category of the question, in one line.

    There is none without the control that knows the category alone.
    """
    known = [row for row in rows if "within_category_auroc" in row.metrics]
    prior = next((row.metric("auroc") for row in known if row.detector == CATEGORY_CONTROL), None)
    others = [row for row in known if not row.is_control]
    if prior is None or not others:
        return ()
    best = max(others, key=lambda row: row.metric("auroc") or 0.0)
    overall, within = best.metric("auroc"), best.metric("within_category_auroc")
    apart = best.metric("category_auroc")
    held_out = "" if apart is None else TEXTS["held_out"].format(auroc=apart)
    named = {"prior": prior, "detector": best.detector, "overall": overall, "within": within}
    return (TEXTS["categories"].format(**named, held_out=held_out),)


def sample_table(data: ComparisonData, name: str, fits: Mapping[SplitKey, OutOfFold]) -> pa.Table:
    """One row a split and tested item; a score that is not valid is null."""
    labels, tables = data.labels, [SAMPLE_SCHEMA.empty_table()]
    for (held_out, seed), fit in fits.items():
        tested = np.flatnonzero(fit.is_tested)
        owner, probability = labels.owner[tested], fit.probability[tested]
        columns = {
            "detector": [name] * len(tested),
            "seed": [seed] * len(tested),
            "fold": fit.fold[tested],
            "trace_id": np.array(labels.trace_ids)[owner],
            "group": data.groups[owner],
            "label": labels.items[tested],
            "score": pa.array(fit.values[tested], from_pandas=True),
            "raw_score": pa.array(fit.raw[tested], from_pandas=True),
            "is_valid": fit.is_valid[tested],
            "probability": pa.array(probability, from_pandas=True),
            "is_predicted_positive": pa.array(fit.is_predicted_positive[tested], mask=np.isnan(probability)),
            "token": labels.place_in_trace[tested] if labels.level == "token" else [None] * len(tested),
            "held_out": [held_out] * len(tested),
        }
        tables.append(pa.table(columns, schema=SAMPLE_SCHEMA))
    return pa.concat_tables(tables)


def median_filled_scores(data: ComparisonData, samples: pa.Table) -> dict[str, list[Floats]]:
    """Scores of all kept items by detector and seed, with the median where there is no valid score.

    NaN where an item was not tested; only samples with questions held out count. It reads nothing
    but the table, so that detectors taken over from an earlier run are judged together with new ones.
    """
    labels, found = data.labels, dict[str, list[Floats]]()
    first = np.append(0, data.is_kept.cumsum())[labels.owner.searchsorted(np.arange(len(labels.values)))]
    place_of_trace = pd.Series(first, index=labels.trace_ids)
    samples = samples.filter(pc.field("held_out") == "question")
    for name in pc.unique(samples["detector"]).to_pylist():
        mine = samples.filter(pc.field("detector") == name).select(["seed", "trace_id", "token", "score"])
        for _, frame in mine.to_pandas().groupby("seed", sort=False):
            known, scores = frame["score"].to_numpy(np.float64), np.full(len(data.kept_items.labels), np.nan)
            place_in_trace = frame["token"].fillna(0).to_numpy(np.int64)
            places = place_of_trace[frame["trace_id"]].to_numpy() + place_in_trace
            scores[places] = np.where(np.isfinite(known), known, np.median(known[np.isfinite(known)]))
            found.setdefault(name, []).append(scores)
    return found
