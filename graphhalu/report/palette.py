"""The house palette, for figures on light and dark ground, and how lines and marks are told apart.

Figures are drawn in the light colours. On a page each of them becomes a custom property of
``templates/page.css``, so that the same picture follows the reader's choice of light or dark.
"""

from typing import Final, NamedTuple

from matplotlib.colors import LinearSegmentedColormap

from graphhalu.detectors.registry import DETECTORS
from graphhalu.evaluation.result import DetectorRow
from graphhalu.evaluation.settings import registered_name
from graphhalu.report.theme import DARK, LIGHT, RISING

__all__ = [
    "AROUND_CHANCE",
    "DARK",
    "FAMILIES",
    "FAMILY_MARKERS",
    "FAMILY_NAMES",
    "FAMILY_TITLES",
    "LIGHT",
    "Line",
    "family",
    "line",
]

AROUND_CHANCE: Final = LinearSegmentedColormap.from_list("around_chance", RISING)
"""Blue below the middle, grey on it, yellow above; it also rises from dark to light, so that a
greyscale print keeps the order."""

FAMILIES: Final = ("graph", "probe", "scalar", "control")
FAMILY_NAMES: Final = {
    "graph": "graph network",
    "probe": "trained probe",
    "scalar": "single score",
    "control": "control",
}
FAMILY_TITLES: Final = {
    "graph": "graph networks",
    "probe": "trained probes",
    "scalar": "single scores",
    "control": "controls",
}
FAMILY_MARKERS: Final = {"graph": "D", "probe": "o", "scalar": "s", "control": "v"}


class Line(NamedTuple):
    """How a line is drawn: the colour says the family, the dashes say the place in it."""

    colour: str
    dashes: object
    marker: str


_DASHES: Final = ("-", (0, (5, 1.8)), (0, (1.2, 1.3)), (0, (6, 1.6, 1.2, 1.6)))


def family(row: DetectorRow) -> str:
    """What kind of detector it is; a control is one before anything else.

    Single scores learn a sign at most; one of another package counts as such if it learns nothing.
    """
    if row.is_control:
        return "control"
    if row.is_graph:
        return "graph"
    path = DETECTORS.path(registered_name(row.detector)) or ""
    is_single = ".scalars:" in path or row.is_supervised is False
    return "scalar" if is_single else "probe"


def line(kind: str, rank: int) -> Line:
    """The line of the detector at this place of its family."""
    return Line(LIGHT[kind], _DASHES[rank % len(_DASHES)], FAMILY_MARKERS[kind])
