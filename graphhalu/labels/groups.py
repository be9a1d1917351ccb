"""Groups of answers that belong together, so that no split ever parts them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from graphhalu.datasets.question import Question, question_key
from graphhalu.datasets.registry import merged_groups
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.trace import Trace


def question_groups(traces: Sequence[Trace]) -> Shaped[np.ndarray, "trace"]:
    """Group of each trace: its ``group_id``, merged where groups ask the same question.

    Data sets hold some questions twice under two ids. Two groups with the same question text on
    the same context become one, under the name of the first; case, accents, punctuation and
    articles make no difference (:func:`graphhalu.datasets.question.question_key`).
    """
    records = [trace.record for trace in traces]
    groups = [record.group_id for record in records]
    return np.array(merged_groups(groups, [record_key(record) for record in records]))


def record_key(record: TraceRecord) -> str:
    """One text for near-duplicates, by the same rule that joins them when a data set is read."""
    return question_key(
        Question(
            record.question_id,
            record.question,
            record.answers,
            context=record.context,
            choices=record.choices,
        )
    )
