"""``graphhalu report``: the report of a finished run."""

from pathlib import Path
from typing import Annotated

import typer

from graphhalu.cli.analyse import Labeller
from graphhalu.cli.output import print_json, say


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a comparison or a transfer.")],
    out: Annotated[
        Path | None, typer.Option(help="The HTML file. [default: report.html in the folder]")
    ] = None,
    svg: Annotated[bool, typer.Option("--svg", help="Write figures as SVG files, too.")] = False,
    maps: Annotated[
        Path | None, typer.Option(help="Store whose single heads are shown, where maps.json has none.")
    ] = None,
    labeller: Labeller = "match",
    json: Annotated[bool, typer.Option("--json", help="Print the written files as JSON.")] = False,
) -> None:
    """Write the report of a run: one HTML page, Markdown, and figures beside them."""
    from graphhalu.report.write import write_report

    if maps is not None:
        _write_maps(run, maps, labeller)
    files = write_report(run, out, has_svg=svg)
    if json:
        print_json(
            {
                "html": str(files.html),
                "markdown": str(files.markdown),
                "figures": [str(path) for path in files.figures],
            }
        )
        return
    print(files.html)
    say(f"{files.markdown.name} and {len(files.figures)} figures are beside it")


def _write_maps(run: Path, store_path: Path, labeller: str) -> None:
    from graphhalu.cli.analyse import open_store
    from graphhalu.evaluation.maps import head_maps
    from graphhalu.evaluation.result_files import read_result
    from graphhalu.labels.run import named_labels

    beams = read_result(run).config.get("beams", "best")
    store = open_store(store_path)
    labels = named_labels(store, labeller)
    head_maps(store, labels, is_best_beam_only=beams == "best").write(run)
