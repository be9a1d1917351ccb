"""``graphhalu score``: how likely an answer is hallucinated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphhalu.cli.output import clean, print_json, progress_line, say

if TYPE_CHECKING:
    from graphhalu.scoring.explain import Explanation
    from graphhalu.scoring.scorer import AnswerScore, AnswerScorer


def score(
    question: Annotated[str | None, typer.Argument(help="The question.")] = None,
    detector: Annotated[
        Path | None, typer.Option(help="What graphhalu train saved. [default: the newest in data/runs]")
    ] = None,
    detector_class: Annotated[
        str | None, typer.Option(help="module:Class of a saved detector that no package registers.")
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
        float | None, typer.Option(min=0, max=1, help="Exit with 1 if a probability is higher, or missing.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the detector's model lies now. [default: as trained]")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda …")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads.")] = None,
    with_reasons: Annotated[
        bool, typer.Option("--explain/--no-explain", help="Say what one answer's score is made of.")
    ] = True,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score answers with a trained detector: probability, verdict, and what it was made of."""
    from graphhalu.core.errors import UsageError
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
    scorer = AnswerScorer(run, detector_class=detector_class, name=model, device=device, threads=threads)
    if question is not None:
        found = scorer.score(question, answer, context=context)
        probabilities = [found.probability]
        reasons = scorer.explain(found) if with_reasons else None
        if json:
            explained = None if reasons is None else {"explanation": reasons.to_json()}
            print_json({"detector": str(run), **found.to_json(), **(explained or {})})
        else:
            _print_score(scorer, found)
            if reasons is not None:
                _print_reasons(reasons)
    else:
        assert input_ is not None
        assert output is not None
        probabilities = _score_file(scorer, input_, output, json=json)
    if fail_above is not None and any(p is None or p > fail_above for p in probabilities):
        raise typer.Exit(1)


def newest_run() -> Path:
    """The newest trained detector whose description can be read; others are passed over.

    Raises:
        UsageError: If there is none.
    """
    from graphhalu.core.errors import GraphhaluError, UsageError
    from graphhalu.detectors.saved import read_description
    from graphhalu.evaluation.training import RUNS

    found = sorted(RUNS.glob("*/detector/detector.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        run = path.parent.parent
        try:
            read_description(path.parent)
        except GraphhaluError as error:
            reason = str(error).splitlines()[0]
            say(f"passed over {run}, which cannot be read: {reason}")
        else:
            return run
    message = (
        f"no trained detector in {RUNS}{' that can be read' if found else ''}\n"
        f"  Train one:  graphhalu train gat   or name one:  --detector RUN"
    )
    raise UsageError(message)


def _score_file(scorer: "AnswerScorer", input_: Path, output: Path, *, json: bool) -> list[float | None]:
    import time

    from graphhalu.scoring.batch import read_asked, score_file

    asked, started = read_asked(input_), time.monotonic()
    with progress_line("answers") as line:
        rows = score_file(
            scorer, asked, output, lambda done, total: line.show(done, total, time.monotonic() - started)
        )
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
        True: "hallucinated",
        False: "not hallucinated",
        None: "no verdict: the detector was saved without a calibration",
    }[found.is_hallucinated]
    whose = "answer (given)" if found.is_given else "answer"
    print(f"{whose:<15} {clean(found.answer or '')}")
    if found.probability is not None:
        print(f"{'probability':<15} {found.probability:.3f} that it is hallucinated")
    print(f"{'verdict':<15} {verdict}")
    print(f"{'score':<15} {_number(found.score)} ({name}, threshold {_number(found.threshold)})")


def _print_reasons(reasons: "Explanation") -> None:
    """Tokens in colour, those that weigh most with their numbers, heads, edges, and the check."""
    import numpy as np
    from rich.console import Console
    from rich.text import Text

    largest = float(np.nanmax(np.abs(reasons.tokens))) if np.isfinite(reasons.tokens).any() else 0.0
    line = Text(f"{'by token':<15} ")
    for text, value in zip(reasons.texts, reasons.tokens.tolist(), strict=True):
        line.append(clean(text), style=_shade(value, largest))
    Console(soft_wrap=True).print(line)
    for name, parts in reasons.strongest().items():
        print(f"{name:<15} {clean(', '.join(parts)) or 'none'}")
    check = reasons.fidelity
    if check is not None:
        print(
            f"{'check':<15} the score changes by {check.change:.3g} without the {check.n_taken} "
            f"tokens that weigh most,\n{'':<15} without as many random ones by "
            f"{check.random.mean():.3g} +- {check.random.std():.3g} (more than {check.rank:.0%})"
        )


def _shade(value: float, largest: float) -> str:
    """Red raises the score, blue lowers it; bold where it is more than half the largest."""
    if not largest or value != value or abs(value) < largest / 8:  # noqa: PLR0124 - NaN
        return ""
    strength = "bold " if abs(value) > largest / 2 else ""
    return strength + ("red" if value > 0 else "blue")


def _number(value: Any) -> str:
    return "none" if value is None else f"{value:.4g}"
