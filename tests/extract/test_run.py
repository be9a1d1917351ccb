"""The whole run on a tiny model: resume, extend, refuse another configuration."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from graphhalu.core.axes import Span
from graphhalu.core.config import validate
from graphhalu.core.errors import StoreMismatchError, UsageError
from graphhalu.evaluation.crossfit import best_beams
from graphhalu.extract.generate import BeamSearch
from graphhalu.extract.run import extract
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.load import load_model
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import TraceStore, open_traces
from graphhalu.traces.verify import verify_store

N_QUESTIONS = 23


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny", "llama")


@pytest.fixture(scope="module")
def data_path(tmp_path_factory):
    """Questions in the DPR layout of TriviaQA."""
    path = tmp_path_factory.mktemp("data") / "questions.tsv"
    lines = [f"What is {n} plus {n}?\t['{2 * n}', 'number {2 * n}']" for n in range(N_QUESTIONS)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def config(model_folder, data_path):
    def make(**changes):
        values = {
            "model": {"name": str(model_folder), "threads": 1},
            "dataset": {"name": "triviaqa", "path": str(data_path)},
            "generation": {"num_beams": 3, "max_new_tokens": 5},
            "batch_size": 3,
            "part_size": 4,
            **changes,
        }
        return ExtractConfig.model_validate(values)

    return make


def test_every_question_becomes_one_trace_or_one_failure(config, tmp_path):
    progress = []
    summary = extract(config(), tmp_path / "a.zarr", on_progress=lambda *step: progress.append(step))
    store = open_traces(tmp_path / "a.zarr")
    named = [record.question_id for record in store.records]
    named += [failure["question_id"] for failure in store.failures]
    assert len(named) == len(set(named)) == N_QUESTIONS
    assert summary.n_new == N_QUESTIONS
    assert summary.n_traces == len(store)
    assert progress[-1] == (N_QUESTIONS, N_QUESTIONS)
    assert verify_store(tmp_path / "a.zarr") == []


def test_spans_partition_prompt_and_answer(config, tmp_path):
    extract(config(num_samples=5), tmp_path / "a.zarr")
    for trace in open_traces(tmp_path / "a.zarr"):
        assert (trace.is_answer == (np.arange(trace.length) >= trace.prompt_length)).all()
        assert trace.span_code[0] == Span.BOS
        assert Span.QUESTION in trace.span_code
        sums = trace.stream("span_mass").sum(-1)
        np.testing.assert_allclose(sums, 1, atol=4e-3)


def test_stored_attention_is_the_models_own_eager_attention(config, tmp_path):
    extract(config(num_samples=3), tmp_path / "a.zarr")
    loaded = load_model(config().model)
    loaded.model.set_attn_implementation("eager")
    for trace in open_traces(tmp_path / "a.zarr"):
        with torch.inference_mode():
            own = loaded.model(
                input_ids=torch.from_numpy(trace.token_ids.astype(np.int64))[None], output_attentions=True
            ).attentions
        for layer in trace.shape.attention_layers:
            np.testing.assert_allclose(trace.attention(layer), own[layer][0].numpy(), rtol=2**-11, atol=1e-6)


def test_another_batch_size_gives_the_same_answers(config, tmp_path):
    extract(config(batch_size=1), tmp_path / "one.zarr")
    extract(config(batch_size=16), tmp_path / "many.zarr")
    one, many = open_traces(tmp_path / "one.zarr"), open_traces(tmp_path / "many.zarr")
    assert [r.answer for r in one.records] == [r.answer for r in many.records]
    for first, second in zip(one, many, strict=True):
        np.testing.assert_allclose(
            first.stream("attention"), second.stream("attention"), rtol=2e-3, atol=1e-5
        )


def test_a_smaller_run_is_extended_without_doing_anything_twice(config, tmp_path):
    first = extract(config(num_samples=7), tmp_path / "a.zarr")
    second = extract(config(), tmp_path / "a.zarr")
    again = extract(config(), tmp_path / "a.zarr")
    assert (first.n_new, second.n_new, again.n_new) == (7, N_QUESTIONS - 7, 0)
    assert len(open_traces(tmp_path / "a.zarr").done_question_ids()) == N_QUESTIONS


def test_all_kept_beams_of_a_question_share_its_group(config, tmp_path):
    changed = config(generation={"num_beams": 3, "max_new_tokens": 5, "keep_beams": 3}, num_samples=5)
    extract(changed, tmp_path / "a.zarr")
    records = open_traces(tmp_path / "a.zarr").records
    by_question = {}
    for record in records:
        by_question.setdefault(record.question_id, []).append(record)
    assert max(map(len, by_question.values())) == 3
    for beams in by_question.values():
        assert len({beam.group_id for beam in beams}) == 1
        scores = [beam.beam_score for beam in beams]
        assert scores == sorted(scores, reverse=True)


def test_more_beams_than_there_are_cannot_be_kept(config):
    with pytest.raises(ValidationError, match="a search of 3 beams cannot keep 5 of them"):
        config(generation={"num_beams": 3, "keep_beams": 5})


def test_a_prompt_that_cannot_be_made_leaves_no_store(config, tmp_path):
    with pytest.raises(UsageError, match="no prompt template"):
        extract(config(prompt={"template": "concize"}), tmp_path / "a.zarr")
    assert not list(tmp_path.glob("*"))


def test_what_is_no_store_is_told_before_a_model_is_loaded(config, tmp_path, monkeypatch):
    monkeypatch.setattr("graphhalu.extract.worker.load_checked", lambda *_: pytest.fail("loaded"))
    (tmp_path / "a.zarr").mkdir()
    with pytest.raises(UsageError, match="another place with --out"):
        extract(config(), tmp_path / "a.zarr")


def test_settings_without_effect_are_no_part_of_the_identity(config, tmp_path):
    extract(config(num_samples=3), tmp_path / "a.zarr")
    stored = open_traces(tmp_path / "a.zarr").configuration
    assert set(stored["capture"]) == {"keep", "layers", "hidden_layers"}
    assert "answers" not in stored["generation"]
    assert "fields" not in stored["dataset"]


def test_parts_stay_within_their_bytes_though_questions_are_answered_together(config, tmp_path, monkeypatch):
    monkeypatch.setattr("graphhalu.extract.worker.PART_BYTES", 1)
    extract(config(num_samples=7, batch_size=8, part_size=8), tmp_path / "a.zarr")
    assert len(open_traces(tmp_path / "a.zarr").parts) == 7


def test_caches_that_do_not_fit_the_memory_make_smaller_batches(config, tmp_path, monkeypatch):
    monkeypatch.setattr("graphhalu.extract.extraction.batch_memory", lambda _: 1)
    sizes = []
    as_finished = BeamSearch.as_finished

    def counted(search, prompts, passes):
        sizes.append(len(prompts))
        return as_finished(search, prompts, passes)

    monkeypatch.setattr(BeamSearch, "as_finished", counted)
    extract(config(num_samples=5, batch_size=4), tmp_path / "a.zarr")
    assert sizes == [1] * 5


def test_another_configuration_is_refused_and_named(config, tmp_path):
    extract(config(num_samples=3), tmp_path / "a.zarr")
    changed = config(num_samples=3, generation={"num_beams": 2, "max_new_tokens": 5})
    with pytest.raises(StoreMismatchError, match=r"generation\.num_beams: 3 in the store, 2 asked"):
        extract(changed, tmp_path / "a.zarr")


def test_streams_alone_leave_the_matrices_out(config, tmp_path):
    changed = config(num_samples=3, capture={"keep": "streams", "hidden_layers": "none"})
    extract(changed, tmp_path / "a.zarr")
    store = open_traces(tmp_path / "a.zarr")
    assert "attention" not in store.arrays
    assert "hidden" not in store.arrays
    assert store[0].stream("span_mass").shape[0] == store.shape.n_layers


def test_a_question_longer_than_the_context_is_a_failure_with_the_lengths(config, tmp_path):
    path = tmp_path / "long.tsv"
    path.write_text(f"Who {'very ' * 40}old?\t['x']\nWho?\t['y']\n", encoding="utf-8")
    values = config().model_dump()
    values["dataset"]["path"] = str(path)
    summary = extract(ExtractConfig.model_validate(values), tmp_path / "a.zarr")
    reasons = " ".join(summary.failures)
    assert "context has 128" in reasons


def test_a_layer_that_the_model_does_not_have_is_refused(config, tmp_path):
    changed = config(capture={"layers": [1, 99]})
    with pytest.raises(UsageError, match="from 0 to 2"):
        extract(changed, tmp_path / "a.zarr")


def test_the_whole_configuration_is_kept_with_what_was_left_open_written_out(config, tmp_path):
    asked = config(num_samples=3, prompt={"chat": "auto"})
    extract(asked, tmp_path / "a.zarr")
    store = open_traces(tmp_path / "a.zarr")
    kept = ExtractConfig.model_validate(store.provenance["config"])
    assert (kept.prompt.template, kept.prompt.chat) == ("concise", "on")
    assert kept.generation.stop_at_newline is False
    assert kept.model.dtype == "float32"
    changed = {"prompt": asked.prompt, "generation": asked.generation, "model": asked.model}
    assert kept.model_copy(update=changed) == asked


def test_a_store_without_its_whole_configuration_is_extended(config, tmp_path):
    extract(config(num_samples=3), tmp_path / "new.zarr")
    new = open_traces(tmp_path / "new.zarr")
    TraceStore.create(
        tmp_path / "a.zarr", configuration=new.configuration, shape=new.shape, arrays=new.arrays
    )
    assert "config" not in open_traces(tmp_path / "a.zarr").provenance
    assert extract(config(num_samples=3), tmp_path / "a.zarr").n_new == 3


def test_samples_are_traces_of_the_question_beside_its_beam(config, tmp_path):
    sampling = {"num_beams": 3, "max_new_tokens": 5, "samples": 4, "temperature": 0.9}
    extract(config(generation=sampling, num_samples=7), tmp_path / "a.zarr")
    store = open_traces(tmp_path / "a.zarr")
    assert verify_store(tmp_path / "a.zarr") == []
    by_question = {}
    for record in store.records:
        by_question.setdefault(record.question_id, []).append(record)
    assert len(by_question) >= 5
    for records in by_question.values():
        assert [record.is_sample for record in records] == [record.beam_index > 0 for record in records]
        assert all(record.is_on_policy for record in records)
        assert len({record.group_id for record in records}) == 1
    best = best_beams(store)
    assert [not record.is_sample for record in store.records] == best.tolist()


def test_samples_do_not_depend_on_the_batch_and_a_store_without_any_is_as_before(config, tmp_path):
    sampling = {"num_beams": 3, "max_new_tokens": 5, "samples": 3}
    for size in (1, 5):
        extract(config(generation=sampling, num_samples=7, batch_size=size), tmp_path / f"{size}.zarr")
    one, five = (open_traces(tmp_path / f"{size}.zarr").records for size in (1, 5))
    assert [(r.trace_id, r.answer) for r in one] == [(r.trace_id, r.answer) for r in five]
    extract(config(num_samples=7), tmp_path / "plain.zarr")
    plain = open_traces(tmp_path / "plain.zarr")
    assert {(r.trace_id, r.answer) for r in plain.records} <= {(r.trace_id, r.answer) for r in one}
    assert "samples" not in plain.configuration["generation"]
    with pytest.raises(StoreMismatchError, match="samples"):
        extract(config(generation=sampling, num_samples=7), tmp_path / "plain.zarr")


def test_given_answers_cannot_be_sampled_beside(config, tmp_path):
    values = {**config().model_dump(), "generation": {"answers": "given", "samples": 2}}
    with pytest.raises(UsageError, match="none can be sampled"):
        extract(validate(ExtractConfig, values, source="a test"), tmp_path / "a.zarr")
