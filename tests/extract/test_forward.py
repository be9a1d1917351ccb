"""Logits on demand against a plain pass."""

import numpy as np
import pytest
import torch

from graphhalu.extract import forward
from graphhalu.extract.forward import DeferredPass, TokenSequence, body_below_head, option_logprobs
from graphhalu.testing.tiny_models import TINY_FAMILIES, tiny_model


@pytest.mark.parametrize("family", list(TINY_FAMILIES))
def test_logits_of_some_rows_are_those_of_a_plain_pass_and_nothing_stays_replaced(family):
    model, _ = tiny_model(family)
    body = body_below_head(model)
    assert body is not None
    tokens = torch.arange(3, 16).reshape(1, 13)
    with torch.inference_mode():
        plain = model(input_ids=tokens, use_cache=False).logits
        done = DeferredPass(model, body, input_ids=tokens, use_cache=False)
        for start, stop in ((0, 5), (5, 13), (12, 13)):
            torch.testing.assert_close(done.logits(start, stop), plain[:, start:stop])
        assert "forward" not in vars(body)
        torch.testing.assert_close(model(input_ids=tokens, use_cache=False).logits, plain)


def test_the_head_multiplies_rows_that_lie_side_by_side():
    model, _ = tiny_model("llama")
    body, shapes = body_below_head(model), []

    def note(_, inputs):
        assert inputs[0].is_contiguous()
        shapes.append(tuple(inputs[0].shape[:2]))

    with torch.inference_mode(), model.get_output_embeddings().register_forward_pre_hook(note):
        tokens = torch.arange(3, 29).reshape(2, 13)
        done = DeferredPass(model, body, input_ids=tokens, use_cache=False)
        done.logits(2, 7)
    assert shapes == [(2, 1), (2, 5)]


def test_a_model_that_takes_no_rows_runs_whole(monkeypatch):
    model, _ = tiny_model("llama")
    tokens = torch.arange(3, 14).reshape(1, 11)
    with torch.inference_mode():
        plain = model(input_ids=tokens, use_cache=False).logits
        done = DeferredPass(model, None, input_ids=tokens, use_cache=False)
        assert torch.equal(done.logits(2, 7), plain[:, 2:7])


def test_hidden_states_are_handed_over_once():
    model, _ = tiny_model("llama")
    tokens = torch.arange(3, 14).reshape(1, 11)
    body = body_below_head(model)
    with torch.inference_mode():
        done = DeferredPass(model, body, input_ids=tokens, use_cache=False, output_hidden_states=True)
    states = done.take_hidden_states()
    assert states is not None
    assert len(states) == 4
    assert done.take_hidden_states() is None


def test_an_option_gathers_the_probability_of_all_its_spellings():
    logits = torch.log(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    found = option_logprobs(logits, [(0, 2), (3,)])
    assert found == pytest.approx(torch.log(torch.tensor([0.4, 0.4])).tolist())


@pytest.mark.parametrize(("n_rows", "n_bytes"), [(1, 1), (4, 1), (4, 10**4), (64, 2**24)])
def test_likelihoods_are_the_same_in_chunks_of_any_size(monkeypatch, n_rows, n_bytes):
    monkeypatch.setattr(forward, "LOGIT_ROWS", n_rows)
    monkeypatch.setattr(forward, "LOGIT_BYTES", n_bytes)
    monkeypatch.setattr(forward, "_STATISTICS_BYTES", n_bytes)
    model, _ = tiny_model("llama")
    tokens = torch.randint(3, 40, (2, 17), generator=torch.Generator().manual_seed(5))
    codes = np.full(17, 3, dtype=np.uint8)
    sequences = [
        TokenSequence(row.numpy(), codes, 5, row_start=start)
        for row, start in zip(tokens, (0, 4), strict=True)
    ]
    with torch.inference_mode():
        plain = torch.log_softmax(model(input_ids=tokens, use_cache=False).logits.float(), -1)
        done = DeferredPass(model, body_below_head(model), input_ids=tokens, use_cache=False)
        found = forward.read_likelihood(done, sequences)
    for sequence, log_probabilities, each in zip(sequences, plain, found, strict=True):
        arrays, first = each.arrays, sequence.row_start + 1
        assert all(np.isnan(values[:first]).all() for values in arrays.values())
        own = log_probabilities[first - 1 : -1]
        top = own.exp().topk(2).values
        ids = torch.from_numpy(sequence.token_ids[first:])
        slow = {
            "token_logprob": own.gather(1, ids[:, None])[:, 0],
            "token_entropy": -(own.exp() * own).sum(-1),
            "top1_margin": top[:, 0] - top[:, 1],
        }
        for name, values in slow.items():
            np.testing.assert_allclose(arrays[name][first:], values, atol=2e-6)
