"""The page itself: one file with everything in it, or the shell that a server fills."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from markupsafe import Markup

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.files import replace_file
from graphhalu.report.theme import json_block, render
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.viewer.heads import packed_bytes
from graphhalu.viewer.payload import View

ASSETS: Final = Path(__file__).parent / "assets"
SCRIPTS: Final = (
    "decode.js",
    "draw.js",
    "grid.js",
    "tokens.js",
    "arcs.js",
    "matrix.js",
    "answers.js",
    "state.js",
    "sources.js",
    "answer.js",
    "maps.js",
    "spans.js",
    "reading.js",
    "app.js",
)
"""In the order in which they run."""

PAGE_BYTES: Final = 40 * 2**20
"""What the weights of a page should take, with the edges of a row that are kept by default."""

FEWEST_EDGES: Final = 4
MOST_EDGES: Final = 16


_JSON: Final = "application/json"
_TEXT: Final = "text/plain"


class Block(NamedTuple):
    """Data inside a page; a browser does not run it.

    Attributes:
        name: Id of its element.
        kind: Type of its content.
        text: The content, which holds no markup.
    """

    name: str
    kind: str
    text: Markup


@dataclass(frozen=True)
class ViewFile:
    """A page that was written."""

    path: Path
    n_traces: int
    n_edges: int
    n_bytes: int


def fitting_edges(shape: TraceShape, records: Iterable[TraceRecord]) -> int:
    """Edges of a row with which these traces make a page of a good size; 4 to 16."""
    n_rows = sum(record.length - record.row_start for record in records)
    fitting = [
        n_edges
        for n_edges in range(FEWEST_EDGES, MOST_EDGES + 1)
        if packed_bytes(shape, n_rows, n_edges) <= PAGE_BYTES
    ]
    return max(fitting, default=FEWEST_EDGES)


def write_view(view: View, out: Path) -> ViewFile:
    """Write all traces of a view as one self-contained page.

    Args:
        view: What is shown.
        out: The HTML file; its folder is made if it is missing.

    Raises:
        NotEnoughDataError: If there is no trace.
        UsageError: If a trace is too long to be shown.
    """
    if len(view.store) == 0:
        message = f"there is no trace to show in {view.store.name}\n  Extract some first"
        raise NotEnoughDataError(message)
    out.parent.mkdir(parents=True, exist_ok=True)
    content = embedded_page(view).encode()
    replace_file(out, content)
    return ViewFile(out, len(view.store), view.n_edges, len(content))


def embedded_page(view: View) -> str:
    """A page that holds everything it shows; what it shows first stands first."""
    blocks = {
        f"trace-{index}": Block(f"trace-{index}", _JSON, json_block(view.trace(index)))
        for index in range(len(view.store))
    }
    blocks |= _layer_blocks(view)
    names = ["trace-0", f"layer-0-{first_place(view.layers)}"]
    first = [blocks.pop(name) for name in names if name in blocks]
    return _page(view, first, list(blocks.values()), is_served=False)


def served_page(view: View) -> str:
    """A page that asks its server for each answer."""
    return _page(view, [], [], is_served=True)


def first_place(layers: Sequence[int]) -> int:
    """Place of the layer that is shown first: the middle one."""
    return len(layers) // 2


def _layer_blocks(view: View) -> dict[str, Block]:
    """Every layer of every trace; layers outside, as a store keeps them."""
    found = {
        (index, place): Markup(view.layer(index, layer))  # noqa: S704  # base64
        for place, layer in enumerate(view.layers)
        for index in range(len(view.store))
    }
    named = {f"layer-{index}-{place}": found[index, place] for index, place in sorted(found)}
    return {name: Block(name, _TEXT, text) for name, text in named.items()}


def _page(view: View, first: Sequence[Block], rest: Sequence[Block], *, is_served: bool) -> str:
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    css = (ASSETS / "viewer.css").read_text(encoding="utf-8")
    overview = view.overview(is_served=is_served)
    return render(
        "viewer.html",
        ASSETS,
        css=css,
        script=script,
        has_server=is_served,
        title=view.title,
        overview=json_block(overview),
        first=first,
        rest=rest,
    )
