"""Readers of data files: every data set in its published layouts, and files of one's own."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from graphhalu.datasets.own import read_own
from graphhalu.datasets.registry import DATASETS, load_questions
from tests.malformed.table import Reader, Target

Rows = list[dict[str, Any]]

TRIVIA: Rows = [
    {
        "question": f"Capital of {land}?",
        "question_id": f"tc_{n}",
        "answer": {"value": town, "aliases": [town, town.upper()], "normalized_aliases": [town]},
    }
    for n, (land, town) in enumerate([("France", "Paris"), ("Norway", "Oslo"), ("Italy", "Rome")])
]
TRUTHFUL: Rows = [
    {
        "question": f"What happens {n} times?",
        "best_answer": "Nothing",
        "type": "Adversarial",
        "correct_answers": ["Nothing", "Nothing at all"],
        "category": "Law",
        "source": "x",
        "incorrect_answers": ["You grow", "You sleep", "You fly"],
    }
    for n in range(3)
]
TARGETS: Rows = [
    {
        "question": f"What is {n}?",
        "mc1_targets": {"A number": 1, "A bird": 0, "A fish": 0},
        "mc2_targets": {"A number": 1, "A count": 1, "A bird": 0},
    }
    for n in range(3)
]
MMLU: Rows = [
    {"question": f"What is 1 + {n}?", "subject": "anatomy", "choices": ["1", "2", "3", "4"], "answer": n}
    for n in range(3)
]
OPEN: Rows = [{"question": f"who was number {n}", "answer": ["Nobody", "None"]} for n in range(3)]
OPEN_CONTEXT: Rows = [
    {
        "question": f"who was number {n}",
        "answers": ["Nobody"],
        "ctxs": [
            {"title": "Numbers", "text": "Nobody was.", "isgold": True, "hasanswer": True},
            {"title": "Others", "text": "Somebody is.", "isgold": False},
        ],
    }
    for n in range(3)
]
SQUAD: Rows = [
    {
        "title": "Oslo",
        "paragraphs": [
            {
                "context": "Oslo is a town.",
                "qas": [
                    {
                        "id": "a",
                        "question": "What is it?",
                        "answers": [{"text": "a town", "answer_start": 8}],
                    },
                    {
                        "id": "b",
                        "question": "Why is Oslo?",
                        "answers": [],
                        "is_impossible": True,
                        "plausible_answers": [{"text": "Oslo", "answer_start": 0}],
                    },
                ],
            }
        ],
    }
]
FRESH: Rows = [
    {
        "id": str(n),
        "split": "TEST",
        "question": f"Who is first {n}?",
        "effective_year": "2022",
        "false_premise": "FALSE",
        "num_hops": "one-hop",
        "fact_type": "fast-changing",
        "answer_0": "Anna",
        "answer_1": "A.",
    }
    for n in range(3)
]
HALU: Rows = [
    {
        "knowledge": "Oslo is a town.",
        "question": f"What is Oslo in {n}?",
        "right_answer": "a town",
        "hallucinated_answer": "a river",
    }
    for n in range(3)
]
GENERAL: Rows = [
    {
        "ID": str(n),
        "user_query": f"Tell me {n}",
        "chatgpt_response": "It is so and not else.",
        "hallucination": "yes",
        "hallucination_spans": ["so and not"],
    }
    for n in range(3)
]
WORLD: Rows = [
    {
        "id": f"capital-{n}",
        "question": f"What is the capital of land {n}?",
        "answers": ["Paris"],
        "relation": "capital",
        "group": f"g{n}",
    }
    for n in range(3)
]
PROBES: Rows = [
    {
        "id": f"p-{n}",
        "category": "facts",
        "question": f"What is {n}?",
        "answers": ["a", "b"],
        "incorrect_answers": ["c"],
        "expected": "answer",
        "input_label": 0,
        "note": "A note.",
    }
    for n in range(3)
]
RESPONSES: Rows = [
    {
        "id": str(n),
        "source_id": "11",
        "model": "llama",
        "temperature": 0.7,
        "split": "test",
        "quality": "good",
        "response": "Oslo is a big town.",
        "labels": [{"start": 10, "end": 13, "text": "big", "label_type": "Evident Baseless Info"}],
    }
    for n in range(2)
]
SOURCES: Rows = [
    {
        "source_id": "11",
        "task_type": "QA",
        "source": "MARCO",
        "prompt": "Tell: Oslo is a town.",
        "source_info": {"question": "Tell", "passages": "Oslo is a town."},
    }
]
OWN: Rows = [
    {
        "question": f"Which number is {n}?",
        "answers": ["one", "two"],
        "choices": ["one", "six", "ten"],
        "correct": "A",
        "given": ["one", "six"],
        "label": [0, 1],
        "context": "Numbers.",
        "extra": n,
    }
    for n in range(3)
]
ASKED: Rows = [
    {"id": n, "question": f"What is {n}?", "answer": "a number", "context": "Numbers are."} for n in range(3)
]
PROMPTS: Rows = [{"prompt": f"Forget rule {n}.", "label": n % 2} for n in range(4)]


def lines_of(rows: Rows) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def table_of(rows: Sequence[dict[str, Any]], delimiter: str = ",") -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    for row in rows:
        writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return stream.getvalue().encode()


def parquet_of(rows: Rows) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def truthful_table() -> bytes:
    rows = [
        {
            "Type": "Adversarial",
            "Category": "Law",
            "Question": row["question"],
            "Best Answer": row["best_answer"],
            "Correct Answers": "Nothing; Nothing at all",
            "Incorrect Answers": "You grow; You sleep",
            "Source": "x",
        }
        for row in TRUTHFUL
    ]
    return table_of(rows)


def layouts(rows: Rows, *names: str) -> dict[str, bytes]:
    """The rows as JSON Lines, JSON, packed JSON Lines and Parquet, or only what is named."""
    made = {
        "rows.jsonl": lines_of(rows),
        "rows.json": json.dumps(rows, indent=1).encode(),
        "rows.jsonl.gz": gzip.compress(lines_of(rows), mtime=0),
        "rows.parquet": parquet_of(rows),
    }
    return {name: made[name] for name in names or made}


MMLU_TABLE = table_of([dict(zip("qABCDa", ("What?", "1", "2", "3", "4", "B"), strict=True))] * 3)

FILES: dict[str, dict[str, bytes]] = {
    "worldfacts": layouts(WORLD),
    "probes": layouts(PROBES, "rows.jsonl", "rows.parquet"),
    "triviaqa": {
        **layouts(TRIVIA, "rows.jsonl", "rows.parquet"),
        "dpr.tsv": b"Capital of France?\t['Paris', \"Par'is\"]\nCapital of Norway?\t['Oslo']\n",
        "published.json": json.dumps(
            {
                "Data": [
                    {
                        "Question": "Capital?",
                        "QuestionId": "tc_1",
                        "Answer": {"Value": "Paris", "Aliases": ["Paree"], "HumanAnswers": ["P"]},
                    }
                ]
            }
        ).encode(),
    },
    "truthfulqa": {**layouts(TRUTHFUL, "rows.jsonl", "rows.parquet"), "table.csv": truthful_table()},
    "truthfulqa_mc": {**layouts(TARGETS, "rows.json"), "table.csv": truthful_table()},
    "truthfulqa_mc1": layouts(TARGETS, "rows.json", "rows.jsonl.gz"),
    "truthfulqa_mc2": layouts(TARGETS, "rows.json"),
    "mmlu": {
        **layouts(MMLU, "rows.jsonl", "rows.parquet"),
        "test/anatomy_test.csv": MMLU_TABLE.partition(b"\n")[2],
    },
    "nq_open": layouts(OPEN, "rows.jsonl", "rows.parquet"),
    "nq_open_context": layouts(OPEN_CONTEXT, "rows.jsonl", "rows.jsonl.gz"),
    "squad": {"squad.json": json.dumps({"version": "2", "data": SQUAD}).encode()},
    "freshqa": {"table.csv": table_of(FRESH), **layouts(FRESH, "rows.jsonl")},
    "halueval_qa": layouts(HALU, "rows.jsonl", "rows.parquet"),
    "halueval_qa_choice": layouts(HALU, "rows.jsonl"),
    "halueval_general": layouts(GENERAL),
    "ragtruth": {"response.jsonl": lines_of(RESPONSES), "source_info.jsonl": lines_of(SOURCES)},
}
KINDS = {".jsonl": "lines", ".json": "json", ".gz": "packed lines", ".parquet": "parquet"}


def kind_of(name: str) -> str:
    return KINDS.get(Path(name).suffix, "bytes")


def _reader(name: str, files: dict[str, bytes], read: Any, n_slice: int = 60) -> Reader:
    def make(folder: Path) -> None:
        for file, content in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(content)

    return Reader(name, make, read, tuple(Target(file, kind_of(file)) for file in files), n_slice)


def _dataset(name: str) -> Reader:
    return _reader(f"dataset {name}", FILES[name], lambda path: load_questions(name, path), 40)


def _own(path: Path) -> Any:
    return list(read_own(path))


def _asked(path: Path) -> Any:
    from graphhalu.scoring.batch import read_asked

    return read_asked(path)


def _prompts(path: Path) -> Any:
    from graphhalu.studies.instability.series import read_prompts

    return read_prompts(path, None)


def _texts(path: Path) -> Any:
    from graphhalu.studies.instability.series import read_texts

    return read_texts(path)


def _haystack(path: Path) -> Any:
    from graphhalu.heads.retrieval import read_haystack

    return read_haystack(path)


def _needles(path: Path) -> Any:
    from graphhalu.heads.retrieval import read_needles

    return read_needles(path)


OWN_FILES = {
    **layouts(OWN),
    "own.csv": table_of(OWN),
    "own.tsv": table_of(OWN, "\t"),
    "own.csv.gz": gzip.compress(table_of(OWN), mtime=0),
}

DATASET_READERS = (
    *(_dataset(name) for name in DATASETS.names()),
    _reader("own file", OWN_FILES, _own, 120),
    _reader("score input", layouts(ASKED), _asked),
    _reader(
        "prompts", {**layouts(PROMPTS, "rows.jsonl", "rows.parquet"), "p.csv": table_of(PROMPTS)}, _prompts
    ),
    _reader("prompt lines", {"prompts.txt": b"Forget it.\n\nDo not.\n"}, _texts, 30),
    _reader("haystack", {"haystack.txt": b"A long text about a town.\n"}, _haystack, 30),
    _reader(
        "needles",
        {
            "needles.jsonl": lines_of(
                [{"needle": "He hid it.", "question": "Where?", "real_needle": "it"}] * 2
            )
        },
        _needles,
    ),
)
