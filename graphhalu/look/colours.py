"""The house colours on light and dark ground.

Pages get them as custom properties from ``templates/page.css``; figures and canvases take them
from here. A test keeps both the same.
"""

from typing import Final

LIGHT: Final = {
    "ink": "#1c2128",
    "muted": "#5b6470",
    "grid": "#e2e5e9",
    "faint": "#b9bfc7",
    "paper": "#ffffff",
    "graph": "#c04f00",
    "probe": "#0063a3",
    "scalar": "#00785a",
    "control": "#6b5b73",
}
"""Colours by their part, on light ground; the hues of Okabe and Ito, darkened for text."""

DARK: Final = {
    "ink": "#e8eaed",
    "muted": "#a6afba",
    "grid": "#333b45",
    "faint": "#59636f",
    "paper": "#14181d",
    "graph": "#ff9a5c",
    "probe": "#6cbcf5",
    "scalar": "#3fcf9f",
    "control": "#c3acd0",
}
"""The same on dark ground."""

RISING: Final = ("#0b2f6b", "#3d6aa8", "#8f9399", "#d9b24a", "#ffe27a")
"""Colours of low to high values: blue, grey in the middle, yellow. They also rise from dark to
light, so that a greyscale print keeps the order."""
