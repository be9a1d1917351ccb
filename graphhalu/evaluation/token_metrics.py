"""Metrics of token scores by character, span and answer, beside those of single tokens.

Predicted tokens are held against the spans that people marked. White space counts nowhere:
tokenizers put it before a word and people mark around it. Every other character belongs to the
first token that covers it, so characters add up over tokens.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.numerics import auroc
from graphhalu.evaluation.bootstrap import EvaluationSet
from graphhalu.evaluation.result import TokenCounts
from graphhalu.evaluation.weighted_metrics import ratio, tie_order
from graphhalu.labels.labels import Labels
from graphhalu.labels.stated import n_lost_spans
from graphhalu.traces.schema import TraceRecord

SPAN_RULE: Final = (
    "a marked span is found if tokens predicted positive cover at least half of its characters; a "
    "predicted span (such tokens in a row) is right if at least half of its characters are marked"
)
"""Definition of the metrics of spans; the half is :data:`HALF`."""
HALF: Final = 0.5
TOKEN_METRICS: Final = (
    "within_auroc",
    "char_precision",
    "char_recall",
    "char_f1",
    "span_precision",
    "span_recall",
    "span_f1",
    "answer_auroc_max",
    "answer_auroc_mean",
)
"""Metrics that only token scores have, in the order of a table."""
_NO_TOKEN: Final = -1


@dataclass(frozen=True)
class MarkedAnswer:
    """Characters of an answer, token by token, and its marked spans.

    Attributes:
        size: Characters of each token.
        marked: Of them those in a marked span.
        spans: Of them those in each span.
        span_size: Characters of each span, also those that no token covers.
        n_marked: Characters in any span, also those that no token covers.
    """

    size: Int[np.ndarray, "token"]
    marked: Int[np.ndarray, "token"]
    spans: Int[np.ndarray, "span token"]
    span_size: Int[np.ndarray, "span"]
    n_marked: int


class SpanCounts(NamedTuple):
    """Characters and spans of one answer, or of many together.

    Attributes:
        right: Characters predicted positive that are marked.
        predicted: Characters predicted positive.
        marked: Marked characters.
        right_spans: Predicted spans that are right.
        predicted_spans: Predicted spans.
        found_spans: Marked spans that are found.
        marked_spans: Marked spans.
    """

    right: int
    predicted: int
    marked: int
    right_spans: int
    predicted_spans: int
    found_spans: int
    marked_spans: int


def marked_answer(record: TraceRecord) -> MarkedAnswer:
    """The characters of a given answer."""
    text, n_tokens = record.answer, len(record.answer_offsets)
    owner = np.full(len(text), _NO_TOKEN)
    for place in reversed(range(n_tokens)):
        start, stop = record.answer_offsets[place]
        owner[start:stop] = place
    is_text = np.array([not character.isspace() for character in text], dtype=np.bool_)
    spans = np.zeros((len(record.given_spans), len(text)), dtype=np.bool_)
    for number, (start, stop) in enumerate(record.given_spans):
        spans[number, start:stop] = is_text[start:stop]
    is_marked: Bool[np.ndarray, "character"] = spans.sum(axis=0) > 0
    is_covered = owner != _NO_TOKEN
    size, marked, *of_spans = (
        np.bincount(owner[row & is_covered], minlength=n_tokens) for row in (is_text, is_marked, *spans)
    )
    return MarkedAnswer(
        size=size,
        marked=marked,
        spans=np.array(of_spans, dtype=np.int64).reshape(len(spans), n_tokens),
        span_size=spans.sum(axis=1),
        n_marked=int(is_marked.sum()),
    )


def count_spans(answer: MarkedAnswer, is_predicted_positive: Bool[np.ndarray, "token"]) -> SpanCounts:
    """Characters and spans of one answer; see :data:`SPAN_RULE`.

    Tokens of white space alone neither make a span nor part one.
    """
    of_token = np.flatnonzero(answer.size > 0)
    is_positive = is_predicted_positive[of_token]
    edges = np.diff(is_positive.astype(np.int8), prepend=0, append=0)
    starts, stops = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    size = np.append(0, answer.size[of_token].cumsum())
    marked = np.append(0, answer.marked[of_token].cumsum())
    is_right = marked[stops] - marked[starts] >= HALF * (size[stops] - size[starts])
    covered = answer.spans[:, is_predicted_positive].sum(axis=1)
    is_found = (covered >= HALF * answer.span_size) & (answer.span_size > 0)
    return SpanCounts(
        right=int(answer.marked[is_predicted_positive].sum()),
        predicted=int(answer.size[is_predicted_positive].sum()),
        marked=answer.n_marked,
        right_spans=int(is_right.sum()),
        predicted_spans=len(starts),
        found_spans=int(is_found.sum()),
        marked_spans=len(answer.span_size),
    )


def best_threshold(scores: Float[np.ndarray, "token"], answers: Sequence[MarkedAnswer]) -> float | None:
    """The lowest score to predict positive so that the F1 of characters is highest.

    Args:
        scores: Of the tokens of all answers, answer after answer; tokens without a score are
            never predicted positive.
        answers: The same answers.

    Returns:
        ``None`` if nothing is marked, or no token has a score.
    """
    is_known = np.isfinite(scores)
    size = np.concatenate([np.zeros(0), *(answer.size for answer in answers)])[is_known]
    marked = np.concatenate([np.zeros(0), *(answer.marked for answer in answers)])[is_known]
    n_marked = sum(answer.n_marked for answer in answers)
    if not n_marked or not is_known.any():
        return None
    order, last_of_tie = tie_order(scores[is_known])
    f1 = 2 * marked[order].cumsum() / (size[order].cumsum() + n_marked)
    best = last_of_tie[int(np.argmax(f1[last_of_tie]))]
    return float(scores[is_known][order][best])


def token_metrics(
    scores: Float[np.ndarray, "item"],
    is_predicted_positive: Bool[np.ndarray, "item"],
    labels: Labels,
    marked: Mapping[int, MarkedAnswer],
    answers: EvaluationSet,
) -> dict[str, Float[np.ndarray, "row"]]:
    """Every metric of :data:`TOKEN_METRICS` over the answers that one seed tested.

    Args:
        scores: Scores of the tokens; NaN where not valid.
        is_predicted_positive: Which tokens reach the threshold.
        labels: Labels of tokens.
        marked: The characters of the tested answers, by place among all answers.
        answers: Labels and groups of all answers, and how contexts are drawn.

    Returns:
        The metric, NaN where it is not defined, and behind it the same on each resample.
    """
    tested = np.array(list(marked))
    answers = replace(answers, labels=answers.labels[tested], groups=answers.groups[tested])
    places = [labels.places(tested[at : at + 1]) for at in range(len(tested))]
    own_scores = [scores[own] for own in places]
    counts = [
        count_spans(answer, is_predicted_positive[own])
        for answer, own in zip(marked.values(), places, strict=True)
    ]
    known = [values[np.isfinite(values)] for values in own_scores]
    found = {
        "within_auroc": _within(own_scores, [labels.items[own] for own in places], answers),
        **_spans(counts, answers),
    }
    for name, reduce in (("max", np.max), ("mean", np.mean)):
        values = np.array([reduce(each) if len(each) else np.nan for each in known])
        found[f"answer_auroc_{name}"] = _answer_auroc(values, answers)
    return found


def _within(
    scores: Sequence[Float[np.ndarray, "_"]], truth: Sequence[Int[np.ndarray, "_"]], answers: EvaluationSet
) -> Float[np.ndarray, "row"]:
    """Mean AUROC over the tokens of one hallucinated answer, whatever other answers score."""
    columns = np.zeros((len(scores), 2))
    for row, (values, labels) in enumerate(zip(scores, truth, strict=True)):
        is_valid = np.isfinite(values)
        if 0 < labels[is_valid].sum() < is_valid.sum():
            columns[row] = auroc(values[is_valid], labels[is_valid]), 1.0
    return ratio(*answers.sums(columns).T)


def _spans(counts: Sequence[SpanCounts], answers: EvaluationSet) -> dict[str, Float[np.ndarray, "row"]]:
    """Precision, recall and F1 of characters and spans, summed over answers."""
    sums: Any = SpanCounts(*answers.sums(np.array(counts, dtype=np.float64)).T)
    precision = ratio(sums.right_spans, sums.predicted_spans)
    recall = ratio(sums.found_spans, sums.marked_spans)
    # without a predicted span there is no precision, and F1 is 0 as long as anything is marked
    known = np.nan_to_num(precision)
    both = known + recall
    return {
        "char_precision": ratio(sums.right, sums.predicted),
        "char_recall": ratio(sums.right, sums.marked),
        "char_f1": ratio(2 * sums.right, sums.predicted + sums.marked),
        "span_precision": precision,
        "span_recall": recall,
        "span_f1": np.where(both == 0, both, ratio(2 * known * recall, both)),
    }


def _answer_auroc(scores: Float[np.ndarray, "answer"], answers: EvaluationSet) -> Float[np.ndarray, "row"]:
    """AUROC over answers, each with one number of its tokens."""
    is_valid = np.isfinite(scores)
    known = answers.labels[is_valid]
    if not 0 < known.sum() < len(known):
        return np.full(1 + answers.n_resamples, np.nan)
    drawn = answers.resample(["auroc"], scores, is_valid)["auroc"]
    return np.append(auroc(scores[is_valid], known), drawn)


def token_counts(
    records: Sequence[TraceRecord], labels: Labels, marked: Sequence[MarkedAnswer], n_groups: int
) -> TokenCounts:
    """Answers, tokens and spans of a comparison.

    Args:
        records: Of all answers.
        labels: Of their tokens; answers without a valid label are left out.
        marked: The characters of all answers.
        n_groups: Contexts of the answers with a valid label.
    """
    kept = np.flatnonzero(labels.is_valid).tolist()
    known, truth = [records[index] for index in kept], labels.values[kept]
    tokens = labels.items[labels.is_valid[labels.owner]]
    n_characters = sum(len("".join(record.answer.split())) for record in known)
    by_writer: dict[str, list[int]] = {}
    for record, value in zip(known, truth.tolist(), strict=True):
        given = record.metadata.get("given")
        source = given.get("source") if isinstance(given, Mapping) else None
        by_writer.setdefault(str(source or "unknown"), []).append(value)
    by_writer = dict(sorted(by_writer.items(), key=lambda item: -len(item[1])))
    return TokenCounts(
        n_traces=len(known),
        n_left_out=dict(Counter(np.array(labels.reasons, dtype=object)[~labels.is_valid].tolist())),
        n_groups=n_groups,
        n_hallucinated=int(truth.sum()),
        n_tokens=len(tokens),
        n_hallucinated_tokens=int(tokens.sum()),
        n_spans=sum(len(record.given_spans) for record in known),
        n_lost_spans=sum(n_lost_spans(record) for record in known),
        character_share=sum(marked[index].n_marked for index in kept) / max(n_characters, 1),
        n_on_policy=sum(record.is_on_policy for record in known),
        writers={name: (len(values), float(np.mean(values))) for name, values in by_writer.items()},
    )


def token_notes(counts: TokenCounts) -> tuple[str, ...]:
    """Caveats that a reader must know before trusting a number."""
    n_others = counts.n_traces - counts.n_on_policy
    notes = [f"Spans: {SPAN_RULE}."]
    if n_others:
        notes.append(
            f"Off-policy: {n_others} of {counts.n_traces} answers were written by others, and the "
            "replaying model only read them. Its attention and likelihood say how it reads such "
            "a text, not how the writer came to it."
        )
    if len(counts.writers) > 1:
        notes.append(
            "Writers hallucinate at different rates, so telling them apart by style already "
            "ranks answers; within_auroc compares the tokens of one answer only."
        )
    return tuple(notes)
