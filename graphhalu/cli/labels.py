"""``graphhalu labels``: what the labels of a store are worth."""

from pathlib import Path
from typing import Annotated

import typer

from graphhalu.cli.analyse import open_store
from graphhalu.cli.output import clean, print_json, print_table


def labels(
    traces: Annotated[
        Path | None, typer.Argument(help="The store. [default: the newest finished one]")
    ] = None,
    labellers: Annotated[
        str | None, typer.Option(help="Names with commas; missing labels are made. [default: all there are]")
    ] = None,
    examples: Annotated[
        int, typer.Option(min=0, help="Answers to read of each class of the first labeller.")
    ] = 20,
    seed: Annotated[int, typer.Option(help="Seed of the examples.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Prevalence, coverage, agreement and thresholds of the labels of a store, with examples."""
    from graphhalu.report.label_report import example_text, label_report, tables

    store = open_store(traces)
    names = [name.strip() for name in labellers.split(",")] if labellers else []
    report = label_report(store, names, n_examples=examples, seed=seed)
    if json:
        print_json({"store": store.name, **report.values()})
        return
    for table in tables(report):
        print_table(table.columns, table.rows, title=table.title)
    for example in report.examples:
        print(clean(f"{example_text(example)}\n"))
