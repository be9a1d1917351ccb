"""The page itself: one file with everything in it, or the shell that a server fills."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from markupsafe import Markup

from graphhalu.errors import NotEnoughDataError
from graphhalu.evaluation.files import replace_file
from graphhalu.look.page import json_block, render
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.viewer.heads import packed_bytes
from graphhalu.viewer.payload import View

ASSETS: Final = Path(__file__).parent / "assets"
SCRIPTS: Final = (
    "decode.js", "draw.js", "grid.js", "tokens.js", "arcs.js", "matrix.js", "answers.js", "app.js",
)  # fmt: skip
"""In the order in which they run."""

PAGE_BYTES: Final = 40 * 2**20
"""What the weights of a page should take, with the edges of a row that are kept by default."""

FEWEST_EDGES: Final = 4
MOST_EDGES: Final = 16


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
        n_edges for n_edges in range(FEWEST_EDGES, MOST_EDGES + 1)
        if packed_bytes(shape, n_rows, n_edges) <= PAGE_BYTES
    ]  # fmt: skip
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
        message = f"there is no trace to show in {view.store.path}\n  Extract some first"
        raise NotEnoughDataError(message)
    out.parent.mkdir(parents=True, exist_ok=True)
    content = embedded_page(view).encode()
    replace_file(out, content)
    return ViewFile(out, len(view.store), view.n_edges, len(content))


def embedded_page(view: View) -> str:
    """A page that holds everything it shows."""
    overview = json_block(view.overview(is_served=False))
    traces = [json_block(view.trace(index)) for index in range(len(view.store))]
    return _page(view, overview, traces, _layers(view))


def served_page(view: View) -> str:
    """A page that asks its server for each answer."""
    return _page(view, json_block(view.overview(is_served=True)), [], [])


def _layers(view: View) -> list[tuple[str, Markup]]:
    """Name and base64 of every layer of every trace; layers outside, as a store keeps them."""
    found = {
        (index, place): Markup(view.layer(index, layer))  # noqa: S704  # base64
        for place, layer in enumerate(view.layers)
        for index in range(len(view.store))
    }
    return [(f"layer-{index}-{place}", found[index, place]) for index, place in sorted(found)]


def _page(
    view: View, overview: Markup, traces: Sequence[Markup], layers: Sequence[tuple[str, Markup]]
) -> str:
    script = "".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    css = (ASSETS / "viewer.css").read_text(encoding="utf-8")
    return render(
        "viewer.html", ASSETS, css=css, script=script, has_server=not layers,
        title=view.title, overview=overview, traces=traces, layers=layers,
    )  # fmt: skip
