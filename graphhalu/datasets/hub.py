"""Rows from the Hugging Face hub, through the optional ``datasets`` package."""

from collections.abc import Iterator
from importlib import import_module

from graphhalu.datasets.base import DatasetCard
from graphhalu.datasets.rows import Row
from graphhalu.errors import DataFileError, MissingExtraError, UsageError


def hub_rows(card: DatasetCard) -> Iterator[Row]:
    """Rows of a data set's split on the hub, downloaded once and cached there.

    Raises:
        UsageError: If the data set is not on the hub.
        MissingExtraError: If the ``datasets`` package is not installed.
        DataFileError: If the hub cannot be reached or refuses; names the way without it.
    """
    if card.hub_id is None:
        message = (
            f"data set {card.name!r} is not read from the hub: name a file of it\n"
            f"  Get it:   {card.source}\n"
            f"  Read it:  --data-path FILE"
        )
        raise UsageError(message)
    try:
        package = import_module("datasets")
    except ModuleNotFoundError:
        message = (
            f"reading {card.name!r} from the hub needs the package 'datasets'\n"
            f'  Install it:         pip install "graphhalu[hf]"\n'
            f"  Or read a file:     --data-path FILE"
        )
        raise MissingExtraError(message) from None
    place = f"{card.hub_id} ({card.hub_config}, {card.split})"
    try:
        rows = package.load_dataset(card.hub_id, card.hub_config, split=card.split)
    # the hub's client raises errors of four packages, most of them without a common base
    except Exception as error:
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        message = (
            f"data set {card.name!r} cannot be had from the hub: {place}: {first_line}\n"
            f"  Check the network, or read a file that you have:  --data-path FILE"
        )
        raise DataFileError(message) from error
    for number, values in enumerate(rows, start=1):
        yield Row(f"{place}, row {number}", values)
