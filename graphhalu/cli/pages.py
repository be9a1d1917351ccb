"""Commands that show or share: pages of a run and of a store, and the hub."""

from pathlib import Path
from typing import Annotated, Any

import typer

from graphhalu.cli import library
from graphhalu.cli.options import Count, Place, command
from graphhalu.cli.output import Shown, say
from graphhalu.cli.store import open_store
from graphhalu.core.errors import UsageError


@command("report")
def report(
    run: list[Path],
    *,
    out: Place = None,
    svg: bool = False,
    maps: Place = None,
    labeller: str = "match",
    together: bool = False,
) -> Shown:
    """Write the report of a run: one HTML page, Markdown, and figures beside them.

    Args:
        run: Folder of a comparison or a transfer; with --together several comparisons.
        out: The HTML file; by default report.html in the folder.
        maps: Store whose single heads are shown if maps.json is missing.
        together: Correct the claims of all comparisons as one family; writes claims.json, too.
    """
    if together:
        return _together(run, out)
    if len(run) > 1:
        raise UsageError(f"a report is of one run, got {len(run)}; or add --together")
    if maps is not None:
        beams, store = library.read_result(run[0]).config.get("beams", "best"), open_store(maps)
        labels = library.named_labels(store, labeller)
        library.head_maps(store, labels, is_best_beam_only=beams == "best").write(run[0])
    files = library.write_report(run[0], out, has_svg=svg)
    return Shown({**vars(files), "markdown": str(files.markdown)}, "report")


@command("leaderboard")
def leaderboard(results: list[Path], *, out: Path = Path("leaderboard.html")) -> Shown:
    """Make one page of result files: every detector on every store, with tests made anew from the scores.

    Args:
        results: Folders of comparisons, or their result.json; scores.parquet lies beside each.
        out: The HTML file.
    """
    folders = [path.parent if path.suffix == ".json" else path for path in results]
    found = {folder.name: library.read_result(folder) for folder in folders}
    if len(found) < len(folders):
        raise UsageError("two results have the same folder name, which names them on the page")
    files = library.write_page(library.leaderboard_page(found), out)
    return Shown({**vars(files), "markdown": str(files.markdown)}, "report")


def _together(runs: list[Path], out: Path | None) -> Shown:
    results = {run.name: library.read_result(run) for run in runs}
    if len(results) < max(2, len(runs)):
        raise UsageError(f"--together takes two comparisons or more of different names, got {len(runs)}")
    claims = library.claims_together(results)
    target = out or library.new_run_folder(Path("data/runs"), "together") / library.REPORT_FILE
    library.write_document(target.with_name(library.CLAIMS_FILE), {"claims": claims}, library.CLAIMS)
    files = library.write_page(library.together_page(results, claims), target)
    return Shown({"html": files.html, "claims": claims}, "together")


@command("view")
def view(
    traces: Place = None,
    *,
    trace: list[str] | None = None,
    detector: Place = None,
    detector_class: str | None = None,
    token_scores: Place = None,
    out: Place = None,
    limit: Count = 8,
    labeller: str = "match",
    features: str | None = None,
    edges: Count | None = None,
    tokenizer: str | None = None,
    serve: bool = False,
    port: Annotated[int, typer.Option(min=0, max=65_535)] = 0,
) -> Shown | None:
    """Write one self-contained page that shows answers, heads and attention; or serve it.

    Args:
        trace: A trace or a question; may be repeated.
        detector: Folder of a trained detector, whose scores are shown.
        token_scores: Folder of graphhalu tokens, whose scores colour the answers.
        out: The page; by default STORE-view.html beside the store.
        limit: Traces of the page if none is named.
        labeller: Labels that are shown; none for none.
        features: Maps, with commas; by default all that cost little.
        edges: Edges of a row; by default 4 to 16, by the page's size.
        tokenizer: Alias, hub id or folder; by default that of the model.
        serve: Serve the whole store to this machine instead.
        port: With --serve; 0 takes a free one.
    """
    store = open_store(traces)
    if serve and out is not None:
        raise UsageError("--serve writes no page; leave out --out")
    asked: dict[str, Any] = {"trace_ids": tuple(trace or ()), "limit": None if serve else limit}
    asked |= {"labeller": None if labeller == "none" else labeller, "token_scores": token_scores}
    asked |= {"run": detector, "detector_class": detector_class, "tokenizer": tokenizer, "n_edges": edges}
    asked["features"] = None if features is None else tuple(library.split_text(features))
    shown = library.make_view(store, library.ViewRequest(**asked), on_note=say)
    if serve:
        library.serve_view(shown, port, lambda url: say(f"serving {url} to this machine; Ctrl-C stops it"))
        return None
    html = library.write_view(shown, out or store.path.with_name(f"{store.path.stem}-view.html"))
    sizes = {"n_traces": len(shown.store), "edges_a_row": shown.n_edges, "bytes": html.stat().st_size}
    return Shown({"html": html, **sizes}, "view", {"n_more": len(store) - len(shown.store)})


@command("push")
def push(path: Path, repository: str, *, private: bool = False, licence: str = "apache-2.0") -> Shown:
    """Upload a trained detector or a trace store to the hub, with a card and checksums.

    Args:
        path: A run of graphhalu train, or a trace store.
        repository: OWNER/NAME; is made if it is missing.
        private: Make it private.
        licence: As the hub writes it.
    """
    address = library.push(path, repository, is_private=private, licence=licence)
    return Shown({"path": path, "address": address}, "push")


@command("pull")
def pull(address: str, *, out: Place = None, store: bool = False) -> Shown:
    """Download a detector or a trace store from the hub, and compare every file with its checksum.

    Args:
        address: OWNER/NAME, with @REVISION where one is meant.
        out: Folder to write to; by default the hub's cache.
        store: It is a trace store.
    """
    folder = library.pull(address, out, is_store=store)
    return Shown({"address": address, "folder": folder}, "pull")
