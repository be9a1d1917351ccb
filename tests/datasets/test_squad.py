import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphhalu.core.errors import DataFileError
from graphhalu.datasets.question import Question
from graphhalu.datasets.reading import SQuAD
from graphhalu.datasets.registry import load_questions

HUB_ROW = {
    "id": "q1",
    "title": "Moon",
    "context": "Ann and Bob Lee walked.",
    "question": "Who walked?",
    "answers": {"text": ["Ann", "Bob Lee", "Ann"], "answer_start": [0, 8, 0]},
}


def entry(name: str, *answers: str, **rest: Any) -> dict[str, Any]:
    texts = [{"text": text, "answer_start": 0} for text in answers]
    return {"id": name, "question": f"Who is {name}?", "answers": texts, **rest}


def article(*entries: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"paragraphs": [{"context": "Ann and Bob Lee walked.", "qas": list(entries)}], **rest}


def saved(tmp_path: Path, *articles: Any) -> Path:
    path = tmp_path / "squad.json"
    content = {"version": "1.1", "data": list(articles)}
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    return path


def read(path: Path) -> list[Question]:
    return list(SQuAD().read(path))


def test_the_passage_is_the_context_and_each_answer_stands_once(tmp_path: Path) -> None:
    (question,) = read(saved(tmp_path, article(entry("q1", "Ann", "Bob Lee", "Ann"), title="Moon")))
    assert question == Question(
        question_id="q1",
        text="Who is q1?",
        answers=("Ann", "Bob Lee"),
        group_id="article: Moon",
        context="Ann and Bob Lee walked.",
        metadata={"title": "Moon"},
    )


def test_passages_of_one_article_are_one_group_even_without_a_title(tmp_path: Path) -> None:
    long = article(entry("q1", "Ann"))
    long["paragraphs"] += [{"context": "Cy sat.", "qas": [entry("q2", "Cy")]}]
    short = {"paragraphs": [{"context": "Di ran.", "qas": [entry("q3", "Di")]}]}
    first, second, third = read(saved(tmp_path, long, short))
    assert first.group_id == second.group_id != third.group_id


def test_hub_rows_are_read_from_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([HUB_ROW]), path)
    (question,) = read(path)
    assert (question.question_id, question.answers) == ("q1", ("Ann", "Bob Lee"))
    assert (question.group_id, question.context) == ("article: Moon", HUB_ROW["context"])


def test_hub_rows_without_a_title_are_grouped_by_passage(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{**HUB_ROW, "id": name, "title": ""} for name in ("q1", "q2")]
    rows += [{**HUB_ROW, "id": "q3", "title": "", "context": "Cy sat."}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second, third = read(path)
    assert first.group_id == second.group_id != third.group_id


def test_version_1_says_nothing_of_its_questions(tmp_path: Path) -> None:
    (question,) = read(saved(tmp_path, article(entry("q1", "Ann"))))
    assert question.input_label is None


def test_a_question_that_cannot_be_answered_has_no_answers_and_a_label(tmp_path: Path) -> None:
    plausible = [{"text": "Bob Lee", "answer_start": 8}]
    open_one = entry("q1", is_impossible=True, plausible_answers=plausible)
    path = saved(tmp_path, article(open_one, entry("q2", "Ann", is_impossible=False)))
    first, second = load_questions("squad", path)
    by_id = {first.question_id: first, second.question_id: second}
    assert (by_id["q1"].answers, by_id["q1"].input_label) == ((), 1)
    assert by_id["q1"].incorrect_answers == ("Bob Lee",)
    assert (by_id["q2"].answers, by_id["q2"].input_label) == (("Ann",), 0)


def test_hub_rows_of_version_2_have_the_same_labels(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [HUB_ROW, {**HUB_ROW, "id": "q2", "answers": {"text": [], "answer_start": []}}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert [question.input_label for question in read(path)] == [0, 1]


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (entry("q2"), "row 2, paragraphs 1, qas 2: answers must be empty if is_impossible is true"),
        (entry("q2", "Ann", is_impossible=True), "qas 2: answers must be empty if is_impossible"),
        (entry("q2", " "), "qas 2, answers 1: text must be a text that is not empty"),
        (entry("", "Ann"), "row 2, paragraphs 1, qas 2: id must be a text that is not empty"),
        ({"id": "q2"}, r"qas 2: expected one of SQuAD's layouts.*missing: answers; found: id"),
        ({**entry("q2"), "answers": ["Ann"]}, "qas 2: answers must be a list of objects"),
    ],
)
def test_a_bad_question_is_named_by_article_paragraph_and_place(
    broken: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    good = article(entry("q0", "Ann"))
    with pytest.raises(DataFileError, match=complaint):
        read(saved(tmp_path, good, article(entry("q1", "Ann"), broken)))


def test_a_passage_without_text_is_named(tmp_path: Path) -> None:
    bad = {"paragraphs": [{"context": "", "qas": [entry("q1", "Ann")]}], "title": "Moon"}
    with pytest.raises(DataFileError, match="row 1, paragraphs 1: context must be a text"):
        read(saved(tmp_path, bad))


def test_a_hub_row_with_answers_of_another_form_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({**HUB_ROW, "answers": ["Ann"]}), encoding="utf-8")
    with pytest.raises(DataFileError, match="row 1: answers must be an object"):
        read(path)


def test_every_published_question_is_read_and_its_answer_stands_in_the_passage(shared_data: Path) -> None:
    path = shared_data / "squad/xquad.en.json"
    articles = json.loads(path.read_text(encoding="utf-8"))["data"]
    pairs = [(p["context"], qa) for a in articles for p in a["paragraphs"] for qa in p["qas"]]
    questions = read(path)
    assert len(questions) == len(pairs) == 1190
    for question, (context, entry_) in zip(questions, pairs, strict=True):
        assert (question.question_id, question.context) == (entry_["id"], context.strip())
        assert question.answers == tuple({a["text"].strip(): 0 for a in entry_["answers"]})
        assert all(answer in context for answer in question.answers)
    assert len({question.group_id for question in questions}) == len(articles) == 48
