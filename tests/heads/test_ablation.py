"""The ablation check: quality by hand, effects against slow means, refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.datasets.question import Question
from graphhalu.extract.generate import beam_search
from graphhalu.heads.ablation import ablation_check, check_heads, choose_heads, require_fitting
from graphhalu.heads.runs import METRICS, answer_quality, gold_logprob, question_items
from graphhalu.heads.settings import AblationSettings
from graphhalu.heads.table import top_k_heads
from tests.heads.conftest import make_table

QUESTIONS = [Question(f"q{i}", f"What is {i}?", (f"{i} cats", "x")) for i in range(7)]


@pytest.fixture
def items(tiny):
    return question_items(tiny, QUESTIONS, template="bare", chat=False)


@pytest.fixture
def tiny_table(tiny):
    scores = np.random.default_rng(0).uniform(size=(11, 3, 6))
    return make_table(scores, model=dict(tiny.identity))


def test_the_log_probability_of_the_gold_answer_equals_one_plain_pass(tiny, items):
    item = items[3]
    assert tiny.tokenizer.decode(item.gold_ids) == " 3 cats"
    tokens = torch.tensor([[*item.token_ids, *item.gold_ids]])
    with torch.inference_mode():
        logits = torch.log_softmax(tiny.model(tokens).logits[0], dim=-1)
    first = len(item.token_ids)
    steps = [logits[first - 1 + i, token] for i, token in enumerate(item.gold_ids)]
    assert gold_logprob(tiny.model, item) == pytest.approx(float(torch.stack(steps).mean()), 1e-4)


def test_quality_has_a_value_of_each_metric_for_each_item(tiny, items):
    done = []
    search = beam_search(tiny, max_new_tokens=5, stops_at_newline=False)
    found = answer_quality(tiny, search, items, batch_size=3, on_progress=done.append)
    assert found.shape == (7, len(METRICS))
    assert done == [3, 3, 1]
    assert (found[:, 2] < 0).all()
    alone = answer_quality(tiny, search, items[4:5])
    np.testing.assert_allclose(alone[0], found[4], rtol=1e-4)


def test_questions_without_a_gold_answer_are_left_out(tiny):
    asked = [replace(QUESTIONS[0], answers=()), QUESTIONS[1]]
    assert len(question_items(tiny, asked, template="bare", chat=False)) == 1
    with pytest.raises(NotEnoughDataError, match="none of the questions"):
        question_items(tiny, asked[:1], template="bare", chat=False)


def test_effects_are_differences_of_means_over_the_same_items(tiny, tiny_table, items):
    values = np.random.default_rng(1).uniform(size=(5, 7, len(METRICS)))
    values[0, 2, 0] = np.nan
    calls = iter(values)
    seen = []

    def measure(asked):
        hooked = [m for m in tiny.model.modules() if m._forward_pre_hooks]
        seen.append(len(hooked))
        return next(calls)

    mask = top_k_heads(tiny_table, 4)
    result = ablation_check(tiny.model, mask, items, measure, n_draws=3)
    n_layers = int(mask.is_chosen.any(1).sum())
    assert seen == [0, *[n_layers] * 4]
    assert result["heads"] == mask.names
    match, recall, _ = result["rows"]
    assert (match["n_items"], recall["n_items"]) == (6, 7)
    there = [i for i in range(7) if i != 2]
    assert match["whole"] == pytest.approx(values[0, there, 0].mean())
    assert recall["ablated"] == pytest.approx(values[1, :, 1].mean())
    assert recall["random"] == pytest.approx(values[2:, :, 1].mean())
    assert recall["against_random"]["value"] == pytest.approx(recall["ablated"] - recall["random"])
    assert recall["against_whole"]["value"] == pytest.approx(recall["ablated"] - recall["whole"])
    assert (
        recall["against_random"]["low"]
        <= recall["against_random"]["value"]
        <= recall["against_random"]["high"]
    )


def test_a_whole_check_runs_on_bundled_questions_and_on_needles(tiny, tiny_table, tmp_path):
    settings = AblationSettings(top_k=2, num_samples=2, draws=1, max_new_tokens=3, chat="off")
    result = check_heads(tiny, tiny_table, settings)
    assert {row["metric"] for row in result["rows"]} <= set(METRICS)
    hay = tmp_path / "hay.txt"
    hay.write_text("A mill is old. It has a wheel. " * 9, encoding="utf-8")
    needle = settings.model_copy(update={"task": "needle", "haystack": hay, "lengths": (124,)})
    needles = tmp_path / "needles.jsonl"
    needles.write_text('{"needle": "A fox ran.", "question": "Who?", "real_needle": "A fox"}')
    needle = needle.model_copy(update={"needles": needles})
    assert check_heads(tiny, tiny_table, needle)["rows"][-1]["n_items"] == 2


def test_heads_are_chosen_as_the_settings_say(tiny_table):
    assert choose_heads(tiny_table, AblationSettings()).is_chosen.sum() == 10
    assert choose_heads(tiny_table, AblationSettings(top_k=3)).is_chosen.sum() == 3
    by_mean = choose_heads(tiny_table, AblationSettings(threshold=0.5))
    assert by_mean.is_chosen.sum() == (tiny_table.mean >= 0.5).sum()
    stable = choose_heads(tiny_table, AblationSettings(top_k=9, stable_share=0.6))
    assert stable.is_chosen.sum() <= 9
    with pytest.raises(ValueError, match="give one of the two"):
        AblationSettings(top_k=3, threshold=0.5)


def test_a_table_of_another_model_is_refused(tiny, tiny_table):
    other = replace(tiny_table, model={**tiny.identity, "name": "other"})
    with pytest.raises(UsageError, match=r"belongs to other.*name differ"):
        require_fitting(other, tiny.identity, 6)
    published = replace(tiny_table, model={})
    require_fitting(published, tiny.identity, 6)
    with pytest.raises(UsageError, match="the number of heads differ"):
        require_fitting(published, tiny.identity, 5)
    with pytest.raises(UsageError, match="--draws 0"):
        ablation_check(tiny.model, top_k_heads(tiny_table, 2), [], lambda _: np.zeros((0, 3)), n_draws=0)
