import json
import math
import re
from collections import Counter
from datetime import date, timedelta
from itertools import combinations
from pathlib import Path

import pytest

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.base import bundled_file, bundled_places
from graphhalu.datasets.per_row import Probes
from graphhalu.datasets.question import Question, question_key
from graphhalu.datasets.registry import DATASETS, load_questions
from graphhalu.labels.match import AliasMatch, normalise
from graphhalu.labels.registry import LabelDecision
from graphhalu.traces.schema import TraceRecord

CATEGORIES = {
    "obscure_facts": ("answer", 0),
    "dates_numbers": ("answer", 0),
    "multi_step": ("answer", 0),
    "false_premises": ("refusal", 1),
    "invented_entities": ("refusal", 1),
    "unanswerable": ("refusal", 0),
}
"""What is expected of each category, and whether its questions mislead."""

ROW = {
    "id": "obscure_facts-sable",
    "category": "obscure_facts",
    "question": "What is the colour black called in English heraldry?",
    "answers": ["sable"],
    "incorrect_answers": ["gules"],
    "expected": "answer",
    "input_label": 0,
    "note": "Gules is red.",
}
NUMBER_WORDS = {"seven": 7, "twelve": 12, "forty-eight": 48, "one hundred": 100}


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


def days(start: date, stop: date) -> int:
    return (stop - start).days


MONDAY, THURSDAY = date(2024, 1, 1), date(2024, 1, 4)
COMPUTED: dict[str, object] = {
    "hundred-days": f"{MONDAY + timedelta(days=100):%A}",
    "thirty-days-ago": f"{THURSDAY - timedelta(days=30):%A}",
    "night-train": "{:02}:{:02}".format(*divmod((22 * 60 + 47 + 3 * 60 + 35) % 1440, 60)),
    "odd-numbers": sum(range(1, 40, 2)),
    "primes": sum(is_prime(number) for number in range(51, 80)),
    "atomic-product": 1 * 6 * 8,
    "march-to-september": days(date(2023, 3, 1), date(2023, 9, 1)),
    "january-and-45-days": f"{date(2023, 1, 20) + timedelta(days=45):%-d %B}",
    "week-and-a-half": int(timedelta(weeks=1.5).total_seconds()),
    "rectangle": 9 * (46 // 2 - 9),
    "moon-to-wall": 1989 - 1969,
    "mozart-and-beethoven": days(date(1756, 1, 27), date(1770, 12, 16)) * 400 // 146_097,
    "letters-of-a-capital": len("Lisbon"),
    "two-beyond-mars": ["Mars", "Jupiter", "Saturn"][2],
    "hexagon-and-violin": 6 * 4,
    "legs": 3 * 8 + 2 * 6,
    "remainder": 1000 % 17,
    "discount": next(price for price in range(1, 1000) if price * 80 == 80 * 100),
    "up-and-down": 50 * 120 * 80 // 10_000,
    "anna-and-ben": next(2 * ben for ben in range(1, 100) if 2 * (2 * ben + 6) == 3 * (ben + 6)),
    "leap-february": days(date(2024, 2, 1), date(2024, 3, 1)) * 24,
    "greatest-divisor": math.gcd(84, 126) * 5,
    "binary": int("101101", 2),
    "clock-angle": abs((3.5 * 30) - 30 * 6),
    "class-of-thirty": 30 - (18 + 15 - 7),
    "handshakes": len(list(combinations(range(12), 2))),
    "average-speed": 240 / (120 / 60 + 120 / 40),
    "cow": "C" + "O" + "W",
}
"""Answers of the multi-step questions, worked out another way; the others name one thing."""


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(Probes().read(None))


def labelled(question: Question, answer: str) -> LabelDecision:
    record = TraceRecord(
        trace_id=f"{question.question_id}#0",
        question_id=question.question_id,
        group_id=question.group_id,
        question=question.text,
        answers=question.answers,
        answer=answer,
        prompt="",
        prompt_length=1,
        length=2,
    )
    return AliasMatch().label(record)


def is_refusal_right(question: Question) -> bool:
    return question.metadata["expected"] == "refusal"


def holds(text: str, answer: str) -> bool:
    return any(
        f" {normalise(answer, punctuation=form)} " in f" {normalise(text, punctuation=form)} "
        for form in ("delete", "space")
    )


def write(path: Path, **changes: object) -> Path:
    row = {name: value for name, value in {**ROW, **changes}.items() if value is not None}
    path.write_text(f"{json.dumps(row)}\n", encoding="utf-8")
    return path


def test_the_six_categories_have_thirty_questions_each(questions: list[Question]) -> None:
    sizes = Counter(question.metadata["category"] for question in questions)
    assert sizes == dict.fromkeys(CATEGORIES, 30)
    assert len(questions) == Probes.card.size


def test_the_card_beside_the_data_lists_every_category_with_its_size_and_rule(
    questions: list[Question],
) -> None:
    card = (bundled_file(bundled_places("probes")).parent / "CARD.md").read_text(encoding="utf-8")
    assert f"| Size | {len(questions)} questions" in card
    sizes = Counter(question.metadata["category"] for question in questions)
    for category, (expected, misleads) in CATEGORIES.items():
        assert f"| {category} | {sizes[category]} | {expected} | {misleads} |" in card


def test_category_decides_what_is_expected_and_whether_the_question_misleads(
    questions: list[Question],
) -> None:
    for question in questions:
        stated = (question.metadata["expected"], question.input_label)
        assert stated == CATEGORIES[question.metadata["category"]]
        assert question.metadata["note"]


def test_ids_start_with_the_category_and_texts_are_unique(questions: list[Question]) -> None:
    assert len({question.question_id for question in questions}) == len(questions)
    assert len({question_key(question.text) for question in questions}) == len(questions)
    for question in questions:
        assert re.fullmatch(rf"{question.metadata['category']}-[a-z0-9-]+", question.question_id)
        assert question.text.endswith("?")


def test_no_question_is_one_of_worldfacts(questions: list[Question]) -> None:
    others = {question_key(question.text) for question in load_questions("worldfacts")}
    assert others.isdisjoint(question_key(question.text) for question in questions)


def test_no_alias_stands_in_its_own_question(questions: list[Question]) -> None:
    told = {q.question_id for q in questions if any(holds(q.text, a) for a in q.answers)}
    assert told == set()


def test_every_alias_is_right_in_a_sentence(questions: list[Question]) -> None:
    # phrases that many questions share are tried once a category
    tried = {(q.metadata["category"], alias): q for q in questions for alias in q.answers}
    assert len(tried) >= 500
    for (_, alias), question in tried.items():
        decision = labelled(question, f"Well: {alias} as far as is known")
        is_declined = decision.reason.startswith("refusal") and is_refusal_right(question)
        assert decision.is_valid or is_declined, (question.question_id, alias, decision)
        assert decision.value == 0, (question.question_id, alias, decision)


def test_every_incorrect_answer_is_hallucinated(questions: list[Question]) -> None:
    assert sum(bool(question.incorrect_answers) for question in questions) >= 130
    for question in questions:
        for answer in question.incorrect_answers:
            decision = labelled(question, f"I believe it was {answer}.")
            assert decision.is_valid, (question.question_id, answer, decision)
            assert decision.value == 1, (question.question_id, answer, decision)


@pytest.mark.parametrize(
    ("question_id", "answer"),
    [
        ("invented_entities-drelmavia", "Drelmavia is a country whose capital is Drelmav."),
        ("invented_entities-kazvertu", "Kazvertu is a mountain with a height of 4,111 metres."),
        ("invented_entities-brouvelignac", "It is made from the milk of a real French cow."),
        ("invented_entities-threlkov-marandi", "Symptoms such as fever, with no known cause."),
        ("invented_entities-quembrith-sort", "Its worst case is O(n log n), such as merge sort."),
        ("false_premises-caesar", "Caesar was crowned emperor in 27 BC as Augustus."),
        ("false_premises-curie", "She received it for her work in physics and chemistry."),
        ("false_premises-antibiotic", "Penicillin, which kills bacteria and viruses."),
        ("unanswerable-cleopatra", "Cleopatra ate bread, figs and honey on that day."),
        ("false_premises-wellington", "Napoleon beat the Duke of Wellington at Waterloo."),
        ("unanswerable-train", "The speed of the train is 90 km/h, so it arrives at 11 o'clock."),
        ("unanswerable-one-side", "If the other side is 8 cm long as well, it is 64."),
        ("unanswerable-captain", "The captain is 36 years old, since 26 + 10 = 36."),
    ],
)
def test_an_answer_that_walks_into_the_trap_is_hallucinated(
    questions: list[Question], question_id: str, answer: str
) -> None:
    by_id = {question.question_id: question for question in questions}
    assert labelled(by_id[question_id], answer) == LabelDecision(1, True, "no alias")


@pytest.mark.parametrize(
    ("question_id", "answer"),
    [
        ("invented_entities-drelmavia", "Drelmavia does not exist, so it has no capital."),
        ("invented_entities-brastonium", "There is no element called brastonium."),
        ("invented_entities-wulfnarth-iii", "There was no king by that name in Mercia."),
        ("false_premises-einstein", "He won it for the photoelectric effect, in 1921."),
        ("false_premises-moon-of-venus", "Venus doesn't have any moons."),
        ("false_premises-wife-of-newton", "Isaac Newton was never married."),
        ("false_premises-last-digit-of-pi", "Pi is irrational, so it has no last digit."),
        ("unanswerable-beowulf", "The poet is anonymous; nobody knows the name."),
        ("unanswerable-coin", "It is random: both sides are equally likely."),
        ("unanswerable-train", "That depends on how fast it is."),
    ],
)
def test_a_correction_in_a_sentence_is_right(
    questions: list[Question], question_id: str, answer: str
) -> None:
    by_id = {question.question_id: question for question in questions}
    decision = labelled(by_id[question_id], answer)
    assert (decision.value, decision.is_valid) == (0, True)


def test_every_multi_step_answer_is_computed_or_named(questions: list[Question]) -> None:
    steps = {
        question.question_id.removeprefix("multi_step-"): question.answers[0]
        for question in questions
        if question.metadata["category"] == "multi_step"
    }
    assert steps.keys() - COMPUTED.keys() == {"paramaribo", "titanic-king"}
    for name, computed in COMPUTED.items():
        expected = f"{computed:g}" if isinstance(computed, float) else str(computed)
        assert steps[name].casefold() == expected.casefold()


def test_numbers_are_listed_as_digits_and_as_words(questions: list[Question]) -> None:
    by_answer = {question.answers[0]: question.answers for question in questions}
    for word, number in NUMBER_WORDS.items():
        assert word in by_answer[str(number)]
    assert "907,200" in by_answer["907200"]


def test_other_numbers_of_dates_and_numbers_follow_from_what_is_stated(questions: list[Question]) -> None:
    by_id = {question.question_id: question.answers[0] for question in questions}
    assert int(by_id["dates_numbers-go-board"]) == 19 * 19
    assert int(by_id["dates_numbers-inferno"]) == 100 - 33 - 33
    assert int(by_id["dates_numbers-acre"]) == 4840 * 9
    assert int(by_id["dates_numbers-long-ton"]) == 20 * 112
    assert int(by_id["dates_numbers-counties-of-ireland"]) == 26 + 6
    assert float(by_id["dates_numbers-minus-forty"]) == 32 / (1 - 9 / 5)
    assert (2198 - 2026) % 4 == 0


def test_the_registry_loads_the_bundled_questions_and_keeps_the_category(questions: list[Question]) -> None:
    assert DATASETS.get("probes") is Probes
    loaded = load_questions("probes", seed=3)
    assert {q.question_id for q in loaded} == {q.question_id for q in questions}
    assert {q.metadata["category"] for q in loaded} == set(CATEGORIES)


def test_a_file_of_the_same_layout_gives_every_field(tmp_path: Path) -> None:
    (question,) = Probes().read(write(tmp_path / "q.jsonl"))
    assert question == Question(
        question_id="obscure_facts-sable",
        text="What is the colour black called in English heraldry?",
        answers=("sable",),
        incorrect_answers=("gules",),
        input_label=0,
        metadata={"category": "obscure_facts", "expected": "answer", "note": "Gules is red."},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answers": [" "]}, "answers must be a list with at least one answer"),
        ({"expected": "silence"}, "expected must be answer or refusal, got 'silence'"),
        ({"input_label": 2}, "input_label must be 0 or 1, got 2"),
        ({"input_label": True}, "input_label must be 0 or 1, got True"),
        ({"category": None}, "expected the layout of probes .*missing: category"),
    ],
)
def test_a_wrong_row_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=f"row 1: {message}"):
        list(Probes().read(write(tmp_path / "q.jsonl", **changes)))


def test_the_bundled_places_are_those_of_the_wheel_and_of_the_checkout() -> None:
    wheel, checkout = (place.as_posix() for place in bundled_places("probes"))
    assert wheel.endswith("graphhalu/_data/probes/questions.jsonl")
    assert checkout.endswith("/data/probes/questions.jsonl")


def test_the_wheel_and_the_source_archive_bring_the_questions_along() -> None:
    import tomllib

    project = Path(__file__).resolve().parents[2] / "pyproject.toml"
    build = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["hatch"]["build"]["targets"]
    assert build["wheel"]["force-include"]["data/probes"] == "graphhalu/_data/probes"
    assert "data/probes" in build["sdist"]["include"]
