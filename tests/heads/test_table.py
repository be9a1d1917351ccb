"""Tables of heads: their numbers by hand, and what they refuse."""

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.heads.table import HeadTable
from tests.heads.conftest import make_table


def test_numbers_of_a_head_by_hand():
    scores = np.zeros((3, 2, 2))
    scores[:, 1, 0] = [0.2, 0.4, 0.9]
    scores[:, 0, 1] = [0.5, np.nan, 0.7]
    scores[:, 0, 0] = np.nan
    table = make_table(scores, layers=(4, 9))
    best, second, *rest = table.ranked()
    assert [best[name] for name in ("layer", "head", "count", "max")] == [4, 1, 2, 0.7]
    assert best["mean"] == pytest.approx(0.6)
    assert [second[name] for name in ("layer", "head", "count", "max")] == [9, 0, 3, 0.9]
    assert second["mean"] == pytest.approx(0.5)
    assert second["std"] == pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))
    assert second["chance"] == 0.125
    assert second["low"] <= second["mean"] <= second["high"]
    assert [(row["layer"], row["head"]) for row in rest] == [(9, 1)]
    assert table.count[0, 0] == 0
    assert np.isnan([table.mean[0, 0], table.std[0, 0], table.max[0, 0]]).all()


def test_a_zero_counts_in_the_mean():
    scores = np.zeros((50, 1, 1))
    scores[0] = 1
    assert make_table(scores).mean[0, 0] == pytest.approx(0.02)


def test_permuting_heads_permutes_the_table(table, scores):
    order = [2, 0, 1]
    moved = make_table(scores[..., order])
    for name in ("mean", "std", "max", "count"):
        np.testing.assert_array_equal(getattr(moved, name), getattr(table, name)[:, order])
    for end in (0, 1):
        np.testing.assert_allclose(moved.interval[end], table.interval[end][:, order])


def test_intervals_draw_whole_groups(scores):
    alike = np.repeat(scores[:4], 5, axis=0)
    apart = make_table(alike)
    together = make_table(alike, groups=[f"q{i // 5}" for i in range(20)])
    widths = [(t.interval[1] - t.interval[0]).mean() for t in (apart, together)]
    assert widths[1] > 1.5 * widths[0]


def test_a_table_without_trials_says_why():
    table = HeadTable(
        "retrieval",
        (0,),
        (),
        np.zeros((0, 1, 2)),
        np.zeros((1, 2)),
        rejected=(("a", "empty answer"), ("b", "empty answer")),
    )
    with pytest.raises(NotEnoughDataError, match=r"no trial of 2 counts.*2 x empty answer"):
        table.require_trials()
    assert np.isnan(table.mean).all()


def test_parts_that_do_not_fit_together_are_refused(scores):
    with pytest.raises(UsageError, match="does not fit together"):
        make_table(scores, layers=(0, 1))
