"""The page itself: one file with everything in it, or the shell that a server fills."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from markupsafe import Markup

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.files import replace_file
from graphhalu.report.theme import json_block, render
from graphhalu.viewer.view import View

ASSETS: Final = Path(__file__).parent / "assets"
_NAMES: Final = "decode draw grid tokens arcs matrix answers state sources answer maps spans reading app"
SCRIPTS: Final = tuple(f"{name}.js" for name in _NAMES.split())
"""In the order in which they run."""

Blocks = Mapping[str, tuple[str, Markup]]
"""Data inside a page, which a browser does not run: by the id of its element its type, and its
content, which holds no markup."""


def write_view(view: View, out: Path) -> Path:
    """Write all traces of a view as one self-contained page.

    Args:
        view: What is shown.
        out: The HTML file; its folder is made if it is missing.

    Raises:
        NotEnoughDataError: If there is no trace.
        UsageError: If a trace is too long to be shown.
    """
    if len(view.store) == 0:
        raise NotEnoughDataError(f"there is no trace to show in {view.store.name}\n  Extract some first")
    replace_file(out, embedded_page(view).encode())
    return out


def embedded_page(view: View) -> str:
    """A page that holds everything it shows; what it shows first stands first."""
    places = range(len(view.store))
    blocks = {f"trace-{index}": ("application/json", json_block(view.trace(index))) for index in places}
    # layers outside, as a store keeps them
    layers = {
        (index, place): Markup(view.layer(index, layer))  # noqa: S704  # base64
        for place, layer in enumerate(view.layers)
        for index in places
    }
    blocks |= {
        f"layer-{index}-{place}": ("text/plain", layers[index, place]) for index, place in sorted(layers)
    }
    # the layer in the middle is the one that is shown first
    names = [name for name in ("trace-0", f"layer-0-{len(view.layers) // 2}") if name in blocks]
    first = {name: blocks.pop(name) for name in names}
    return _page(view, first, blocks, is_served=False)


def served_page(view: View) -> str:
    """A page that asks its server for each answer."""
    return _page(view, {}, {}, is_served=True)


def _page(view: View, first: Blocks, rest: Blocks, *, is_served: bool) -> str:
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    css = (ASSETS / "viewer.css").read_text(encoding="utf-8")
    return render(
        "viewer.html",
        ASSETS,
        css=css,
        script=script,
        has_server=is_served,
        title=view.title,
        overview=json_block(view.overview(is_served=is_served)),
        first=first,
        rest=rest,
    )
