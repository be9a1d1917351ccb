"""Data sets by name, and the one way to load questions from them."""

import hashlib
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.question import Question
from graphhalu.errors import DataFileError, UsageError
from graphhalu.registry import Registry

DATASETS: Final[Registry[type[Dataset]]] = Registry(
    "dataset",
    {
        "worldfacts": "graphhalu.datasets.worldfacts:Worldfacts",
        "probes": "graphhalu.datasets.probes:Probes",
        "triviaqa": "graphhalu.datasets.triviaqa:TriviaQA",
        "truthfulqa": "graphhalu.datasets.truthfulqa:TruthfulQA",
        "truthfulqa_mc": "graphhalu.datasets.truthfulqa_mc:TruthfulQAChoice",
        "truthfulqa_mc1": "graphhalu.datasets.truthfulqa_mc:TruthfulQAMC1",
        "truthfulqa_mc2": "graphhalu.datasets.truthfulqa_mc:TruthfulQAMC2",
        "mmlu": "graphhalu.datasets.mmlu:MMLU",
        "nq_open": "graphhalu.datasets.nq_open:NQOpen",
        "nq_open_context": "graphhalu.datasets.nq_open:NQOpenContext",
        "squad": "graphhalu.datasets.squad:SQuAD",
        "freshqa": "graphhalu.datasets.freshqa:FreshQA",
        "halueval_qa": "graphhalu.datasets.halueval:HaluEvalQA",
        "halueval_qa_choice": "graphhalu.datasets.halueval:HaluEvalQAChoice",
        "halueval_general": "graphhalu.datasets.halueval:HaluEvalGeneral",
        "ragtruth": "graphhalu.datasets.ragtruth:RAGTruth",
    },
    Dataset,
    card=DatasetCard,
)

_ACCENT = re.compile("[\u0300-\u036f]")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


_OWN_ENDINGS: Final = tuple(
    f"{ending}{packed}"
    for ending in (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet")
    for packed in ("", ".gz")
)


def load_questions(
    name: str,
    path: Path | None = None,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    fields: Mapping[str, str] | None = None,
) -> list[Question]:
    """Questions of a data set in a seeded order, near-duplicates in one group.

    The order depends on the seed and the question ids alone, so the first ``N`` of a larger
    sample are the sample of size ``N``: a run can be enlarged without doing anything twice.

    Args:
        name: Name in the registry, or the path of the user's own file.
        path: File or folder to read; ``None`` reads what is bundled, or the hub.
        num_samples: How many to take; ``None`` takes all. A number larger than the set takes
            all too: the length of the result says so.
        seed: Seed of the order.
        fields: Columns of the user's own file by field (``question``, ``answers``, ``context``
            …); see :func:`graphhalu.datasets.own.read_own`.

    Raises:
        UnknownNameError: If no data set has this name, or no field.
        UsageError: If ``num_samples`` is below 1, there is no such file, or the file has not the
            columns that are named.
        DataFileError: If the file cannot be read, an id stands twice, or there is no question.
    """
    if num_samples is not None and num_samples < 1:
        message = f"num_samples must be at least 1, got {num_samples}"
        raise UsageError(message)
    own = own_path(name)
    if own is not None:
        questions = _checked(_own_questions(own, path, fields), str(own))
    elif fields:
        message = (
            f"fields name the columns of a file of your own, and {name!r} is a data set\n"
            f"  Read your own file:  --dataset FILE --fields question=COLUMN"
        )
        raise UsageError(message)
    else:
        source = f"data set {name!r}" if path is None else str(path)
        questions = _checked(DATASETS.get(name)().read(path), source)
    return seeded_order(share_groups(questions), seed)[:num_samples]


def own_path(name: str) -> Path | None:
    """The user's own file that a data set's name means, or ``None`` if it is no path.

    A path is what exists as a file, holds a slash, or ends like a data file; names in the
    registry come first.
    """
    path = Path(name).expanduser()
    is_path = "/" in name or os.sep in name or name.lower().endswith(_OWN_ENDINGS)
    return path if name not in DATASETS and (is_path or path.is_file()) else None


def seeded_order(questions: Iterable[Question], seed: int) -> list[Question]:
    """Questions sorted by the SHA-256 of seed and id: a shuffle that no other question moves."""
    return sorted(
        questions,
        key=lambda question: hashlib.sha256(f"{seed}\n{question.question_id}".encode()).digest(),
    )


def share_groups(questions: Iterable[Question]) -> list[Question]:
    """Give one group to questions whose texts differ only in case, accents or punctuation.

    Groups that the data set states itself are kept whole: if two of them hold the same text,
    they become one, named after the first.
    """
    listed = list(questions)
    parent: dict[str, str] = {}
    group_of_text: dict[str, str] = {}
    for question in listed:
        parent.setdefault(question.group_id, question.group_id)
        first = group_of_text.setdefault(question_key(question), question.group_id)
        parent[_root(parent, question.group_id)] = _root(parent, first)
    return [replace(item, group_id=_root(parent, item.group_id)) for item in listed]


def question_key(question: Question) -> str:
    """Question and context without case, accents, punctuation and articles."""
    return f"{_bare(question.text)}\n{_bare(question.context or '')}"


def _own_questions(
    own: Path, path: Path | None, fields: Mapping[str, str] | None
) -> Iterable[Question]:
    if path is not None:
        message = (
            f"two files are named: {own} as the data set, and {path} as its file\n"
            f"  Read your own file:  --dataset {own}\n"
            f"  Or a published one:  --dataset NAME --data-path {path}"
        )
        raise UsageError(message)
    from graphhalu.datasets.own import read_own

    return read_own(own, fields)


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(" " if unicodedata.category(c)[0] in "PZC" else c for c in folded)
    # only accents of European letters: in Japanese the same decomposition would turn ga into ka
    plain = unicodedata.normalize("NFC", _ACCENT.sub("", kept))
    return " ".join(_ARTICLE.sub(" ", plain).split()) or text


def _root(parent: dict[str, str], group_id: str) -> str:
    while parent[group_id] != group_id:
        group_id = parent[group_id]
    return group_id


def _checked(questions: Iterable[Question], source: str) -> list[Question]:
    seen: dict[str, tuple[int, Question]] = {}
    for number, question in enumerate(questions, start=1):
        if question.question_id in seen:
            first_number, first = seen[question.question_id]
            message = (
                f"{source}: question id {question.question_id!r} stands twice:\n"
                f"  question {first_number}: {first.text!r}\n"
                f"  question {number}: {question.text!r}\n"
                f"  Every question needs an id of its own."
            )
            raise DataFileError(message)
        seen[question.question_id] = (number, question)
    if not seen:
        message = f"{source} holds no question"
        raise DataFileError(message)
    return [question for _, question in seen.values()]
