"""``graphhalu score``: how likely an answer is hallucinated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.output import clean, print_json, progress_line, say

if TYPE_CHECKING:
    from graphhalu.scoring.scorer import AnswerScore, AnswerScorer


def score(
    question: Annotated[str | None, typer.Argument(help="The question.")] = None,
    detector: Annotated[
        Path | None,
        typer.Option(help="What graphhalu train saved. [default: the newest in data/runs]"),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="The answer to judge. [default: the model answers]")
    ] = None,
    context: Annotated[
        str | None, typer.Option(help="A passage that the prompt shows before the question.")
    ] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="File of questions (jsonl, csv, parquet …).")
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="JSON Lines with one score a row; gone on with.")
    ] = None,
    fail_above: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 if a probability is higher, or missing."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the detector's model lies now. [default: as trained]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda …")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score answers with a trained detector: probability, verdict, and what it was made of."""
    from graphhalu.errors import UsageError
    from graphhalu.scoring.scorer import AnswerScorer

    if (question is None) == (input_ is None):
        message = (
            "give one question, or a file of them:\n"
            '  graphhalu score "Who wrote Emma?"   or   graphhalu score --input FILE --output FILE'
        )
        raise UsageError(message)
    if (input_ is None) != (output is None):
        message = "--input and --output go together: one score a row is written"
        raise UsageError(message)
    run = detector if detector is not None else newest_run()
    scorer = AnswerScorer(run, on_note=say, name=model, device=device, threads=threads)
    if question is not None:
        found = scorer.score(question, answer, context=context)
        probabilities = [found.probability]
        if json:
            print_json({"detector": str(run), **found.to_json()})
        else:
            _print_score(scorer, found)
    else:
        assert input_ is not None
        assert output is not None
        probabilities = _score_file(scorer, input_, output, json=json)
    if fail_above is not None and any(p is None or p > fail_above for p in probabilities):
        raise typer.Exit(1)


def newest_run() -> Path:
    """The newest trained detector.

    Raises:
        UsageError: If there is none.
    """
    from graphhalu.errors import UsageError
    from graphhalu.evaluation.training import RUNS

    found = sorted(RUNS.glob("*/detector/detector.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        message = (
            f"no trained detector in {RUNS}\n"
            f"  Train one:  graphhalu train gat   or name one:  --detector RUN"
        )
        raise UsageError(message)
    return found[-1].parent.parent


def _score_file(
    scorer: "AnswerScorer", input_: Path, output: Path, *, json: bool
) -> list[float | None]:
    import time

    from graphhalu.scoring.batch import read_asked, score_file

    asked, started = read_asked(input_), time.monotonic()
    with progress_line("answers") as line:
        rows = score_file(
            scorer, asked, output,
            lambda done, total: line.show(done, total, time.monotonic() - started),
        )  # fmt: skip
    failed = [row for row in rows if row["score"] is None]
    called = sum(bool(row["is_hallucinated"]) for row in rows)
    values = {"output": str(output), "n": len(rows), "n_called": called, "n_failed": len(failed)}
    if json:
        print_json(values)
    else:
        print(f"{len(rows)} answers in {output}: {called} called hallucinated")
        for row in failed[:3]:
            print(f"  no score in row {row['row']}: {clean(str(row['failure']))}")
        if len(failed) > 3:  # noqa: PLR2004
            print(f"  and {len(failed) - 3} more without a score")
    return [row["probability"] for row in rows]


def _print_score(scorer: "AnswerScorer", found: "AnswerScore") -> None:
    name = scorer.recipe.detector.card.name
    verdict = {
        True: "hallucinated", False: "not hallucinated",
        None: "no verdict: the detector was saved without a calibration",
    }[found.is_hallucinated]  # fmt: skip
    whose = "answer (given)" if found.is_given else "answer"
    print(f"{whose:<15} {clean(found.answer or '')}")
    if found.probability is not None:
        print(f"{'probability':<15} {found.probability:.3f} that it is hallucinated")
    print(f"{'verdict':<15} {verdict}")
    print(f"{'score':<15} {_number(found.score)} ({name}, threshold {_number(found.threshold)})")


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}"
