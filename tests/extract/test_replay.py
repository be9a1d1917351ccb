"""The replay against the model's own eager attention, hidden states and logits."""

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from graphhalu.core.axes import N_SPANS, ROW_SUM_TOLERANCE
from graphhalu.extract.capture import capturing
from graphhalu.extract.forward import TokenSequence, token_statistics
from graphhalu.extract.replay import Kept, prefill, replay, replay_behind
from graphhalu.models.attention import eager_attention, model_shape
from graphhalu.testing.tiny_models import TINY_FAMILIES, WINDOW, tiny_model
from graphhalu.traces.schema import (
    ARRAYS,
    FIXED_STEPS,
    TraceShape,
    from_bfloat16_bits,
    from_fixed_point,
    pack_triangle,
    unpack_triangle,
)

FAMILIES = list(TINY_FAMILIES)
N_EDGES = 4
FLOAT16_STEP = 2.0**-11


def shape_of(config, *, layers=None, hidden=None):
    sizes = model_shape(config, "tiny")
    layers = tuple(range(sizes["n_layers"])) if layers is None else layers
    return TraceShape(
        n_layers=sizes["n_layers"],
        n_heads=sizes["n_heads"],
        n_kv_heads=sizes["n_kv_heads"],
        hidden_size=sizes["hidden_size"],
        attention_layers=layers,
        hidden_layers=tuple(range(sizes["n_layers"] + 1)) if hidden is None else hidden,
        layer_windows=tuple(sizes["layer_windows"][layer] for layer in layers),
        n_edges=N_EDGES,
    )


@cache
def shared_model(family):
    """A model that no test changes."""
    return tiny_model(family)


def sequences_of(config, lengths=(13, 7, 11), seed=0):
    generator = np.random.default_rng(seed)
    return [
        TokenSequence(
            token_ids=generator.integers(3, config.get_text_config().vocab_size, length),
            span_code=np.where(np.arange(length) < length // 2, 3, 5),
            prompt_length=length // 2,
        )
        for length in lengths
    ]


def eager_output(model, sequence):
    with eager_attention(model), torch.inference_mode():
        return model(
            input_ids=torch.from_numpy(sequence.token_ids)[None],
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )


class Ignoring:
    def wanted_rows(self, layer):
        return None

    def rows(self, layer, row_start, weights):
        pass

    def values(self, layer, value):
        pass


def test_there_are_families_to_sweep():
    assert len(FAMILIES) >= 23
    assert sum(not family.on_interface for family in TINY_FAMILIES.values()) >= 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("row_chunk", [5, 512])
def test_streamed_attention_is_the_models_own_to_float16_rounding(family, row_chunk):
    model, config = shared_model(family)
    sequences = sequences_of(config)
    shape = shape_of(config)
    results = replay(model, sequences, Kept(shape=shape, arrays=tuple(ARRAYS), row_chunk=row_chunk))
    for sequence, result in zip(sequences, results, strict=True):
        assert result.failure is None
        expected = eager_output(model, sequence)
        stored = unpack_triangle(result.arrays["attention"], sequence.length).astype(np.float32)
        own = np.stack([layer[0].float().numpy() for layer in expected.attentions])
        np.testing.assert_allclose(stored, own, rtol=FLOAT16_STEP, atol=2e-6)
        assert (np.triu(own, k=1) == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_likelihood_are_those_of_a_plain_pass(family):
    model, config = shared_model(family)
    (sequence,) = sequences_of(config, lengths=(11,))
    (result,) = replay(model, [sequence], Kept(shape=shape_of(config), arrays=tuple(ARRAYS)))
    expected = eager_output(model, sequence)
    own = np.stack([state[0].float().numpy() for state in expected.hidden_states])
    np.testing.assert_allclose(from_bfloat16_bits(result.arrays["hidden"]), own, rtol=2**-8, atol=1e-5)
    log_probabilities = torch.log_softmax(expected.logits[0].float(), -1)
    next_ids = torch.from_numpy(sequence.token_ids)[1:, None]
    np.testing.assert_allclose(
        result.arrays["token_logprob"][1:],
        log_probabilities[:-1].gather(1, next_ids)[:, 0].numpy(),
        atol=1e-4,
    )
    assert np.isnan(result.arrays["token_logprob"][0])


def test_every_stream_is_what_a_slow_loop_over_the_matrix_gives():
    model, config = tiny_model("llama")
    sequences = sequences_of(config, lengths=(13, 7))
    shape = shape_of(config)
    results = replay(model, sequences, Kept(shape=shape, arrays=tuple(ARRAYS), row_chunk=3))
    for sequence, result in zip(sequences, results, strict=True):
        own = [layer[0].numpy() for layer in eager_output(model, sequence).attentions]
        for layer in range(shape.n_layers):
            for head in range(shape.n_heads):
                weights = own[layer][head]
                got = {
                    name: values[layer, head]
                    for name, values in result.arrays.items()
                    if ARRAYS[name].axes[:2] == ("layer", "head")
                }
                for row in range(sequence.length):
                    mass = np.zeros(N_SPANS)
                    entropy = 0.0
                    for key in range(row + 1):
                        mass[sequence.span_code[key]] += weights[row, key]
                        entropy -= weights[row, key] * np.log(max(weights[row, key], 1e-30))
                    np.testing.assert_allclose(got["span_mass"][row], mass, atol=1e-3)
                    assert got["row_entropy"][row] == pytest.approx(entropy, rel=1e-3, abs=1e-3)
                    assert got["self_attention"][row] == pytest.approx(weights[row, row], rel=1e-3, abs=6e-8)
                    assert got["argmax_key"][row] == weights[row].argmax()
                    np.testing.assert_allclose(got["sink_keys"][row], weights[row, :4], rtol=1e-3, atol=1e-6)
                np.testing.assert_allclose(got["received"], weights.sum(0), rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_spans_of_every_row_sum_to_one_or_to_what_a_learned_sink_leaves(family):
    model, config = shared_model(family)
    arrays = ("token_ids", "span_mass")
    sequences = sequences_of(config)
    for sequence, result in zip(
        sequences, replay(model, sequences, Kept(shape=shape_of(config), arrays=arrays)), strict=True
    ):
        sums = result.arrays["span_mass"].astype(np.float32).sum(-1)
        own = torch.stack([w[0] for w in eager_output(model, sequence).attentions]).sum(-1)
        if family != "gpt_oss":
            np.testing.assert_allclose(own.numpy(), 1, atol=ROW_SUM_TOLERANCE)
        assert np.abs(sums - own.numpy()).max() < N_SPANS * FLOAT16_STEP


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_each_sequence_gives_alone(family):
    model, config = shared_model(family)
    sequences = sequences_of(config, lengths=(17, 5, 11))
    shape = shape_of(config)
    together = replay(model, sequences, Kept(shape=shape, arrays=tuple(ARRAYS)))
    for sequence, result in zip(sequences, together, strict=True):
        (alone,) = replay(model, [sequence], Kept(shape=shape, arrays=tuple(ARRAYS)))
        for name, values in alone.arrays.items():
            other, step = result.arrays[name], 2e-3
            if ARRAYS[name].encoding == "bfloat16":
                values, other = map(from_bfloat16_bits, (values, other))
                step = 2**-7  # a float32 difference can tip the rounding by one bfloat16 step
            elif ARRAYS[name].encoding == "fixed16":
                values, other = values.astype(int), other.astype(int)
                step = 0.0
                np.testing.assert_allclose(other, values, atol=3, err_msg=name)
                continue
            np.testing.assert_allclose(other, values, rtol=step, atol=2e-4, err_msg=name)


def edges_by_loop(weights, row, n_edges, edge_mass=None):
    """Keys and weights of the strongest edges of one row, and what is dropped."""
    others = {key: float(weights[key]) for key in range(row)}
    ranked = sorted(others, key=lambda key: -others[key])
    total, kept, chosen = sum(others.values()), 0.0, []
    for key in ranked[:n_edges]:
        if others[key] <= 0 or (edge_mass is not None and kept >= edge_mass * total):
            break
        kept += others[key]
        chosen.append(key)
    return chosen, total - kept


@pytest.mark.parametrize("edge_mass", [None, 0.7])
def test_edges_are_the_strongest_keys_of_a_slow_loop(edge_mass):
    model, config = tiny_model("llama")
    sequences = sequences_of(config, lengths=(13, 7))
    arrays = ("edge_key", "edge_weight", "dropped_mass")
    shape = shape_of(config)
    results = replay(model, sequences, Kept(shape=shape, arrays=arrays, row_chunk=3, edge_mass=edge_mass))
    n_short = 0
    for sequence, result in zip(sequences, results, strict=True):
        own = [layer[0].numpy() for layer in eager_output(model, sequence).attentions]
        key, weight, dropped = (result.arrays[name] for name in arrays)
        for layer in range(shape.n_layers):
            for head in range(shape.n_heads):
                for row in range(sequence.length):
                    weights = own[layer][head, row]
                    chosen, rest = edges_by_loop(weights, row, N_EDGES, edge_mass)
                    n_short += len(chosen) < min(N_EDGES, row)
                    found = key[layer, head, row]
                    assert found[: len(chosen)].tolist() == chosen
                    assert (found[len(chosen) :] == -1).all()
                    assert (weight[layer, head, row, len(chosen) :] == 0).all()
                    np.testing.assert_allclose(
                        weight[layer, head, row, : len(chosen)], weights[chosen], rtol=1e-3, atol=6e-8
                    )
                    assert dropped[layer, head, row] == pytest.approx(rest, rel=1e-3, abs=1e-6)
    assert (n_short > 0) == (edge_mass is not None)


def test_edges_own_attention_and_dropped_mass_add_up_to_one():
    model, config = tiny_model("qwen2")
    (sequence,) = sequences_of(config, lengths=(17,))
    arrays = ("self_attention", "edge_weight", "dropped_mass")
    (result,) = replay(model, [sequence], Kept(shape=shape_of(config), arrays=arrays))
    own, edges, dropped = (result.arrays[name].astype(np.float32) for name in arrays)
    np.testing.assert_allclose(own + edges.sum(-1) + dropped, 1, atol=N_EDGES * FLOAT16_STEP)


def test_fixed_point_attention_is_off_by_half_a_step_at_most():
    model, config = tiny_model("llama")
    sequences = sequences_of(config)
    results = replay(model, sequences, Kept(shape=shape_of(config), arrays=("attention_fixed",)))
    for sequence, result in zip(sequences, results, strict=True):
        own = np.stack([w[0].numpy() for w in eager_output(model, sequence).attentions])
        stored = unpack_triangle(from_fixed_point(result.arrays["attention_fixed"]), sequence.length)
        np.testing.assert_allclose(stored, own, atol=0.5 / FIXED_STEPS + 1e-6)


def answer_rows_of(sequence):
    return replace(sequence, row_start=sequence.prompt_length - 1)


@pytest.mark.parametrize("family", FAMILIES)
def test_answer_rows_alone_are_those_of_the_full_path(family):
    model, config = shared_model(family)
    sequences = sequences_of(config, lengths=(17, 13, 16))
    shape, arrays = shape_of(config), tuple(ARRAYS)
    full = replay(model, sequences, Kept(shape=shape, arrays=arrays))
    few = replay(
        model, [answer_rows_of(each) for each in sequences], Kept(shape=shape, arrays=arrays, row_chunk=3)
    )
    for sequence, all_rows, answer_rows in zip(sequences, full, few, strict=True):
        first = sequence.prompt_length - 1
        own = all_rows.arrays
        square = unpack_triangle(own["attention"].astype(np.float32), sequence.length)
        for name, values in answer_rows.arrays.items():
            expected = own[name]
            if name == "attention":
                expected = pack_triangle(square[:, :, first:], first)
            elif name == "attention_fixed":
                values = from_fixed_point(values)
                expected = pack_triangle(square[:, :, first:], first)
            elif name == "received":
                expected = square[:, :, first:].sum(2)
            elif name in ("token_logprob", "token_entropy", "top1_margin"):
                assert np.isnan(values[: first + 1]).all()
                values, expected = values[first + 1 :], expected[first + 1 :]
            elif ARRAYS[name].axes[2:3] == ("row",):
                expected = expected[:, :, first:]
            elif name in ("hidden", "hidden_rows"):
                expected = own["hidden"][:, first if name == "hidden_rows" else 0 :]
                values, expected = map(from_bfloat16_bits, (values, expected))
            np.testing.assert_allclose(values, expected, rtol=2**-6, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3_text", "cohere2", "gpt_oss"])
def test_a_sliding_window_reports_positions_and_sees_nothing_before_it(family):
    model, config = shared_model(family)
    (sequence,) = sequences_of(config, lengths=(17,))
    shape = shape_of(config)
    (result,) = replay(model, [sequence], Kept(shape=shape, arrays=("attention", "argmax_key")))
    square = unpack_triangle(result.arrays["attention"].astype(np.float32), 17)
    assert WINDOW in shape.layer_windows
    for layer, window in enumerate(shape.layer_windows):
        for row in range(17):
            first_seen = 0 if window is None else max(0, row - window + 1)
            assert (square[layer, :, row, :first_seen] == 0).all()
            assert (square[layer, :, row, first_seen : row + 1] > 0).all()
            assert (result.arrays["argmax_key"][layer, :, row] >= first_seen).all()


def values_by_projection(model, token_ids):
    """Value vectors of each layer from the weights and the input of its attention module."""
    found = []

    def project(module, inputs, settings):
        states = inputs[0] if inputs else settings["hidden_states"]
        n_tokens = states.shape[1]
        if hasattr(module, "v_proj"):
            found.append(module.v_proj(states)[0].reshape(n_tokens, 3, -1))
        elif hasattr(module, "Wqkv"):
            found.append((states @ module.Wqkv.weight[48:].T)[0].reshape(n_tokens, 3, -1))
        else:
            weight, bias = module.query_key_value.weight, module.query_key_value.bias
            fused = (states @ weight.T + (0 if bias is None else bias))[0]
            is_multi_query = getattr(module, "multi_query", False)
            found.append(
                fused[:, -8:].reshape(n_tokens, 1, 8)
                if is_multi_query
                else fused.reshape(n_tokens, 3, 3, 8)[:, :, 2]
            )

    kinds = {"GPTJAttention", "GPTNeoSelfAttention", "MptAttention", "BloomAttention", "FalconAttention"}
    handles = [
        module.register_forward_pre_hook(project, with_kwargs=True)
        for module in model.modules()
        if type(module).__name__ in kinds
    ]
    with torch.inference_mode():
        model(input_ids=torch.from_numpy(token_ids)[None], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("family", ["falcon", "bloom", "mpt", "gptj", "gpt_neo"])
def test_value_norms_off_the_interface_are_those_of_the_projection(family):
    model, config = shared_model(family)
    (sequence,) = sequences_of(config, lengths=(11,))
    (result,) = replay(model, [sequence], Kept(shape=shape_of(config), arrays=("value_norm",)))
    expected = values_by_projection(model, sequence.token_ids)
    assert len(expected) == len(result.arrays["value_norm"])
    for layer, value in enumerate(expected):
        norms = value.norm(dim=-1).T.numpy()
        np.testing.assert_allclose(result.arrays["value_norm"][layer], norms, rtol=1e-3)
    assert "_attn" not in vars(next(iter(model.modules())))


def test_falcon_asked_for_weights_is_causal_though_it_runs_on_sdpa():
    model, config = tiny_model("falcon")
    assert model.config._attn_implementation == "sdpa"
    (sequence,) = sequences_of(config, lengths=(11,))
    with torch.inference_mode():
        plain = model(input_ids=torch.from_numpy(sequence.token_ids)[None], use_cache=False)
    expected = torch.log_softmax(plain.logits[0].float(), -1)
    (result,) = replay(model, [sequence], Kept(shape=shape_of(config), arrays=tuple(ARRAYS)))
    next_ids = torch.from_numpy(sequence.token_ids)[1:, None]
    np.testing.assert_allclose(
        result.arrays["token_logprob"][1:], expected[:-1].gather(1, next_ids)[:, 0], atol=1e-4
    )
    assert model.config._attn_implementation == "sdpa"


def test_only_the_layers_asked_for_are_kept():
    model, config = tiny_model("llama")
    (sequence,) = sequences_of(config, lengths=(11,))
    arrays = tuple(ARRAYS)
    (everything,) = replay(model, [sequence], Kept(shape=shape_of(config), arrays=arrays))
    shape = shape_of(config, layers=(1,), hidden=(0, 2))
    (some,) = replay(model, [sequence], Kept(shape=shape, arrays=arrays))
    np.testing.assert_allclose(
        some.arrays["attention"], everything.arrays["attention"][[1]], rtol=2 * FLOAT16_STEP
    )
    np.testing.assert_allclose(
        from_bfloat16_bits(some.arrays["hidden"]),
        from_bfloat16_bits(everything.arrays["hidden"][[0, 2]]),
        rtol=2**-7,
        atol=1e-5,
    )


def test_nan_in_one_sequence_is_a_failure_that_names_the_layer_and_touches_no_other():
    model, config = tiny_model("llama")
    good, bad = sequences_of(config, lengths=(11, 7))
    poisoned = 5
    good.token_ids[good.token_ids == poisoned] = 6
    bad.token_ids[2] = poisoned
    with torch.no_grad():
        model.get_input_embeddings().weight[poisoned] = float("nan")
    arrays = tuple(name for name in ARRAYS if not name.startswith("hidden"))
    first, second = replay(model, [good, bad], Kept(shape=shape_of(config), arrays=arrays))
    assert first.failure is None
    assert np.isfinite(first.arrays["attention"]).all()
    assert second.failure == "the attention of layer 0 holds NaN or infinity"


def test_attention_is_restored_after_an_error():
    model, _ = tiny_model("llama")
    before = model.config._attn_implementation
    observer = Ignoring()
    with pytest.raises(RuntimeError, match="on purpose"), capturing(model, observer, row_chunk=1):
        message = "on purpose"
        raise RuntimeError(message)
    assert model.config._attn_implementation == before


def test_token_statistics_equal_a_hand_computed_case():
    logits = torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]]))
    statistics = token_statistics(logits, torch.tensor([1, 0]))
    assert statistics[0].tolist() == pytest.approx([np.log(0.25), np.log(0.8)])
    entropy = -(0.8 * np.log(0.8) + 0.2 * np.log(0.1))
    assert statistics[1].tolist() == pytest.approx([1.5 * np.log(2), entropy])
    assert statistics[2].tolist() == pytest.approx([0.25, 0.7])


def test_an_impossible_token_has_no_part_in_the_entropy():
    logits = torch.tensor([[0.0, 0.0, float("-inf")]])
    statistics = token_statistics(logits, torch.tensor([0]))
    assert statistics[1].item() == pytest.approx(np.log(2))


SHARED = [family for family in FAMILIES if TINY_FAMILIES[family].on_interface]
PROMPT = 11


def answers_of(config, *, row_start=0, option_ids=(), prompts=(PROMPT,) * 3):
    """One answer to each prompt; prompts of one length are the same."""
    generator = np.random.default_rng(3)
    size = config.get_text_config().vocab_size
    asked = {length: generator.integers(3, size, length) for length in dict.fromkeys(prompts)}
    return [
        TokenSequence(
            token_ids=np.append(asked[prompt], generator.integers(3, size, length)),
            span_code=np.array([3] * prompt + [5] * length),
            prompt_length=prompt,
            row_start=prompt - 1 if row_start else 0,
            option_ids=option_ids,
        )
        for prompt, length in zip(prompts, (5, 1, 3, 2), strict=False)
    ]


def behind_prompts(model, sequences, kept):
    """Replay behind prompts of which each runs once, all of them together."""
    asked = {
        each.prompt_length: replace(
            each,
            token_ids=each.token_ids[: each.prompt_length],
            span_code=each.span_code[: each.prompt_length],
        )
        for each in sequences
    }
    passes = dict(zip(asked, prefill(model, list(asked.values()), kept), strict=True))
    return replay_behind(model, [passes[each.prompt_length] for each in sequences], sequences, kept)


def assert_alike(got, expected):
    assert list(got.arrays) == list(expected.arrays)
    assert got.failure is None
    assert got.failure == expected.failure
    np.testing.assert_allclose(got.option_logprobs, expected.option_logprobs, atol=1e-4)
    for name, values in expected.arrays.items():
        found = got.arrays[name]
        assert found.shape == values.shape, name
        assert found.dtype == values.dtype, name
        if ARRAYS[name].encoding == "bfloat16":
            found, values = from_bfloat16_bits(found), from_bfloat16_bits(values)
            np.testing.assert_allclose(found, values, rtol=2**-6, atol=1e-3, err_msg=name)
        elif values.dtype.kind == "f":
            np.testing.assert_allclose(
                found.astype(np.float32), values.astype(np.float32), rtol=4e-3, atol=1e-4, err_msg=name
            )
        elif name not in ("edge_key", "argmax_key"):  # equal weights may come in another order
            np.testing.assert_allclose(found.astype(int), values.astype(int), atol=8, err_msg=name)


@pytest.mark.parametrize("family", SHARED)
@pytest.mark.parametrize("row_start", [0, -1])
def test_answers_behind_their_prompts_are_replayed_as_each_alone(family, row_start):
    model, config = shared_model(family)
    prompts = (PROMPT, 2, PROMPT, 7)  # two answers to the first
    sequences = answers_of(config, row_start=row_start, option_ids=((4,), (5, 6)), prompts=prompts)
    kept = Kept(shape_of(config), tuple(ARRAYS), row_chunk=3)
    together = behind_prompts(model, sequences, kept)
    assert len(together) == len(sequences)
    for sequence, result in zip(sequences, together, strict=True):
        assert_alike(result, *replay(model, [sequence], kept))


def test_an_answer_that_fails_alone_fails_and_the_others_do_not():
    model, config = tiny_model("llama", seed=5)
    sequences = answers_of(config)
    bad = int(sequences[1].token_ids[-1])
    assert all(bad not in each.token_ids for each in (sequences[0], sequences[2]))
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = float("nan")
    results = behind_prompts(model, sequences, Kept(shape_of(config), ("token_logprob", "hidden")))
    assert [each.failure is None for each in results] == [True, False, True]
    assert "layer 0" in results[1].failure


def test_a_prompt_that_fails_fails_its_own_answers():
    model, config = tiny_model("llama", seed=5)
    sequences = answers_of(config, prompts=(PROMPT, 7, PROMPT))
    bad = int(sequences[0].token_ids[0])
    assert bad not in sequences[1].token_ids
    with torch.no_grad():
        model.get_input_embeddings().weight[bad] = float("inf")
    results = behind_prompts(model, sequences, Kept(shape_of(config), ("attention", "hidden")))
    assert [each.failure is None for each in results] == [False, True, False]


def test_a_row_of_padding_is_finite_in_half_precision():
    model, config = shared_model("llama")
    model = copy.deepcopy(model).half()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight *= 300
    sequences = answers_of(config, prompts=(PROMPT, 2))
    kept = Kept(shape_of(config), ("attention",))
    for sequence, result in zip(sequences, behind_prompts(model, sequences, kept), strict=True):
        assert_alike(result, *replay(model, [sequence], kept))
