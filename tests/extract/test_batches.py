"""Batches are cut by place alone, and stay as they are whatever is done of them."""

import pytest

from graphhalu.core.errors import UsageError
from graphhalu.datasets.question import Question
from graphhalu.extract.run import batches_left, parse_shard, question_batches, shard_writer
from graphhalu.extract.settings import ExtractConfig

QUESTIONS = [Question(f"q{place:02d}", f"What is {place}?", (f"{place}",)) for place in range(23)]
CONFIG = ExtractConfig(batch_size=3, part_size=5)
NAMES = [question.question_id for question in QUESTIONS]


def names(batches):
    return [name for _, questions in batches for name in (question.question_id for question in questions)]


def test_batches_fill_what_is_answered_together_and_a_part_and_begin_at_multiples_of_that():
    batches = question_batches(QUESTIONS, CONFIG)
    assert [first for first, _ in batches] == [0, 5, 10, 15, 20]
    assert [len(questions) for _, questions in batches] == [5, 5, 5, 5, 3]
    assert names(batches) == NAMES
    wide = ExtractConfig(batch_size=7, part_size=5)
    assert question_batches(QUESTIONS, wide)[1][0] == 7


def test_a_batch_with_one_question_left_stays_whole_and_where_it_is():
    batches = question_batches(QUESTIONS, CONFIG)
    left = batches_left(batches, {*NAMES[:8], *NAMES[9:20]})
    assert left == [batches[1], batches[4]]
    assert batches_left(batches, set(NAMES)) == []


def test_a_longer_run_has_the_same_batches_first():
    shorter = question_batches(QUESTIONS[:13], CONFIG)
    assert shorter[:2] == question_batches(QUESTIONS, CONFIG)[:2]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_the_batches_out_without_a_rest(count):
    shards = [(number, count) for number in range(1, count + 1)]
    shares = [question_batches(QUESTIONS, CONFIG, shard) for shard in shards]
    batches = [batch for share in shares for batch in share]
    assert sorted(batches, key=lambda batch: batch[0]) == question_batches(QUESTIONS, CONFIG)
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert len({shard_writer(shard) for shard in shards}) == count


def test_a_shard_is_read_as_it_is_written():
    assert parse_shard("3/10") == (3, 10)
    assert shard_writer((3, 10)) == "shard-3-of-10"


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/3", "1/3/5", "a/b", "1.0/3", ""])
def test_what_is_no_shard_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="as 3/10; got"):
        parse_shard(text)
