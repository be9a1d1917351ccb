"""Groups of answers that belong together, so that no split separates them."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Shaped

from graphhalu.datasets.question import question_key
from graphhalu.datasets.registry import merged_groups
from graphhalu.traces.trace import Trace


def question_groups(traces: Sequence[Trace]) -> Shaped[np.ndarray, "trace"]:
    """Group of each trace: its ``group_id``, merged where groups ask the same question.

    Data sets hold some questions twice under two ids. Two groups with the same question text on
    the same context become one, under the name of the first; case, accents, punctuation and
    articles make no difference (:func:`graphhalu.datasets.question.question_key`).
    """
    records = [trace.record for trace in traces]
    keys = [question_key(record.question, record.context) for record in records]
    return np.array(merged_groups([record.group_id for record in records], keys))
