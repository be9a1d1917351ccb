"""``graphhalu features``: features of the traces of a store, as a table."""

from pathlib import Path
from typing import Annotated

import typer

from graphhalu.cli import spread
from graphhalu.cli.analyse import open_store
from graphhalu.cli.output import print_json, print_table, say


def features(
    traces: Annotated[
        Path | None, typer.Argument(help="The store. [default: the newest finished one]")
    ] = None,
    names: Annotated[
        str | None,
        typer.Option(
            "--features",
            help="Names with commas or spaces, as 'sink_mass_k4 received_top[k=25,head=mean]'. "
            "[default: all that the streams of the store give]",
        ),
    ] = None,
    per_token: Annotated[
        bool, typer.Option("--per-token", help="One row a token instead of one a trace.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Parquet file for the table.")] = None,
    ray: spread.Ray = None,
    ray_actors: spread.Actors = None,
    ray_cpus: spread.Cpus = None,
    ray_gpus: spread.Gpus = None,
    ray_wait: spread.Wait = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compute features of every trace; without --out only a summary is printed."""
    from graphhalu.features.registry import available_features
    from graphhalu.features.spec import split_text
    from graphhalu.features.table import feature_table, write_features

    engine = spread.ray_engine(ray, ray_actors, ray_cpus, ray_gpus, ray_wait)
    store = open_store(traces)
    wanted = split_text(names) if names else available_features(store.arrays, per_token=per_token)
    if out is not None:
        n_rows, n_columns = write_features(store, wanted, out, per_token=per_token, engine=engine)
        if json:
            print_json({"path": str(out), "n_rows": n_rows, "n_columns": n_columns})
        else:
            say(f"{n_rows} rows and {n_columns} columns in {out}")
        return
    from graphhalu.features.table import summarise

    table = feature_table(store, wanted, per_token=per_token, engine=engine)
    rows = summarise(table)
    if json:
        values = {row.feature: row._asdict() for row in rows}
        print_json({"store": store.name, "n_rows": len(table), "features": values})
        return
    print_table(
        ["feature", "columns", "mean", "std", "missing"],
        [row.cells() for row in rows],
        title=f"{store.name}: {len(table)} {'tokens' if per_token else 'traces'}",
    )
