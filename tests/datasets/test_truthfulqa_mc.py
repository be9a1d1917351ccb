import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import DATASETS
from graphhalu.datasets.truthfulqa import TruthfulQA, distractors

ROW = {
    "question": "Is it?",
    "best_answer": "No",
    "correct_answers": ["No", "Never"],
    "incorrect_answers": ["Yes", "Of course", "Sure", "Always", "Mostly"],
}
TARGETS = {
    "question": "Is it?",
    "mc1_targets": {"No": 1, "Yes": 0, "Sure": 0},
    "mc2_targets": {"No": 1, "Never": 1, "Yes": 0, "Sure": 0, "Always": 0},
}


def saved(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "questions"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def read(name: str, path: Path) -> list[Question]:
    return list(DATASETS.get(name)().read(path))


def only(name: str, tmp_path: Path, row: dict[str, Any]) -> Question:
    (question,) = read(name, saved(tmp_path, row))
    return question


def right(question: Question) -> list[str]:
    return [question.choices[place] for place in question.correct_choices]


def test_the_best_answer_stands_among_three_incorrect_ones(tmp_path: Path) -> None:
    question = only("truthfulqa_mc", tmp_path, ROW)
    assert right(question) == ["No"]
    assert len(set(question.choices)) == 4
    assert set(question.choices) - {"No"} < set(ROW["incorrect_answers"])
    assert question.answers == ("No", "Never")


def test_options_do_not_depend_on_the_order_of_answers_or_questions(tmp_path: Path) -> None:
    turned = {**ROW, "incorrect_answers": ROW["incorrect_answers"][::-1]}
    other = {**ROW, "question": "Was it?"}
    first = only("truthfulqa_mc", tmp_path, ROW)
    second = read("truthfulqa_mc", saved(tmp_path, other, turned))[1]
    assert first.choices == second.choices


def test_questions_do_not_share_one_order_or_one_draw(tmp_path: Path) -> None:
    rows = [{**ROW, "question": f"Is it {n}?"} for n in range(211)]
    questions = read("truthfulqa_mc", saved(tmp_path, *rows))
    places = Counter(question.correct_choices[0] for question in questions)
    drawn = Counter(text for question in questions for text in question.choices)
    assert len(places) == 4
    # 211 draws: 52.75 a place and 126.6 a distractor, both within four standard deviations
    assert all(28 < count < 78 for count in places.values())
    assert all(98 < drawn[text] < 156 for text in ROW["incorrect_answers"])


@pytest.mark.parametrize(("n_wrong", "n_options"), [(1, 2), (2, 3), (3, 4), (5, 4)])
def test_a_question_with_few_incorrect_answers_keeps_what_there_is(
    n_wrong: int, n_options: int, tmp_path: Path
) -> None:
    row = {**ROW, "incorrect_answers": ROW["incorrect_answers"][:n_wrong]}
    assert len(only("truthfulqa_mc", tmp_path, row).choices) == n_options


def test_a_distractor_that_says_a_right_answer_or_another_distractor_is_not_drawn() -> None:
    drawn = distractors("q", ["No.", "Unknown"], ["unknown", "no", "Yes", "yes!", "???"])
    assert len(drawn) == 2
    assert {text.casefold().strip("!") for text in drawn} == {"yes", "???"}


def test_a_question_without_any_distractor_is_named(tmp_path: Path) -> None:
    bad = {**ROW, "incorrect_answers": ["never"]}
    with pytest.raises(DataFileError, match="row 2: expected an incorrect answer that is not"):
        read("truthfulqa_mc", saved(tmp_path, ROW, bad))


def test_the_published_targets_give_four_options_too(tmp_path: Path) -> None:
    question = only("truthfulqa_mc", tmp_path, TARGETS)
    assert right(question) == ["No"]
    assert set(question.choices) == {"No", "Yes", "Sure"}
    assert question.answers == ("No", "Never")


def test_mc1_has_one_right_option_and_mc2_every_right_one(tmp_path: Path) -> None:
    one = only("truthfulqa_mc1", tmp_path, TARGETS)
    every = only("truthfulqa_mc2", tmp_path, TARGETS)
    assert (right(one), set(one.choices)) == (["No"], {"No", "Yes", "Sure"})
    assert (set(right(every)), set(every.choices)) == ({"No", "Never"}, set(TARGETS["mc2_targets"]))
    assert every.correct_choices == tuple(sorted(every.correct_choices))
    assert (every.answers, every.incorrect_answers) == (("No", "Never"), ("Yes", "Sure", "Always"))


def test_given_answers_are_the_options_with_their_labels(tmp_path: Path) -> None:
    question = only("truthfulqa_mc2", tmp_path, TARGETS)
    assert [answer.text for answer in question.given] == list(question.choices)
    for place, answer in enumerate(question.given):
        assert answer.is_hallucinated is (place not in question.correct_choices)


@pytest.mark.parametrize("name", ["truthfulqa_mc", "truthfulqa_mc1", "truthfulqa_mc2"])
def test_hub_rows_give_the_same_question_as_the_published_targets(name: str, tmp_path: Path) -> None:
    hub: dict[str, Any] = {"question": "Is it?"}
    for column in ("mc1_targets", "mc2_targets"):
        targets = TARGETS[column]
        hub[column] = {"choices": list(targets), "labels": list(targets.values())}
    assert only(name, tmp_path, hub) == only(name, tmp_path, TARGETS)


def test_empty_options_are_left_out(tmp_path: Path) -> None:
    row = {**TARGETS, "mc1_targets": {"No": 1, " ": 0, "": 1, "Yes": 0}}
    assert set(only("truthfulqa_mc1", tmp_path, row).choices) == {"No", "Yes"}


@pytest.mark.parametrize(
    ("targets", "complaint"),
    [
        ({"No": 1, "Yes": 1}, "mc1_targets must be options, some right and some wrong"),
        ({"No": 0, "Yes": 0}, "mc1_targets must be options, some right and some wrong"),
        ({"No": 1, "Never": 1, "Yes": 0}, "mc1_targets must be options with one right one"),
        ({"No": "1", "Yes": 0}, "an option must be a text with 0 or 1, got \\('No', '1'\\)"),
        ({"No": 2, "Yes": 0}, "an option must be a text with 0 or 1"),
        ({"No": 1, "No ": 0}, "an option must be either right or wrong, got 'No '"),
        ({"choices": ["No"], "labels": [1, 0]}, "labels must be a list with a label for each"),
        ({"choices": "No", "labels": 1}, "labels must be a list with a label for each"),
        ({"choices": [["No"]], "labels": [1]}, "an option must be a text with 0 or 1"),
        (["No"], "mc1_targets must be an object"),
    ],
)
def test_targets_that_cannot_be_read_are_named(targets: object, complaint: str, tmp_path: Path) -> None:
    path = saved(tmp_path, TARGETS, {**TARGETS, "mc1_targets": targets})
    with pytest.raises(DataFileError, match=rf"row 2.*{complaint}"):
        read("truthfulqa_mc1", path)


def test_ids_are_those_of_the_open_questions(shared_data: Path) -> None:
    folder = shared_data / "truthfulqa"
    ids = [question.question_id for question in TruthfulQA().read(folder / "TruthfulQA.csv")]
    for name in ("truthfulqa_mc", "truthfulqa_mc1", "truthfulqa_mc2"):
        questions = read(name, folder / "data/mc_task.json")
        assert [question.question_id for question in questions] == ids


def test_the_table_and_the_targets_give_the_same_four_options(shared_data: Path) -> None:
    folder = shared_data / "truthfulqa"
    table = read("truthfulqa_mc", folder / "TruthfulQA.csv")
    targets = read("truthfulqa_mc", folder / "data/mc_task.json")
    assert [question.choices for question in table] == [question.choices for question in targets]
    assert Counter(len(question.choices) for question in table) == {2: 40, 3: 87, 4: 663}


def test_every_published_option_is_read_with_its_label(shared_data: Path) -> None:
    path = shared_data / "truthfulqa/data/mc_task.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    for name in ("mc1", "mc2"):
        questions = read(f"truthfulqa_{name}", path)
        for question, row in zip(questions, rows, strict=True):
            labels = {answer.text: int(not answer.is_hallucinated) for answer in question.given}
            assert labels == {t.strip(): n for t, n in row[f"{name}_targets"].items() if t.strip()}
