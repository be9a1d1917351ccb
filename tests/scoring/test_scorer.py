import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import DetectorMismatchError, UsageError
from graphhalu.evaluation.calibration import Calibration
from graphhalu.scoring.asked import asked_question, conversation
from graphhalu.scoring.scorer import AnswerScorer
from graphhalu.testing.tiny_models import save_tiny


def test_a_question_of_the_store_gets_the_score_of_its_trace(trained, scorer):
    detector = scorer.detector
    for trace in [trained.store[place] for place in (0, 2, 6)]:
        assert trace.record.beam_index == 0
        found = scorer.score(trace.record.question)
        assert found.answer == trace.record.answer
        assert found.score == pytest.approx(detector.score([trace]).values[0], abs=1e-4)
        assert not found.is_given


def test_the_probability_and_the_verdict_are_those_of_the_saved_calibration(trained, scorer):
    path = trained.run / "detector" / "calibration.json"
    calibration = Calibration.model_validate_json(path.read_text())
    found = scorer.score("What is 3 plus 4?")
    assert found.probability == calibration.probability(np.array([found.score]))[0]
    assert found.threshold == calibration.threshold
    assert found.is_hallucinated == (found.score >= calibration.threshold)


def test_a_given_answer_is_judged_and_not_the_models_own(scorer):
    found = scorer.score("What is 3 plus 4?", "seven")
    assert found.answer == "seven"
    assert found.is_given
    assert found.score != scorer.score("What is 3 plus 4?", "eight").score


def test_answers_that_are_scored_together_have_the_scores_that_they_have_alone(scorer):
    asked = [
        asked_question("What is 1 plus 2?"),
        asked_question("What is 1 plus 2?", "three"),
        asked_question("Which number is that?"),
        asked_question("What is 1 plus 2?", "four, or more than that"),
    ]
    together = [each.score for each in scorer.score_many(asked)]
    alone = [scorer.score_many([each])[0].score for each in asked]
    assert together == pytest.approx(alone, abs=1e-4)
    assert len(set(together)) == 4


def test_another_model_is_refused_with_the_reason(trained, tmp_path):
    other = save_tiny(tmp_path / "tiny", "llama", seed=1)
    with pytest.raises(DetectorMismatchError, match="weights"):
        AnswerScorer(trained.run, name=str(other), threads=1).score("What is 3 plus 4?")


def test_answers_are_scored_where_the_questions_of_the_training_are_not(live, tmp_path):
    run, questions = tmp_path / "run", tmp_path / "gone.jsonl"
    shutil.copytree(live["answers"].folder, run)
    for path in run.rglob("detector.json"):
        values = json.loads(path.read_text())
        values["identity"]["config"]["dataset"] = {"name": str(questions)}
        path.write_text(json.dumps(values))
    scorer = AnswerScorer(run, name=str(live["model"]), threads=1)
    assert scorer.score("What is 2 plus 2?", "4").failure is None


def test_an_answer_longer_than_the_context_is_refused_with_the_length(scorer):
    with pytest.raises(UsageError, match=r"need up to \d{4} tokens, the model's context has \d+"):
        scorer.score("What is 3 plus 4?", "x" * 5000)


@pytest.mark.parametrize(("question", "answer"), [("  ", None), ("What?", " ")])
def test_an_empty_question_or_answer_is_refused(scorer, question, answer):
    with pytest.raises(UsageError, match="empty"):
        scorer.score(question, answer)


def test_one_answer_that_fails_stops_no_other(scorer):
    asked = [asked_question("What is 1 plus 2?", "x" * 5000), asked_question("What is 1 plus 2?")]
    failed, found = scorer.score_many(asked)
    assert failed.score is None
    assert failed.probability is None
    assert "context" in failed.failure
    assert found.failure is None


def test_whole_attention_is_not_captured_for_a_detector_that_never_reads_it(trained, scorer):
    assert trained.store.configuration["capture"]["keep"] == "full"
    assert "attention" not in scorer.detector.card.reads
    assert scorer.config("generated").capture.keep == "streams"
    assert "attention" not in scorer.score("What is 3 plus 4?").trace.arrays


def test_the_search_and_the_prompt_are_those_of_the_training(trained, scorer):
    config = scorer.config("generated")
    stored = trained.store.configuration
    assert config.generation.num_beams == stored["generation"]["num_beams"] == 2
    assert config.generation.max_new_tokens == stored["generation"]["max_new_tokens"]
    assert config.prompt.template == stored["prompt"]["template"]
    assert config.model.dtype == stored["model"]["dtype"]


@pytest.mark.parametrize("compares", [None, "samples"])
def test_samples_are_drawn_only_for_a_detector_that_compares_them(trained, monkeypatch, compares):
    scorer = AnswerScorer(trained.run, name=str(trained.model), threads=1)
    config = scorer.identity.config
    saved = {**config, "generation": {**config["generation"], "samples": 3}}
    monkeypatch.setattr(scorer, "identity", scorer.identity.model_copy(update={"config": saved}))
    monkeypatch.setattr(scorer.detector, "card", replace(scorer.detector.card, compares=compares))
    assert scorer.config("given").generation.samples == 0
    assert scorer.config("generated").generation.samples == (3 if compares else 0)


@pytest.mark.parametrize("compares", [None, "context", "samples", "asked"])
def test_the_model_is_asked_only_for_a_detector_that_reads_what_it_says(trained, monkeypatch, compares):
    scorer = AnswerScorer(trained.run, name=str(trained.model), threads=1)
    config = scorer.identity.config
    saved = {**config, "generation": {**config["generation"], "samples": 3, "ask": True}}
    monkeypatch.setattr(scorer, "identity", scorer.identity.model_copy(update={"config": saved}))
    monkeypatch.setattr(scorer.detector, "card", replace(scorer.detector.card, compares=compares))
    assert not scorer.config("given").generation.ask
    assert scorer.config("generated").generation.ask == (compares == "asked")
    assert scorer.config("generated").generation.samples == (3 if compares in ("samples", "asked") else 0)


def test_a_run_without_its_identity_cannot_score_new_answers(trained, tmp_path):
    folder = tmp_path / "detector"
    folder.mkdir()
    for path in (trained.run / "detector").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "detector.json").read_text())
    del values["identity"]
    (folder / "detector.json").write_text(json.dumps(values))
    with pytest.raises(UsageError, match="does not say which model"):
        AnswerScorer(tmp_path)


def test_a_run_without_a_calibration_gives_a_score_and_no_verdict(trained, tmp_path):
    folder = tmp_path / "detector"
    folder.mkdir()
    for path in (trained.run / "detector").iterdir():
        if path.name != "calibration.json":
            (folder / path.name).write_bytes(path.read_bytes())
    found = AnswerScorer(tmp_path, name=str(trained.model), threads=1).score("What is 3 plus 4?")
    assert np.isfinite(found.score)
    assert (found.probability, found.is_hallucinated, found.threshold) == (None, None, None)


@pytest.fixture
def first_edition(trained, tmp_path):
    """The same detector as the first edition saved it: without the whole configuration."""
    folder = tmp_path / "detector"
    folder.mkdir()
    for path in (trained.run / "detector").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    values = json.loads((folder / "detector.json").read_text())
    assert values["identity"].pop("config")["generation"]["num_beams"] == 2
    (folder / "detector.json").write_text(json.dumps(values))
    return tmp_path


def test_a_detector_of_the_first_edition_makes_answers_as_one_of_today(trained, scorer, first_edition):
    old = AnswerScorer(first_edition, name=str(trained.model), threads=1)
    model = {"name": str(trained.model), "threads": 1}
    for answers in ("generated", "given"):
        ours, theirs = (each.config(answers, **model) for each in (scorer, old))
        assert ours.model == theirs.model
        assert ours.prompt == theirs.prompt
        assert ours.generation == theirs.generation
        assert ours.capture == theirs.capture
    question = "What is 3 plus 4?"
    assert old.score(question).to_json() == scorer.score(question).to_json()


def test_a_saved_configuration_runs_no_code_and_names_no_device(trained, first_edition):
    path = first_edition / "detector" / "detector.json"
    values = json.loads(path.read_text())
    model = {"name": "a/b", "trust_remote_code": "a/b@c", "device": "cuda:7", "threads": 31}
    values["identity"]["config"] = {"model": model}
    path.write_text(json.dumps(values))
    found = AnswerScorer(first_edition).config("generated").model
    assert found.name == "a/b"
    assert (found.trust_remote_code, found.device, found.threads) == (None, "auto", None)


def test_a_conversation_is_read_turn_by_turn():
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Count "}, {"type": "text", "text": "up."}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "count"}}]},
        {"role": "tool", "content": "1 2 3", "tool_call_id": "a"},
        {"role": "user", "content": "What came last?"},
    ]
    text, system, turns = conversation(messages)
    assert system == "Be brief."
    assert turns == (("user", "Count up."), ("assistant", '{"name": "count"}'))
    assert text == "Tool: 1 2 3\n\nWhat came last?"


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "the last message must be the user's"),
        ([{"role": "assistant", "content": "x"}], "the last message must be the user's"),
        ([{"content": "x"}], "expected messages with a role"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}],
            "expected messages of text",
        ),
    ],
)
def test_a_conversation_without_a_question_is_refused(messages, said):
    with pytest.raises(UsageError, match=said):
        conversation(messages)
