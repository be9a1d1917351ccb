import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from graphhalu.cli.main import run
from graphhalu.core.errors import UsageError
from graphhalu.extract.cost import (
    SIZES,
    ModelSize,
    PlanSettings,
    assumed_rates,
    question_cost,
    question_seconds,
)
from graphhalu.extract.settings import GPU_CHUNK_BYTES, CaptureSettings

TINY = ModelSize(3, 20, 5, 1, 4, 23, 31)
RATES = {"generate": 2.0, "replay": 3.0, "pairs": 5.0, "read": 7.0, "store": 11.0}


@pytest.fixture(scope="module")
def tiny():
    config = LlamaConfig(
        vocab_size=31,
        hidden_size=20,
        num_hidden_layers=3,
        num_attention_heads=5,
        num_key_value_heads=1,
        head_dim=4,
        intermediate_size=23,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("n_tokens", [1, 7])
def test_operations_are_those_that_torch_counts(tiny, n_tokens):
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tiny(input_ids=torch.zeros(1, n_tokens, dtype=torch.int64), use_cache=False)
    cost = question_cost(TINY, PlanSettings(prompt_tokens=n_tokens, answer_tokens=0))
    # torch counts all keys of a row
    others = 4 * 3 * 5 * 4 * n_tokens**2 / 2
    rotary = n_tokens * 2 * 2  # angles: positions by two frequencies
    assert counter.get_total_flops() - others - cost.generate_flops - cost.replay_flops in {0, rotary}


def test_an_answer_runs_once_more_behind_its_prompt(tiny):
    cache = DynamicCache(config=tiny.config)
    with torch.inference_mode():
        tiny(input_ids=torch.zeros(1, 13, dtype=torch.int64), past_key_values=cache)
        with FlopCounterMode(display=False) as counter:
            tiny(input_ids=torch.zeros(1, 7, dtype=torch.int64), past_key_values=cache)
    work = PlanSettings(prompt_tokens=13, answer_tokens=7, capture=CaptureSettings(rows="answer"))
    others = 4 * 3 * 5 * 4 * 7**2 / 2
    assert counter.get_total_flops() - others - question_cost(TINY, work).replay_flops in {0, 7 * 2 * 2}


def test_weights_are_those_of_the_model_without_its_norms(tiny):
    n_norms = sum(w.numel() for name, w in tiny.named_parameters() if "norm" in name)
    assert sum(w.numel() for w in tiny.parameters()) - n_norms == TINY.n_parameters


@pytest.mark.parametrize(
    ("name", "billions"),
    [("smollm2", 0.1345), ("gemma3-270m", 0.2680), ("llama2-7b", 6.738), ("llama2-70b", 68.98)],
)
def test_known_models_have_their_published_number_of_parameters(name, billions):
    assert SIZES[name].n_parameters / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize("n_parameters", [2e8, 7e9, 7e10])
def test_a_model_of_so_many_parameters_has_about_so_many(n_parameters):
    size = ModelSize.of_parameters(n_parameters)
    assert size.n_parameters == pytest.approx(n_parameters, rel=0.05)


@pytest.mark.parametrize("n_parameters", [0.0, 10.0, 1e15])
def test_a_number_that_is_no_model_is_refused(n_parameters):
    with pytest.raises(UsageError, match="expected between"):
        ModelSize.of_parameters(n_parameters)


def test_the_search_is_a_prompt_once_and_each_step_of_every_beam():
    one, five = (
        question_cost(TINY, PlanSettings(prompt_tokens=13, answer_tokens=7, beams=n)).generate_flops
        for n in (1, 5)
    )
    steps = sum(2 * TINY.layer_weights + 4 * 3 * 5 * 4 * (13 + 7 / 2) + 2 * 20 * 31 for _ in range(7))
    assert five - one == pytest.approx(4 * steps)


def test_every_kept_beam_is_replayed_and_stored():
    rows = CaptureSettings(rows="answer")
    one, three = (
        question_cost(TINY, PlanSettings(prompt_tokens=13, answer_tokens=7, kept_beams=n, capture=rows))
        for n in (1, 3)
    )
    for name in ("replay_flops", "pairs", "stored_bytes", "raw_bytes"):
        assert getattr(three, name) == pytest.approx(3 * getattr(one, name))


def test_the_rows_of_a_prompt_are_recorded_once_whatever_is_kept():
    (one, three), (one_answer, three_answer) = (
        [
            question_cost(
                TINY,
                PlanSettings(
                    prompt_tokens=13, answer_tokens=7, kept_beams=n, capture=CaptureSettings(rows=rows)
                ),
            ).pairs
            for n in (1, 3)
        ]
        for rows in ("all", "answer")
    )
    assert one - one_answer == three - three_answer == 3 * 5 * 13 * 14 / 2
    # every key of every row of the answer, its own among them
    assert one_answer == 3 * 5 * sum(range(14, 21))


def test_less_is_stored_of_streams_and_of_answer_rows():
    full, answer, streams = (
        question_cost(TINY, PlanSettings(prompt_tokens=53, answer_tokens=7, capture=capture)).stored_bytes
        for capture in (
            CaptureSettings(),
            CaptureSettings(rows="answer"),
            CaptureSettings(keep="streams", hidden_layers="none"),
        )
    )
    assert full > answer > 0
    assert full > streams > 0


def test_a_search_waits_for_its_weights_where_they_are_slower():
    cost = question_cost(TINY, PlanSettings(prompt_tokens=13, answer_tokens=7, batch=1))
    assert question_seconds(cost, RATES)["generate"] == cost.generate_flops / 2
    slow = {**RATES, "read": 1e-3}
    assert question_seconds(cost, slow)["generate"] == cost.weight_reads / 1e-3


def test_memory_counts_the_rows_that_a_gpu_works_on():
    no_traces, model = CaptureSettings(keep="streams", hidden_layers=()), SIZES["llama2-7b"]
    small, large = (
        question_cost(model, PlanSettings(prompt_tokens=n, answer_tokens=0, capture=no_traces, batch=1))
        for n in (61, 4001)
    )
    assert 4 * model.n_heads * 4000 * 4001 > GPU_CHUNK_BYTES
    assert large.replay_bytes > 3 * GPU_CHUNK_BYTES > small.replay_bytes > 3 * 4 * model.n_heads * 60 * 61


def test_time_is_the_sum_of_its_parts():
    cost = question_cost(TINY, PlanSettings(prompt_tokens=13, answer_tokens=7))
    found = question_seconds(cost, RATES)
    assert found["replay"] == cost.replay_flops / 3 + cost.pairs / 5
    assert found["store"] == cost.raw_bytes / 11
    assert list(found) == ["generate", "replay", "store"]


def test_twice_the_device_takes_half_the_time():
    cost = question_cost(SIZES["llama2-7b"], PlanSettings())
    slow, fast = (question_seconds(cost, assumed_rates(n * 1e14, n * 1e12, n * 1e9)) for n in (1, 2))
    assert sum(slow.values()) == pytest.approx(2 * sum(fast.values()))


def test_the_command_multiplies_by_questions_and_parts_by_devices(capsys):
    assert run(["plan", "--model", "llama2-70b", "--questions", "1e7", "--devices", "8", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["bytes"] == pytest.approx(1e7 * found["bytes_a_question"])
    assert found["days"] * 8 * 24 == pytest.approx(found["device_hours"])
    assert run(["plan", "--parameters", "7e9"]) == 0
    said = capsys.readouterr()
    assert "device hours" in said.out
    assert "state your own" in said.err


@pytest.mark.parametrize("hint", ["half is faster here", None])
def test_the_plan_says_where_half_precision_is_faster(hint, monkeypatch, capsys):
    monkeypatch.setattr("graphhalu.extract.cost.bfloat16_hint", lambda: hint)
    assert run(["plan", "--parameters", "7e9"]) == 0
    assert ("half is faster here" in capsys.readouterr().err) == (hint is not None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--model", "lama2-7b"], "llama2-7b"),
        (["--model", "smollm2", "--parameters", "1e9"], "not both"),
        (["--keep-beams", "7"], "cannot keep 7"),
        (["--keep", "everything"], "keep"),
    ],
)
def test_a_plan_that_cannot_be_is_one_clear_line(arguments, text, capsys):
    assert run(["plan", *arguments]) == 2
    assert text in capsys.readouterr().err
