"""Masks built from recipes against the whole masks of transformers."""

from copy import deepcopy

import pytest
import torch
from transformers.masking_utils import causal_mask_function, eager_mask, sdpa_mask
from transformers.masking_utils import sliding_window_causal_mask_function as sliding

from graphhalu.core.axes import RowRange
from graphhalu.core.errors import ModelRefusedError
from graphhalu.extract import capture
from graphhalu.extract.capture import (
    CHUNK_BYTES,
    MaskRecipe,
    capture_note,
    capturing,
    mask_placeholder,
    recipe_of,
    row_chunks,
)
from graphhalu.testing.tiny_models import tiny_model

N_TOKENS = 13


def arguments_of(mask_function, lengths):
    is_token = torch.arange(N_TOKENS) < torch.tensor(lengths)[:, None]
    return {
        "batch_size": len(lengths),
        "q_length": N_TOKENS,
        "kv_length": N_TOKENS,
        "q_offset": 0,
        "kv_offset": 0,
        "mask_function": mask_function,
        "attention_mask": is_token,
        "dtype": torch.float32,
        "allow_is_causal_skip": True,
    }


@pytest.mark.parametrize("kept_bytes", [0, 2**20])
@pytest.mark.parametrize("mask_function", [causal_mask_function, sliding(5)])
@pytest.mark.parametrize("lengths", [(13,), (13, 7, 11)])
def test_a_chunk_of_rows_has_the_rows_of_the_whole_mask(mask_function, lengths, kept_bytes, monkeypatch):
    monkeypatch.setattr(capture, "CHUNK_BYTES", kept_bytes)
    arguments = arguments_of(mask_function, lengths)
    recipe, whole = MaskRecipe(arguments), eager_mask(**arguments)
    for _ in range(2):  # the second time from what was kept, if anything
        for start, stop in ((0, 3), (3, 8), (8, 13)):
            assert torch.equal(recipe.rows(start, stop), whole[:, :, start:stop, :stop])
    assert bool(recipe._chunks) == (kept_bytes > 0)


def test_the_whole_mask_is_the_one_that_the_fast_kernel_would_get():
    arguments = arguments_of(sliding(5), (13, 7))
    assert torch.equal(MaskRecipe(arguments).whole("sdpa"), sdpa_mask(**arguments))
    # without padding or window, the kernel is told by a flag
    assert MaskRecipe(arguments_of(causal_mask_function, (13,))).whole("sdpa") is None


def test_the_placeholder_carries_its_recipe_and_anything_else_is_refused():
    mask = mask_placeholder(**arguments_of(causal_mask_function, (13,)))
    assert mask.numel() == 0
    assert recipe_of(mask, "Some").arguments["q_length"] == N_TOKENS
    for changed in (mask.clone(), None):
        with pytest.raises(ModelRefusedError, match="SomeAttention changes the attention mask"):
            recipe_of(changed, "SomeAttention")


@pytest.mark.parametrize("rows", [RowRange(0, 4099), RowRange(4001, 4099), RowRange(0, 1)])
def test_chunks_cover_the_rows_once_and_fit_the_memory(rows):
    query = torch.empty(3, 7, 1, 2)
    chunks = list(row_chunks(rows, query, None))
    assert [row for start, stop in chunks for row in range(start, stop)] == list(range(*rows))
    assert all(4 * 3 * 7 * (stop - start) * stop <= CHUNK_BYTES for start, stop in chunks)


def test_a_single_row_that_does_not_fit_is_a_chunk_of_its_own():
    query = torch.empty(1, 2**20, 1, 1).expand(4, -1, -1, -1)
    assert list(row_chunks(RowRange(5, 8), query, None)) == [(5, 6), (6, 7), (7, 8)]


def test_a_gpu_has_few_chunks_a_layer_and_a_cpu_small_ones():
    whole = RowRange(0, 4096)
    on_gpu, on_cpu = (
        list(row_chunks(whole, torch.empty(1, 32, 4096, 1, device=place), None)) for place in ("meta", "cpu")
    )
    assert len(on_gpu) == 4
    assert len(on_cpu) > 100
    for chunks in (on_gpu, on_cpu):
        assert [row for start, stop in chunks for row in range(start, stop)] == list(range(4096))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_model_in_half_precision_is_recorded_in_float32(family, dtype):
    float_model, _ = tiny_model(family)
    model = deepcopy(float_model).to(dtype)
    seen = []

    class Observer:
        def wanted_rows(self, layer):
            return RowRange(0, 13)

        def rows(self, layer, row_start, weights):
            seen.append(weights)

        def values(self, layer, value):
            assert value.dtype == dtype

    tokens = torch.arange(3, 16)[None]
    with torch.inference_mode():
        with capturing(model, Observer(), row_chunk=5):
            logits = model(input_ids=tokens, use_cache=False).logits
        plain = model(input_ids=tokens, use_cache=False).logits
    assert len(seen) == 3 * model.config.get_text_config().num_hidden_layers
    for weights in seen:
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:3]), atol=1e-6, rtol=0)
    assert logits.dtype == dtype
    # bfloat16 has 8 bits: both are off by some hundredths, and the one through float32 by no more
    exact = float_model(input_ids=tokens, use_cache=False).logits
    assert (logits - exact).abs().max() < 1.5 * (plain - exact).abs().max()


def test_a_model_that_is_captured_by_hooks_says_what_half_precision_costs():
    model, _ = tiny_model("falcon")
    assert "within" not in capture_note(model)
    assert "rows of torch.bfloat16 sum to 1 within 0.004 only" in capture_note(model.to(torch.bfloat16))
    assert capture_note(tiny_model("llama")[0].to(torch.bfloat16)) is None
