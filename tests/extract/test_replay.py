"""The replay against the model's own eager attention, hidden states and logits."""

import numpy as np
import pytest
import torch

from graphhalu.axes import N_SPANS, ROW_SUM_TOLERANCE
from graphhalu.extract.capture import capturing
from graphhalu.extract.likelihood import token_statistics
from graphhalu.extract.replay import replay
from graphhalu.extract.sequence import TokenSequence
from graphhalu.models.attention import eager_attention
from graphhalu.numerics import from_bfloat16_bits, unpack_triangle
from graphhalu.testing.tiny_models import TINY_FAMILIES, tiny_model
from graphhalu.traces.schema import ARRAYS, TraceShape

FAMILIES = list(TINY_FAMILIES)
N_EDGES = 4
FLOAT16_STEP = 2.0**-11


def shape_of(config, *, layers=None, hidden=None):
    config = config.get_text_config()
    n_layers = config.num_hidden_layers
    layers = tuple(range(n_layers)) if layers is None else layers
    return TraceShape(
        n_layers=n_layers,
        n_heads=config.num_attention_heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or config.num_attention_heads,
        hidden_size=config.hidden_size,
        attention_layers=layers,
        hidden_layers=tuple(range(n_layers + 1)) if hidden is None else hidden,
        layer_windows=(None,) * len(layers),
        n_edges=N_EDGES,
    )


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
    model, config = tiny_model(family)
    sequences = sequences_of(config)
    shape = shape_of(config)
    results = replay(model, sequences, shape=shape, arrays=tuple(ARRAYS), row_chunk=row_chunk)
    for sequence, result in zip(sequences, results, strict=True):
        assert result.failure is None
        expected = eager_output(model, sequence)
        stored = unpack_triangle(result.arrays["attention"], sequence.length).astype(np.float32)
        own = np.stack([layer[0].float().numpy() for layer in expected.attentions])
        np.testing.assert_allclose(stored, own, rtol=FLOAT16_STEP, atol=2e-6)
        assert (np.triu(own, k=1) == 0).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_likelihood_are_those_of_a_plain_pass(family):
    model, config = tiny_model(family)
    (sequence,) = sequences_of(config, lengths=(11,))
    (result,) = replay(model, [sequence], shape=shape_of(config), arrays=tuple(ARRAYS))
    expected = eager_output(model, sequence)
    own = np.stack([state[0].float().numpy() for state in expected.hidden_states])
    np.testing.assert_allclose(
        from_bfloat16_bits(result.arrays["hidden"]), own, rtol=2**-8, atol=1e-5
    )
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
    results = replay(model, sequences, shape=shape, arrays=tuple(ARRAYS), row_chunk=3)
    for sequence, result in zip(sequences, results, strict=True):
        own = [layer[0].numpy() for layer in eager_output(model, sequence).attentions]
        for layer in range(shape.n_layers):
            for head in range(shape.n_heads):
                weights = own[layer][head]
                got = {name: values[layer, head] for name, values in result.arrays.items()
                       if ARRAYS[name].axes[:2] == ("layer", "head")}  # fmt: skip
                for row in range(sequence.length):
                    mass = np.zeros(N_SPANS)
                    entropy = 0.0
                    for key in range(row + 1):
                        mass[sequence.span_code[key]] += weights[row, key]
                        entropy -= weights[row, key] * np.log(max(weights[row, key], 1e-30))
                    np.testing.assert_allclose(got["span_mass"][row], mass, atol=1e-3)
                    assert got["row_entropy"][row] == pytest.approx(entropy, rel=1e-3, abs=1e-3)
                    assert got["self_attention"][row] == pytest.approx(
                        weights[row, row], rel=1e-3, abs=6e-8
                    )
                    assert got["argmax_key"][row] == weights[row].argmax()
                    np.testing.assert_allclose(
                        got["sink_keys"][row], weights[row, :4], rtol=1e-3, atol=1e-6
                    )
                np.testing.assert_allclose(got["received"], weights.sum(0), rtol=1e-4)


def test_spans_of_every_row_sum_to_one():
    model, config = tiny_model("qwen2")
    sequences = sequences_of(config)
    arrays = ("token_ids", "span_mass")
    for result in replay(model, sequences, shape=shape_of(config), arrays=arrays):
        sums = result.arrays["span_mass"].astype(np.float32).sum(-1)
        assert np.abs(sums - 1).max() < ROW_SUM_TOLERANCE + N_SPANS * FLOAT16_STEP


def test_a_batch_gives_what_each_sequence_gives_alone():
    model, config = tiny_model("llama")
    sequences = sequences_of(config, lengths=(17, 5, 11))
    shape = shape_of(config)
    together = replay(model, sequences, shape=shape, arrays=tuple(ARRAYS))
    for sequence, result in zip(sequences, together, strict=True):
        (alone,) = replay(model, [sequence], shape=shape, arrays=tuple(ARRAYS))
        for name, values in alone.arrays.items():
            if ARRAYS[name].encoding == "bfloat16":
                values, other = map(from_bfloat16_bits, (values, result.arrays[name]))
                step = 2**-7  # a float32 difference can tip the rounding by one bfloat16 step
            else:
                other, step = result.arrays[name], 2e-3
            np.testing.assert_allclose(other, values, rtol=step, atol=1e-4, err_msg=name)


def test_only_the_layers_asked_for_are_kept():
    model, config = tiny_model("llama")
    (sequence,) = sequences_of(config, lengths=(11,))
    arrays = tuple(ARRAYS)
    (everything,) = replay(model, [sequence], shape=shape_of(config), arrays=arrays)
    shape = shape_of(config, layers=(1,), hidden=(0, 2))
    (some,) = replay(model, [sequence], shape=shape, arrays=arrays)
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
    arrays = tuple(name for name in ARRAYS if name != "hidden")
    first, second = replay(model, [good, bad], shape=shape_of(config), arrays=arrays)
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
    assert statistics.logprob.tolist() == pytest.approx([np.log(0.25), np.log(0.8)])
    entropy = -(0.8 * np.log(0.8) + 0.2 * np.log(0.1))
    assert statistics.entropy.tolist() == pytest.approx([1.5 * np.log(2), entropy])
    assert statistics.margin.tolist() == pytest.approx([0.25, 0.7])


def test_an_impossible_token_has_no_part_in_the_entropy():
    logits = torch.tensor([[0.0, 0.0, float("-inf")]])
    statistics = token_statistics(logits, torch.tensor([0]))
    assert statistics.entropy.item() == pytest.approx(np.log(2))
