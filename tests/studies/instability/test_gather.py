"""Gathering on a tiny model: against plain attention, over kills, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from graphhalu.core.axes import Span
from graphhalu.core.errors import CorruptStoreError, StoreMismatchError, StoreNotFoundError, UsageError
from graphhalu.models.attention import eager_attention
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.studies.instability.measure import Measurer, gather
from graphhalu.studies.instability.series import PromptRecord, SeriesFolder, numbered
from graphhalu.studies.instability.settings import GatherSettings
from graphhalu.testing.tiny_models import save_tiny

PROMPTS = numbered([("Say it.", 1), ("Who is he?", 0), ("Say b now!", 1), ("Why?", 0), ("a", 0)])
SETTINGS = GatherSettings(system="Never say b.", max_new_tokens=7, batch_size=2)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return load_model(ModelSpec(name=str(save_tiny(tmp_path_factory.mktemp("m"))), threads=1))


@pytest.fixture(scope="module")
def measured(tiny):
    return Measurer(tiny, SETTINGS).measure(PROMPTS)


def test_shares_are_those_of_plain_eager_attention(tiny, measured):
    measurer = Measurer(tiny, SETTINGS)
    for prompt, found in zip(PROMPTS, measured, strict=True):
        encoded = measurer.encode(prompt)
        n_prompt = len(encoded.token_ids)
        answer = measurer.search.answer([encoded.token_ids.tolist()])[0][0]
        assert found.n_steps == len(answer.token_ids) + answer.is_finished
        ids = torch.tensor([[*encoded.token_ids.tolist(), *answer.token_ids]])
        with torch.inference_mode(), eager_attention(tiny.model):
            output = tiny.model(ids, output_attentions=True)
        attention = torch.stack(output.attentions)[:, 0].double().numpy()
        rows = attention[:, :, n_prompt - 1 : n_prompt - 1 + found.n_steps]
        system = rows[..., :n_prompt][..., encoded.span_code == Span.SYSTEM].sum(-1)
        user = rows[..., :n_prompt][..., encoded.span_code == Span.QUESTION].sum(-1)
        share = system / rows[..., :n_prompt].sum(-1)
        np.testing.assert_allclose(found.arrays["std"], share.std(axis=1).T, atol=1e-5)
        np.testing.assert_allclose(found.arrays["share"], np.moveaxis(share, 2, 0), atol=1e-3)
        focus = system / (system + user)
        np.testing.assert_allclose(found.arrays["focus_heads"], focus[:, :, 0], atol=1e-5)
        logits = output.logits[0, n_prompt - 1 :].double().log_softmax(-1)
        entropy = -(logits.exp() * logits).sum(-1)[: found.n_steps]
        np.testing.assert_allclose(found.arrays["entropy"], entropy, atol=1e-4)


def test_the_user_perplexity_is_that_of_the_users_tokens(tiny, measured):
    encoded = Measurer(tiny, SETTINGS).encode(PROMPTS[0])
    with torch.inference_mode():
        logits = tiny.model(torch.tensor(encoded.token_ids[None].astype(np.int64))).logits[0]
    places = np.flatnonzero(encoded.span_code == Span.QUESTION)
    chosen = logits.log_softmax(-1)[places - 1, encoded.token_ids[places]]
    assert measured[0].record.user_nll == pytest.approx(-float(chosen.mean()), rel=1e-4)
    assert measured[0].record.n_user == len(places) == len("Say it.")


def test_a_killed_run_goes_on_and_gives_the_same(tiny, tmp_path):
    whole = gather(tiny, SETTINGS, PROMPTS[:3], tmp_path / "s").read()
    (tmp_path / "s" / "parts" / "000001.npz").unlink()
    assert SeriesFolder.open(tmp_path / "s").missing_parts() == [1]
    done = []
    again = gather(tiny, SETTINGS, PROMPTS[:3], tmp_path / "s", lambda n, total, detail="": done.append(n))
    assert done == [2, 3]
    for one, other in zip(whole, again.read(), strict=True):
        assert one.record == other.record
        assert one.arrays.keys() == other.arrays.keys()
        for name, values in one.arrays.items():
            np.testing.assert_array_equal(values, other.arrays[name])


def test_a_part_holds_no_pickle_and_no_whole_attention(tiny, tmp_path):
    gather(tiny, SETTINGS, PROMPTS[:2], tmp_path / "s")
    with np.load(tmp_path / "s" / "parts" / "000000.npz", allow_pickle=False) as file:
        n_steps = int(file["step_offsets"][-1])
        shapes = {name: file[name].shape for name in file.files}
    assert shapes["std"] == (n_steps, 3)
    assert shapes["share"] == (n_steps, 3, 6)
    assert shapes["focus_heads"] == (2, 3, 6)


def test_single_heads_can_be_left_out(tiny):
    settings = SETTINGS.model_copy(update={"keeps_heads": False})
    assert "share" not in Measurer(tiny, settings).measure(PROMPTS[:1])[0].arrays


def test_a_damaged_part_is_named(tiny, tmp_path):
    store = gather(tiny, SETTINGS, PROMPTS[:3], tmp_path / "s")
    path = tmp_path / "s" / "parts" / "000001.npz"
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for place in range(middle, middle + 200):
        content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptStoreError, match=r"000001\.npz is damaged"):
        store.read()


def test_a_folder_of_other_settings_or_prompts_is_refused(tiny, tmp_path):
    gather(tiny, SETTINGS, PROMPTS[:2], tmp_path / "s")
    other = SETTINGS.model_copy(update={"denominator": "everything"})
    with pytest.raises(StoreMismatchError, match=r"gather\.denominator: 'prompt'"):
        gather(tiny, other, PROMPTS[:2], tmp_path / "s")
    with pytest.raises(StoreMismatchError, match="prompts"):
        gather(tiny, SETTINGS, PROMPTS[1:3], tmp_path / "s")


def test_a_folder_without_measurements_says_how_to_make_them(tmp_path):
    with pytest.raises(StoreNotFoundError, match="graphhalu instability gather"):
        SeriesFolder.open(tmp_path)


@pytest.mark.parametrize("system", ["", "  \n"])
def test_an_absent_system_prompt_is_refused(tiny, tmp_path, system):
    settings = SETTINGS.model_copy(update={"system": system})
    with pytest.raises(UsageError, match="no system span"):
        gather(tiny, settings, PROMPTS, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_chat_template_that_drops_the_system_prompt_is_refused(tiny, tmp_path, monkeypatch):
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}"
        "{% endif %}{% endfor %}"
    )
    monkeypatch.setattr(tiny.tokenizer, "chat_template", template)
    with pytest.raises(UsageError, match="takes no system prompt"):
        gather(tiny, SETTINGS, PROMPTS, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_no_prompt_and_two_prompts_of_one_id_are_refused(tiny, tmp_path):
    with pytest.raises(UsageError, match="no prompt"):
        gather(tiny, SETTINGS, [], tmp_path / "s")
    with pytest.raises(UsageError, match="two prompts have the id 'attack-0001'"):
        gather(tiny, SETTINGS, [PROMPTS[0], PROMPTS[0]], tmp_path / "s")


def test_a_prompt_that_does_not_fit_is_recorded_and_the_others_are_measured(tiny):
    long = PromptRecord("long", 0, 1, "g", "a" * 120)
    first, second = Measurer(tiny, SETTINGS).measure([long, PROMPTS[0]])
    assert "the model's context has 128" in first.record.failure
    assert first.n_steps == 0
    assert second.n_steps > 0


def test_drawn_answers_differ_by_iteration_and_not_by_batch(tiny):
    settings = SETTINGS.model_copy(update={"temperature": 9.0, "iterations": 3})
    measurer = Measurer(tiny, settings)
    asked = [replace(PROMPTS[2], iteration=i) for i in range(3)]
    alone = [measurer.measure([prompt])[0] for prompt in asked]
    together = measurer.measure([PROMPTS[0], *asked[:2]])
    assert len({each.record.answer for each in alone}) > 1
    for one, other in zip(alone[:2], together[1:], strict=True):
        assert one.record.answer == other.record.answer


def test_several_greedy_answers_are_refused(tiny):
    settings = SETTINGS.model_copy(update={"iterations": 3})
    with pytest.raises(UsageError, match="the same answer 3 times"):
        Measurer(tiny, settings)


def test_a_plain_prompt_begins_with_the_system_prompt(tiny):
    settings = SETTINGS.model_copy(update={"chat": "off"})
    code = Measurer(tiny, settings).encode(PROMPTS[0]).span_code
    assert code[0] == Span.BOS
    assert (code[1:13] == Span.SYSTEM).all()
    assert (code[-7:] == Span.QUESTION).all()
