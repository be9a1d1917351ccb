from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphhalu.core.errors import UnknownNameError
from graphhalu.labels.match import AliasMatch, claims, content_words, is_partial, is_refusal, kind_of
from graphhalu.labels.registry import LabelDecision, make_labeller
from graphhalu.traces.schema import TraceRecord

RIGHT = LabelDecision(0, is_valid=True, reason="alias")
INSIDE = LabelDecision(0, is_valid=True, reason="alias inside")
WRONG = LabelDecision(1, is_valid=True, reason="no alias")
NEGATED = LabelDecision(1, is_valid=True, reason="negated alias")
PARTIAL = LabelDecision(0, is_valid=False, reason="partial match")
REPEATED = LabelDecision(0, is_valid=False, reason="alias of the question")
DENIED = LabelDecision(0, is_valid=False, reason="negation after the alias")
EMPTY = LabelDecision(0, is_valid=False, reason="empty answer")
REFUSAL = LabelDecision(0, is_valid=False, reason="refusal")

TABLE = [
    # equal in form
    ("Paris", ["Paris"], RIGHT),
    ("paris.", ["Paris"], RIGHT),
    ("  PARIS!  ", ["Paris"], RIGHT),
    ("The Beatles", ["Beatles"], RIGHT),
    ("Beatles", ["The Beatles"], RIGHT),
    ("An Inspector Calls", ["Inspector Calls"], RIGHT),
    ("Kurt Godel", ["Kurt Gödel"], RIGHT),
    ("Gorbačëv", ["Gorbacev"], RIGHT),
    ("São Paulo", ["Sao Paulo"], RIGHT),
    ("US", ["U.S."], RIGHT),
    ("U.S.", ["US"], RIGHT),
    ("Jean Paul Sartre", ["Jean-Paul Sartre"], RIGHT),
    ("Lutetia", ["Paris", "Paree", "Lutetia"], RIGHT),
    ("A", ["A"], RIGHT),
    # numbers
    ("1000", ["1,000"], RIGHT),
    ("1,000", ["1000"], RIGHT),
    ("seven", ["7"], RIGHT),
    ("7", ["Seven"], RIGHT),
    ("twenty-one", ["21"], RIGHT),
    ("There are five of them.", ["5"], INSIDE),
    ("15", ["5"], WRONG),
    ("It has 15 members.", ["5"], WRONG),
    ("5.5", ["5"], WRONG),
    ("-5", ["5"], WRONG),
    ("50", ["5"], WRONG),
    ("It is 3.50 metres long.", ["3.5"], INSIDE),
    ("35", ["3.5"], WRONG),
    ("It is one of the oldest.", ["1"], WRONG),
    ("twenty-one", ["20"], WRONG),
    # years
    ("It ended in 1945.", ["1945"], INSIDE),
    ("It ended in 1946.", ["1945"], WRONG),
    ("It lasted from 1914–1918.", ["1918"], INSIDE),
    ("In the 1940s.", ["1940"], WRONG),
    ("19455", ["1945"], WRONG),
    # inside a sentence, on word boundaries
    ("The capital of France is Paris.", ["Paris"], INSIDE),
    ("It is the New York-based bank.", ["New York"], INSIDE),
    ("It is Paris's tower.", ["Paris"], INSIDE),
    ("Parisian", ["Paris"], WRONG),
    ("Comparison", ["Paris"], WRONG),
    ("It was the mandate of heaven.", ["man"], WRONG),
    ("Lyon", ["Paris"], WRONG),
    ("Chicago", ["Chicago, Illinois"], PARTIAL),
    ("It is Chicago, Illinois.", ["Chicago, Illinois"], INSIDE),
    # plurals count only when they are listed; otherwise nothing is decided
    ("bananas", ["banana"], PARTIAL),
    ("It is a city.", ["Cities"], PARTIAL),
    ("It is glas.", ["glass"], WRONG),
    # parts, and words apart
    ("Obama", ["Barack Obama"], PARTIAL),
    ("It was Obama.", ["Barack Obama"], PARTIAL),
    ("It was Michelle Obama.", ["Barack Obama"], WRONG),
    ("It was not Obama.", ["Barack Obama"], WRONG),
    ("Franklin D. Roosevelt", ["Franklin Roosevelt"], PARTIAL),
    ("blue", ["dark blue"], PARTIAL),
    ("1945", ["8 May 1945"], PARTIAL),
    ("It is.", ["It is what it is, Paris"], WRONG),
    ("bananas", ["banana", "bananas"], RIGHT),
    # function words
    ("It is Carrie.", ["It"], WRONG),
    ("It", ["It"], RIGHT),
    ("They gave us a hint.", ["US", "USA"], WRONG),
    ("It was the US.", ["US"], INSIDE),
    # negations
    ("not Paris", ["Paris"], NEGATED),
    ("It is not Paris but Lyon.", ["Paris"], NEGATED),
    ("It isn't Paris.", ["Paris"], NEGATED),
    ("It was never in Paris.", ["Paris"], NEGATED),
    ("Lyon rather than Paris.", ["Paris"], NEGATED),
    ("It is Lyon, not Paris.", ["Paris", "City of Light"], NEGATED),
    ("Not Lyon but Paris.", ["Paris"], INSIDE),
    ("No, Paris.", ["Paris"], INSIDE),
    ("Lyon it is not. Paris is.", ["Paris"], INSIDE),
    ("Not Paris, or is it? Yes, Paris.", ["Paris"], INSIDE),
    ("Not only Paris.", ["Paris"], INSIDE),
    ("Not Fade Away", ["Not Fade Away"], RIGHT),
    ("It is a forget-me-not.", ["Forget-me-not"], INSIDE),
    ("Paris is not it.", ["Paris"], DENIED),
    ("Paris isn't it.", ["Paris"], DENIED),
    ("Paris is not only old.", ["Paris"], INSIDE),
    ("Paris is not it. It is Paris.", ["Paris"], INSIDE),
    # scripts without spaces
    ("東京です。", ["東京"], INSIDE),
    ("日本の首都は東京です", ["東京", "Tokyo"], INSIDE),
    ("大阪です", ["東京"], WRONG),
    ("東京", ["東京"], RIGHT),
    ("答えは15年です", ["15"], INSIDE),
    ("答えは15年です", ["5年"], WRONG),
    ("ﾄｳｷｮｳ", ["トウキョウ"], RIGHT),
    ("かき", ["がき"], WRONG),
    ("서울입니다", ["서울"], INSIDE),
    # nothing to judge
    ("", ["Paris"], EMPTY),
    (" \n ", ["Paris"], EMPTY),
    ("...", ["Paris"], EMPTY),
    ("I don't know.", ["Paris"], REFUSAL),
    ("I don’t know Paris well enough.", ["Paris"], REFUSAL),
    ("I'm not sure.", ["Paris"], REFUSAL),
    ("I cannot answer that question.", ["Paris"], REFUSAL),
    ("As an AI, I have no access to that.", ["Paris"], REFUSAL),
    ("Sorry, there is not enough information.", ["Paris"], REFUSAL),
    ("Unknown", ["Paris"], REFUSAL),
    ("わかりません。", ["東京"], REFUSAL),
    ("I'm not sure, but I think it is Paris.", ["Paris"], INSIDE),
    ("I'm not sure, but I think it is Lyon.", ["Paris"], WRONG),
    ("Paris, though I'm not sure.", ["Paris"], INSIDE),
    ("I have no comment", ["No", "I have no comment"], RIGHT),
    ("unknown", ["Unknown"], RIGHT),
]


REPEATS = [
    ("Which is larger, Jupiter or Saturn?", "Saturn is larger than Jupiter.", REPEATED),
    ("Which is larger, Jupiter or Saturn?", "Jupiter is larger.", REPEATED),
    ("Which is larger, Jupiter or Saturn?", "The answer is Jupiter.", INSIDE),
    ("Which is larger, Jupiter or Saturn?", "Jupiter!", RIGHT),
    ("Which is larger, Jupiter or Saturn?", "Jupiter. Yes, it is Jupiter.", INSIDE),
    ("Which is larger, Jupiter or Saturn?", "Saturn", WRONG),
    ("Is it Saturn-Jupiter?", "Saturn orbits, and Jupiter too.", REPEATED),
    ("Which planet is the largest?", "Jupiter is larger.", INSIDE),
    ("Which planet has the Jupiters?", "Jupiter has them.", INSIDE),
    ("Of which country is Mexico-Jupiter a city?", "Mexico-Jupiter is of Jupiter.", REPEATED),
]


def record(answer: str, answers: list[str], question: str = "What?") -> TraceRecord:
    return TraceRecord("q#0", "q", "q", question, tuple(answers), answer, "What?", 2, 3)


def label(answer: str, answers: list[str]) -> LabelDecision:
    return AliasMatch().label(record(answer, answers))


def test_the_table_is_large_enough_to_mean_something() -> None:
    assert len(TABLE) >= 60


@pytest.mark.parametrize(("answer", "aliases", "expected"), TABLE)
def test_an_answer_is_judged_as_by_hand(answer: str, aliases: list[str], expected: LabelDecision) -> None:
    assert label(answer, aliases) == expected


@pytest.mark.parametrize(("question", "answer", "expected"), REPEATS)
def test_an_alias_that_only_repeats_the_question_decides_nothing(
    question: str, answer: str, expected: LabelDecision
) -> None:
    assert AliasMatch().label(record(answer, ["Jupiter"], question)) == expected


@pytest.mark.parametrize(
    ("question", "answer", "expected"),
    [
        # what the answer adds is part of the alias
        ("Which poet wrote Faust?", "The poet of Faust was Goethe.", True),
        ("Which poet wrote Faust?", "The poet of Faust was Schiller.", False),
        ("Which poet wrote Faust?", "The poet wrote Faust.", False),
        # all words of the alias are there, but the question holds them too
        ("Was Goethe a Johann or a Wolfgang?", "Wolfgang, I say, Goethe Johann", False),
        ("Which poet wrote Faust?", "Johann, that is Goethe, by Wolfgang", True),
        ("Which poet wrote Faust?", "Never Goethe", False),
    ],
)
def test_a_partial_match_is_one_by_its_rule(question: str, answer: str, expected: bool) -> None:
    assert is_partial(answer, ["Johann Wolfgang Goethe"], question) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The answer to this question is: Cities of the Bananas", {"city", "banana"}),
        ("It was in Paris, the glass bus", {"paris", "glass", "bus"}),
        ("He is 21 in the 1940s", {"21", "1940s"}),
        ("", set()),
    ],
)
def test_content_words_are_those_that_claim_something(text: str, words: set[str]) -> None:
    assert content_words(text) == words


@given(st.text(max_size=31), st.lists(st.text(max_size=13), max_size=5))
def test_every_answer_gets_a_decision(answer: str, aliases: list[str]) -> None:
    decision = label(answer, aliases)
    assert decision.value in {0, 1}
    assert decision.is_valid or decision.value == 0
    assert decision.reason


@given(st.from_regex(r"x[a-z]{3,11}( [a-z]{3,11}){0,2}", fullmatch=True))
def test_an_alias_is_found_wherever_it_stands(alias: str) -> None:
    for answer in (alias, f"Surely {alias}.", f"{alias.upper()}, surely", f"({alias})"):
        assert label(answer, ["zzzzz", alias]).value == 0


def test_an_alias_of_punctuation_only_is_never_found() -> None:
    assert label("Paris.", ["、", "~.~"]) == WRONG


def test_without_gold_answers_nothing_is_decided() -> None:
    assert label("Paris", []) == LabelDecision(0, is_valid=False, reason="no gold answer")


def test_a_refusal_claims_only_what_stands_before_it_and_its_guess() -> None:
    text = "Lyon. I'm not sure, maybe Paris"
    assert claims(text) == ["Lyon. ", " Paris"]
    assert not is_refusal(text)
    assert claims("Paris") == ["Paris"]


def test_letters_that_grow_in_lower_case_do_not_move_the_parts() -> None:
    assert claims("İİİ Paris. I don't know, but Lyon") == ["İİİ Paris. ", " Lyon"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("I don't know.", ("refusal as expected", True, 0)),
        ("That cannot be determined.", ("refusal as expected", True, 0)),
        ("In 1931.", ("no alias", True, 1)),
    ],
)
def test_where_the_data_set_expects_a_refusal_it_is_right(answer, expected):
    asked = replace(record(answer, ["nobody knows"]), metadata={"expected": "refusal"})
    decision = AliasMatch().label(asked)
    assert (decision.reason, decision.is_valid, decision.value) == expected


@pytest.mark.parametrize(
    ("question", "answer", "aliases", "kind"),
    [
        ("Who was it?", "The author of this book is unknown.", ["Ann Bell"], "refusal"),
        ("What is it?", "That is not explicitly mentioned in the passage.", ["iron"], "refusal"),
        ("What is it?", "The passage does not explicitly state what it is.", ["iron"], "refusal"),
        ("What is it?", "There is no information about it.", ["iron"], "refusal"),
        ("What is it?", "It is unknown, but I think it is iron.", ["iron"], "right"),
        ("Where is Busan?", "In the Democratic People's Republic of Korea.", ["Republic of Korea"], "wrong"),
        ("Where is Busan?", "In North Korea.", ["Korea", "South Korea"], "wrong"),
        ("Where is Busan?", "In South Korea.", ["Korea", "South Korea"], "right"),
        ("Where is Busan?", "In Korea, not in North Korea.", ["Korea"], "right"),
        ("Where is Lae?", "Lae is in Papua New Guinea.", ["Guinea"], "wrong"),
        ("What is the young of a seal called?", "The young of a seal is a young seal.", ["pup"], "echo"),
        ("Which is larger, Saturn or Jupiter?", "Saturn", ["Jupiter"], "wrong"),
        ("What is the past tense of 'make'?", "The past tense of 'make' is 'makes'.", ["made"], "wrong"),
        ("How much is 12 divided by 3?", "12 / 3 = 3", ["4", "four"], "wrong"),
        ("Is iron a metal?", "No", ["yes"], "wrong"),
        ("Who wrote it?", "Barack", ["Barack Obama"], "partial"),
        ("Who wrote it?", "...", ["Barack Obama"], "empty"),
    ],
)
def test_every_answer_is_of_one_kind(question: str, answer: str, aliases: list[str], kind: str) -> None:
    found = AliasMatch().label(record(answer, aliases, question))
    assert kind_of(found.reason) == kind
    assert found.is_valid == (kind in {"right", "wrong"})


def test_an_answer_that_was_cut_is_right_where_it_said_an_alias_before_and_undecided_else() -> None:
    cut = replace(record("The chemist who found it was the famous", ["Marie Curie"]), is_finished=False)
    assert AliasMatch().label(cut) == LabelDecision(0, False, "cut by the token limit")
    said = replace(cut, answer="Marie Curie, who was born in the city of")
    assert kind_of(AliasMatch().label(said).reason) == "right"
    for rule in ("rouge", "judge"):
        assert make_labeller(rule).label(cut) == LabelDecision(0, False, "cut by the token limit")


def test_other_kinds_count_as_wrong_where_asked_for() -> None:
    rule = AliasMatch("refusal, echo")
    assert rule.settings()["as_wrong"] == ["echo", "refusal"]
    assert rule.label(record("I don't know.", ["x"])) == LabelDecision(1, True, "refusal")
    assert not rule.label(record("...", ["x"])).is_valid
    assert AliasMatch(["cut"]).settings() != AliasMatch().settings()
    with pytest.raises(UnknownNameError, match="no other kind of answer named 'wrong'"):
        AliasMatch("wrong")
