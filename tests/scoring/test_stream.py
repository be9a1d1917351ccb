"""Scores while an answer is written, against the same answers scored as a whole."""

import numpy as np
import pytest
import torch

from graphhalu.core.errors import DetectorMismatchError, UsageError
from graphhalu.datasets.question import Question
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.scoring.scorer import AnswerScorer
from graphhalu.scoring.stream import LiveScores, TextStream
from graphhalu.testing.tiny_models import save_tiny, tiny_tokenizer

ASKED = ["What is 3 plus 3?", "Who are you?", "Is the sea deep?"]


@pytest.mark.parametrize("kind", ["answers", "tokens"])
@pytest.mark.parametrize("question", ASKED)
def test_a_streamed_answer_has_the_score_of_the_same_answer_as_a_whole(live, kind, question):
    scorer = live[kind]
    tokens = list(scorer.stream(question, max_new_tokens=7))
    text = "".join(token.text for token in tokens)
    final = tokens[-1].answer
    assert all(token.answer is None for token in tokens[:-1])
    assert final is not None
    if not text:
        assert final.failure == "the model gave an empty answer"
        return
    assert final.answer == text.strip()
    offline = scorer.score(question, final.answer)
    n_tokens = sum(token.token_id is not None for token in tokens)
    if offline.trace.answer_length == n_tokens:  # written as its text is read
        assert final.score == pytest.approx(offline.score, abs=1e-4)
    assert not final.is_given


def test_tokens_have_scores_one_by_one_that_end_as_those_of_the_whole(live):
    scorer = live["tokens"]
    reach = scorer.detector.token_reach
    assert reach in (0, 1)
    tokens = list(scorer.stream(ASKED[0], max_new_tokens=9))
    whole = tokens[-1].answer.tokens
    scores = [token.score for token in tokens if token.token_id is not None]
    assert len(scores) == len(whole)
    if reach == 0:
        np.testing.assert_allclose(scores, whole, atol=1e-6)
    else:  # the newest token was judged before the one after it was there
        np.testing.assert_allclose(scores[-1], whole[-1], atol=1e-6)


def test_arrays_that_nobody_reads_are_not_kept(live):
    arrays = {kind: LiveScores(live[kind], live[kind].extraction()).arrays for kind in ("answers", "tokens")}
    assert "hidden_rows" in arrays["answers"]
    assert "hidden_rows" not in arrays["tokens"]
    assert all("span_mass" in kept and "argmax_key" not in kept for kept in arrays.values())


def test_a_detector_of_answers_says_the_score_of_the_answer_so_far(live):
    tokens = list(live["answers"].stream(ASKED[0], max_new_tokens=5))
    known = [token for token in tokens if token.score is not None]
    assert len(known) >= 3
    assert len({token.score for token in known}) > 1
    assert known[-1].score == pytest.approx(
        known[-1].answer.score if known[-1].answer else tokens[-1].answer.score
    )
    assert all(0 <= token.probability <= 1 for token in known)


def test_a_bound_model_gives_the_scores_of_the_loaded_one_with_a_note(live):
    loaded = load_model(ModelSpec(name=str(live["model"]), threads=1))
    scorer = AnswerScorer(live["answers"].folder)
    found = scorer.bind(loaded.model, loaded.tokenizer).score(ASKED[0], "7")
    expected = live["answers"].score(ASKED[0], "7")
    assert found.score == pytest.approx(expected.score, abs=1e-6)
    assert any("not compared" in warning for warning in found.warnings)
    same = AnswerScorer(live["answers"].folder).bind(loaded.model, loaded.tokenizer, is_same=True)
    assert not any("not compared" in each for each in same.score(ASKED[0], "7").warnings)


def test_a_bound_model_of_other_sizes_is_refused(live, tmp_path):
    other = load_model(ModelSpec(name=str(save_tiny(tmp_path / "tiny", "qwen3")), threads=1))
    with pytest.raises((DetectorMismatchError, UsageError)):
        AnswerScorer(live["answers"].folder).bind(other.model, other.tokenizer).score(ASKED[0], "7")


@pytest.mark.parametrize(("model", "tokenizer"), [(object(), None), (torch.nn.Linear(2, 3), None)])
def test_what_is_no_language_model_cannot_be_bound(live, model, tokenizer):
    with pytest.raises(UsageError, match="expected a causal language model"):
        AnswerScorer(live["answers"].folder).bind(model, tokenizer)


def test_generate_ends_when_the_risk_passes_the_limit(live):
    loaded = load_model(ModelSpec(name=str(live["model"]), threads=1))
    scorer = AnswerScorer(live["tokens"].folder).bind(loaded.model, loaded.tokenizer)
    curve = {"method": "platt", "slope": 5.0, "centre": 0.0, "intercept": 0.0, "reach": 100.0}
    scorer.calibration = scorer.calibration.model_copy(update=curve)
    settings = {"do_sample": False, "max_new_tokens": 9, "pad_token_id": 0, "eos_token_id": 96}
    settings["return_dict_in_generate"] = False
    with scorer.watch(ASKED[0], limit=1.0) as risk:
        free = loaded.model.generate(risk.input_ids, stopping_criteria=[risk], **settings)
    plain = loaded.model.generate(risk.input_ids, **settings)
    assert free.tolist() == plain.tolist()
    chances = [token.probability for token in risk.tokens]
    assert len(chances) == free.shape[1] - risk.input_ids.shape[1] - 1
    assert len(set(chances)) > 1
    limit = (min(chances) + max(chances)) / 2
    first = next(place for place, chance in enumerate(chances) if chance > limit)
    with scorer.watch(ASKED[0], limit=limit) as risk:
        cut = loaded.model.generate(risk.input_ids, stopping_criteria=[risk], **settings)
    # the risky token, and the one that was chosen when it was judged
    assert cut.shape[1] - risk.input_ids.shape[1] == first + 2
    assert cut[0].tolist() == free[0, : cut.shape[1]].tolist()


def test_the_criterion_says_the_scores_of_the_stream(live):
    loaded = load_model(ModelSpec(name=str(live["model"]), threads=1))
    scorer = AnswerScorer(live["tokens"].folder).bind(loaded.model, loaded.tokenizer)
    streamed = [token for token in scorer.stream(ASKED[1], max_new_tokens=6) if token.token_id is not None]
    stops = list(loaded.eos_token_ids)
    with scorer.watch(ASKED[1], limit=1.0) as risk:
        loaded.model.generate(
            risk.input_ids,
            stopping_criteria=[risk],
            do_sample=False,
            max_new_tokens=6,
            eos_token_id=stops,
            pad_token_id=0,
        )
    n = min(len(risk.tokens), len(streamed))
    assert n >= 2
    assert [token.text for token in risk.tokens[:n]] == [token.text for token in streamed[:n]]
    np.testing.assert_allclose(
        [token.score for token in risk.tokens[:n]], [token.score for token in streamed[:n]], atol=1e-5
    )


def test_several_sequences_are_refused_by_the_criterion(live):
    loaded = load_model(ModelSpec(name=str(live["model"]), threads=1))
    scorer = AnswerScorer(live["tokens"].folder).bind(loaded.model, loaded.tokenizer)
    with scorer.watch(ASKED[0], limit=0.5) as risk, pytest.raises(UsageError, match="one sequence"):
        loaded.model.generate(
            risk.input_ids.repeat(2, 1), stopping_criteria=[risk], max_new_tokens=3, pad_token_id=0
        )


def test_a_detector_that_needs_all_rows_cannot_watch(scorer):
    with pytest.raises(UsageError, match="reads more of an answer than exists"):
        scorer.watch("What is 3 plus 3?", limit=0.5)


def test_a_detector_that_needs_all_rows_scores_a_streamed_answer_at_its_end(scorer):
    tokens = list(scorer.stream("What is 3 plus 3?", max_new_tokens=5))
    assert [token.score for token in tokens] == [None] * len(tokens)
    assert tokens[-1].answer.score is not None


def test_earlier_turns_are_context_and_change_the_score(live):
    scorer = live["answers"]
    alone = scorer.score("What is 3 plus 3?", "7")
    turns = (("user", "Count."), ("assistant", "1, 2, 3."))
    talked = scorer.score(Question("q", "What is 3 plus 3?", (), turns=turns, given=alone_given("7")))
    assert talked.score != alone.score
    assert talked.trace.prompt_length > alone.trace.prompt_length


def alone_given(text):
    from graphhalu.datasets.question import GivenAnswer

    return (GivenAnswer(text),)


def test_text_comes_once_a_character_is_complete():
    tokenizer = tiny_tokenizer()
    ids = tokenizer("deep sea", add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer)
    assert "".join(stream.add(token_id) for token_id in ids) == tokenizer.decode(ids)


def test_a_threshold_is_a_probability(live):
    scorer = AnswerScorer(live["answers"].folder, name=str(live["model"]), threads=1)
    found = scorer.score(ASKED[0], "7")
    scorer.decide_at(probability=found.probability)
    again = scorer.score(ASKED[0], "7")
    assert again.is_hallucinated
    assert again.threshold_probability == found.probability
    scorer.decide_at(probability=min(1.0, found.probability + 1e-6))
    assert not scorer.score(ASKED[0], "7").is_hallucinated


def test_two_ways_to_choose_a_threshold_are_one_too_many(live):
    scorer = AnswerScorer(live["answers"].folder)
    with pytest.raises(UsageError, match="use one of"):
        scorer.decide_at(probability=0.5, target_fpr=0.1)
