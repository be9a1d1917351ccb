"""``graphhalu tokens``: which tokens of given answers are hallucinated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.analyse import Json, open_store, store_identity
from graphhalu.cli.output import print_json, print_table, progress_line, say

if TYPE_CHECKING:
    from graphhalu.evaluation.result import DetectorRow, Result, TokenCounts


def tokens(
    traces: Annotated[
        Path | None, typer.Argument(help="The store. [default: the newest finished one]")
    ] = None,
    detectors: Annotated[
        str | None, typer.Option(help="Names of token detectors with commas. [default: all]")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="Seeds with commas. [default: 0,1,2]")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="One 60/20/20 split in place of cross-fitting.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Any field, n_folds=3.")] = None,
    save: Annotated[
        str | None, typer.Option(help="Also fit this detector for use; it goes to OUT/detector.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the result. [default: data/runs/tokens-<time>]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads. [default: free cores]")] = None,
    json: Json = False,
) -> None:
    """Find hallucinated tokens in given answers with marked spans, and measure how well."""
    from graphhalu.cli.spread import use_threads
    from graphhalu.core.config import load_config, read_overrides
    from graphhalu.evaluation.compare import compare
    from graphhalu.evaluation.detector_specs import detector_specs
    from graphhalu.evaluation.settings import CompareConfig
    from graphhalu.evaluation.training import fit_for_use, run_folder
    from graphhalu.labels.spans import label_tokens

    given: dict[str, Any] = {**read_overrides(set_ or []), **({"quick": True} if quick else {})}
    given |= {} if detectors is None else {"detectors": detectors.split(",")}
    given |= {} if seeds is None else read_overrides([f"seeds=[{seeds}]"])
    settings = load_config(CompareConfig, config, given)
    if save is not None:
        detector_specs([save], CompareConfig(), "token")  # refused before anything is run
    use_threads(threads)
    store = open_store(traces)
    labels = label_tokens(store.records)
    folder = run_folder("tokens", out, is_resumed=False)
    say(f"the result goes to {folder}")
    with progress_line("fits") as line:
        result = compare(store, labels, config=settings, store=store_identity(store), on_progress=line.count)
    result.write(folder)
    if save is not None:
        fit_for_use(save, store, labels, settings, folder / "detector")
    if json:
        print_json({"folder": str(folder), **result.plain()})
        return
    _print_result(result)
    say(f"result.json, table.csv and scores.parquet are in {folder}")
    say(f"look at them:  graphhalu view {store.path} --labeller spans --token-scores {folder}")
    say(f"or as a page:  graphhalu report {folder}")


def _print_result(result: "Result") -> None:
    counts = result.counts
    assert counts is not None
    print("\n".join(_count_lines(counts)))
    rows = [row for row in result.ranked() if row.failure is None]
    print_table(
        ["detector", "AUROC", "against position", "Holm"],
        [[_name(row), *_cells(row, "auroc"), *_against_position(result, row)] for row in rows],
        title=f"tokens, {_share(counts.prevalence)} hallucinated; * = control; Holm: p",
    )
    print_table(
        ["detector", "AUPRC", "AUROC in answer", "AUROC of answers"],
        [[_name(row), *_cells(row, "auprc", "within_auroc", "answer_auroc_max")] for row in rows],
        title=f"AUPRC at chance {counts.prevalence:.3f}; answers by their highest token",
    )
    print_table(
        ["detector", "char F1", "span F1", "P", "R"],
        [
            [
                _name(row),
                *_cells(row, "char_f1", "span_f1"),
                *(_number(row.metric(name)) for name in ("span_precision", "span_recall")),
            ]
            for row in rows
        ],
        title=f"characters and spans; with all called char F1 {counts.all_positive_f1:.3f}",
    )
    for row in result.rows:
        if row.failure is not None:
            say(f"{row.detector} failed: {row.failure}")
        elif row.coverage is not None and row.coverage < 1:
            say(f"{row.detector} scores {row.coverage:.1%} of the tokens")
    for note in result.notes:
        say(note)


def _count_lines(counts: "TokenCounts") -> list[str]:
    left_out = ", ".join(f"{n} {reason}" for reason, n in counts.n_left_out.items())
    lost = f", {counts.n_lost_spans} of them without a token" if counts.n_lost_spans else ""
    writers = ", ".join(f"{name} {n} ({share:.0%})" for name, (n, share) in counts.writers.items())
    return [
        f"{counts.n_traces} answers to {counts.n_groups} contexts, {counts.n_hallucinated} with "
        f"{counts.n_spans} hallucinated spans{lost}" + (f"; left out: {left_out}" if left_out else ""),
        f"{counts.n_tokens:,} tokens, {counts.n_hallucinated_tokens:,} hallucinated",
        f"written by (share hallucinated): {writers}",
    ]


def _name(row: "DetectorRow") -> str:
    return row.detector + ("*" if row.is_control else "")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _against_position(result: "Result", row: "DetectorRow") -> list[str]:
    """The difference of AUROC from the baseline, and its p-value."""
    test = result.comparison(row.detector)
    if test is None:
        return ["-", "-"]
    p_value = "-" if test.p_holm is None else f"{test.p_holm:.3f}".removeprefix("0")
    return [_interval(test.difference, test.low, test.high, "+"), p_value]


def _cells(row: "DetectorRow", *names: str) -> list[str]:
    found = [row.metrics.get(name) for name in names]
    return ["-" if each is None else _interval(each.value, each.low, each.high) for each in found]


def _interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    """A value with its interval; narrow enough for 80 columns."""
    return f"{_number(value, sign)} [{_number(low, sign)},{_number(high, sign)}]"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}".replace("0.", ".", 1)
