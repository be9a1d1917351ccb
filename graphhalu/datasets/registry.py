"""Data sets by name, and the one way to load questions from them."""

import hashlib
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.core.registry import Registry
from graphhalu.datasets.base import Dataset, DatasetCard
from graphhalu.datasets.own import read_own
from graphhalu.datasets.question import Question, question_key

DATASETS: Final[Registry[type[Dataset]]] = Registry(
    "dataset",
    {
        "worldfacts": "graphhalu.datasets.per_row:Worldfacts",
        "probes": "graphhalu.datasets.per_row:Probes",
        "triviaqa": "graphhalu.datasets.reading:TriviaQA",
        "truthfulqa": "graphhalu.datasets.truthfulqa:TruthfulQA",
        "truthfulqa_mc": "graphhalu.datasets.truthfulqa:TruthfulQAChoice",
        "truthfulqa_mc1": "graphhalu.datasets.truthfulqa:TruthfulQAMC1",
        "truthfulqa_mc2": "graphhalu.datasets.truthfulqa:TruthfulQAMC2",
        "mmlu": "graphhalu.datasets.mmlu:MMLU",
        "nq_open": "graphhalu.datasets.per_row:NQOpen",
        "nq_open_context": "graphhalu.datasets.per_row:NQOpenContext",
        "squad": "graphhalu.datasets.reading:SQuAD",
        "freshqa": "graphhalu.datasets.per_row:FreshQA",
        "halueval_qa": "graphhalu.datasets.per_row:HaluEvalQA",
        "halueval_qa_choice": "graphhalu.datasets.per_row:HaluEvalQAChoice",
        "halueval_general": "graphhalu.datasets.per_row:HaluEvalGeneral",
        "ragtruth": "graphhalu.datasets.ragtruth:RAGTruth",
    },
    Dataset,
    card=DatasetCard,
)

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
        raise UsageError(f"num_samples must be at least 1, got {num_samples}")
    own = own_path(name)
    if own is not None and path is not None:
        raise UsageError(
            f"two files are named: {own} as the data set, and {path} as its file\n"
            f"  Read your own file:  --dataset {own}\n"
            f"  Or a published one:  --dataset NAME --data-path {path}"
        )
    if own is None and fields:
        raise UsageError(
            f"fields name the columns of a file of your own, and {name!r} is a data set\n"
            f"  Read your own file:  --dataset FILE --fields question=COLUMN"
        )
    questions = read_own(own, fields) if own is not None else DATASETS.get(name)().read(path)
    checked = _checked(questions, str(own or path or f"data set {name!r}"))
    return seeded_order(share_groups(checked), seed)[:num_samples]


def require_dataset(name: str) -> None:
    """Refuse a name that is no data set and no path.

    Raises:
        UnknownNameError: If it is none.
    """
    if own_path(name) is None:
        DATASETS.get(name)


def own_path(name: str) -> Path | None:
    """The user's own file that a data set's name means, or ``None`` if it is not a path.

    A path is what exists as a file, holds a slash, or ends like a data file; names in the
    registry come first.
    """
    path = Path(name).expanduser()
    is_path = "/" in name or os.sep in name or name.lower().endswith(_OWN_ENDINGS)
    return path if name not in DATASETS and (is_path or path.is_file()) else None


def seeded_order(questions: Iterable[Question], seed: int) -> list[Question]:
    """Questions sorted by the SHA-256 of seed and id: a shuffle that no other question moves."""
    return sorted(
        questions, key=lambda question: hashlib.sha256(f"{seed}\n{question.question_id}".encode()).digest()
    )


def share_groups(questions: Iterable[Question]) -> list[Question]:
    """Give one group to questions whose texts differ only in case, accents or punctuation.

    Groups that the data set states itself are kept whole: if two of them hold the same text,
    they become one, named after the first.
    """
    listed = list(questions)
    texts = [question_key(question.text, question.context) for question in listed]
    groups = merged_groups([question.group_id for question in listed], texts)
    return [replace(item, group_id=group) for item, group in zip(listed, groups, strict=True)]


def merged_groups(groups: Sequence[str], keys: Sequence[Hashable]) -> list[str]:
    """Group of each item, where groups that share a key are one, named after the first of them."""
    from scipy.cluster.hierarchy import DisjointSet

    linked = DisjointSet()
    for group, key in zip(groups, keys, strict=True):
        for node in (("group", group), ("key", key)):
            linked.add(node)
        linked.merge(("group", group), ("key", key))
    first: dict[Hashable, str] = {}
    return [first.setdefault(linked["group", group], group) for group in groups]


def _checked(questions: Iterable[Question], source: str) -> list[Question]:
    seen: dict[str, tuple[int, Question]] = {}
    for number, question in enumerate(questions, start=1):
        if question.question_id in seen:
            first_number, first = seen[question.question_id]
            raise DataFileError(
                f"{source}: question id {question.question_id!r} stands twice:\n"
                f"  question {first_number}: {first.text!r}\n"
                f"  question {number}: {question.text!r}\n"
                f"  Every question needs an id of its own."
            )
        seen[question.question_id] = (number, question)
    if not seen:
        raise DataFileError(f"{source} holds no question")
    return [question for _, question in seen.values()]
