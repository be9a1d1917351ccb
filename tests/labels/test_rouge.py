import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from graphhalu.core.errors import UnknownNameError, UsageError
from graphhalu.labels.registry import LabelDecision
from graphhalu.labels.rouge import RougeOverlap, UnicodeTokenizer
from graphhalu.traces.schema import TraceRecord

ASCII = st.text(alphabet=string.printable, max_size=61)
SENTENCE = st.lists(st.sampled_from(["a", "b", "c", "D", "e5"]), min_size=1, max_size=11).map(" ".join)


def label(
    answer: str, answers: tuple[str, ...], incorrect: tuple[str, ...] = (), threshold: float = 0.3
) -> LabelDecision:
    record = TraceRecord(
        "q#0", "q", "q", "What?", answers, answer, "What?", 2, 3, incorrect_answers=incorrect
    )
    return RougeOverlap(threshold=threshold).label(record)


@given(ASCII)
def test_on_ascii_the_tokens_are_those_of_rouge_score(text: str) -> None:
    assert UnicodeTokenizer().tokenize(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


@given(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3))
def test_on_ascii_the_score_is_the_best_of_rouge_score(answer: str, references: list[str]) -> None:
    scorer = RougeScorer(["rougeL"])
    expected = max(scorer.score(text, answer)["rougeL"].fmeasure for text in references)
    assert RougeOverlap().best_score(answer, references) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("東京", "東京", 1.0),
        # longest common subsequence 東京 = 2; precision 2/4, recall 2/2
        ("東京です", "東京", 2 * (2 / 4) * (2 / 2) / (2 / 4 + 2 / 2)),
        # 東…都 = 2; precision 2/3, recall 2/3
        ("東の都", "東京都", 2 / 3),
        ("大阪", "東京", 0.0),
        # a word of Latin letters is one token: 3 of 5 and 3 of 3
        ("iPhoneは日本製", "iPhone日本", 2 * (3 / 5) * (3 / 3) / (3 / 5 + 3 / 3)),
        ("Gödel", "godel", 1.0),
    ],
)
def test_beyond_ascii_the_score_is_as_by_hand(answer: str, reference: str, expected: float) -> None:
    assert RougeOverlap().best_score(answer, [reference]) == pytest.approx(expected)


@given(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3))
def test_on_ascii_the_recall_is_the_best_of_rouge_score(answer: str, references: list[str]) -> None:
    scorer = RougeScorer(["rouge1"])
    expected = max(scorer.score(text, answer)["rouge1"].recall for text in references)
    assert RougeOverlap("rouge1_recall").best_score(answer, references) == expected


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("It is Paris, in France.", "Paris", 1.0),
        ("It is Paris.", "Paris, France", 1 / 2),
        ("France has Paris", "Paris, France", 1.0),  # the order plays no part
        ("Paris", "Paris Paris", 1 / 2),  # a token counts as often as it stands
        ("東の都です", "東京都", 2 / 3),
        ("Lyon", "Paris", 0.0),
    ],
)
def test_the_recall_is_as_by_hand(answer: str, reference: str, expected: float) -> None:
    found = RougeOverlap("rouge1_recall").best_score(answer, [reference])
    assert found == pytest.approx(expected)


def test_by_recall_a_sentence_around_the_gold_answer_is_correct() -> None:
    record = TraceRecord("q#0", "q", "q", "What?", ("Paris",), "I think that the city is Paris.", "", 2, 3)
    assert RougeOverlap("rouge1_recall").label(record).reason == "enough overlap"
    assert RougeOverlap().label(record).reason == "low overlap"


def test_each_metric_has_its_own_threshold_and_an_unknown_one_is_refused() -> None:
    assert RougeOverlap().settings()["threshold"] == 0.3
    assert RougeOverlap("rouge1_recall").settings()["threshold"] == 0.7
    assert RougeOverlap("rouge1_recall", 0.2).settings()["threshold"] == 0.2
    with pytest.raises(UnknownNameError, match="Did you mean 'rougeL_f1'"):
        RougeOverlap("rougel_f")


def test_best_scores_are_those_that_a_threshold_decides_by() -> None:
    def record(answer: str, incorrect: tuple[str, ...] = ()) -> TraceRecord:
        return TraceRecord("q#0", "q", "q", "What?", ("a b",), answer, "", 2, 3, incorrect_answers=incorrect)

    records = [record("a b"), record("a x"), record(""), record("a b", ("c",)), record("x")]
    scores, is_decided = RougeOverlap().best_scores(records)
    assert is_decided.tolist() == [True, True, False, False, True]
    np.testing.assert_allclose(scores, [1, 0.5, np.nan, np.nan, 0])


def test_the_threshold_itself_is_enough() -> None:
    # 1 common of 4 and of 4 tokens: F1 = 0.25
    assert label("a x y z", ("a b c d",), threshold=0.25).reason == "enough overlap"
    assert label("a x y z", ("a b c d",), threshold=0.26) == LabelDecision(
        1, is_valid=True, reason="low overlap"
    )


def test_the_best_of_all_aliases_counts() -> None:
    assert label("Paris", ("Lutetia", "Paris")).value == 0


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("Nothing happens to you", 0),
        ("You grow watermelons in your stomach", 1),
        ("Bananas", 1),  # resembles neither: 0 >= 0
    ],
)
def test_stated_incorrect_answers_take_the_place_of_the_threshold(answer: str, value: int) -> None:
    decision = label(answer, ("Nothing happens",), ("You grow watermelons", "You die"))
    assert (decision.value, decision.is_valid) == (value, True)


def test_a_tie_between_correct_and_incorrect_is_hallucinated() -> None:
    assert label("x y", ("x",), ("y",)).reason == "closer to an incorrect answer"


@pytest.mark.parametrize(
    ("answer", "reason"), [("", "empty answer"), (" … ", "empty answer"), ("I don't know", "refusal")]
)
def test_an_answer_that_says_nothing_is_not_valid(answer: str, reason: str) -> None:
    assert label(answer, ("Paris",)) == LabelDecision(0, is_valid=False, reason=reason)


def test_a_refusal_that_the_data_set_lists_as_correct_is_correct() -> None:
    assert label("I have no comment.", ("No", "I have no comment"), ("Yes",)).value == 0


def test_without_gold_answers_nothing_is_decided() -> None:
    assert label("Paris", ()).reason == "no gold answer"


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.1, float("nan")])
def test_a_threshold_outside_its_range_is_refused(threshold: float) -> None:
    with pytest.raises(UsageError, match="above 0 and at most 1"):
        RougeOverlap(threshold=threshold)


def test_the_settings_say_what_the_decision_depends_on() -> None:
    settings = RougeOverlap(threshold=0.5).settings()
    assert settings["threshold"] == 0.5
    assert settings["incorrect_answers"] == "hallucinated if best incorrect >= best correct"
    assert "unicode" in settings["tokenizer"]
