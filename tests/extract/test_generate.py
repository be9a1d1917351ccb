"""Beam search with shared prompts against transformers' ``generate`` and its step attentions."""

import numpy as np
import pytest
import torch

from graphhalu.extract import generate
from graphhalu.extract.forward import TokenSequence
from graphhalu.extract.generate import BeamSearch, sample_draws, shared_decoding_fault
from graphhalu.extract.replay import Kept, replay
from graphhalu.models.load import left_padded
from graphhalu.testing.tiny_models import TINY_FAMILIES, tiny_model
from graphhalu.traces.schema import unpack_triangle
from tests.extract.test_replay import shape_of

ON_INTERFACE = [name for name, family in TINY_FAMILIES.items() if family.on_interface]
N_BEAMS = 3
MAX_NEW_TOKENS = 7
STOP_IDS = (5, 11)


def windows_of(config):
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if types is None:
        return (window,) * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def prompts_of(config, lengths=(7, 13, 11), seed=1):
    generator = np.random.default_rng(seed)
    vocabulary = config.get_text_config().vocab_size
    return [generator.integers(13, vocabulary, length).tolist() for length in lengths]


def search_of(model, config):
    return BeamSearch(
        model,
        layer_windows=windows_of(config),
        stop_ids=STOP_IDS,
        n_beams=N_BEAMS,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def generated(model, prompt):
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=N_BEAMS,
            num_return_sequences=N_BEAMS,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(STOP_IDS),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
        )
    answers = []
    for row in output.sequences[:, len(prompt) :].tolist():
        end = next((i for i, token in enumerate(row) if token in STOP_IDS), len(row))
        answers.append(tuple(row[:end]))
    return answers, output.sequences_scores.tolist()


@pytest.mark.parametrize("family", list(TINY_FAMILIES))
def test_all_beams_of_a_batch_are_those_of_generate_one_prompt_at_a_time(family):
    model, config = tiny_model(family)
    search = search_of(model, config)
    prompts = prompts_of(config)
    for prompt, candidates in zip(prompts, search.answer(prompts), strict=True):
        answers, scores = generated(model, prompt)
        assert [c.token_ids for c in candidates] == answers
        assert [c.score for c in candidates] == pytest.approx(scores, abs=1e-4)


@pytest.mark.parametrize("family", ON_INTERFACE)
def test_families_on_the_interface_share_their_prompts(family):
    model, config = tiny_model(family)
    assert shared_decoding_fault(model, windows_of(config)) is None


@pytest.mark.parametrize("family", ["bloom", "mpt"])
def test_families_whose_positions_come_from_the_mask_say_why_they_run_through_generate(family):
    model, config = tiny_model(family)
    assert search_of(model, config).fallback_reason


def test_a_batch_gives_what_each_prompt_gives_alone():
    model, config = tiny_model("qwen2")
    search = search_of(model, config)
    prompts = prompts_of(config, lengths=(5, 17, 11, 2))
    together = search.answer(prompts)
    for prompt, candidates in zip(prompts, together, strict=True):
        (alone,) = search.answer([prompt])
        assert [c.token_ids for c in candidates] == [c.token_ids for c in alone]


def test_every_question_is_reported_done_once():
    model, config = tiny_model("llama")
    search, prompts = search_of(model, config), prompts_of(config)
    found = list(search.as_finished(prompts))
    assert sorted(index for index, _ in found) == [0, 1, 2]
    assert [dict(found)[index] for index in range(3)] == search.answer(prompts)


def test_prompts_are_padded_on_the_left():
    token_ids, is_token = left_padded([[3], [7, 5, 2]], torch.device("cpu"))
    assert token_ids.tolist() == [[0, 0, 3], [7, 5, 2]]
    assert is_token.tolist() == [[False, False, True], [True, True, True]]


@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "gemma2", "gemma3_text", "mistral", "gpt2", "opt", "gpt_neox"]
)
def test_the_replay_equals_stitching_the_steps_of_generate_through_beam_indices(family):
    model, config = tiny_model(family)
    model.set_attn_implementation("eager")
    (prompt,) = prompts_of(config, lengths=(11,))
    with torch.inference_mode():
        output = model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, 11, dtype=torch.long),
            num_beams=N_BEAMS,
            max_new_tokens=MAX_NEW_TOKENS,
            do_sample=False,
            eos_token_id=list(STOP_IDS),
            pad_token_id=0,
            return_dict_in_generate=True,
            output_attentions=True,
            output_scores=True,
        )
    beam_indices = output.beam_indices[0]
    n_steps = int((beam_indices >= 0).sum())
    token_ids = output.sequences[0, : len(prompt) + n_steps].numpy()
    sequence = TokenSequence(token_ids, np.zeros(len(token_ids), dtype=int), len(prompt))
    (result,) = replay(model, [sequence], Kept(shape=shape_of(config), arrays=("attention",)))
    stored = unpack_triangle(result.arrays["attention"], len(token_ids)).astype(np.float32)
    n_windowed = 0
    for step in range(n_steps):
        beam, n_seen = int(beam_indices[step]), len(prompt) + step
        for layer, attention in enumerate(output.attentions[step]):
            steps = attention[beam].numpy()
            rows = slice(0, n_seen) if step == 0 else slice(n_seen - 1, n_seen)
            # a sliding layer's cache holds the last keys only: its columns are not positions
            first_key = n_seen - steps.shape[-1]
            n_windowed += first_key > 0
            own = stored[layer][:, rows, :n_seen]
            np.testing.assert_allclose(own[..., first_key:], steps, atol=2**-11)
            assert (own[:, -1, :first_key] == 0).all()
    assert n_steps > 1
    assert (n_windowed > 0) == any(shape_of(config).layer_windows)


def sampled(model, prompt, draws, temperature):
    """One sample, token by token, each with a pass over everything before it."""
    tokens, total = list(prompt), 0.0
    for draw in draws.tolist():
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].double()
        cumulated, chosen = 0.0, 0
        for place, probability in enumerate(torch.softmax(logits / temperature, -1).tolist()):
            cumulated += probability
            chosen = place
            if cumulated > draw:
                break
        tokens.append(chosen)
        total += torch.log_softmax(logits, -1)[chosen].item()
        if chosen in STOP_IDS:
            break
    new = tokens[len(prompt) :]
    is_finished = new[-1] in STOP_IDS
    return tuple(new[:-1] if is_finished else new), total / len(new), is_finished


@pytest.mark.parametrize("family", ON_INTERFACE)
def test_samples_of_a_batch_are_those_of_a_loop_over_tokens(family, monkeypatch):
    monkeypatch.setattr(generate, "SAMPLE_ROWS", 1)  # four of them run beside each other
    model, config = tiny_model(family)
    search, prompts = search_of(model, config), prompts_of(config)
    draws = sample_draws(["a", "b", "c"], (11, MAX_NEW_TOKENS), seed=3)
    for prompt, answers, own in zip(
        prompts, search.sample(prompts, draws, temperature=0.7), draws, strict=True
    ):
        assert len(answers) == 11
        for answer, numbers in zip(answers, own, strict=True):
            tokens, score, is_finished = sampled(model, prompt, numbers, 0.7)
            assert answer.token_ids == tokens
            assert answer.score == pytest.approx(score, abs=1e-4)
            assert answer.is_finished == is_finished
            assert answer.is_sample


def test_draws_of_a_question_are_its_own_and_follow_the_seed():
    together = sample_draws(["a", "b"], (3, 7), seed=1)
    assert torch.equal(together[1], sample_draws(["b"], (3, 7), seed=1)[0])
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together[0], sample_draws(["a"], (3, 7), seed=2)[0])


def test_a_low_temperature_samples_the_likeliest_tokens():
    model, config = tiny_model("llama")
    search, prompts = search_of(model, config), prompts_of(config)
    draws = sample_draws(["a", "b", "c"], (2, MAX_NEW_TOKENS), seed=0)
    greedy = BeamSearch(
        model, layer_windows=windows_of(config), stop_ids=STOP_IDS, n_beams=1, max_new_tokens=MAX_NEW_TOKENS
    )
    for answers, (best, *_) in zip(
        search.sample(prompts, draws, temperature=1e-4), greedy.answer(prompts), strict=True
    ):
        assert {answer.token_ids for answer in answers} == {best.token_ids}
