"""What the model says of its own answers, against plain passes over the same prompts."""

from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from graphhalu.datasets.question import Question
from graphhalu.extract import run
from graphhalu.extract.ask import IDEAS, IS_SUPPORTED, IS_TRUE, SelfQuestions
from graphhalu.extract.run import extract
from graphhalu.extract.settings import ExtractConfig, GenerationSettings
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import TINY_FAMILIES, tiny_model
from graphhalu.traces.store import open_traces

QUESTIONS = [Question(f"q{n}", f"Name a city of country {n}.", ("Rome",)) for n in range(3)]
OPTIONS = {IS_TRUE: ("A", "B"), IS_SUPPORTED: ("Yes", "No")}


@pytest.fixture(scope="module")
def loaded():
    return load_model(ModelSpec(name="smollm2"))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    out = tmp_path_factory.mktemp("asked") / "a.zarr"
    values = {
        "model": {"name": "smollm2", "threads": 1},
        "generation": {"num_beams": 2, "keep_beams": 2, "max_new_tokens": 7, "samples": 3, "ask": True},
        "capture": {"keep": "streams", "hidden_layers": "none"},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_questions", lambda *_, **__: QUESTIONS)
        extract(ExtractConfig.model_validate(values), out)
    return open_traces(out)


def plain_share(loaded, kind, text):
    """Probability of the first word against the second, after one prompt alone."""
    with torch.inference_mode():
        ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]
        p = torch.softmax(loaded.model(input_ids=ids).logits[0, -1].double(), -1)
    vocabulary = loaded.tokenizer.get_vocab()
    first, second = (
        sum(float(p[vocabulary[name]]) for name in (word, f"Ġ{word}") if name in vocabulary)
        for word in OPTIONS[kind]
    )
    return first / (first + second)


def test_the_model_is_asked_about_its_beams_with_the_samples_as_ideas(store, loaded):
    n_asked = 0
    for trace in store:
        record = trace.record
        if record.is_sample:
            assert record.asked == {}
            continue
        samples = [
            each.answer for each in store.records if each.question_id == record.question_id and each.is_sample
        ]
        ideas = IDEAS.format(ideas="\n".join(samples)) if samples else ""
        text = IS_TRUE.format(question=record.question, ideas=ideas, answer=record.answer)
        assert record.asked["p_true"] == pytest.approx(plain_share(loaded, IS_TRUE, text), abs=1e-4)
        expected = [
            plain_share(loaded, IS_SUPPORTED, IS_SUPPORTED.format(sample=each, answer=record.answer))
            for each in samples
        ]
        assert record.asked.get("supported", []) == pytest.approx(expected, abs=1e-4)
        n_asked += 1 + len(expected)
    assert n_asked >= 12


@pytest.mark.parametrize("family", TINY_FAMILIES)
def test_prompts_of_other_lengths_beside_it_change_no_answer(family):
    model, _ = tiny_model(family)
    asking = object.__new__(SelfQuestions)
    asking.loaded = SimpleNamespace(model=model, tokenizer=None)
    prompts = [list(range(3, 3 + length)) for length in (7, 2, 5)]
    together = asking._last_logits(prompts)
    for prompt, logits in zip(prompts, together, strict=True):
        with torch.inference_mode():
            alone = model(input_ids=torch.tensor(prompt)[None]).logits[0, -1]
        torch.testing.assert_close(logits, alone, rtol=1e-3, atol=1e-3)


def test_answers_of_a_data_set_are_not_asked_about():
    with pytest.raises(ValidationError, match="its own answers"):
        GenerationSettings(answers="given", ask=True)
    assert "ask" not in GenerationSettings().identity()
    assert GenerationSettings(ask=True).identity()["ask"] is True
