import gzip
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from graphhalu.core.axes import Span
from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.prompts import published
from graphhalu.datasets.question import Question
from graphhalu.datasets.ragtruth import RAGTruth

Rows = Sequence[dict[str, Any]]

PASSAGES = "passage 1:Ann walked.\n\npassage 2:Cy sat.\n\n"
SOURCE = {
    "source_id": "7",
    "task_type": "QA",
    "source": "MARCO",
    "source_info": {"question": "who sat", "passages": PASSAGES},
    "prompt": f"Answer:\nwho sat\nBear in mind:\n{PASSAGES}\noutput:",
}
LABEL = {
    "start": 6,
    "end": 9,
    "text": "Bob",
    "meta": "EVIDENT CONFLICT",
    "label_type": "Evident Conflict",
    "implicit_true": False,
    "due_to_null": False,
}
RESPONSE = {
    "id": "11",
    "source_id": "7",
    "model": "gpt-4-0613",
    "temperature": 0.7,
    "labels": [],
    "split": "test",
    "quality": "good",
    "response": "It is Bob who sat.",
}
MARKED = {**RESPONSE, "id": "12", "model": "mistral-7B-instruct", "labels": [LABEL]}


def lines(rows: Rows) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def folder(tmp_path: Path, responses: Rows = (RESPONSE, MARKED), sources: Rows = (SOURCE,)) -> Path:
    (tmp_path / "response.jsonl").write_bytes(lines(responses))
    (tmp_path / "source_info.jsonl").write_bytes(lines(sources))
    return tmp_path


def read(path: Path) -> list[Question]:
    return list(RAGTruth().read(path))


def test_a_source_is_one_question_with_all_its_responses(tmp_path: Path) -> None:
    (question,) = read(folder(tmp_path))
    assert (question.question_id, question.text) == ("7", SOURCE["prompt"])
    assert question.context == PASSAGES.strip()
    assert question.answers == ()
    assert question.metadata == {"category": "QA", "task_type": "QA", "source": "MARCO"}
    plain, marked = question.given
    assert (plain.text, plain.is_hallucinated, plain.spans) == (RESPONSE["response"], False, ())
    assert (marked.source, marked.is_hallucinated) == ("mistral-7B-instruct", True)
    assert marked.spans == ((6, 9),)
    assert marked.metadata == {
        "id": "12",
        "model": "mistral-7B-instruct",
        "temperature": 0.7,
        "quality": "good",
        "split": "test",
        "labels": [{"label_type": "Evident Conflict", "implicit_true": False, "due_to_null": False}],
    }


def test_the_folder_and_either_file_give_the_same_also_packed(tmp_path: Path) -> None:
    expected = read(folder(tmp_path))
    for name in ("response.jsonl", "source_info.jsonl"):
        assert read(tmp_path / name) == expected
        packed = gzip.compress((tmp_path / name).read_bytes())
        (tmp_path / f"{name}.gz").write_bytes(packed)
        (tmp_path / name).unlink()
        assert read(tmp_path) == read(tmp_path / f"{name}.gz") == expected


def test_the_repository_that_holds_the_folder_dataset_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    assert read(folder(tmp_path / "dataset")) == read(tmp_path)


def test_responses_under_another_name_are_read_with_the_sources_beside_them(tmp_path: Path) -> None:
    expected = read(folder(tmp_path))
    path = (tmp_path / "response.jsonl").rename(tmp_path / "mine.jsonl")
    assert read(path) == expected


def test_the_published_template_shows_the_prompt_and_marks_the_source_in_it(tmp_path: Path) -> None:
    (question,) = read(folder(tmp_path))
    pieces = published(question)
    assert "".join(text for _, text in pieces) == SOURCE["prompt"]
    assert [text for span, text in pieces if span == Span.CONTEXT] == [PASSAGES.strip()]


@pytest.mark.parametrize(
    ("info", "shown"),
    [
        ("Ann walked.\nCy sat.\n", "Ann walked.\nCy sat."),
        ({"name": "Subway", "WiFi": None}, "{'name': 'Subway', 'WiFi': None}"),
    ],
)
def test_articles_and_structured_data_are_found_in_their_prompt(
    info: object, shown: str, tmp_path: Path
) -> None:
    prompt = f"Do this with:\n{shown}\noutput:"
    source = {**SOURCE, "task_type": "Summary", "source_info": info, "prompt": prompt}
    (question,) = read(folder(tmp_path, sources=[source]))
    assert (question.text, question.context) == (prompt, shown)


@pytest.mark.parametrize("info", ["Somebody else.", "", None, {"passages": 7}])
def test_a_source_that_does_not_stand_in_its_prompt_is_no_context(info: object, tmp_path: Path) -> None:
    (question,) = read(folder(tmp_path, sources=[{**SOURCE, "source_info": info}]))
    assert (question.text, question.context) == (SOURCE["prompt"], None)


def test_a_response_loses_the_space_around_it_and_its_spans_move_along(tmp_path: Path) -> None:
    labels = [
        {"start": 8, "end": 11, "text": "Bob"},
        {"start": 0, "end": 4, "text": "  It"},
        {"start": 16, "end": 21, "text": "sat.\n"},
    ]
    row = {**RESPONSE, "response": "  It is Bob who sat.\n", "labels": labels}
    (question,) = read(folder(tmp_path, responses=[row]))
    (given,) = question.given
    assert given.text == "It is Bob who sat."
    assert [given.text[start:stop] for start, stop in given.spans] == ["Bob", "It", "sat."]


def test_a_source_without_a_response_is_left_out(tmp_path: Path) -> None:
    assert len(read(folder(tmp_path, sources=[{**SOURCE, "source_id": "8"}, SOURCE]))) == 1


def test_a_response_without_its_source_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataFileError,
        match=r"response\.jsonl, row 2: the response belongs to source '9', which is not in "
        r".*source_info\.jsonl: its prompt is not known(?s:.*)Take the row out",
    ):
        read(folder(tmp_path, responses=[RESPONSE, {**RESPONSE, "source_id": "9"}]))


@pytest.mark.parametrize("name", ["response.jsonl", "source_info.jsonl"])
def test_a_missing_half_is_named_with_the_place_to_get_it(name: str, tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / name).unlink()
    (rest,) = tmp_path.iterdir()
    for path in (tmp_path, rest):
        with pytest.raises(UsageError, match=rf"no {name} in .*(?s:.*)github\.com/ParticleMedia"):
            read(path)


def test_there_is_no_hub_and_the_way_out_is_named() -> None:
    with pytest.raises(UsageError, match=r"'ragtruth' is not read from the hub(?s:.*)--data-path"):
        list(RAGTruth().read(None))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"labels": "none"}, "row 2: labels must be a list of objects"),
        ({"labels": [3]}, "row 2: labels must be a list of objects"),
        ({"labels": [{"start": 1, "end": 3}]}, "row 2, labels 1: expected RAGTruth's layouts"),
        ({"labels": [{**LABEL, "start": "3"}]}, "labels 1: start and end must be a range"),
        ({"labels": [{**LABEL, "start": True}]}, "labels 1: start and end must be a range"),
        ({"labels": [{**LABEL, "end": 3}]}, "labels 1: start and end must be a range"),
        (
            {"labels": [LABEL, {**LABEL, "start": 7}]},
            r"row 2, labels 2: response\[7:9\] must be 'Bob', got 'ob'",
        ),
        ({"labels": [{**LABEL, "end": 601}]}, r"labels 1: response\[6:601\] must be 'Bob', got 'Bob who"),
        ({"response": " "}, "row 2: response must be a text that is not empty"),
        ({"model": None}, "row 2: model must be a text that is not empty"),
        ({"source_id": 7.0}, "row 2: source_id must be a text"),
    ],
)
def test_a_bad_response_is_named(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=complaint):
        read(folder(tmp_path, responses=[RESPONSE, {**MARKED, **change}]))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"prompt": ""}, r"source_info\.jsonl, row 2: prompt must be a text that is not empty"),
        ({"task_type": None}, r"source_info\.jsonl, row 2: task_type must be a text"),
    ],
)
def test_a_bad_source_is_named(change: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=complaint):
        read(folder(tmp_path, sources=[{**SOURCE, "source_id": 6}, {**SOURCE, **change}]))


def test_source_ids_may_be_whole_numbers(tmp_path: Path) -> None:
    (question,) = read(folder(tmp_path, sources=[{**SOURCE, "source_id": 7}]))
    assert question.question_id == "7"


def published_rows(path: Path) -> list[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_every_published_response_is_read_and_every_span_is_exact(shared_data: Path) -> None:
    place = shared_data / "ragtruth/dataset"
    sources = published_rows(place / "source_info.jsonl.gz")
    responses = {row["id"]: row for row in published_rows(place / "response.jsonl.gz")}
    questions = read(place)
    given = [answer for question in questions for answer in question.given]
    assert (len(questions), len(given)) == (len(sources), len(responses)) == (148, 832)
    assert sum(bool(answer.spans) for answer in given) == 160
    assert sum(len(answer.spans) for answer in given) == 235
    for answer in given:
        row = responses[answer.metadata["id"]]
        assert answer.text == row["response"].strip()
        assert answer.is_hallucinated is bool(row["labels"])
        for (start, stop), label in zip(answer.spans, row["labels"], strict=True):
            assert answer.text[start:stop] == label["text"]
            assert answer.text[start:stop] == row["response"][label["start"] : label["end"]]


def test_every_published_prompt_is_shown_as_it_was_with_its_passages(shared_data: Path) -> None:
    place = shared_data / "ragtruth/dataset"
    sources = {row["source_id"]: row for row in published_rows(place / "source_info.jsonl.gz")}
    for question in read(place):
        row = sources[question.question_id]
        assert "".join(text for _, text in published(question)) == row["prompt"]
        assert question.context == row["source_info"]["passages"].strip()


def test_published_responses_without_sources_are_refused_with_the_first_missing_source(
    shared_data: Path, tmp_path: Path
) -> None:
    name = "extra_response_without_source.jsonl.gz"
    path = Path(shutil.copy(shared_data / "ragtruth" / name, tmp_path / name))
    with pytest.raises(UsageError, match=r"no source_info\.jsonl in"):
        read(path)
    for file in (shared_data / "ragtruth/dataset").iterdir():
        shutil.copy(file, tmp_path / file.name)
    with pytest.raises(DataFileError, match="row 1: the response belongs to source '15592'"):
        read(path)
