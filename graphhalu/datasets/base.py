"""What every data set is: a card, and a reader that yields questions."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from graphhalu.datasets.question import Question


@dataclass(frozen=True)
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
        artefacts: Known faults that a detector could learn in place of hallucination.
        template: Prompt template that suits it.
    """

    name: str
    task: str
    licence: str
    source: str
    hub_id: str | None
    hub_config: str | None
    split: str
    size: int
    citation: str
    label_rule: str
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
