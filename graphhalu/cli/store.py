"""Commands that read a store: ``label``, ``features`` and ``graphs compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.options import RAY, Count, Options, Size, command, read_list
from graphhalu.cli.output import Shown, json_text, progress_line, say

if TYPE_CHECKING:
    from graphhalu.cli.ray import RayOptions
    from graphhalu.labels.labels import Labels
    from graphhalu.traces.store import TraceStore

app = typer.Typer()
graphs = typer.Typer(help="Token graphs of a store.", no_args_is_help=True)


def open_store(path: Path | None) -> "TraceStore":
    """The store of this path, or the newest finished one."""
    from graphhalu.traces.store import newest_store, open_traces

    if path is None:
        path = newest_store(Path("data/traces"), say)
        say(f"using the newest finished store, {path}")
    return open_traces(path)


def store_identity(store: "TraceStore") -> dict[str, Any]:
    """What a result says of the traces that it was made from."""
    return {"path": store.name, "configuration": dict(store.configuration)}


def labels_of(store: "TraceStore", labeller: str) -> "Labels":
    """The labels of a store by a rule; says how many there are and what a 1 means."""
    from graphhalu.labels.run import named_labels

    labels = named_labels(store, labeller)
    values = label_values(labels)
    share = "none" if values["prevalence"] is None else f"{100 * values['prevalence']:.1f} %"
    counts = f"{values['n_valid']} of {values['n_traces']} answers labelled by {labels.labeller!r}"
    say(f"{counts}, {share} {_ones(labels)}")
    if labels.meaning != "hallucinated":
        say(f"these labels do not judge the model: 1 means {values['a_1_means']}")
    return labels


def label_values(labels: "Labels") -> dict[str, Any]:
    """Labels in numbers: coverage, prevalence, how often each reason came."""
    from collections import Counter

    from graphhalu.labels.labels import MEANINGS

    n_valid = int(labels.is_valid.sum())
    return {
        "labeller": labels.labeller,
        "meaning": labels.meaning,
        "a_1_means": MEANINGS[labels.meaning],
        "settings": dict(labels.settings),
        "n_traces": len(labels.values),
        "n_valid": n_valid,
        "coverage": labels.coverage,
        "prevalence": labels.prevalence if n_valid else None,
        "reasons": dict(Counter(labels.reasons).most_common()),
    }


@command(app, given=Options())
def label(
    given: dict[str, Any], traces: Path | None = None, *, labeller: str = "match", as_: str | None = None
) -> Shown:
    """Label the answers of a store; traces are not touched, labellers live side by side.

    Args:
        as_: Name of the labels, as rouge-strict.
    """
    from graphhalu.labels.registry import make_labeller
    from graphhalu.labels.run import label_store

    store = open_store(traces)
    labels = label_store(store, make_labeller(labeller, **given), as_)
    return Shown({"store": store.name, **label_values(labels)}, "label", {"ones": _ones(labels)})


def _ones(labels: "Labels") -> str:
    """Name of the traces with label 1."""
    return "hallucinated" if labels.meaning == "hallucinated" else "input bad"


@command(app, ray=RAY)
def features(
    ray: "RayOptions",
    traces: Path | None = None,
    *,
    features: str | None = None,
    per_token: bool = False,
    out: Path | None = None,
) -> Shown:
    r"""Compute features of every trace; without --out only a summary is printed.

    Args:
        features: Names with commas or spaces, as 'sink_mass_k4 received_top\[k=25,head=mean]'; by default
            all that the streams of the store give.
        per_token: One row a token instead of one a trace.
        out: Parquet file for the table.
    """
    from graphhalu.features.registry import available_features, split_text
    from graphhalu.features.table import feature_table, summarise, write_features

    engine, store = ray.engine(), open_store(traces)
    wanted = split_text(features) if features else available_features(store.arrays, per_token=per_token)
    if out is not None:
        n_rows, n_columns = write_features(store, wanted, out, per_token=per_token, engine=engine)
        return Shown({"path": str(out), "n_rows": n_rows, "n_columns": n_columns}, "features")
    table = feature_table(store, wanted, per_token=per_token, engine=engine)
    rows = summarise(table)
    values = {"store": store.name, "n_rows": len(table)}
    values["features"] = {row.feature: row._asdict() for row in rows}
    more = {"rows": [row.cells() for row in rows], "unit": "tokens" if per_token else "traces"}
    return Shown(values, "features", more)


@graphs.callback()
def _graphs() -> None:
    """Token graphs of a store."""


@command(graphs, ray=RAY)
def compare(
    ray: "RayOptions",
    traces: Path | None = None,
    *,
    labeller: str = "match",
    layers: str | None = None,
    edges_per_row: Count = 8,
    resamples: Annotated[int, typer.Option(min=100)] = 1000,
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
    from graphhalu.evaluation.training import new_run_folder
    from graphhalu.evaluation.univariate import compare_topology
    from graphhalu.graphs.edges import GraphRecipe, TopK
    from graphhalu.labels.run import named_labels
    from graphhalu.report.topology import save_figure, topology_figure, topology_table

    engine, store = ray.engine(), open_store(traces)
    kept = None if layers is None else tuple(read_list("--layers", layers))
    labels = named_labels(store, labeller)
    with progress_line("traces") as progress:
        report = compare_topology(
            store,
            labels,
            layers=kept,
            recipe=GraphRecipe(TopK(edges_per_row), ("span",), channels="mean"),
            n_resamples=resamples,
            seed=seed,
            engine=engine,
            on_progress=progress,
        )
    folder = out or new_run_folder(Path("data/runs"), "topology")
    figure = save_figure(topology_figure(report), folder)[0]
    values = {"store": store.name, **report}
    (folder / "topology.json").write_text(json_text(values, indent=1) + "\n", encoding="utf-8")
    more = {"found": topology_table(report, rows), "figure": figure}
    return Shown({**values, "folder": str(folder)}, "topology", more)


@command(app)
def audit(
    traces: Path | None = None,
    *,
    labeller: str = "match",
    category: str = "auto",
    resamples: Annotated[int, typer.Option(min=100)] = 2000,
    seed: int = 0,
    out: Path | None = None,
) -> Shown:
    """Find what ranks the answers of a store without a detector, and what it can show.

    Args:
        category: Metadata field that names a question's category; words for clusters of words; auto takes
            category, relation, subject, title or source.
        resamples: Resamples of questions for the intervals.
        seed: Seed of resamples, folds and simulated scores.
        out: Folder of page and JSON; by default data/runs/audit-<time>.
    """
    from graphhalu.core.documents import plain_values, write_document
    from graphhalu.evaluation.audit import AUDIT_FILE, KIND
    from graphhalu.evaluation.audit import audit as run_audit
    from graphhalu.evaluation.training import new_run_folder
    from graphhalu.labels.labels import question_groups
    from graphhalu.report.audit import audit_page
    from graphhalu.report.write import REPORT_FILE, write_page

    store = open_store(traces)
    labels = labels_of(store, labeller)
    found = run_audit(
        store.records,
        labels,
        question_groups(store),
        store=store_identity(store),
        category=category,
        n_resamples=resamples,
        seed=seed,
    )
    folder = out or new_run_folder(Path("data/runs"), "audit")
    write_document(folder / AUDIT_FILE, found, KIND)
    files = write_page(audit_page(found), folder / REPORT_FILE)
    values = {"folder": str(folder), **plain_values(found, KIND)}
    return Shown(values, "audit", {"found": found, "html": files.html})
