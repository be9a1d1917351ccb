"""Copied shares on hand-made rows: exact scores by both rules, windows and chance levels."""

import numpy as np
import pytest

from graphhalu.core.axes import RowRange
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.heads.retrieval import Passage, copied_share, mass_share

PROMPT, NEEDLE = 13, RowRange(4, 7)
# the needle is 50 51 52; the answer copies 50, 51, 51 and ends with a token of its own
TOKEN_IDS = np.array([1, 20, 21, 22, 50, 51, 52, 23, 24, 25, 26, 30, 31, 50, 51, 51, 40])
N_LAYERS, N_HEADS, N_ROWS = 3, 5, 4


def passage(windows=(None,) * N_LAYERS):
    return Passage(TOKEN_IDS, PROMPT, NEEDLE, RowRange(1, 11), windows)


def argmax():
    """Every head looks at the start, but (1, 2), which copies, and two that nearly do."""
    keys = np.zeros((N_LAYERS, N_HEADS, N_ROWS), dtype=np.int64)
    keys[1, 2] = [4, 5, 5, 6]
    keys[0, 3] = [5, 6, 4, 4]  # the needle, but never the token that comes
    keys[2, 1] = [9, 13, 14, 16]  # looks at answer tokens and elsewhere
    return keys


@pytest.mark.parametrize(("rule", "score"), [("set", 2 / 3), ("sum", 3 / 3)])
def test_only_the_planted_head_scores_and_exactly_so(rule, score):
    found = copied_share(argmax(), passage(), rule)
    expected = np.zeros((N_LAYERS, N_HEADS))
    expected[1, 2] = score
    np.testing.assert_allclose(found.score, expected)
    assert (found.chance == 0).all()


def test_the_chance_level_is_the_mean_score_of_all_other_spans_of_that_length():
    ids = TOKEN_IDS.copy()
    ids[8] = 51  # the token also stands outside the needle, and one head copies it from there
    keys = argmax()
    keys[0, 0] = [0, 8, 8, 0]
    for rule, hits in (("set", 1), ("sum", 2)):
        found = copied_share(keys, passage()._replace(token_ids=ids), rule)
        starts = [s for s in range(1, 9) if s + 3 <= 4 or s >= 7]
        covering = sum(s <= 8 < s + 3 for s in starts)
        assert starts == [1, 7, 8]
        assert found.score[0, 0] == 0
        np.testing.assert_allclose(found.chance[0, 0], hits * covering / len(starts) / 3)


def test_a_layer_that_cannot_see_the_needle_is_missing_and_not_zero():
    # rows 12 … 15; with a window of 10 they see from 3, 4, 5, 6: two of them see the needle whole
    found = copied_share(argmax(), passage((None, 10, 6)), "sum")
    assert np.isnan(found.score[2]).all()
    np.testing.assert_allclose(found.score[1, 2], 2 / 3)
    assert not np.isnan(found.score[:2]).any()
    # from row 13 on a span must start at 4: only 7 and 8 are left
    assert not np.isnan(found.chance[:2]).any()
    with pytest.raises(NotEnoughDataError, match="no layer sees the span of tokens 4 … 6"):
        copied_share(argmax(), passage((6, 6, 6)), "set")


def test_without_room_for_another_span_the_chance_level_is_unknown():
    narrow = passage()._replace(context=RowRange(3, 8))
    assert np.isnan(copied_share(argmax(), narrow).chance).all()


def test_permuting_heads_permutes_scores():
    order = [3, 0, 4, 2, 1]
    plain = copied_share(argmax(), passage(), "sum")
    moved = copied_share(argmax()[:, order], passage(), "sum")
    np.testing.assert_array_equal(moved.score, plain.score[:, order])


def test_mean_mass_and_its_chance_equal_a_slow_loop():
    mass = np.random.default_rng(0).uniform(size=(N_LAYERS, N_HEADS, N_ROWS))
    windows = (None, 10, 6)
    found = mass_share(mass, passage(windows))
    for layer, window in enumerate(windows):
        counted, uniform = [], []
        for row in range(N_ROWS):
            position = PROMPT - 1 + row
            first = 0 if window is None else max(0, position - window + 1)
            if first <= NEEDLE.start:
                counted.append(mass[layer, :, row])
                uniform.append(3 / (position + 1 - first))
        if counted:
            np.testing.assert_allclose(found.score[layer], np.mean(counted, axis=0))
            np.testing.assert_allclose(found.chance[layer], np.mean(uniform))
        else:
            assert np.isnan(found.score[layer]).all()
            assert np.isnan(found.chance[layer]).all()
