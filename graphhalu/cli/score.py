"""``graphhalu score``: how likely an answer is hallucinated."""

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from graphhalu.cli import library
from graphhalu.cli.options import Place, command
from graphhalu.cli.output import ProgressLine, Rendered, Shown, clean, render, say
from graphhalu.core.errors import GraphhaluError, UsageError


@command("score")
def score(
    question: str | None = None,
    *,
    detector: Place = None,
    detector_class: str | None = None,
    answer: str | None = None,
    context: str | None = None,
    input_: Place = None,
    output: Place = None,
    fail_above: Annotated[float, typer.Option(min=0, max=1)] | None = None,
    model: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    explain: bool = True,
) -> Shown:
    """Score answers with a trained detector: probability, verdict, and what it was made of.

    Args:
        question: The question.
        detector: Saved by graphhalu train; by default the newest in data/runs.
        answer: The answer to judge; by default the model answers.
        context: A passage that the prompt shows before the question.
        input_: File of questions (jsonl, csv, parquet …).
        output: JSON Lines with one score a row; an existing file is resumed.
        fail_above: Exit with 1 if a probability is higher, or missing.
        model: Place of the detector's model now; by default as trained.
        device: auto, cpu, cuda …
        explain: Explain the score of a single answer.
    """
    if (question is None) == (input_ is None):
        examples = 'graphhalu score "Who wrote Emma?"   or   graphhalu score --input FILE --output FILE'
        raise UsageError(f"give one question, or a file of them:\n  {examples}")
    if (input_ is None) != (output is None):
        raise UsageError("--input and --output go together: one score a row is written")
    run, where = detector or newest_run(), {"name": model, "device": device, "threads": threads}
    scorer = library.AnswerScorer(run, detector_class=detector_class, **where)
    if input_ is not None and output is not None:
        rows = library.score_file(scorer, library.read_asked(input_), output, ProgressLine("answers"))
        failed = [row for row in rows if row["score"] is None]
        probabilities = [row["probability"] for row in rows]
        called = sum(bool(row["is_hallucinated"]) for row in rows)
        values = {"output": output, "n": len(rows), "n_called": called, "n_failed": len(failed)}
        shown = Shown(values, "score_file", {"failed": failed})
    else:
        found = scorer.score(question or "", answer, context=context)
        values, probabilities = {"detector": run, **found.to_json()}, [found.probability]
        more = {"found": found, "name": scorer.detector.card.name, "reasons": None}
        if explain:
            reasons = scorer.explain(found)
            values["explanation"] = reasons.to_json()
            more |= {"reasons": reasons, "coloured": _coloured(reasons), "strongest": reasons.strongest()}
        shown = Shown(values, "score", more)
    is_above = fail_above is not None and any(p is None or p > fail_above for p in probabilities)
    return shown._replace(then=typer.Exit(1)) if is_above else shown


def newest_run() -> Path:
    """The newest trained detector whose description can be read; others are passed over.

    Raises:
        UsageError: If there is none.
    """
    runs = Path("data/runs")
    found = sorted(runs.glob("*/detector/detector.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        run = path.parent.parent
        try:
            library.read_description(path.parent)
        except GraphhaluError as error:
            say(f"passed over {run}, which cannot be read: {str(error).splitlines()[0]}")
        else:
            return run
    fault = f"no trained detector in {runs}{' that can be read' if found else ''}"
    raise UsageError(f"{fault}\n  Train one:  graphhalu train gat   or name one:  --detector RUN")


def _coloured(reasons: "library.Explanation") -> Rendered:
    """The tokens of the answer, coloured by their contributions."""
    from rich.text import Text

    values = [value if isfinite(value) else 0.0 for value in reasons.tokens.tolist()]
    largest, line = max(map(abs, values), default=0.0), Text()
    for text, value in zip(reasons.texts, values, strict=True):
        # red raises the score, blue lowers it; bold where it is more than half the largest
        style = ("bold " if abs(value) > largest / 2 else "") + ("red" if value > 0 else "blue")
        line.append(clean(text), style=style if abs(value) >= largest / 8 > 0 else "")
    return render(line, is_wrapped=False)
