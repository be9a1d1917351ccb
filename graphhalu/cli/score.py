"""``graphhalu score`` and ``graphhalu serve``: how likely answers are hallucinated."""

import os
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from graphhalu.cli import library
from graphhalu.cli.options import Options, Place, command
from graphhalu.cli.output import ProgressLine, Shown, clean, render, say
from graphhalu.core.errors import DetectorMismatchError, GraphhaluError, UsageError
from graphhalu.core.files import shown as quoted

Share = Annotated[float, typer.Option(min=0, max=1)]


@command("score")
def score(
    question: str | None = None,
    *,
    detector: str | None = None,
    detector_class: str | None = None,
    answer: str | None = None,
    context: str | None = None,
    input_: Place = None,
    fields: str | None = None,
    output: Place = None,
    threshold: Share | None = None,
    target_fpr: Share | None = None,
    target_precision: Share | None = None,
    fail_above: Share | None = None,
    model: str | None = None,
    device: str | None = None,
    threads: int | None = None,
    explain: bool = True,
) -> Shown:
    """Score answers with a trained detector: probability, verdict, and what it was made of.

    Args:
        question: The question.
        detector: Name of a ready one (graphhalu show detectors --ready), or what graphhalu train saved;
            by default the newest in data/runs, else a ready one.
        answer: The answer to judge; by default the model answers.
        context: A passage that the prompt shows before the question.
        input_: File of questions (jsonl, csv, parquet …); conversations stand in a column of messages.
        fields: Columns with other names, as question=Q,answer=A,context=C,id=I,messages=M.
        output: JSON Lines with one score a row; an existing file is resumed.
        threshold: Probability from which on answers are called hallucinated.
        target_fpr: Choose it so that at most this share of correct validation answers is.
        target_precision: Choose it so that this share of those called so is hallucinated.
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
    if fields is not None and input_ is None:
        raise UsageError("--fields names the columns of --input")
    asked = None if input_ is None else library.read_asked(input_, library.read_fields(fields or ""))
    where = {"name": model, "device": device, "threads": threads}
    scorer = chosen_scorer(detector, where, detector_class)
    wanted = {"probability": threshold, "target_fpr": target_fpr, "target_precision": target_precision}
    if any(value is not None for value in wanted.values()):
        scorer.decide_at(**wanted)
    if asked is not None and output is not None:
        rows = library.score_file(scorer, asked, output, ProgressLine("answers"))
        failed = [row for row in rows if row["score"] is None]
        probabilities = [row["probability"] for row in rows]
        called = sum(bool(row["is_hallucinated"]) for row in rows)
        n_given, n_warned = (
            sum(row["is_given"] for row in rows),
            sum(bool(row.get("warnings")) for row in rows),
        )
        values = {"output": output, "n": len(rows), "n_called": called, "n_failed": len(failed)}
        values |= {"n_given": n_given, "n_generated": len(rows) - n_given, "n_warned": n_warned}
        shown = Shown(values, "score_file", {"failed": failed})
    else:
        found = scorer.score(question or "", answer, context=context)
        values, probabilities = {"detector": scorer.folder, **found.to_json()}, [found.probability]
        more = {"found": found, "name": scorer.detector.card.name, "reasons": None}
        if explain:
            reasons = scorer.explain(found)
            values["explanation"] = reasons.to_json()
            more |= {"reasons": reasons, "coloured": _coloured(reasons), "strongest": reasons.strongest()}
        shown = Shown(values, "score", more)
    is_above = fail_above is not None and any(p is None or p > fail_above for p in probabilities)
    return shown._replace(then=typer.Exit(1)) if is_above else shown


def chosen_scorer(
    detector: str | None, where: Mapping[str, Any], detector_class: str | None = None
) -> "library.AnswerScorer":
    """The detector that is named, or the newest one, or the model's ready one; says which it is.

    Raises:
        UsageError: If there is none.
    """
    run: Path | str = detector or newest_run(detector_class) or library.ready_of_answers(where["name"])
    scorer = library.load_detector(run, detector_class=detector_class, **where)
    fallback = f"{run}-likelihood"
    if where["name"] is not None and fallback in library.ready_names():
        try:
            scorer.extraction("given")
        except DetectorMismatchError as error:
            say(f"{str(error).splitlines()[0]}: its answers are scored by likelihood alone")
            run = fallback
            known = {name: value for name, value in where.items() if value is not None}
            loaded = library.load_model(scorer.config("given", **known).model)
            scorer = library.load_detector(run).bind(loaded.model, loaded.tokenizer)
    card = library.read_card(scorer.folder)
    said = f"the detector {run} ({card['summary']})" if card else f"the detector in {run}"
    say(f"using {said}")
    return scorer


def newest_run(detector_class: str | None = None) -> Path | None:
    """The newest trained detector that can be read, of this class if one is named; others are passed over."""
    runs = Path("data/runs")
    found = sorted(runs.glob("*/detector/detector.json"), key=lambda path: path.stat().st_mtime)
    for path in reversed(found):
        run = path.parent.parent
        try:
            known = library.read_description(path.parent)
        except GraphhaluError as error:
            say(f"passed over {run}, which cannot be read: {str(error).splitlines()[0]}")
            continue
        kind = known.get("class")
        is_registered = kind is None or known["name"] in library.DETECTORS
        if is_registered if detector_class is None else kind == detector_class:
            return run
        if not is_registered:
            say(f"passed over {run}, of a class that is not registered: --detector-class {quoted(kind)}")
    return None


def _coloured(reasons: "library.Explanation") -> str:
    """The tokens of the answer, coloured by their contributions."""
    from rich.text import Text

    values = [value if isfinite(value) else 0.0 for value in reasons.tokens.tolist()]
    largest, line = max(map(abs, values), default=0.0), Text()
    for text, value in zip(reasons.texts, values, strict=True):
        # red raises the score, blue lowers it; bold where it is more than half the largest
        style = ("bold " if abs(value) > largest / 2 else "") + ("red" if value > 0 else "blue")
        line.append(clean(text), style=style if abs(value) >= largest / 8 > 0 else "")
    return render(line, is_wrapped=False)


@command("serve", config=Options("ServeConfig", "*"))
def serve(
    config: "library.ServeConfig",
    *,
    detector: str | None = None,
    token_detector: str | None = None,
    model: str | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> None:
    """Serve completions as OpenAI's, with the probability that they are hallucinated, and scores.

    It listens on this machine alone unless --host says otherwise, which needs a key in GRAPHHALU_API_KEY.

    Args:
        detector: Of answers: the name of a ready one, or what graphhalu train saved.
        token_detector: Of tokens, of the same model; none to leave tokens without scores.
        model: Place of the detector's model now; by default as trained.
        device: auto, cpu, cuda …
    """
    if config.host not in library.LOOPBACK and not os.environ.get(library.API_KEY):
        raise UsageError(
            f"listening on {config.host} lets others on the network in, and no key is asked for\n"
            f"  Set one:  export {library.API_KEY}=…   or listen on this machine alone:  --host 127.0.0.1"
        )
    where = {"name": model, "device": device, "threads": threads}
    scorer = chosen_scorer(detector, where)
    tokens = None
    if token_detector != "none":  # noqa: S105
        named = token_detector or library.ready_of_tokens(scorer.identity.model)
        tokens = None if named is None else chosen_scorer(named, where)
    app = library.create_app(scorer, tokens, config)
    names = [each.detector.card.name for each in (scorer, tokens) if each is not None]
    say(f"{scorer.identity.model} is loaded; answers are scored by {' and '.join(names)}")
    try:
        library.serve_app(app, config, lambda url: say(f"serving {url}; Ctrl-C stops it"))
    except OSError as error:
        raise UsageError(f"cannot listen on {config.host}:{config.port}: {error.strerror}") from None
