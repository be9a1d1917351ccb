"""What a comparison of token detectors was made of, and what its reader must know."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np

from graphhalu.evaluation.records import TokenCounts
from graphhalu.evaluation.rows import Compared
from graphhalu.evaluation.token_spans import SPAN_RULE, marked_answer
from graphhalu.labels.spans import n_lost_spans
from graphhalu.traces.schema import TraceRecord

_UNKNOWN: Final = "unknown"


def token_counts(compared: Compared) -> TokenCounts:
    """Answers, tokens and spans of a comparison."""
    labels, kept, records = compared.labels, compared.labels.is_valid, _records(compared)
    left_out = Counter(np.array(labels.reasons, dtype=object)[~kept].tolist())
    truth = labels.values[kept]
    n_characters = sum(len("".join(record.answer.split())) for record in records)
    n_marked = sum(marked_answer(record).n_marked for record in records)
    tokens = labels.items[kept[labels.owner]]
    return TokenCounts(
        n_traces=len(records),
        n_left_out=dict(left_out),
        n_groups=len(np.unique(compared.groups[kept])),
        n_hallucinated=int(truth.sum()),
        n_tokens=len(tokens),
        n_hallucinated_tokens=int(tokens.sum()),
        n_spans=sum(len(record.given_spans) for record in records),
        n_lost_spans=sum(n_lost_spans(record) for record in records),
        character_share=n_marked / max(n_characters, 1),
        n_on_policy=sum(record.is_on_policy for record in records),
        writers=_writers(records, truth.tolist()),
    )


def token_notes(compared: Compared) -> tuple[str, ...]:
    """What a reader must know before trusting a number."""
    records = _records(compared)
    n_others = sum(not record.is_on_policy for record in records)
    notes = [f"Spans: {SPAN_RULE}."]
    if n_others:
        notes.append(
            f"Off-policy: {n_others} of {len(records)} answers were written by others, and the "
            "replaying model only read them. Its attention and likelihood say how it reads such "
            "a text, not how the writer came to it."
        )
    if len(_writers(records, [0] * len(records))) > 1:
        notes.append(
            "Writers hallucinate at different rates, so telling them apart by style already "
            "ranks answers; within_auroc compares the tokens of one answer only."
        )
    return tuple(notes)


def _records(compared: Compared) -> list[TraceRecord]:
    kept = np.flatnonzero(compared.labels.is_valid).tolist()
    return [compared.traces[index].record for index in kept]


def _writers(records: Sequence[TraceRecord], truth: Sequence[int]) -> dict[str, tuple[int, float]]:
    """Answers by who wrote them, the most frequent first."""
    found: dict[str, list[int]] = {}
    for record, value in zip(records, truth, strict=True):
        given = record.metadata.get("given")
        source = given.get("source") if isinstance(given, Mapping) else None
        found.setdefault(str(source or _UNKNOWN), []).append(value)
    order = sorted(found, key=lambda name: -len(found[name]))
    return {name: (len(found[name]), float(np.mean(found[name]))) for name in order}
