"""A tiny model on small files: numbers, labels, ablations, resuming, refusals."""

import json
from functools import cache

import numpy as np
import pytest
import torch

from graphhalu.core.config import load_config
from graphhalu.core.errors import ConfigError, DataFileError, StoreMismatchError, UsageError
from graphhalu.models.load import load_model
from graphhalu.studies.sinks import measure as measure_module
from graphhalu.studies.sinks.measure import measure
from graphhalu.studies.sinks.records import read_run
from graphhalu.studies.sinks.settings import SinkMeasureConfig
from graphhalu.testing.tiny_models import save_tiny

CSV = "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n" + "".join(
    f"A,B,Is {n} odd?,yes {n},yes {n}; sure {n},no {n}; never {n}; hardly {n},x\n" for n in range(5)
)
FRESH = "id,question,false_premise,answer_0\n1,Who is x?,TRUE,nobody\n2,Who is y?,FALSE,z\n"
HALU = [
    {"knowledge": "K.", "question": f"Q{n}?", "right_answer": "a", "hallucinated_answer": "b c"}
    for n in range(2)
]
TRIVIA = "question,answers\nWho wrote it?,Ann\nWhere is it?,Rome\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models and data files."""
    folder = tmp_path_factory.mktemp("sinks")
    save_tiny(folder / "tiny", "llama")
    save_tiny(folder / "plain", "llama", chat=False)
    save_tiny(folder / "sliding", "mistral")
    (folder / "t.csv").write_text(CSV)
    (folder / "fresh.csv").write_text(FRESH)
    (folder / "own.csv").write_text(TRIVIA)
    (folder / "halu.json").write_text("\n".join(map(json.dumps, HALU)))
    return folder


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch):
    """Loading and checking a model takes longer than all else here."""
    monkeypatch.setattr(measure_module, "load_model", load_once)
    monkeypatch.setattr(measure_module, "check_model", lambda _: None)


@cache
def load_once(spec):
    return load_model(spec)


def config(folder, dataset="truthfulqa_mc", file="t.csv", model="tiny", **changes):
    values = {
        "model.name": str(folder / model),
        "model.threads": 1,
        "dataset.name": dataset,
        "dataset.path": folder / file,
        "ks": [1, 3],
        "modes": ["last", "range"],
        # the tiny models see 128 tokens, and a letter is a token
        "prompt.template": "bare",
        **changes,
    }
    return load_config(SinkMeasureConfig, None, values)


def by_name(runs):
    return {run.path.name: read_run(run.path) for run in runs}


def test_records_equal_the_models_own_eager_attention(folder, tmp_path):
    settings = config(folder)
    found = by_name(measure(settings, tmp_path))
    assert sorted(found) == [
        f"truthfulqa_mc__tiny__K{k}__q{mode}.jsonl.gz" for k in (1, 3) for mode in ("last", "range")
    ]
    loaded = load_once(settings.model)
    run = found["truthfulqa_mc__tiny__K3__qrange.jsonl.gz"]
    last = found["truthfulqa_mc__tiny__K3__qlast.jsonl.gz"]
    questions = measure_module.load_questions("truthfulqa_mc", folder / "t.csv")
    items, _ = measure_module.sink_prompts(questions, "choice", settings, loaded)
    for record, other, item in zip(run.records, last.records, items, strict=True):
        ids = torch.tensor(item.sequence.token_ids[:-1].astype(np.int64))[None]
        loaded.model.set_attn_implementation("eager")
        output = loaded.model(ids, output_attentions=True)
        loaded.model.set_attn_implementation("sdpa")
        weights = torch.stack(output.attentions)[:, 0].numpy()
        assert record.seq_len == weights.shape[-1]
        expected = weights[:, :, 3:, :3].sum(-1).mean(-1)
        np.testing.assert_allclose(record.by_head, expected, atol=1e-6)
        np.testing.assert_allclose(other.by_head, weights[:, :, -1, :3].sum(-1), atol=1e-6)
        logits = torch.log_softmax(output.logits[0, -1], dim=-1)
        assert record.entropy == pytest.approx(float(-(logits.exp() * logits).sum()), abs=1e-4)
        assert record.labels["hallucinated"] == int(record.pred not in record.target)


def test_the_description_has_the_published_fields_and_what_the_window_covers(folder, tmp_path):
    run = measure(config(folder, **{"prompt.chat": "on"}), tmp_path)[0]
    meta = read_run(run.path).meta
    for name in (
        "task",
        "dataset",
        "model",
        "samples",
        "seed",
        "sink_tokens",
        "query_mode",
        "chat",
        "quantization",
        "device",
        "torch_version",
        "timestamp",
    ):
        assert name in meta
    assert meta["chat"] == "on"
    assert meta["n_parameters"] > 0
    assert meta["sink_spans"] == [{"bos": 1.0}]


def test_one_call_makes_every_ablation_and_says_in_one_line_what_is_skipped(folder, tmp_path, caplog):
    caplog.set_level("INFO", logger="graphhalu")
    runs = measure(config(folder, num_samples=2), tmp_path, ablate=["k", "chat", "quantization"])
    notes = caplog.messages
    folders = {run.path.parent.name for run in runs}
    assert folders == {"chat-off_none", "chat-on_none"}
    assert len(runs) == 8
    assert [note for note in notes if "quantisation" in note and "skipped" in note]
    assert all("\n" not in note for note in notes)


def test_a_model_without_a_chat_template_skips_that_part_of_an_ablation(folder, tmp_path, caplog):
    caplog.set_level("INFO", logger="graphhalu")
    runs = measure(config(folder, model="plain", num_samples=2), tmp_path, ablate=["chat"])
    assert {run.path.parent.name for run in runs} == {"chat-off"}
    assert any("chat on skipped" in note for note in caplog.messages)


def test_a_false_premise_is_posed_as_a_choice_and_gets_both_labels(folder, tmp_path):
    run = read_run(measure(config(folder, "freshqa", "fresh.csv"), tmp_path)[0].path)
    assert sorted(record.labels["input"] for record in run.records) == [0, 1]
    assert {record.labels["hallucinated"] for record in run.records} <= {0, 1}
    assert {record.target for record in run.records} <= {"A", "B"}


def test_a_given_answer_is_read_and_its_label_speaks_of_the_input(folder, tmp_path):
    run = read_run(measure(config(folder, "halueval_qa", "halu.json"), tmp_path)[0].path)
    assert [record.labels["input"] for record in run.records] == [0, 1, 0, 1]
    assert all(record.labels["hallucinated"] is None for record in run.records)
    assert len({record.group for record in run.records}) == 2
    # the wrong answer is longer, and was read
    assert run.records[1].seq_len > run.records[0].seq_len


def test_questions_that_need_words_are_answered_into_a_store_and_read_from_it(folder, tmp_path):
    settings = config(
        folder, str(folder / "own.csv"), max_new_tokens=4, num_beams=2, **{"dataset.path": None}
    )
    runs = measure(settings, tmp_path)
    assert (tmp_path / "own__tiny.zarr").is_dir()
    assert len(runs) == 4
    assert read_run(runs[0].path).first.task == "own"


def test_a_killed_run_goes_on_and_gives_the_same_numbers(folder, tmp_path, monkeypatch):
    whole = by_name(measure(config(folder), tmp_path / "whole"))
    monkeypatch.setattr(measure_module, "WAVE", 2)
    ran, original = [], measure_module.measure_prompts

    def killed(items, *how):
        ran.append(len(items))
        if len(ran) == 2:
            raise KeyboardInterrupt
        return original(items, *how)

    monkeypatch.setattr(measure_module, "measure_prompts", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(config(folder), tmp_path / "cut")
    journal = next((tmp_path / "cut").glob(".*.journal"))
    with journal.open("a") as file:
        file.write('{"idx": 4, "ent')  # the line that the kill cut off
    resumed = by_name(measure(config(folder), tmp_path / "cut"))
    assert sum(ran[2:]) == 3
    assert not journal.exists()
    for name, run in whole.items():
        for old, new in zip(run.records, resumed[name].records, strict=True):
            np.testing.assert_allclose(new.by_head, old.by_head, atol=1e-6)
            assert new.pred == old.pred


def test_what_is_there_is_not_measured_again_and_other_settings_are_refused(folder, tmp_path):
    measure(config(folder, num_samples=2), tmp_path)
    again = measure(config(folder, num_samples=2), tmp_path)
    assert not any(run.is_new for run in again)
    with pytest.raises(StoreMismatchError, match="num_samples"):
        measure(config(folder, num_samples=3), tmp_path)


def test_a_journal_of_something_else_is_refused(folder, tmp_path):
    (tmp_path / ".truthfulqa_mc__tiny.journal").write_text("nonsense\n")
    with pytest.raises(DataFileError, match="not a journal"):
        measure(config(folder), tmp_path)


def test_a_layer_whose_window_has_left_the_sink_is_not_seen(folder, tmp_path):
    run = read_run(measure(config(folder, model="sliding", num_samples=2), tmp_path)[0].path)
    assert not run.first.is_seen.any()
    assert not run.usable


def test_settings_that_cannot_be_used_are_refused(folder):
    with pytest.raises(ConfigError, match="different numbers"):
        config(folder, ks=[4, 4])
    with pytest.raises(ConfigError, match="modes"):
        config(folder, modes=["first"])


def test_a_store_keeps_four_tokens_and_more_are_refused(folder, tmp_path):
    settings = config(folder, str(folder / "own.csv"), ks=[5], **{"dataset.path": None})
    with pytest.raises(UsageError, match="first 4 tokens"):
        measure(settings, tmp_path)
