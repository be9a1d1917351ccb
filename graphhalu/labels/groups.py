"""Which answers belong together, so that no split ever parts them."""

from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Int, Shaped
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import question_key
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.trace import Trace


def question_groups(traces: Sequence[Trace]) -> Shaped[np.ndarray, "trace"]:
    """Group of each trace: its ``group_id``, merged where groups ask the same question.

    Data sets hold some questions twice under two ids. Two groups with the same question text on
    the same context become one, under the name of the first; case, accents, punctuation and
    articles make no difference (:func:`graphhalu.datasets.registry.question_key`).
    """
    names = [trace.record.group_id for trace in traces]
    ids = _codes(names)
    texts = _codes([record_key(trace.record) for trace in traces])
    n_ids, n_nodes = int(ids.max()) + 1, int(ids.max()) + int(texts.max()) + 2
    links = (np.ones(len(ids)), (ids, n_ids + texts))
    merged = connected_components(coo_array(links, shape=(n_nodes, n_nodes)), directed=False)[1]
    first: dict[int, str] = {}
    for component, name in zip(merged[ids].tolist(), names, strict=True):
        first.setdefault(component, name)
    return np.array([first[component] for component in merged[ids].tolist()])


def record_key(record: TraceRecord) -> str:
    """One text for near-duplicates, by the same rule that joins them when a data set is read."""
    return question_key(
        Question(
            record.question_id, record.question, record.answers,
            context=record.context, choices=record.choices,
        )
    )  # fmt: skip


def _codes(keys: Sequence[Hashable]) -> Int[np.ndarray, "trace"]:
    """Number equal keys alike, in the order of their first appearance."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)
