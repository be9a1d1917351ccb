import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

import pytest

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.base import bundled_file, bundled_places
from graphhalu.datasets.per_row import Worldfacts
from graphhalu.datasets.question import Question, question_key
from graphhalu.datasets.registry import DATASETS, load_questions
from graphhalu.labels.match import normalise

ROW = {
    "id": "capital-france",
    "question": "What is the capital of France?",
    "answers": ["Paris"],
    "relation": "capital",
    "group": "capital-france",
}
IN_THEIR_QUESTION: Final[frozenset[str]] = frozenset()
"""Ids of questions that may name an answer; none does."""


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    return list(Worldfacts().read(None))


def write(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


def holds(text: str, answer: str) -> bool:
    return any(
        f" {normalise(answer, punctuation=form)} " in f" {normalise(text, punctuation=form)} "
        for form in ("delete", "space")
    )


def test_the_set_is_large_and_the_card_states_its_size(questions: list[Question]) -> None:
    assert len(questions) >= 1600
    assert len(questions) == Worldfacts.card.size


def test_there_are_many_relations_and_none_has_fewer_than_ten_questions(questions: list[Question]) -> None:
    sizes = Counter(question.metadata["relation"] for question in questions)
    assert len(sizes) >= 40
    assert min(sizes.values()) >= 15


def test_the_card_beside_the_data_lists_the_size_of_every_relation(questions: list[Question]) -> None:
    card = (bundled_file(bundled_places("worldfacts")).parent / "CARD.md").read_text(encoding="utf-8")
    for relation, size in Counter(q.metadata["relation"] for q in questions).items():
        assert f"| {relation} | {size} |" in card


def test_ids_and_normalised_texts_are_unique(questions: list[Question]) -> None:
    assert len({question.question_id for question in questions}) == len(questions)
    texts = Counter(question_key(question.text) for question in questions)
    assert [text for text, count in texts.items() if count > 1] == []


def test_every_id_starts_with_its_relation(questions: list[Question]) -> None:
    for question in questions:
        assert question.question_id.startswith(f"{question.metadata['relation']}-")


def test_every_question_ends_with_a_question_mark_and_has_answers(questions: list[Question]) -> None:
    for question in questions:
        assert question.text.endswith("?")
        assert question.answers
        assert all(normalise(answer) for answer in question.answers)


def test_no_answer_stands_in_its_own_question(questions: list[Question]) -> None:
    told = {q.question_id for q in questions if any(holds(q.text, a) for a in q.answers)}
    assert told == IN_THEIR_QUESTION


def test_answers_with_accents_are_also_listed_without(questions: list[Question]) -> None:
    by_id = {question.question_id: question for question in questions}
    assert {"Bogotá", "Bogota"} <= set(by_id["capital-colombia"].answers)
    assert by_id["capital-iceland"].answers == ("Reykjavík", "Reykjavik")


def test_numbers_are_listed_as_digits_and_as_words(questions: list[Question]) -> None:
    by_id = {question.question_id: question for question in questions}
    assert {"26", "twenty-six"} <= set(by_id["atomic-number-iron"].answers)


def test_surnames_stand_for_the_person_unless_they_are_shared(questions: list[Question]) -> None:
    by_id = {question.question_id: question for question in questions}
    assert "Shakespeare" in by_id["book-author-hamlet"].answers
    assert "Brontë" not in by_id["book-author-jane-eyre"].answers


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("capital-france", "country-of-capital-paris"),
        ("element-symbol-gold", "element-of-symbol-au"),
        ("opposite-hot", "opposite-cold"),
    ],
)
def test_a_fact_asked_from_two_sides_is_one_group(questions: list[Question], first: str, second: str) -> None:
    groups = {question.question_id: question.group_id for question in questions}
    assert groups[first] == groups[second]


def test_every_group_is_named_after_one_of_its_questions_and_has_at_most_two(
    questions: list[Question],
) -> None:
    groups = defaultdict(set)
    for question in questions:
        groups[question.group_id].add(question.question_id)
    assert all(name in members and len(members) <= 2 for name, members in groups.items())
    assert sum(len(members) == 2 for members in groups.values()) >= 100


def test_a_reverse_capital_shares_the_group_of_its_forward_fact_where_both_are_asked(
    questions: list[Question],
) -> None:
    by_id = {question.question_id: question for question in questions}
    reverse = [q for q in questions if q.metadata["relation"].startswith("country-of-")]
    assert len(reverse) >= 30
    paired = [question for question in reverse if question.group_id != question.question_id]
    assert len(paired) >= 25
    for question in paired:
        forward = by_id[question.group_id]
        assert any(holds(forward.text, country) for country in question.answers)
        assert any(holds(question.text, answer) for answer in forward.answers)


def test_every_element_of_a_symbol_shares_the_group_of_its_symbol(questions: list[Question]) -> None:
    forward = [q for q in questions if q.metadata["relation"] == "element-symbol"]
    reverse = [q for q in questions if q.metadata["relation"] == "element-of-symbol"]
    named = {word: q for q in forward for word in q.text.rstrip("?").split()}
    pairs = [(named[answer], q) for q in reverse for answer in q.answers if answer in named]
    assert len(pairs) >= 25
    assert all(symbol.group_id == element.group_id for symbol, element in pairs)


def test_the_registry_loads_the_bundled_questions_without_a_path(questions: list[Question]) -> None:
    assert DATASETS.get("worldfacts") is Worldfacts
    loaded = load_questions("worldfacts", seed=3)
    assert {q.question_id for q in loaded} == {q.question_id for q in questions}
    assert {q.group_id for q in loaded} == {q.group_id for q in questions}


def test_a_file_of_the_same_layout_gives_every_field(tmp_path: Path) -> None:
    (question,) = Worldfacts().read(write(tmp_path / "questions.jsonl", ROW))
    assert question == Question(
        question_id="capital-france",
        text="What is the capital of France?",
        answers=("Paris",),
        group_id="capital-france",
        metadata={"relation": "capital"},
    )


def test_a_row_without_answers_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "questions.jsonl", ROW, {**ROW, "answers": [" "]})
    with pytest.raises(DataFileError, match="row 2: answers must be a list with at least one"):
        list(Worldfacts().read(path))


def test_a_row_without_a_relation_is_refused_with_the_layout(tmp_path: Path) -> None:
    row = {name: value for name, value in ROW.items() if name != "relation"}
    path = write(tmp_path / "questions.jsonl", row, row)
    with pytest.raises(DataFileError, match=r"row 1: expected the layout of worldfacts.*relation"):
        list(Worldfacts().read(path))


def test_a_named_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no data file at"):
        list(Worldfacts().read(tmp_path / "nothing.jsonl"))


def test_the_installed_place_comes_before_the_checkout(tmp_path: Path) -> None:
    installed = tmp_path / "installed.jsonl"
    checkout = write(tmp_path / "checkout.jsonl", ROW)
    assert bundled_file((installed, checkout)) == checkout
    write(installed, ROW)
    assert bundled_file((installed, checkout)) == installed


def test_the_bundled_places_are_those_of_the_wheel_and_of_the_checkout() -> None:
    wheel, checkout = (place.as_posix() for place in bundled_places("worldfacts"))
    assert wheel.endswith("graphhalu/_data/worldfacts/questions.jsonl")
    assert checkout.endswith("/data/worldfacts/questions.jsonl")
    assert "_data" not in checkout


def test_missing_bundled_questions_are_an_error_that_lists_the_places(tmp_path: Path) -> None:
    places = (tmp_path / "first.jsonl", tmp_path / "second.jsonl")
    with pytest.raises(DataFileError, match=r"(?s)missing.*first\.jsonl.*second\.jsonl"):
        bundled_file(places)
