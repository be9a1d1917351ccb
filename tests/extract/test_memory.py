"""Batches where memory is short: sizes that follow a plan, and halves where it runs out."""

from dataclasses import replace

import pytest
import torch

from graphhalu.core.errors import GraphhaluError
from graphhalu.datasets.question import Question
from graphhalu.extract import extraction as module
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.generate import compute_dtype
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import save_tiny

QUESTIONS = [Question(f"q{n}", "?" * (n + 1), ("a",)) for n in range(7)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama")
    return load_model(ModelSpec(name=str(folder), threads=1))


@pytest.fixture
def made(loaded):
    values = {
        "prompt": {"template": "bare"},
        "generation": {"num_beams": 2, "max_new_tokens": 3, "samples": 2},
    }
    return Extraction(ExtractConfig.model_validate(values), loaded)


def answers_of(made):
    found = made.generate([made.prompt(question) for question in QUESTIONS])
    return {each.question.question_id: each for each in found}


def texts(found):
    # sums of batches of another size round differently, so scores may differ in their last digits
    return {name: [(a.token_ids, a.text, a.rank) for a in prompt.answers] for name, prompt in found.items()}


def test_a_search_that_runs_out_of_memory_goes_on_in_halves_with_the_same_answers(made, monkeypatch):
    expected, sizes = answers_of(made), []
    search = type(made.search).as_finished

    def short_of_memory(self, prompts, passes):
        sizes.append(len(prompts))
        for number, found in enumerate(search(self, prompts, passes)):
            if len(prompts) > 2 and number == 1:
                raise torch.OutOfMemoryError
            yield found

    monkeypatch.setattr(type(made.search), "as_finished", short_of_memory)
    assert texts(answers_of(made)) == texts(expected)
    assert len(expected) == len(QUESTIONS)
    # the one that was found before stays; six are left of seven
    assert sizes[:2] == [7, 3]


@pytest.mark.parametrize("have_run", [True, False])
def test_a_replay_that_runs_out_of_memory_goes_on_in_halves_with_the_same_arrays(made, monkeypatch, have_run):
    block = list(answers_of(made).values())
    if not have_run:  # as with given answers
        block = [replace(prompt, ran=None) for prompt in block]
        monkeypatch.setattr(module, "SHARED_TOKENS", 1)
    expected = made.traces(block)[0]

    def short_of_memory(run):
        def limited(model, *given):
            if len(given[0]) > 1:  # passes, prompts or sequences
                raise torch.OutOfMemoryError
            return run(model, *given)

        return limited

    for name in ("replay", "replay_behind", "prefill"):
        monkeypatch.setattr(module, name, short_of_memory(getattr(module, name)))
    found = made.traces(block)[0]
    assert [trace.trace_id for trace in found] == [trace.trace_id for trace in expected]
    assert len(found) > len(QUESTIONS)


def test_one_sequence_that_does_not_fit_is_an_error_with_a_way_out(made, monkeypatch):
    block = list(answers_of(made).values())[:1]

    def none(*_, **__):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(module, "replay_behind", none)
    with pytest.raises(GraphhaluError, match=r"one answer of \d+ tokens\n.*--quantization"):
        made.traces(block)
    monkeypatch.setattr(made.search, "as_finished", none, raising=False)
    with pytest.raises(GraphhaluError, match=r"one prompt of \d+ tokens"):
        list(made.generate([made.prompt(QUESTIONS[0])]))


def test_passes_that_do_not_fit_memory_make_groups_in_the_order_of_the_questions(made, monkeypatch):
    prompts = [made.prompt(question) for question in QUESTIONS]
    assert list(made.groups(prompts)) == [prompts]
    largest = max(made._bytes([(prompt, 0)], is_compressed=False) for prompt in prompts)
    monkeypatch.setattr(module, "PASS_BYTES", 2 * largest)
    groups = list(made.groups(prompts))
    assert 1 < len(groups) < len(prompts)
    assert [prompt for group in groups for prompt in group] == prompts


def test_a_batch_counts_prompt_and_the_positions_of_every_beam(made, monkeypatch):
    prompts = [made.prompt(question) for question in QUESTIONS]
    shape, longest = made.shape, max(prompt.length for prompt in prompts)
    head_size = made.loaded.model.config.head_dim
    token_bytes = 4 * shape.n_layers * shape.n_kv_heads * head_size * made.loaded.model.dtype.itemsize
    needed = (longest + 3 * 2 + module.GROWTH) * token_bytes
    for n_fitting in (1, 3, 7):
        monkeypatch.setattr(module, "batch_memory", lambda _, n=n_fitting: n * needed)
        batches = list(made._batches(prompts))
        assert len(batches[-1]) <= n_fitting
        assert sum(map(len, batches)) == len(prompts)
        assert max(map(len, batches)) >= n_fitting


def test_tolerance_follows_what_a_quantised_model_multiplies_in():
    class Config:
        quantization_config = None

    class Model:
        config, dtype = Config(), torch.float32

    assert compute_dtype(Model()) == torch.float32
    four = type("Four", (), {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.bfloat16})()
    eight = type("Eight", (), {"load_in_8bit": True})()
    for config, expected in ((four, torch.bfloat16), (eight, torch.float16)):
        Model.config.quantization_config = config
        assert compute_dtype(Model()) == expected
