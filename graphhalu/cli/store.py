"""Commands that read a store: ``label``, ``features`` and ``audit``."""

from pathlib import Path
from typing import Any

from graphhalu.cli import library
from graphhalu.cli.options import RAY, Options, Resamples, command
from graphhalu.cli.output import Shown, say


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


@command("label", given=Options())
def label(
    given: dict[str, Any], traces: Path | None = None, *, labeller: str = "match", as_: str | None = None
) -> Shown:
    """Label the answers of a store; traces are not touched, labellers live side by side.

    Args:
        as_: Name of the labels, as rouge-strict.
    """
    store = open_store(traces)
    labels = library.label_store(store, library.make_labeller(labeller, **given), as_)
    return Shown({"store": store.name, **label_values(store, labels)}, "label")


@command("features", engine=RAY)
def features(
    engine: "library.Executor | None",
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
    store = open_store(traces)
    wanted = library.split_text(features or "")
    wanted = wanted or library.available_features(store.arrays, per_token=per_token)
    if out is not None:
        n_rows, n_columns = library.write_features(store, wanted, out, per_token=per_token, engine=engine)
        return Shown({"path": out, "n_rows": n_rows, "n_columns": n_columns}, "features")
    table = library.feature_table(store, wanted, per_token=per_token, engine=engine)
    rows = library.summarise(table)
    found = {row.feature: row._asdict() for row in rows}
    values = {"store": store.name, "n_rows": len(table), "features": found}
    return Shown(values, "features", {"rows": rows, "unit": "tokens" if per_token else "traces"})


@command("audit")
def audit(
    traces: Path | None = None,
    *,
    labeller: str = "match",
    category: str = "auto",
    resamples: Resamples = 2000,
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
