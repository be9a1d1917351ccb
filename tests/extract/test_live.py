"""Answers that grow together, against plain ``generate`` and a replay of the finished answer."""

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import eager_attention_forward

from graphhalu.core.errors import UsageError
from graphhalu.datasets.question import Question
from graphhalu.extract.decode import one_row_attention
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.generate import shared_decoding_fault
from graphhalu.extract.live import LIVE_ARRAYS, LiveAnswer, LiveBatch
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import TINY_FAMILIES, save_tiny

PROMPTS = ["Hills of Rome?", "What is 7 plus 11?", "Who?", "How many rivers has the town by the sea?"]
ON_INTERFACE = sorted(name for name, family in TINY_FAMILIES.items() if family.on_interface)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(family):
        if family not in made:
            made[family] = save_tiny(tmp_path_factory.mktemp(family) / "tiny", family)
        return made[family]

    return folder


def extraction_of(folder, **generation):
    config = {
        "model": {"name": str(folder), "threads": 1},
        "prompt": {"template": "direct", "chat": "auto"},
        "generation": {"num_beams": 1, "max_new_tokens": 13, "stop_at_newline": False, **generation},
        "capture": {"keep": "streams", "rows": "answer", "hidden_tokens": "rows"},
    }
    config = ExtractConfig.model_validate(config)
    return Extraction(config, load_model(ModelSpec(name=str(folder), threads=1)))


def grow(extraction, texts=PROMPTS, joins=(2, 1, 1), **settings):
    """Grow answers that join in groups of these sizes, two steps apart."""
    prompts = [extraction.prompt(Question(f"q{n}", text, ())) for n, text in enumerate(texts)]
    answers = [LiveAnswer(each, **{"max_new_tokens": 13, **settings}) for each in prompts]
    batch, waiting = LiveBatch(extraction, LIVE_ARRAYS), list(answers)
    sizes = list(joins)
    with batch.decoding():
        while waiting or batch.answers:
            if waiting:
                n = sizes.pop(0)
                batch.add(waiting[:n])
                waiting = waiting[n:]
            for _ in range(2):
                if batch.answers:
                    batch.step()
    return answers


@pytest.mark.parametrize("family", ON_INTERFACE)
def test_answers_that_join_late_equal_generate_and_their_replay(family, folders):
    extraction = extraction_of(folders(family))
    loaded = extraction.loaded
    if (reason := shared_decoding_fault(loaded.model, loaded.layer_windows)) is not None:
        with pytest.raises(UsageError, match="cannot be streamed"):
            LiveBatch(extraction, LIVE_ARRAYS)
        assert reason
        return
    answers = grow(extraction)
    for answer in answers:
        found = next(iter(extraction.generate([answer.prompt])))
        expected = found.answers[0].token_ids if found.answers else ()
        assert tuple(answer.token_ids) == expected
        if not expected:
            continue
        trace = answer.trace(extraction.shape, loaded.tokenizer)
        (replayed,), _ = extraction.traces([found])
        assert trace.record.answer == replayed.record.answer
        assert trace.record.answer_offsets == replayed.record.answer_offsets
        assert (trace.record.row_start, trace.length) == (replayed.record.row_start, replayed.length)
        for name in LIVE_ARRAYS:
            mine, theirs = trace.stream(name), replayed.stream(name)
            assert mine.shape == theirs.shape, name
            if name == "argmax_key":
                assert (mine == theirs).mean() > 0.99
            else:
                np.testing.assert_allclose(mine, theirs, rtol=0.02, atol=2e-3, err_msg=name)


def test_the_newest_tokens_are_the_end_of_the_whole_trace(folders):
    extraction = extraction_of(folders("llama"))
    answer = max(grow(extraction), key=lambda each: len(each.token_ids))
    whole = answer.trace(extraction.shape, extraction.loaded.tokenizer)
    part = answer.newest(extraction.shape, 3)
    assert part.answer_length == 3
    assert part.length == whole.length
    np.testing.assert_array_equal(part.stream("token_logprob")[-3:], whole.stream("token_logprob")[-3:])
    np.testing.assert_array_equal(part.stream("span_mass"), whole.stream("span_mass")[:, :, -4:])
    np.testing.assert_array_equal(part.hidden_rows(1), whole.hidden_rows(1)[-4:])


def test_attended_keys_are_those_of_the_row_that_produces_the_token(folders):
    extraction = extraction_of(folders("llama"))
    answers = [answer for answer in grow(extraction) if answer.token_ids]
    assert answers
    for answer in answers:
        found = answer.attended()
        model = extraction.loaded.model
        model.set_attn_implementation("eager")
        ids = torch.tensor(
            [[*answer.prompt.encoded.token_ids.tolist(), *answer.token_ids]], device=model.device
        )
        weights = torch.stack(model(input_ids=ids, output_attentions=True).attentions)[:, 0].mean((0, 1))
        row = weights[answer.prompt.length + len(answer.token_ids) - 2]
        for key, weight in found:
            assert weight == pytest.approx(float(row[key]), abs=1e-5)
        assert max(weight for _, weight in found) == pytest.approx(float(row.max()), abs=1e-5)
        model.set_attn_implementation("sdpa")


def test_draws_depend_on_the_seed_of_the_answer_and_not_on_who_is_beside_it(folders):
    extraction = extraction_of(folders("llama"))
    alone = grow(extraction, PROMPTS[:1], joins=(1,), temperature=1.3, seed=5)[0]
    beside = grow(extraction, temperature=1.3, seed=5)[0]
    other = grow(extraction, PROMPTS[:1], joins=(1,), temperature=1.3, seed=7)[0]
    assert alone.token_ids == beside.token_ids
    assert alone.token_ids != other.token_ids


def test_a_small_share_of_the_probability_is_the_greedy_answer(folders):
    extraction = extraction_of(folders("llama"))
    greedy = grow(extraction)
    drawn = grow(extraction, temperature=1.0, top_p=1e-9)
    assert [each.token_ids for each in greedy] == [each.token_ids for each in drawn]


def test_an_answer_that_is_dropped_leaves_the_others_as_they_are(folders):
    extraction = extraction_of(folders("llama"))
    expected = {each.prompt.question.question_id: each.token_ids for each in grow(extraction)}
    prompts = [extraction.prompt(Question(f"q{n}", text, ())) for n, text in enumerate(PROMPTS)]
    answers = [LiveAnswer(each, max_new_tokens=13) for each in prompts]
    batch = LiveBatch(extraction, LIVE_ARRAYS)
    with batch.decoding():
        batch.add(answers)
        batch.step()
        batch.drop(answers[3:])
        while batch.answers:
            batch.step()
    assert [each.token_ids for each in answers[:3]] == [expected[f"q{n}"] for n in range(3)]
    assert len(answers[3].token_ids) <= 1


def test_one_row_attends_as_the_eager_attention_of_llama():
    draw = torch.Generator().manual_seed(0)
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    query, key, value = (
        torch.randn(5, heads, n, width, generator=draw)
        for heads, n, width in ((6, 1, 11), (2, 7, 11), (2, 7, 13))
    )
    mask = torch.zeros(5, 1, 1, 7)
    mask[1, ..., :3] = torch.finfo(torch.float32).min
    expected = eager_attention_forward(module, query, key, value, mask, scaling=0.4)
    found = one_row_attention(module, query, key, value, mask, scaling=0.4)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs)


def test_a_trace_stays_as_it_was_while_its_answer_grows(folders):
    extraction = extraction_of(folders("llama"))
    answer = LiveAnswer(extraction.prompt(Question("q", PROMPTS[3], ())), max_new_tokens=29)
    batch, earlier = LiveBatch(extraction, LIVE_ARRAYS), []
    batch._stops = frozenset()
    with batch.decoding():
        batch.add([answer])
        while batch.answers:
            batch.step()
            earlier.append(answer.trace(extraction.shape, extraction.loaded.tokenizer))
    assert len(earlier) == 29
    last = earlier[-1]
    for trace in earlier:
        n_rows = trace.answer_length + 1
        np.testing.assert_array_equal(trace.stream("span_mass"), last.stream("span_mass")[:, :, :n_rows])
        np.testing.assert_array_equal(trace.hidden_rows(1), last.hidden_rows(1)[:n_rows])
