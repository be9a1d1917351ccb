"""Labels of the tokens of given answers, from the spans that people marked."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.labels.labels import Labels
from graphhalu.labels.spans import SpanLabel, token_labels
from graphhalu.traces.schema import TraceRecord


def label_tokens(records: Sequence[TraceRecord]) -> Labels:
    """Label the answer tokens of all traces by the rule ``spans``, and with them the answers.

    A token is hallucinated if it shares a character with a marked span. An answer that is called
    wrong as a whole and has no span is not valid: nobody said where.

    Raises:
        NotEnoughDataError: If the tokens of no trace can be labelled; says why not.
    """
    rule = SpanLabel()
    decided = [rule.label(record) for record in records]
    has_offsets = [len(r.answer_offsets) == r.length - r.prompt_length for r in records]
    is_valid = np.array(
        [found.is_valid and told for found, told in zip(decided, has_offsets, strict=True)], dtype=np.bool_
    )
    reasons = tuple(
        found.reason if told else "no character offsets"
        for found, told in zip(decided, has_offsets, strict=True)
    )
    if not is_valid.any():
        message = (
            f"the tokens of none of {len(records)} answers can be labelled"
            f"{f' ({reasons[0]})' if reasons else ''}: expected given answers with marked spans\n"
            f"  Extract some:  graphhalu extract --dataset ragtruth --answers given"
        )
        raise NotEnoughDataError(message)
    tokens = tuple(
        token_labels(record) if is_known else _nothing(record)
        for record, is_known in zip(records, is_valid.tolist(), strict=True)
    )
    return Labels(
        trace_ids=tuple(record.trace_id for record in records),
        values=np.array([int(each.any()) for each in tokens], dtype=np.int64),
        is_valid=is_valid,
        reasons=reasons,
        labeller=rule.name,
        settings=rule.settings(),
        meaning=rule.meaning,
        tokens=tokens,
    )


def _nothing(record: TraceRecord) -> Int[np.ndarray, "token"]:
    return np.zeros(record.length - record.prompt_length, dtype=np.int64)
