"""Commands that fill a store, read it and label it; graphs of a store."""

from pathlib import Path
from typing import Any

from graphhalu.cli import library
from graphhalu.cli.options import RAY, Count, Options, Place, Resamples, Size, command, read_list
from graphhalu.cli.output import ProgressLine, Shown, json_text, say

_EXTRACT = Options(
    "ExtractConfig",
    "model=model.name dataset=dataset.name data_path=dataset.path beams=generation.num_beams "
    "system_file=prompt.system@file model.* dataset.fields dataset.seed prompt.* generation.* capture.* "
    "num_samples batch_size",
    file=True,
)
_PLAN = Options("PlanSettings", "keep_beams=kept_beams * capture.keep capture.rows", overrides=False)


def open_store(path: Path | None) -> "library.TraceStore":
    """The store of this path, or the newest finished one."""
    if path is None:
        path = library.newest_store(Path("data/traces"), say)
        say(f"using the newest finished store, {path}")
    return library.open_traces(path)


def identity_of(store: "library.TraceStore") -> dict[str, Any]:
    """What a result says of the traces that it was made from."""
    return {"path": store.name, "configuration": dict(store.configuration)}


def labels_of(store: "library.TraceStore", labeller: str) -> "library.Labels":
    """The labels of a store by a rule; says how many there are and what a 1 means."""
    labels = library.named_labels(store, labeller)
    Shown(label_values(store, labels), "labels").show(as_json=False)
    return labels


def label_values(store: "library.TraceStore", labels: "library.Labels") -> dict[str, Any]:
    """Labels in numbers: coverage, prevalence, how often each reason came."""
    values = library.summarise_labels(labels, library.question_groups(store))
    values |= {"labeller": labels.labeller, "meaning": labels.meaning, "settings": labels.settings}
    values["a_1_means"] = library.MEANINGS[labels.meaning]
    return {name: value for name, value in values.items() if name != "interval"}


@command("extract", config=_EXTRACT, ray=RAY)
def extract(
    config: "library.ExtractConfig",
    ray: "library.RayExecutor",
    *,
    out: Place = None,
    shard: str | None = None,
    resume: bool = False,  # noqa: ARG001 - always so; the option lets a script say it
) -> Shown:
    """Answer questions by beam search and store attention and hidden states.

    An interrupted run goes on where it stopped when the same command is run again.

    Args:
        out: The store; by default data/traces/<model>_<dataset>.zarr.
        shard: Do the i-th of N shares, as 3/10, beside processes that do the others.
        resume: Go on with an existing store (always done).
    """
    # told before torch is imported, which takes seconds
    library.resolve_model(config.model.name)
    library.require_dataset(config.dataset.name)
    from graphhalu.extract import run

    share = None if shard is None else run.parse_shard(shard)
    summary = run.extract(
        config, out, engine=ray.if_asked(), shard=share, on_progress=ProgressLine("questions")
    )
    return Shown(summary.values(), "extract", then=summary.failure)


@command("plan", settings=_PLAN)
def plan(settings: "library.PlanSettings") -> Shown:
    """Time, memory and disk of an extraction: arithmetic, at rates that you state."""
    return Shown(library.planned_cost(settings), "plan", {"rates": settings})


@command("label", given=Options())
def label(
    given: dict[str, Any], traces: Place = None, *, labeller: str = "match", as_: str | None = None
) -> Shown:
    """Label the answers of a store; traces are not touched, labellers live side by side.

    Args:
        as_: Name of the labels, as rouge-strict.
    """
    store = open_store(traces)
    labels = library.label_store(store, library.make_labeller(labeller, **given), as_)
    return Shown({"store": store.name, **label_values(store, labels)}, "label")


@command("features", ray=RAY)
def features(
    ray: "library.RayExecutor",
    traces: Place = None,
    *,
    features: str | None = None,
    per_token: bool = False,
    out: Place = None,
) -> Shown:
    r"""Compute features of every trace; without --out only a summary is printed.

    Args:
        features: Names with commas or spaces, as 'sink_mass_k4 received_top\[k=25,head=mean]'; by default
            all that the streams of the store give.
        per_token: One row a token instead of one a trace.
        out: Parquet file for the table.
    """
    engine, store = ray.if_asked(), open_store(traces)
    wanted = library.split_text(features or "")
    wanted = wanted or library.available_features(store.arrays, per_token=per_token)
    if out is not None:
        n_rows, n_columns = library.write_features(store, wanted, out, per_token=per_token, engine=engine)
        return Shown({"path": out, "n_rows": n_rows, "n_columns": n_columns}, "features")
    table = library.feature_table(store, wanted, per_token=per_token, engine=engine)
    rows = library.summarise(table)
    values = {"store": store.name, "n_rows": len(table), "features": {r.feature: r._asdict() for r in rows}}
    return Shown(values, "features", {"rows": rows, "unit": "tokens" if per_token else "traces"})


@command("audit")
def audit(
    traces: Place = None,
    *,
    labeller: str = "match",
    category: str = "auto",
    resamples: Resamples = 2000,
    seed: int = 0,
    out: Place = None,
) -> Shown:
    """Find what ranks the answers of a store without a detector, and what it can show.

    Args:
        category: Metadata field that names a question's category; words for clusters of words; auto takes
            category, relation, subject, title or source.
        resamples: Resamples of questions for the intervals.
        seed: Seed of resamples, folds and simulated scores.
        out: Folder of page and JSON; by default data/runs/audit-<time>.
    """
    store = open_store(traces)
    labels, groups, about = labels_of(store, labeller), library.question_groups(store), identity_of(store)
    found = library.audit(
        store.records, labels, groups, store=about, category=category, n_resamples=resamples, seed=seed
    )
    folder = library.run_folder("audit", out, is_resumed=False)
    library.write_document(folder / library.AUDIT_FILE, found, library.AUDIT)
    files = library.write_page(library.audit_page(found), folder / library.REPORT_FILE)
    values = {"folder": folder, **library.plain_values(found, library.AUDIT)}
    return Shown(values, "audit", {"found": found, "html": files.html})


@command("graphs compare", about="Token graphs of a store.", ray=RAY)
def compare_graphs(
    ray: "library.RayExecutor",
    traces: Place = None,
    *,
    labeller: str = "match",
    layers: str | None = None,
    edges_per_row: Count = 8,
    resamples: Resamples = 1000,
    seed: int = 0,
    rows: Size = 20,
    out: Place = None,
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
    kept = None if layers is None else read_list("--layers", layers)
    how: dict[str, Any] = {"layers": kept, "n_resamples": resamples, "seed": seed, "engine": ray.if_asked()}
    how["recipe"] = library.GraphRecipe(library.TopK(edges_per_row), ("span",), channels="mean")
    store = open_store(traces)
    labels = library.named_labels(store, labeller)
    report = library.compare_topology(store, labels, **how, on_progress=ProgressLine("traces"))
    folder = library.run_folder("topology", out, is_resumed=False)
    figure = library.save_figure(library.topology_figure(report), folder)[0]
    values = {"store": store.name, **report}
    (folder / "topology.json").write_text(json_text(values, indent=1) + "\n", encoding="utf-8")
    more = {"found": library.topology_table(report, rows), "figure": figure}
    return Shown({**values, "folder": folder}, "topology", more)
