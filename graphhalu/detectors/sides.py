"""One side of a split: which traces, whether it has both classes, how well a value parts them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
from jaxtyping import Float, Int, Num
from scipy.stats import rankdata

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.base import PartOfTraces
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class ChosenTraces(Sequence[Trace]):
    """Some traces of a sequence, which they still know; read when asked for."""

    traces: Sequence[Trace]
    indices: tuple[int, ...]

    @classmethod
    def labelled(
        cls, traces: Sequence[Trace], labels: Labels, indices: Int[np.ndarray, "side"]
    ) -> "ChosenTraces":
        """Those of a side that have a valid label."""
        return cls(traces, tuple(indices[labels.is_valid[indices]].tolist()))

    @property
    def pool(self) -> Sequence[Trace]:
        """The largest sequence that is known, with the other beams of each question."""
        return self.traces.pool if isinstance(self.traces, PartOfTraces) else self.traces

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Trace: ...
    @overload
    def __getitem__(self, index: slice) -> "ChosenTraces": ...
    def __getitem__(self, index: int | slice) -> "Trace | ChosenTraces":
        """One trace, or a view of some."""
        if isinstance(index, slice):
            return ChosenTraces(self.traces, self.indices[index])
        return self.traces[self.indices[index]]

    def __iter__(self) -> Iterator[Trace]:
        return (self.traces[index] for index in self.indices)


def auroc(values: Float[np.ndarray, "trace"], labels: Num[np.ndarray, "trace"]) -> float:
    """Share of pairs in which the hallucinated trace has the higher value; ties count half.

    Both classes must be there, and all values known.
    """
    n_positive = int(labels.sum())
    won = rankdata(values)[labels == 1].sum() - n_positive * (n_positive + 1) / 2
    return float(won / (n_positive * (len(labels) - n_positive)))


def check_classes(
    labels: Int[np.ndarray, "trace"], name: str, *, n_without: int = 0, way_out: str = ""
) -> None:
    """Refuse a training side of one class.

    Args:
        labels: Of the traces that can be learnt from.
        name: Of the detector.
        n_without: How many traces lack what it reads.
        way_out: What to do, where the usual advice does not help.

    Raises:
        NotEnoughDataError: Says how many of each there are, and how many lack what is read.
    """
    n_positive = int(labels.sum())
    if n_positive in {0, len(labels)}:
        lack = f"; {n_without} traces lack what it reads" if n_without else ""
        message = (
            f"{name} needs both classes on the training side, got {n_positive} hallucinated and "
            f"{len(labels) - n_positive} correct traces with a value{lack}\n"
            f"  {way_out or 'Label more traces, or change the split'}"
        )
        raise NotEnoughDataError(message)
