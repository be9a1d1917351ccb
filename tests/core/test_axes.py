import jaxtyping
import numpy as np
import pytest

from graphhalu.core.axes import N_SPANS, SPAN_NAMES, Span, answer_producing_rows
from graphhalu.evaluation.metrics import auroc


def test_the_row_before_each_answer_token_produces_it():
    # prompt 0 1 2, answer 3 4 5 6: rows 2 … 5 predict them
    assert answer_producing_rows(3, 7) == (2, 6)


def test_there_are_as_many_rows_as_answer_tokens():
    rows = answer_producing_rows(11, 29)
    assert rows.stop - rows.start == 29 - 11


@pytest.mark.parametrize(("prompt_length", "length"), [(0, 5), (5, 5), (7, 5)])
def test_a_sequence_without_prompt_or_answer_is_refused(prompt_length, length):
    with pytest.raises(ValueError, match=f"prompt_length={prompt_length} and length={length}"):
        answer_producing_rows(prompt_length, length)


def test_spans_are_numbered_as_the_stores_hold_them():
    assert SPAN_NAMES == ("bos", "system", "context", "question", "template", "answer")
    assert [span.value for span in Span] == list(range(N_SPANS))


def test_a_wrong_shape_is_refused_while_tests_run():
    """The canary of the shape checks: without them this test fails."""
    with pytest.raises(jaxtyping.TypeCheckError):
        auroc(np.zeros(5), np.zeros(7, dtype=np.int64))
    with pytest.raises(jaxtyping.TypeCheckError):
        auroc(np.zeros((5, 3)), np.zeros(5, dtype=np.int64))
