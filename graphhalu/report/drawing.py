"""Figures as files, and as SVG inside a page, whose colours it follows.

Figures are made without pyplot: no global state, no display.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from graphhalu.core.errors import UsageError
from graphhalu.report.theme import LIGHT, TEMPLATES

FONT_SIZE: Final = 12
PAGE_SCALE: Final = 1.36
"""Figures are drawn 9 inches wide at most, and fill a page of 76 rem: shown at half that size
their smallest text is still as large as that of a footnote."""
SUFFIXES: Final = (".png", ".svg")
_DPI: Final = 120
_SVG: Final = "http://www.w3.org/2000/svg"
_XLINK: Final = "http://www.w3.org/1999/xlink"
STYLE: Final = TEMPLATES / "figures.mplstyle"
"""The theme of figures."""
_KEPT_STYLES: Final = re.compile(
    r"(fill|stroke)(-opacity)?|stroke-(dash(array|offset)|line(cap|join)|width)"
    r"|font-(size|weight)|image-rendering|opacity|text-anchor"
)


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a PNG or SVG file, by the path's suffix; the same bytes in every run.

    Raises:
        UsageError: If the suffix is neither.
    """
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UsageError(f"a figure is written as {' or '.join(SUFFIXES)}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _drawing():
        _lay_out(figure)
        figure.set_facecolor(LIGHT["paper"])
        if suffix == ".png":
            # not savefig, which draws everything twice
            figure.set_dpi(_DPI)
            FigureCanvasAgg(figure).print_png(path)
        else:
            FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})
        figure.set_facecolor("none")
    return path


def inline_svg(figure: Figure, name: str, *, title: str, description: str) -> str:
    """The figure as an ``<svg>`` element for a page, named for screen readers.

    Its ids start with ``name``, so that several stand on one page. House colours become custom
    properties, and every style becomes an attribute: a page needs no inline style for it.

    Args:
        figure: What is drawn.
        name: A word of letters, digits and hyphens that no other figure of the page has.
        title: What it is.
        description: What it shows, for those who do not see it.
    """
    stream = io.StringIO()
    with _drawing():
        _lay_out(figure)
        figure.set_dpi(2 * _DPI)  # of the heat maps in it
        FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None})
    root = ET.fromstring(stream.getvalue())  # noqa: S314  # drawn here, a moment ago
    _clean(root, name)
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ET.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(place, element)
    width, height = (float(root.attrib.pop(side).removesuffix("pt")) for side in ("width", "height"))
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    root.set("width", f"{width * 96 / 72 * PAGE_SCALE:.0f}")
    root.set("height", f"{height * 96 / 72 * PAGE_SCALE:.0f}")
    # without the prefixes that the XML writer invents, which HTML does not understand
    text = re.sub(r"(</?)ns\d+:", r"\1", ET.tostring(root, encoding="unicode"))
    return re.sub(r'\sxmlns:ns\d+="[^"]*"', "", text)


def _lay_out(figure: Figure) -> None:
    """Lay out once and for all, so that a figure is the same whichever form is asked for first."""
    engine = figure.get_layout_engine()
    if engine is not None:
        figure.set_dpi(_DPI)
        FigureCanvasAgg(figure)
        engine.execute(figure)
        figure.set_layout_engine("none")


_PROPERTIES: Final = {colour: f"var(--{name})" for name, colour in LIGHT.items()}


@contextmanager
def _drawing() -> Iterator[None]:
    with mpl.rc_context(fname=STYLE), warnings.catch_warnings():
        # a name in a script that the font lacks is drawn as boxes in the PNG, and as text in SVG
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _clean(root: ET.Element, name: str) -> None:
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in {"metadata", "style"}:
                parent.remove(child)
    used = set(re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', ET.tostring(root, encoding="unicode")))
    referenced = {one or other for one, other in used}
    for element in root.iter():
        given = dict(element.attrib)
        element.attrib.clear()
        for key, value in given.items():
            if key == "style":
                element.attrib.update(_attributes(value))
            elif key != "id" or value in referenced:
                element.set(key.replace(f"{{{_XLINK}}}", ""), _renamed(key, value, name))


def _attributes(style: str) -> dict[str, str]:
    """A style attribute as attributes of their own; the font is that of the page."""
    found: dict[str, str] = {}
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font":  # a shorthand, as "12px 'DejaVu Sans'"
            size = re.search(r"[\d.]+px", value)
            weight = re.search(r"\b(bold|[1-9]00)\b", value)
            found |= {"font-size": size[0]} if size else {}
            found |= {"font-weight": weight[0]} if weight else {}
        elif _KEPT_STYLES.fullmatch(key):
            found[key] = _PROPERTIES.get(value.lower(), value)
    return found


def _renamed(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == "d":  # a hundredth of a point is finer than any screen
        return re.sub(r"\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", value)
    if key.endswith("href") and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    if value.startswith("data:"):
        return "".join(value.split())
    return re.sub(r"url\(#([^)]*)\)", rf"url(#{name}-\1)", value)
