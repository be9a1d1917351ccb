"""``graphhalu view``: look at the answers of a store in a browser."""

from pathlib import Path
from typing import Annotated

import typer

from graphhalu.cli.analyse import Json, open_store
from graphhalu.cli.output import megabytes, print_json, say

_SHOWN = 8


def view(
    traces: Annotated[
        Path | None, typer.Argument(help="The store. [default: the newest finished one]")
    ] = None,
    trace: Annotated[
        list[str] | None, typer.Option("--trace", help="A trace or a question; may be repeated.")
    ] = None,
    detector: Annotated[
        Path | None, typer.Option(help="Folder of a trained detector, whose scores are shown.")
    ] = None,
    detector_class: Annotated[
        str | None, typer.Option(help="module:Class of a saved detector that no package registers.")
    ] = None,
    token_scores: Annotated[
        Path | None, typer.Option(help="Folder that graphhalu tokens wrote, whose scores colour the answers.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The page. [default: STORE-view.html beside it]")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Traces of the page where none is named.")] = _SHOWN,
    labeller: Annotated[str, typer.Option(help="Labels that are shown; none for none.")] = "match",
    features: Annotated[
        str | None, typer.Option(help="Maps, with commas. [default: all that cost little]")
    ] = None,
    edges: Annotated[
        int | None,
        typer.Option(min=1, help="Edges of a row. [default: 4 to 16, so that the page stays small]"),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Alias, hub id or folder. [default: that of the model]")
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the whole store to this machine instead.")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65_535, help="With --serve; 0 takes a free one.")] = 0,
    json: Json = False,
) -> None:
    """Write one self-contained page that shows answers, heads and attention; or serve it."""
    from graphhalu.core.errors import UsageError
    from graphhalu.features.spec import split_text
    from graphhalu.viewer.build import ViewRequest, make_view
    from graphhalu.viewer.page import write_view
    from graphhalu.viewer.serve import serve as serve_view

    store = open_store(traces)
    request = ViewRequest(
        trace_ids=tuple(trace or ()),
        limit=None if serve else limit,
        labeller=None if labeller == "none" else labeller,
        run=detector,
        detector_class=detector_class,
        token_scores=token_scores,
        features=None if features is None else tuple(split_text(features)),
        n_edges=edges,
        tokenizer=tokenizer,
    )
    if serve and out is not None:
        message = "--serve writes no page; leave out --out"
        raise UsageError(message)
    shown = make_view(store, request, on_note=say)
    if serve:
        serve_view(shown, port, lambda url: say(f"serving {url} to this machine; Ctrl-C stops it"))
        return
    written = write_view(shown, out or store.path.with_name(f"{store.path.stem}-view.html"))
    if json:
        print_json(
            {
                "html": str(written.path),
                "n_traces": written.n_traces,
                "edges_a_row": written.n_edges,
                "bytes": written.n_bytes,
            }
        )
        return
    print(written.path)
    left = len(store) - written.n_traces
    more = f"; {left:,} more with --trace, --limit or --serve" if left else ""
    say(f"{written.n_traces} answers, {written.n_edges} edges a row, {megabytes(written.n_bytes)}{more}")
