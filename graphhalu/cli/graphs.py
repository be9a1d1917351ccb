"""Token graphs of a store."""

from pathlib import Path

from graphhalu.cli import library
from graphhalu.cli.options import RAY, Count, Resamples, Size, command, read_list
from graphhalu.cli.output import ProgressLine, Shown, json_text
from graphhalu.cli.store import open_store


@command("graphs compare", engine=RAY)
def compare(
    engine: "library.Executor | None",
    traces: Path | None = None,
    *,
    labeller: str = "match",
    layers: str | None = None,
    edges_per_row: Count = 8,
    resamples: Resamples = 1000,
    seed: int = 0,
    rows: Size = 20,
    out: Path | None = None,
) -> Shown:
    """Compare the topology of hallucinated with that of correct answers, layer by layer.

    Args:
        layers: Layers with commas; by default all that are kept.
        edges_per_row: Strongest keys of each query that become edges.
        resamples: Resamples of questions for the intervals.
        seed: Seed of the resamples.
        rows: Rows of the table; the JSON has all.
        out: Folder of figure and JSON; by default data/runs/topology-<time>.
    """
    store = open_store(traces)
    kept = None if layers is None else tuple(read_list("--layers", layers))
    report = library.compare_topology(
        store,
        library.named_labels(store, labeller),
        layers=kept,
        recipe=library.GraphRecipe(library.TopK(edges_per_row), ("span",), channels="mean"),
        n_resamples=resamples,
        seed=seed,
        engine=engine,
        on_progress=ProgressLine("traces"),
    )
    folder = library.run_folder("topology", out, is_resumed=False)
    figure = library.save_figure(library.topology_figure(report), folder)[0]
    values = {"store": store.name, **report}
    (folder / "topology.json").write_text(json_text(values, indent=1) + "\n", encoding="utf-8")
    more = {"found": library.topology_table(report, rows), "figure": figure}
    return Shown({**values, "folder": folder}, "topology", more)
