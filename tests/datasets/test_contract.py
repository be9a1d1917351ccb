"""What holds for every data set: published files are read whole, and faults are named."""

import gzip
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import DATASETS, load_questions
from graphhalu.testing.contracts import check_questions
from graphhalu.testing.contracts.inputs import check_dataset, check_dataset_card

NAMES = DATASETS.names()


class Published(NamedTuple):
    """A published file, and what its SOURCE.md says of its rows."""

    dataset: str
    path: str
    rows: str


PUBLISHED = (
    Published("triviaqa", "triviaqa/topics.dpr.trivia.dev.txt.gz", "8,837"),
    Published("triviaqa", "triviaqa/qa/verified-wikipedia-dev.json", "318"),
    Published("truthfulqa", "truthfulqa/TruthfulQA.csv", "790"),
    Published("truthfulqa_mc", "truthfulqa/TruthfulQA.csv", "790"),
    Published("truthfulqa_mc", "truthfulqa/data/mc_task.json", "790"),
    Published("truthfulqa_mc", "truthfulqa/data/v1/mc_task.json.gz", "817"),
    Published("truthfulqa_mc1", "truthfulqa/data/mc_task.json", "790"),
    Published("truthfulqa_mc1", "truthfulqa/data/v1/mc_task.json.gz", "817"),
    Published("truthfulqa_mc2", "truthfulqa/data/mc_task.json", "790"),
    Published("truthfulqa_mc2", "truthfulqa/data/v1/mc_task.json.gz", "817"),
    Published("mmlu", "mmlu/data", "14,042"),
    Published("nq_open", "nq_open/NQ-open.dev.jsonl", "3,610"),
    Published("nq_open_context", "nq_open/nq-open-oracle.jsonl.gz", "2,655"),
    Published("squad", "squad/xquad.en.json", "1,190"),
    Published("freshqa", "freshqa/freshqa.csv", "600"),
    Published("freshqa", "freshqa/FreshQA_v12182024.csv", "600"),
    Published("halueval_qa", "halueval/data/qa_data.json", "1,000"),
    Published("halueval_qa", "halueval/qa_data_union.jsonl.gz", "6,657"),
    Published("halueval_qa_choice", "halueval/data/qa_data.json", "1,000"),
    Published("halueval_general", "halueval/data/general_data.json.gz", "4,507"),
    Published("ragtruth", "ragtruth/dataset/source_info.jsonl.gz", "148"),
)

each_dataset = pytest.mark.parametrize("name", NAMES)
each_file = pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: f"{file[0]}-{file[1]}")


@cache
def questions_of(name: str, path: Path) -> tuple[Question, ...]:
    return tuple(load_questions(name, path))


def read(name: str, path: Path) -> list[Question]:
    return list(DATASETS.get(name)().read(path))


def saved(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "data"
    path.write_bytes(content)
    return path


def one_file(path: Path) -> bytes:
    """Unpacked content of a file, or of the first table of a folder."""
    content = (next(path.glob("test/*.csv")) if path.is_dir() else path).read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def test_there_are_data_sets_to_hold_to_the_contract() -> None:
    assert {file.dataset for file in PUBLISHED} <= set(NAMES)
    assert len(NAMES) >= 11


@each_file
def test_every_published_file_is_read_whole(file: Published, shared_data: Path) -> None:
    source = (shared_data / file.path.partition("/")[0] / "SOURCE.md").read_text(encoding="utf-8")
    assert re.search(rf"\b{file.rows}\b", source)
    questions = questions_of(file.dataset, shared_data / file.path)
    assert len(questions) == int(file.rows.replace(",", ""))


@each_file
def test_every_question_of_a_published_file_is_sound(file: Published, shared_data: Path) -> None:
    check_questions(questions_of(file.dataset, shared_data / file.path))


@pytest.mark.parametrize("name", ["worldfacts", "probes"])
def test_a_bundled_data_set_keeps_the_contract(name: str) -> None:
    check_dataset(DATASETS.get(name))


@each_file
def test_a_published_file_cut_off_inside_gzip_is_refused(
    file: Published, shared_data: Path, tmp_path: Path
) -> None:
    packed = gzip.compress(one_file(shared_data / file.path), compresslevel=1)
    path = saved(tmp_path, packed[: len(packed) // 2])
    with pytest.raises(DataFileError, match=f"{path}: the gzip data is cut off or damaged"):
        read(file.dataset, path)


@each_file
def test_a_bad_line_at_the_end_of_a_published_file_is_named(
    file: Published, shared_data: Path, tmp_path: Path
) -> None:
    content = one_file(shared_data / file.path).rstrip(b"\r\n")
    bad = b'{"question": "Wh' if content[:1] in {b"{", b"["} else b'"Wh'
    row = content.count(b"\n") + 2
    # in a file of one line, that line is named: a second one makes JSON Lines of it
    expected = rf"row {row}: expected" if row > 2 else r"row 1: expected"
    with pytest.raises(DataFileError, match=expected):
        read(file.dataset, saved(tmp_path, content + b"\n" + bad))


@each_dataset
@pytest.mark.parametrize("content", [b"", b" \n\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"data is empty; expected"):
        read(name, saved(tmp_path, content))


@each_dataset
def test_a_missing_file_is_a_usage_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no data file at .*absent"):
        read(name, tmp_path / "absent")


@each_dataset
def test_an_empty_folder_is_a_usage_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=str(tmp_path)):
        read(name, tmp_path)


@each_dataset
@pytest.mark.parametrize(
    "content",
    [
        b"prompt,x\n1,2\n",
        b"prompt\tx\n1\t2\n",
        b'{"prompt": "1", "x": "2"}\n',
        b'[{"prompt": "1",\n "x": "2"}]\n',
    ],
)
def test_the_columns_of_another_data_set_are_refused_with_the_row(
    name: str, content: bytes, tmp_path: Path
) -> None:
    with pytest.raises(DataFileError, match=r"data, row [12]: expected"):
        read(name, saved(tmp_path, content))


@each_dataset
@pytest.mark.parametrize(
    "content", [b'{"question": "Who?", \n{"x": 1}\n', b'[{"question": "Who?"},\n {"question" 3}]', b"[3, 4]"]
)
def test_malformed_json_is_refused_with_the_row(name: str, content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"data, row [12]: expected"):
        read(name, saved(tmp_path, content))


@each_dataset
def test_a_wrong_encoding_is_refused_with_the_row(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "question,answers\nWho was Gödel?,x\n".encode("latin-1"))
    with pytest.raises(DataFileError, match="row 2: expected UTF-8 text, got byte 0xf6"):
        read(name, path)


@each_dataset
def test_utf_16_is_refused_as_such(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, "question,answers\nWho?,x\n".encode("utf-16"))
    with pytest.raises(DataFileError, match="row 1: expected UTF-8 text, got UTF-16 text"):
        read(name, path)


@each_dataset
def test_damaged_parquet_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="expected Parquet, got damaged data"):
        read(name, saved(tmp_path, b"PAR1" + b"x" * 97))


@each_dataset
def test_every_card_is_complete(name: str) -> None:
    card = DATASETS.get(name).card
    assert card.name == name
    check_dataset_card(card)
    assert card.artefacts
