"""Labels of the tokens of given answers, from the spans that people marked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Int

from graphhalu.errors import NotEnoughDataError
from graphhalu.labels.spans import SpanLabel, token_labels
from graphhalu.splits import Split
from graphhalu.traces.schema import TraceRecord


@dataclass(frozen=True)
class TokenLabels:
    """One label an answer token; 1 = it shares a character with a hallucinated span.

    Attributes:
        trace_ids: The traces, in the order of the store.
        values: Labels of the answer tokens of each trace; all 0 where ``is_valid`` is false.
        is_valid: Whether the data set says of each token what it is.
        reasons: Why the tokens of a trace are labelled as they are, or why they are not.
    """

    trace_ids: tuple[str, ...]
    values: tuple[Int[np.ndarray, "_"], ...]
    is_valid: Bool[np.ndarray, "trace"]
    reasons: tuple[str, ...]

    def __len__(self) -> int:
        """Traces."""
        return len(self.values)

    @property
    def answers(self) -> Int[np.ndarray, "trace"]:
        """1 for each trace with a hallucinated token."""
        return np.array([int(values.any()) for values in self.values], dtype=np.int64)

    def visible(self, split: Split) -> "TokenLabels":
        """The labels that a detector may see: those of training and validation."""
        seen = np.zeros(len(self), dtype=np.bool_)
        seen[np.concatenate([split.train, split.validation])] = True
        return replace(
            self,
            values=tuple(
                values if is_seen else np.zeros_like(values)
                for values, is_seen in zip(self.values, seen.tolist(), strict=True)
            ),
            is_valid=self.is_valid & seen,
            reasons=tuple(
                reason if is_seen else "held out"
                for reason, is_seen in zip(self.reasons, seen.tolist(), strict=True)
            ),
        )


def label_tokens(records: Sequence[TraceRecord]) -> TokenLabels:
    """Label the answer tokens of all traces by the rule ``spans``.

    An answer that is called wrong as a whole and has no span is not valid: nobody said where.

    Raises:
        NotEnoughDataError: If the tokens of no trace can be labelled; says why not.
    """
    rule = SpanLabel()
    decided = [rule.label(record) for record in records]
    has_offsets = [len(r.answer_offsets) == r.length - r.prompt_length for r in records]
    is_valid = np.array(
        [found.is_valid and told for found, told in zip(decided, has_offsets, strict=True)],
        dtype=np.bool_,
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
    values = tuple(
        token_labels(record) if is_known else _nothing(record)
        for record, is_known in zip(records, is_valid.tolist(), strict=True)
    )
    return TokenLabels(tuple(record.trace_id for record in records), values, is_valid, reasons)


def _nothing(record: TraceRecord) -> Int[np.ndarray, "token"]:
    return np.zeros(record.length - record.prompt_length, dtype=np.int64)
