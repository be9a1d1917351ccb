"""Prompts of a study, and the folder of their measurements.

Prompts are attacks and benign ones, one a line or as rows of a table. The folder holds ``meta.json`` and
one ``.npz`` a part, without pickle. A part holds the prompts of one batch and is moved into place when it
is complete, so a killed run resumes with the next one. The steps of its prompts are concatenated;
``step_offsets`` are their boundaries. ``records`` is JSON in UTF-8 bytes.
"""

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field, TypeAdapter

from graphhalu.core.config import read_yaml
from graphhalu.core.documents import FileFormat, read_document, write_document
from graphhalu.core.errors import CorruptStoreError, StoreNotFoundError, UsageError
from graphhalu.core.files import check_zip, parse_json, reading, replace_file
from graphhalu.core.numerics import json_ready, ragged_offsets
from graphhalu.core.provenance import provenance
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.question import question_key
from graphhalu.datasets.rows import Row as TableRow
from graphhalu.datasets.rows import choice_field, require_columns, text_field
from graphhalu.studies.rows import require_same

KIND: Final = FileFormat("graphhalu-instability", 1, "Measure prompts:  graphhalu instability gather")
META_FILE: Final = "meta.json"
PARTS_FOLDER: Final = "parts"

_N_PARTS: Final = TypeAdapter(Annotated[int, Field(strict=True, ge=0, le=1_000_000)])

DESCRIPTIONS: Final[dict[str, str]] = read_yaml(Path(__file__).with_name("descriptions.yaml"))["arrays"]
STEP_ARRAYS: Final = tuple(name for name, text in DESCRIPTIONS.items() if text.startswith("[step"))
"""Arrays whose first axis is the step; ``share`` only where single heads are kept."""


@dataclass(frozen=True)
class PromptRecord:
    """A prompt, and what its measurement adds to it beside arrays.

    Attributes:
        prompt_id: Unique within a study.
        iteration: Number of the answer, if there are several.
        label: 1 = attack, 0 = benign, ``None`` = unknown.
        group: Prompts of one group say the same and never part in a split.
        text: The user's text.
        answer: The model's answer.
        n_prompt: Tokens of the whole prompt.
        n_system: Tokens of the system prompt.
        n_user: Tokens of the user's text.
        n_answer: Tokens of the answer without its end mark.
        is_finished: Whether the answer ended by itself.
        user_nll: Mean negative log-probability (nat) of the user's tokens.
        failure: Why it was not measured, or ``None``.
    """

    prompt_id: str
    iteration: int
    label: int | None
    group: str
    text: str
    answer: str = ""
    n_prompt: int = 0
    n_system: int = 0
    n_user: int = 0
    n_answer: int = 0
    is_finished: bool = False
    user_nll: float | None = None
    failure: str | None = None


_RECORDS: Final = TypeAdapter(list[PromptRecord])


class PromptSeries(NamedTuple):
    """One measured prompt.

    Attributes:
        record: The prompt and single numbers.
        arrays: By name, as in :data:`DESCRIPTIONS`; ``focus_heads`` without its prompt axis.
    """

    record: PromptRecord
    arrays: Mapping[str, np.ndarray]

    @property
    def n_steps(self) -> int:
        """Decode steps, including the one that yields the end mark."""
        return len(self.arrays["std"]) if self.arrays else 0


class SeriesFolder(NamedTuple):
    """The folder of a study.

    Attributes:
        path: The folder.
        configuration: Model, prompt recipe, settings and digest of the prompts.
    """

    path: Path
    configuration: dict[str, Any]

    @classmethod
    def create(cls, path: Path, configuration: Mapping[str, Any]) -> "SeriesFolder":
        """Create a folder, or resume one with the same configuration.

        Raises:
            StoreMismatchError: If its configuration differs; names the fields.
        """
        asked: dict[str, Any] = json_ready(configuration)
        if (path / META_FILE).exists():
            found = cls.open(path)
            require_same(found.configuration, asked, path)
            return found
        (path / PARTS_FOLDER).mkdir(parents=True, exist_ok=True)
        meta = {"arrays": dict(DESCRIPTIONS), "configuration": asked, "provenance": provenance()}
        write_document(path / META_FILE, meta, KIND)
        return cls(path, asked)

    @classmethod
    def open(cls, path: Path) -> "SeriesFolder":
        """Open a folder.

        Raises:
            StoreNotFoundError: If there is none.
            DataFileError: If it is of another format or a newer version.
        """
        if not (path / META_FILE).is_file():
            fault = f"no measured prompts in {path}: {META_FILE} is missing"
            raise StoreNotFoundError(f"{fault}\n  {KIND.way_out}")
        meta = read_document(path / META_FILE, dict, KIND)
        with reading(f"{path / META_FILE} is damaged", way_out="Gather again"):
            _N_PARTS.validate_python(meta["configuration"]["n_parts"])
        return cls(path, meta["configuration"])

    def missing_parts(self) -> list[int]:
        """Parts that are not measured yet."""
        parts = range(self.configuration["n_parts"])
        return [number for number in parts if not self._part(number).exists()]

    def write_part(self, number: int, series: Sequence[PromptSeries]) -> None:
        """Write a part, whole or not at all."""
        arrays: dict[str, Any] = _packed(series)
        np.savez_compressed(buffer := io.BytesIO(), **arrays)
        replace_file(self._part(number), buffer.getvalue())

    def read(self) -> list[PromptSeries]:
        """The measured prompts of all parts on disk, in their order.

        Raises:
            CorruptStoreError: If a part cannot be read.
        """
        paths = map(self._part, range(self.configuration["n_parts"]))
        return [series for path in paths if path.exists() for series in _read_part(path)]

    def _part(self, number: int) -> Path:
        return self.path / PARTS_FOLDER / f"{number:06d}.npz"


def _read_part(path: Path) -> list[PromptSeries]:
    way_out = "Delete it and gather again: only its prompts are measured"
    with reading(f"{path} is damaged", error=CorruptStoreError, also=(RuntimeError,), way_out=way_out):
        check_zip(path)
        # without pickle an array of objects is refused; zip checks the bytes
        with np.load(path, allow_pickle=False) as file:
            return _unpacked({name: file[name] for name in file.files})


def padded_steps(series: Sequence[PromptSeries], name: str) -> Float[np.ndarray, "prompt step *layer"]:
    """An array of all prompts, one row a prompt; NaN after its last step."""
    arrays = [each.arrays[name] for each in series]
    shape = (len(arrays), max(map(len, arrays)), *arrays[0].shape[1:])
    found = np.full(shape, np.nan)
    for row, each in zip(found, arrays, strict=True):
        row[: len(each)] = each
    return found


def _packed(series: Sequence[PromptSeries]) -> dict[str, np.ndarray]:
    measured = [each.arrays for each in series if each.arrays]
    text = json.dumps([asdict(each.record) for each in series], ensure_ascii=False)
    packed: dict[str, np.ndarray] = {
        "records": np.frombuffer(text.encode(), dtype=np.uint8),
        "step_offsets": ragged_offsets(np.array([each.n_steps for each in series], dtype=np.int64)),
    }
    if measured:
        names = [name for name in STEP_ARRAYS if name in measured[0]]
        packed |= {name: np.concatenate([arrays[name] for arrays in measured]) for name in names}
        # one row a prompt, so that the axes of a part agree
        nothing = np.full_like(measured[0]["focus_heads"], np.nan)
        packed["focus_heads"] = np.stack([each.arrays.get("focus_heads", nothing) for each in series])
    return packed


def _unpacked(packed: Mapping[str, np.ndarray]) -> list[PromptSeries]:
    records = _RECORDS.validate_python(parse_json(packed["records"].tobytes()))
    offsets, names = packed["step_offsets"].tolist(), [name for name in STEP_ARRAYS if name in packed]
    # arrays that are shorter than their prompts would have empty slices
    lengths = {len(packed[name]) for name in names} or {0}
    is_whole = len(offsets) == len(records) + 1 and lengths == {offsets[-1]} and offsets[0] == 0
    is_whole &= sorted(offsets) == offsets and all(packed[name].dtype.kind in "fiub" for name in names)
    if offsets[-1:] != [0]:
        is_whole &= len(packed["focus_heads"]) == len(records) and "std" in packed
    if not is_whole:
        raise ValueError(f"{len(records)} prompts, offsets to {offsets[-1:]}, arrays of {lengths} steps")
    found = [PromptSeries(record, {}) for record in records]
    for place, (first, stop) in enumerate(pairwise(offsets)):
        if first < stop:
            arrays = {name: packed[name][first:stop] for name in names}
            arrays["focus_heads"] = packed["focus_heads"][place]
            found[place] = PromptSeries(records[place], arrays)
    return found


ATTACK: Final = 1
BENIGN: Final = 0
CLASS_NAMES: Final = ("benign", "attack")

_TABLES: Final = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_TEXT_FIELDS: Final = ("prompt", "text")
_LABELS: Final = dict.fromkeys(("1", "1.0", "true", "attack", "injection"), ATTACK)
_LABELS.update(dict.fromkeys(("0", "0.0", "false", "benign", "safe"), BENIGN))


def read_prompts(path: Path, label: int | None) -> list[PromptRecord]:
    """The prompts of a file, with their class.

    Args:
        path: As :func:`read_texts` reads it.
        label: Class of all its prompts; ``None`` takes it from the column ``label``.

    Raises:
        UsageError: If there is no such file, no prompt in it, or nothing says their class.
        DataFileError: If a row cannot be read, or lacks its label.
    """
    rows = _read(path)
    if label is None and any(row is None for _, row in rows):
        way_out = "Use --attacks and --benign, or a table with the columns prompt and label"
        raise UsageError(f"{path} has one prompt a line and says no class\n  {way_out}")
    return numbered((text, _label(row) if label is None and row else label) for text, row in rows)


def read_texts(path: Path) -> list[str]:
    """The texts of a file of prompts.

    A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, each also gzipped, has the
    column ``prompt`` or ``text``. Any other file has one prompt a line; empty lines are skipped.

    Raises:
        UsageError: If there is no such file, or no prompt in it.
        DataFileError: If a row cannot be read.
    """
    return [text for text, _ in _read(path)]


def numbered(pairs: Iterable[tuple[str, int | None]]) -> list[PromptRecord]:
    """Prompts with ids that count within each class, and groups of prompts that say the same."""
    counts, found = Counter[int | None](), []
    for text, label in pairs:
        counts[label] += 1
        kind = "prompt" if label is None else CLASS_NAMES[label]
        found.append(PromptRecord(f"{kind}-{counts[label]:04d}", 0, label, prompt_group(text), text))
    return found


def prompt_group(text: str) -> str:
    """Name of all prompts that say the same, regardless of case, accents and punctuation."""
    return sha256(question_key(text).encode()).hexdigest()[:12]


def _read(path: Path) -> list[tuple[str, TableRow | None]]:
    """Texts, and the rows that they are from if the file is a table."""
    if not path.is_file():
        raise UsageError(f"no file of prompts at {path}")
    found: list[tuple[str, TableRow | None]] = []
    is_empty = not path.read_bytes().strip()
    is_table = any(suffix.lower() in _TABLES for suffix in path.suffixes)
    for row in read_rows(open_file(path)) if is_table and not is_empty else ():
        name = next((name for name in _TEXT_FIELDS if name in row.values), _TEXT_FIELDS[0])
        require_columns(row, name, expected="a column 'prompt' or 'text'")
        found.append((text_field(row, name), row))
    if not is_table and not is_empty:
        found += [(line.strip(), None) for line in open_file(path).text().split("\n") if line.strip()]
    if not found:
        expected = "Expected one prompt a line, or rows with a column 'prompt' or 'text'"
        raise UsageError(f"{path} holds no prompt\n  {expected}")
    return found


def _label(row: TableRow) -> int:
    return choice_field(row, "label", _LABELS, "1 (attack) or 0 (benign)")
