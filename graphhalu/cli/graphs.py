"""``graphhalu graphs``: token graphs of a store."""

from pathlib import Path
from typing import Annotated

import typer

from graphhalu.cli import spread
from graphhalu.cli.analyse import Json, Labeller, open_store
from graphhalu.cli.output import print_json, print_table, progress_line, say

app = typer.Typer(help="Token graphs of a store.", no_args_is_help=True)


@app.callback()
def graphs() -> None:
    """Token graphs of a store."""


@app.command("compare")
def compare(
    traces: Annotated[
        Path | None, typer.Argument(help="The store. [default: the newest finished one]")
    ] = None,
    labeller: Labeller = "match",
    layers: Annotated[
        str | None, typer.Option(help="Layers with commas. [default: all that are kept]")
    ] = None,
    edges_per_row: Annotated[
        int, typer.Option(min=1, help="Strongest keys of each query that become edges.")
    ] = 8,
    resamples: Annotated[int, typer.Option(min=100, help="Resamples of questions for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the resamples.")] = 0,
    rows: Annotated[int, typer.Option(min=0, help="Rows of the table; the JSON has all.")] = 20,
    out: Annotated[
        Path | None, typer.Option(help="Folder of figure and JSON. [default: data/runs/topology-<time>]")
    ] = None,
    ray: spread.Ray = None,
    ray_actors: spread.Actors = None,
    ray_cpus: spread.Cpus = None,
    ray_gpus: spread.Gpus = None,
    ray_wait: spread.Wait = None,
    json: Json = False,
) -> None:
    """Compare the topology of hallucinated with that of correct answers, layer by layer."""
    import json as json_format

    from graphhalu.core.numerics import json_ready
    from graphhalu.evaluation.topology import compare_topology
    from graphhalu.evaluation.training import new_run_folder
    from graphhalu.graphs.edges import TopK
    from graphhalu.graphs.recipe import GraphRecipe
    from graphhalu.labels.run import named_labels
    from graphhalu.report.topology_report import save_figure, topology_figure, topology_table

    engine = spread.ray_engine(ray, ray_actors, ray_cpus, ray_gpus, ray_wait)
    store = open_store(traces)
    labels = named_labels(store, labeller)
    with progress_line("traces") as progress:
        report = compare_topology(
            store,
            labels,
            layers=_layers(layers),
            recipe=GraphRecipe(TopK(edges_per_row), ("span",), channels="mean"),
            n_resamples=resamples,
            seed=seed,
            engine=engine,
            on_progress=progress.count,
        )
    folder = out or new_run_folder(Path("data/runs"), "topology")
    paths = save_figure(topology_figure(report), folder)
    values = {"store": store.name, **report.values()}
    text = json_format.dumps(json_ready(values), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / "topology.json").write_text(text + "\n", encoding="utf-8")
    if json:
        print_json({**values, "folder": str(folder)})
        return
    table = topology_table(report, rows)
    print_table(table.columns, table.rows, title=table.title)
    say(f"delta: Cliff's delta with its 95 % interval over questions; * q < 0.05. {paths[0]}")


def _layers(text: str | None) -> tuple[int, ...] | None:
    from graphhalu.core.errors import UsageError

    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        message = f"--layers takes numbers with commas, as 10,15,20; got {text!r}"
        raise UsageError(message) from None
