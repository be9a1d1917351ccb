"""Replays without context, the logit lens and shifts of the output, against plain passes of the model."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from graphhalu.core.axes import Span
from graphhalu.core.errors import UsageError
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.extract import run
from graphhalu.extract.contrast import LIKELIEST, OutputHead, last_norm
from graphhalu.extract.forward import body_below_head
from graphhalu.extract.run import extract
from graphhalu.extract.settings import CaptureSettings, ExtractConfig
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import TINY_FAMILIES, save_tiny, tiny_model
from graphhalu.traces.schema import CONTRAST
from graphhalu.traces.store import open_traces

CONTEXT = "Rome has 7 hills."
QUESTIONS = [
    Question(
        f"q{n}",
        f"Hills of {n}?",
        ("seven",),
        context=CONTEXT if n % 3 else None,
        given=(GivenAnswer("Seven."), GivenAnswer("It has 11."))[: 1 + n % 2],
    )
    for n in range(5)
]
CAPTURE = {"contrast": True, "hidden_layers": [0, 1, 3]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture
def extracted(folder, tmp_path, monkeypatch):
    def run_on(questions=QUESTIONS, **changes):
        monkeypatch.setattr(run, "load_questions", lambda *_, **__: questions)
        values = {
            "model": {"name": str(folder), "threads": 1},
            "generation": {"answers": "given"},
            "capture": CAPTURE,
            "prompt": {"template": "bare"},
            **changes,
        }
        extract(ExtractConfig.model_validate(values), tmp_path / "a.zarr")
        return open_traces(tmp_path / "a.zarr")

    return run_on


def plain(model, tokens):
    with torch.inference_mode():
        output = model(input_ids=torch.tensor(tokens)[None], output_hidden_states=True)
    return output.logits[0].float(), [state[0].float().numpy() for state in output.hidden_states]


def prompts_of(trace, tokenizer):
    """The prompt's tokens, and those of the prompt with the context cut out of its text."""
    text = trace.record.prompt
    cut = text.replace(trace.record.context or "\0", "")
    return trace.token_ids[: trace.prompt_length].tolist(), tokenizer(cut)["input_ids"]


def test_an_answer_without_its_context_is_what_a_plain_pass_gives(extracted, folder):
    loaded = load_model(ModelSpec(name=str(folder)))
    store = extracted()
    assert set(CONTRAST) <= set(store.arrays)
    assert {trace.record.context for trace in store} == {CONTEXT, None}
    for trace in store:
        if trace.record.context is None:
            continue
        answer = trace.token_ids[trace.prompt_length :].tolist()
        whole, bare = prompts_of(trace, loaded.tokenizer)
        assert len(bare) < len(whole)
        logits, states = plain(loaded.model, bare + answer)
        first = len(bare) - 1
        expected = torch.log_softmax(logits[first:-1], -1)
        ids = torch.tensor(answer)[:, None]
        tokens = slice(trace.prompt_length, None)
        np.testing.assert_allclose(
            trace.stream("contrast_logprob")[tokens], expected.gather(1, ids)[:, 0].numpy(), atol=1e-4
        )
        entropy = -(expected.exp() * expected).sum(1).numpy()
        np.testing.assert_allclose(trace.stream("contrast_entropy")[tokens], entropy, atol=1e-4)
        hidden = trace.stream("contrast_hidden")
        for place, layer in enumerate(CAPTURE["hidden_layers"]):
            np.testing.assert_allclose(hidden[place], states[layer][first:], rtol=2**-7, atol=1e-4)


def test_without_a_context_nothing_is_compared(extracted):
    traces = [trace for trace in extracted() if trace.record.context is None]
    assert traces
    for trace in traces:
        for name in set(CONTRAST) - {"lens_rank"}:
            assert np.isnan(trace.stream(name)).all()
        assert (trace.stream("lens_rank")[:, trace.prompt_length :] >= 0).all()


def test_the_lens_ranks_a_token_as_the_norm_and_the_head_do(extracted, folder):
    model = load_model(ModelSpec(name=str(folder))).model
    n_seen = 0
    for trace in extracted():
        ranks = trace.stream("lens_rank")
        assert (ranks[:, : trace.prompt_length] == -1).all()
        for place, layer in enumerate(CAPTURE["hidden_layers"]):
            states = torch.from_numpy(trace.hidden_rows(layer)[:-1])
            with torch.inference_mode():
                normed = states if layer == model.config.num_hidden_layers else model.model.norm(states)
                logits = model.lm_head(normed)
            for row, token in enumerate(trace.token_ids[trace.prompt_length :].tolist()):
                above = int((logits[row] > logits[row, token]).sum())
                assert ranks[place, trace.prompt_length + row] == above
                n_seen += 1
    assert n_seen > 20


def test_the_shift_is_the_distance_of_mean_embeddings(extracted, folder):
    model = load_model(ModelSpec(name=str(folder))).model
    weight = model.lm_head.weight.detach()
    unit = weight / weight.norm(dim=1, keepdim=True)
    assert len(unit) < LIKELIEST, "all tokens stand for the distribution"
    for trace in extracted():
        if trace.record.context is None:
            continue
        kept = torch.from_numpy(trace.hidden_rows(3)[:-1])
        other = torch.from_numpy(trace.stream("contrast_hidden")[-1][:-1])
        p, q = (torch.softmax(model.lm_head(states).detach(), -1) for states in (kept, other))
        kernel = unit @ unit.T
        expected = [a @ kernel @ a + b @ kernel @ b - 2 * a @ kernel @ b for a, b in zip(p, q, strict=True)]
        got = trace.stream("output_shift")[trace.prompt_length :]
        np.testing.assert_allclose(got, np.array(expected), rtol=1e-3, atol=1e-6)


def test_answers_and_attention_are_those_of_a_run_without_contrast(extracted, folder, tmp_path):
    compared = {trace.trace_id: trace for trace in extracted()}
    values = {
        "model": {"name": str(folder), "threads": 1},
        "generation": {"answers": "given"},
        "capture": {**CAPTURE, "contrast": False, "rows": "answer"},
        "prompt": {"template": "bare"},
    }
    extract(ExtractConfig.model_validate(values), tmp_path / "b.zarr")
    without = open_traces(tmp_path / "b.zarr")
    assert len(without) == len(compared) > 0
    for trace in without:
        other = compared[trace.trace_id]
        assert other.record == trace.record
        for name in without.arrays:
            np.testing.assert_array_equal(trace.arrays[name][:], other.arrays[name][:], err_msg=name)


def test_generated_answers_are_compared_too(extracted):
    store = extracted(generation={"num_beams": 2, "max_new_tokens": 3})
    assert any(not np.isnan(trace.stream("contrast_logprob")[trace.prompt_length :]).any() for trace in store)
    assert all((trace.span_code == Span.ANSWER).sum() == trace.answer_length for trace in store)


def test_questions_without_any_context_are_refused_before_a_model_is_loaded(extracted, monkeypatch):
    monkeypatch.setattr(run, "load_worker", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(UsageError, match=r"no question of worldfacts has one[^$]*--fields context="):
        extracted([each for each in QUESTIONS if each.context is None])


def test_the_last_hidden_states_must_be_kept(extracted):
    with pytest.raises(UsageError, match=r"hidden states 3\n.*--hidden-layers …,3"):
        extracted(capture={"contrast": True, "hidden_layers": [0, 1]})


def test_contrast_keeps_the_rows_of_the_answer():
    assert CaptureSettings(contrast=True).rows == "answer"
    with pytest.raises(ValidationError, match="rows must be answer"):
        CaptureSettings(contrast=True, rows="all")
    assert "contrast" not in CaptureSettings().identity()
    assert CaptureSettings(contrast=True).identity()["contrast"] is True


FAMILIES = [name for name, family in TINY_FAMILIES.items() if family.on_interface]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_gives_the_logits_of_a_plain_pass(family):
    model, _ = tiny_model(family)
    body = body_below_head(model)
    assert body is None or last_norm(model, body)[0] is not None
    tokens = list(range(3, 10))
    logits, states = plain(model, tokens)
    got = torch.cat([*OutputHead(model).logits(states[-1], is_last=True)])
    if body is not None:
        np.testing.assert_allclose(got, logits, atol=1e-4)
