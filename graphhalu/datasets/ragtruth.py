"""RAGTruth: responses of six models to prompts with sources; people marked the hallucinations."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets.base import Dataset, DatasetCard, dataset_card
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.rows import Row, objects_field, require_columns, text_field, wrong_value

_RESPONSES: Final = "response.jsonl"
_SOURCES: Final = "source_info.jsonl"
_DESCRIPTIONS: Final = ("id", "model", "temperature", "quality", "split")
_LABEL_DESCRIPTIONS: Final = ("label_type", "implicit_true", "due_to_null")


class RAGTruth(Dataset):
    """One question a source, with every response to it as a given answer.

    The question's text is the published prompt as the models saw it; ``context`` is the part of
    it that is the source, where it stands in it once. The prompt template ``published`` shows
    the text alone and so reproduces that prompt; others would show the source twice. Sources
    without a response are left out.

    A response comes without the space around it, and its spans are moved along.
    """

    card: ClassVar[DatasetCard] = dataset_card("ragtruth")

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the sources.

        Args:
            path: Folder that holds both published files, or one of the files with the other
                beside it, each also gzipped.

        Raises:
            UsageError: If a file is missing; there is no hub.
            DataFileError: If a row is in no known layout, or a response's source is missing.
        """
        if path is None:
            raise _missing(f"data set {self.card.name!r} is not read from the hub")
        if path.is_dir():
            path = _found(path, _RESPONSES)
        rows = _rows(path)
        is_sources = "source_info" in rows[0].values
        if not is_sources:
            _require_response(rows[0])
        other = _found(path.parent, _RESPONSES if is_sources else _SOURCES)
        responses, sources = (_rows(other), rows) if is_sources else (rows, _rows(other))
        answers = _by_source(responses, {_source_id(row) for row in sources}, path if is_sources else other)
        for row in sources:
            if _source_id(row) in answers:
                yield _question(row, answers[_source_id(row)])


def _rows(path: Path) -> list[Row]:
    rows = list(read_rows(open_file(path)))
    if not rows:
        raise DataFileError(f"{path}: expected {RAGTruth.card.layout}, got no row")
    return rows


def _found(folder: Path, name: str) -> Path:
    """The published file of this name in a folder, or in the folder ``dataset`` inside it."""
    places = [place / (name + end) for place in (folder, folder / "dataset") for end in ("", ".gz")]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise _missing(f"no {name} in {folder}")
    return found


def _missing(what: str) -> UsageError:
    return UsageError(
        f"{what}: RAGTruth is {_RESPONSES} and {_SOURCES} side by side, each also gzipped\n"
        f"  Get them:   {RAGTruth.card.source}\n"
        f"  Read them:  --data-path FOLDER"
    )


def _require_response(row: Row) -> None:
    require_columns(row, "id", "source_id", "model", "labels", "response", expected=RAGTruth.card.layout)


def _source_id(row: Row) -> str:
    require_columns(row, "source_id", expected=RAGTruth.card.layout)
    value = row.values["source_id"]
    return str(value) if type(value) is int else text_field(row, "source_id")


def _by_source(responses: Sequence[Row], known: set[str], source_path: Path) -> dict[str, list[GivenAnswer]]:
    """Responses of each source, in the order of the file."""
    answers: dict[str, list[GivenAnswer]] = defaultdict(list)
    for row in responses:
        _require_response(row)
        source_id = _source_id(row)
        if source_id not in known:
            raise DataFileError(
                f"{row.where}: the response belongs to source {source_id!r}, which is not in "
                f"{source_path}: its prompt is not known\n"
                f"  Take the row out, or name a folder whose {_SOURCES} holds that source"
            )
        answers[source_id].append(_given(row))
    return answers


def _question(row: Row, answers: Sequence[GivenAnswer]) -> Question:
    require_columns(row, "source_info", "prompt", "task_type", expected=RAGTruth.card.layout)
    prompt, task = text_field(row, "prompt"), text_field(row, "task_type")
    corpus = row.values.get("source")
    return Question(
        question_id=_source_id(row),
        text=prompt,
        answers=(),
        context=_context(row.values["source_info"], prompt),
        given=tuple(answers),
        metadata={"category": task, "task_type": task, **({"source": corpus} if corpus else {})},
    )


def _context(source: Any, prompt: str) -> str | None:
    """The source as the prompt shows it: an article, passages, or a Python dictionary's text."""
    if isinstance(source, Mapping):
        source = source.get("passages", str(dict(source)))
    text = source.strip() if isinstance(source, str) else ""
    return text if text and prompt.count(text) == 1 else None


def _given(row: Row) -> GivenAnswer:
    text, response = text_field(row, "response"), row.values["response"]
    lead = len(response) - len(response.lstrip())
    marked = [
        (max(0, start - lead), min(len(text), stop - lead), label)
        for start, stop, label in _labels(row, response)
    ]
    kept = [(start, stop, label) for start, stop, label in marked if start < stop]
    described = {name: row.values[name] for name in _DESCRIPTIONS if row.values.get(name) is not None}
    return GivenAnswer(
        text=text,
        is_hallucinated=bool(marked),
        spans=tuple((start, stop) for start, stop, _ in kept),
        source=text_field(row, "model"),
        metadata={**described, "labels": [label for *_, label in kept]},
    )


def _labels(row: Row, response: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Start, end and description of each marked part of the published response."""
    for label in objects_field(row, "labels"):
        values = label.values
        require_columns(label, "start", "end", "text", expected=RAGTruth.card.layout)
        start, stop = values["start"], values["end"]
        if type(start) is not int or type(stop) is not int or not 0 <= start < stop:
            raise wrong_value(label, "start and end", "a range of characters", (start, stop))
        if response[start:stop] != values["text"]:
            came = response[start:stop]
            raise wrong_value(label, f"response[{start}:{stop}]", f"{values['text']!r}", came)
        yield start, stop, {n: values[n] for n in _LABEL_DESCRIPTIONS if n in values}
