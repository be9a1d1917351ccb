"""A plan is cut by place alone, and stays as it is whatever is done of it."""

import pytest

from graphhalu.datasets.question import Question
from graphhalu.errors import UsageError
from graphhalu.extract.settings import ExtractConfig
from graphhalu.extract.worker import Shard, make_plan

QUESTIONS = [Question(f"q{place:02d}", f"What is {place}?", (f"{place}",)) for place in range(23)]
CONFIG = ExtractConfig(batch_size=3, part_size=5)
NAMES = [question.question_id for question in QUESTIONS]


def names(waves):
    return [name for wave in waves for name in wave.question_ids]


def test_waves_fill_a_batch_and_a_part_and_begin_at_multiples_of_that():
    plan = make_plan(QUESTIONS, CONFIG)
    assert [wave.first for wave in plan.waves] == [0, 5, 10, 15, 20]
    assert [len(wave.questions) for wave in plan.waves] == [5, 5, 5, 5, 3]
    assert names(plan.waves) == NAMES
    assert make_plan(QUESTIONS, ExtractConfig(batch_size=7, part_size=5)).waves[1].first == 7


def test_a_wave_with_one_question_left_stays_whole_and_where_it_is():
    plan = make_plan(QUESTIONS, CONFIG)
    left = plan.left({*NAMES[:8], *NAMES[9:20]})
    assert left == [plan.waves[1], plan.waves[4]]
    assert plan.left(set(NAMES)) == []


def test_a_longer_run_has_the_same_waves_first():
    shorter = make_plan(QUESTIONS[:13], CONFIG)
    assert shorter.waves[:2] == make_plan(QUESTIONS, CONFIG).waves[:2]


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_share_the_waves_out_without_a_rest(count):
    plans = [make_plan(QUESTIONS, CONFIG, Shard(n, count)) for n in range(1, count + 1)]
    waves = [wave for plan in plans for wave in plan.waves]
    assert sorted(waves, key=lambda wave: wave.first) == list(make_plan(QUESTIONS, CONFIG).waves)
    sizes = [len(plan.waves) for plan in plans]
    assert max(sizes) - min(sizes) <= 1
    assert len({plan.writer for plan in plans}) == count


def test_a_shard_is_read_as_it_is_written():
    assert Shard.parse("3/10") == Shard(3, 10)
    assert Shard(3, 10).writer == "shard-3-of-10"
    assert make_plan(QUESTIONS, CONFIG).writer == "main"


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "-1/3", "1/3/5", "a/b", "1.0/3", ""])
def test_what_is_no_shard_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match="as 3/10; got"):
        Shard.parse(text)
