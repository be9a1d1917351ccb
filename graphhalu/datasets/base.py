"""Data sets: a card, and a reader that yields questions from a file or from the hub."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import ClassVar, Final

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import DataFileError, MissingExtraError, UsageError
from graphhalu.datasets.files import open_file, read_rows
from graphhalu.datasets.question import Question
from graphhalu.datasets.rows import Row, require_columns


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """What a data set is, where it comes from and how its answers are judged.

    Attributes:
        name: Its name in the registry.
        task: What the model is asked to do.
        licence: Licence of the data.
        source: Where the data is published.
        hub_id: Name on the Hugging Face hub, or ``None`` if it is not read from there.
        hub_config: Configuration on the hub.
        split: Split that is read from the hub.
        size: How many questions that split holds.
        citation: Authors, year and number of the paper.
        label_rule: Which labeller suits it, and why.
        layout: What to say was expected of a file in another layout.
        columns: Columns that every row must have.
        is_bundled: Whether its questions come with the package.
        artefacts: Known faults that a detector could learn in place of hallucination.
        template: Prompt template that suits it.
    """

    name: str
    task: str
    licence: str
    source: str
    hub_id: str | None = None
    hub_config: str | None = None
    split: str
    size: int
    citation: str
    label_rule: str
    layout: str | None = None
    columns: tuple[str, ...] = ()
    is_bundled: bool = False
    artefacts: tuple[str, ...] = ()
    template: str = "concise"


class Dataset(ABC):
    """A published set of questions with gold answers."""

    card: ClassVar[DatasetCard]

    @abstractmethod
    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file.

        Args:
            path: A file, or a folder if the data set is published as one, in one of the published
                layouts; ``None`` reads the questions that are bundled with the package, or the
                hub.

        Raises:
            UsageError: If there is no such file, or none was named and the set is not on the hub.
            DataFileError: If the content is not in a known layout; names the row.
        """

    def rows(self, path: Path | None) -> Iterator[Row]:
        """Rows of a file, of the bundled one, or of the hub; see :meth:`read`."""
        if path is None and self.card.is_bundled:
            path = bundled_file(bundled_places(self.card.name))
        return hub_rows(self.card) if path is None else read_rows(open_file(path))


class RowDataset(Dataset):
    """A data set whose every row is one question; its card names the columns."""

    def read(self, path: Path | None) -> Iterator[Question]:
        """Yield the questions in the order of the file; see the base class."""
        for row in self.rows(path):
            require_columns(row, *self.card.columns, expected=self.card.layout)
            yield self.question(row)

    @abstractmethod
    def question(self, row: Row) -> Question:
        """The question of a row that has all columns.

        Raises:
            DataFileError: If a field holds something else than it should; names the row.
        """


def row_dataset(name: str, read_row: Callable[[Row], Question]) -> type[RowDataset]:
    """The data set of this package whose rows a function turns into questions."""

    class Described(RowDataset):
        card: ClassVar[DatasetCard] = dataset_card(name)

        def question(self, row: Row) -> Question:
            return read_row(row)

    Described.__name__ = Described.__qualname__ = name
    Described.__doc__ = read_row.__doc__
    return Described


_CARDS: Final = read_yaml(Path(__file__).with_name("cards.yaml"))


def dataset_card(name: str) -> DatasetCard:
    """The card of a data set of this package."""
    values = _CARDS[name]
    lists = {field: tuple(values.get(field, ())) for field in ("columns", "artefacts")}
    return DatasetCard(**{**values, **lists, "name": name})


def bundled_places(folder: str, name: str = "questions.jsonl") -> tuple[Path, ...]:
    """Where a file, by default questions, lies in an installed package, and in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return (package / "_data" / folder / name, package.parent / "data" / folder / name)


def bundled_file(places: tuple[Path, ...]) -> Path:
    """The first of the places that holds a file.

    Raises:
        DataFileError: If none does; lists them.
    """
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        listed = "\n".join(f"  looked at {place}" for place in places)
        raise DataFileError(
            f"a bundled file is missing: expected {places[0].name}\n{listed}\n"
            f"  Install graphhalu again, or name a file of the same layout."
        )
    return found


def hub_rows(card: DatasetCard, split: str | None = None) -> Iterator[Row]:
    """Rows of a data set on the Hugging Face hub, downloaded once and cached there.

    Args:
        card: Says where they lie.
        split: Another split than that of the card.

    Raises:
        UsageError: If the data set is not on the hub.
        MissingExtraError: If the ``datasets`` package is not installed.
        DataFileError: If the hub cannot be reached or refuses; names the way without it.
    """
    split = split or card.split
    if card.hub_id is None:
        raise UsageError(
            f"data set {card.name!r} is not read from the hub: name a file of it\n"
            f"  Get it:   {card.source}\n"
            f"  Read it:  --data-path FILE"
        )
    try:
        package = import_module("datasets")
    except ModuleNotFoundError:
        raise MissingExtraError(
            f"reading {card.name!r} from the hub needs the package 'datasets'\n"
            f'  Install it:         pip install "graphhalu[hf]"\n'
            f"  Or read a file:     --data-path FILE"
        ) from None
    place = f"{card.hub_id} ({card.hub_config}, {split})"
    try:
        rows = package.load_dataset(card.hub_id, card.hub_config, split=split)
    # the hub's client raises errors of four packages, most of them without a common base
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataFileError(
            f"data set {card.name!r} cannot be had from the hub: {place}: {first_line}\n"
            f"  Check the network, or read a file that you have:  --data-path FILE"
        ) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{place}, row {number}", values)
