"""``graphhalu tokens``: which tokens of given answers are hallucinated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.analyse import Json, open_store
from graphhalu.cli.output import print_json, print_table, progress_line, say

if TYPE_CHECKING:
    from graphhalu.evaluation.token_metrics import TokenMetric
    from graphhalu.evaluation.token_result import TokenCounts, TokenResult, TokenRow


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
    import time

    import torch

    from graphhalu.config import load_config, read_overrides
    from graphhalu.evaluation.token_run import TokenCompareConfig, compare_tokens
    from graphhalu.evaluation.training import run_folder
    from graphhalu.models.resources import default_threads

    given: dict[str, Any] = {**read_overrides(set_ or []), **({"quick": True} if quick else {})}
    given |= {} if detectors is None else {"detectors": detectors.split(",")}
    given |= {} if seeds is None else read_overrides([f"seeds=[{seeds}]"])
    settings = load_config(TokenCompareConfig, config, given)
    _check_name(save)
    torch.set_num_threads(threads or default_threads())
    store = open_store(traces)
    folder = run_folder("tokens", out, is_resumed=False)
    say(f"the result goes to {folder}")
    identity = {"path": str(store.path), "configuration": dict(store.configuration)}
    started = time.monotonic()
    with progress_line("fits") as line:
        result = compare_tokens(
            store, settings, store=identity,
            on_fit=lambda done, total: line.show(done, total, time.monotonic() - started),
        )  # fmt: skip
    result.write(folder)
    if save is not None:
        from graphhalu.evaluation.token_training import train_token_detector

        train_token_detector(save, store, settings, folder / "detector")
    if json:
        print_json({"folder": str(folder), **result.plain()})
        return
    _print_result(result)
    say(f"tokens.json and tokens.parquet are in {folder}")
    say(f"look at them:  graphhalu view {store.path} --labeller spans --token-scores {folder}")


def _check_name(name: str | None) -> None:
    """Refuse an unknown detector before anything is run."""
    from graphhalu.detectors.tokens.registry import TOKEN_DETECTORS

    if name is not None:
        TOKEN_DETECTORS.get(name)


def _print_result(result: "TokenResult") -> None:
    print("\n".join(_count_lines(result.counts)))
    rows = [row for row in result.rows if row.failure is None]
    rows.sort(key=lambda row: -row.metrics["token_auroc"].value if row.metrics else 0.0)
    print_table(
        ["detector", "AUROC", "against position", "Holm"],
        [[_name(row), *_against_position(row)] for row in rows],
        title=f"tokens, {_share(result.counts.prevalence)} hallucinated; * = control; Holm: p",
    )
    print_table(
        ["detector", "AUPRC", "AUROC in answer", "AUROC of answers"],
        [[_name(row), *_cells(row, "token_auprc", "within_auroc", "answer_auroc_max")]
         for row in rows],
        title=f"AUPRC at chance {result.counts.prevalence:.3f}; answers by their highest token",
    )  # fmt: skip
    print_table(
        ["detector", "char F1", "span F1", "P", "R"],
        [[_name(row), *_cells(row, "char_f1", "span_f1"), *_plain(row)] for row in rows],
        title=f"characters and spans; with all called char F1 {result.counts.all_called_f1:.3f}",
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
        f"{counts.n_spans} hallucinated spans{lost}"
        + (f"; left out: {left_out}" if left_out else ""),
        f"{counts.n_tokens:,} tokens, {counts.n_hallucinated_tokens:,} hallucinated",
        f"written by (share hallucinated): {writers}",
    ]


def _name(row: "TokenRow") -> str:
    return row.detector + ("*" if row.is_control else "")


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _against_position(row: "TokenRow") -> list[str]:
    difference = row.differences.get("token_auroc")
    return [
        *_cells(row, "token_auroc"),
        "-" if difference is None else _cell(difference, sign="+"),
        "-" if row.p_holm is None else f"{row.p_holm:.3f}".removeprefix("0"),
    ]


def _cells(row: "TokenRow", *names: str) -> list[str]:
    found = [row.metrics.get(name) for name in names]
    return ["-" if metric is None else _cell(metric) for metric in found]


def _plain(row: "TokenRow") -> list[str]:
    """Precision and recall of spans."""
    found = [row.metrics.get(name) for name in ("span_precision", "span_recall")]
    return ["-" if metric is None else _number(metric.value) for metric in found]


def _cell(metric: "TokenMetric", *, sign: str = "") -> str:
    """A value with its interval; narrow enough for 80 columns."""
    low, high = (_number(value, sign) for value in (metric.low, metric.high))
    return f"{_number(metric.value, sign)} [{low},{high}]"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:{sign}.3f}".replace("0.", ".", 1)
