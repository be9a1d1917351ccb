"""Draws docs/assets/attention.svg: the attention behind one wrong answer, as the README shows it.

    .venv/bin/python scripts/picture.py

The model is the embedded one, the question one that it gets wrong. Arcs run from an attended token to the
token that attends to it; the risk of each token of the answer is that of the ready detector of tokens.
"""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from graphhalu import load_detector
from graphhalu.core.axes import Span
from graphhalu.extract.live import LIVE_ARRAYS, LiveAnswer, LiveBatch
from graphhalu.scoring.asked import asked_question
from graphhalu.scoring.stream import LiveScores

OUT = Path(__file__).resolve().parent.parent / "docs" / "assets" / "attention.svg"
QUESTION = "Who was the first person on Mars?"
N_TOKENS, N_ARCS = 14, 4


def main() -> None:
    scorer = load_detector("smollm2-tokens")
    extraction = scorer.extraction("generated")
    scores, batch = LiveScores(scorer, extraction), LiveBatch(extraction, LIVE_ARRAYS)
    prompt = extraction.prompt(asked_question(QUESTION))
    answer = LiveAnswer(prompt, max_new_tokens=N_TOKENS)
    risks, arcs = [], []
    with batch.decoding():
        batch.add([answer])
        while batch.answers:
            before = len(answer.token_ids)
            batch.step()
            if len(answer.token_ids) > before:
                score = scores.newest(answer)
                risks.append(scorer.probability(score) if score is not None else 0.0)
                arcs.append(answer.attended())
    tokenizer = extraction.loaded.tokenizer
    ids = [*prompt.encoded.token_ids.tolist(), *answer.token_ids]
    question = np.flatnonzero(prompt.encoded.span_code == Span.QUESTION)
    shown = [*question.tolist(), *range(prompt.length, len(ids))]
    place = {position: n for n, position in enumerate(shown)}
    texts = [tokenizer.decode([ids[position]]).strip() or "·" for position in shown]
    figure = Figure(figsize=(9, 2.0))
    axes = figure.add_axes((0.01, 0.02, 0.98, 0.96))
    widths = np.array([max(2, len(text)) + 1.4 for text in texts])
    x = np.cumsum(widths) - widths / 2
    for n, found in enumerate(arcs):
        query = place[prompt.length + n]
        kept = [(key, weight) for key, weight in found if key in place and place[key] < query][:N_ARCS]
        for key, weight in kept:
            style = f"arc3,rad={-0.9 / (1 + 0.12 * (query - place[key])):.3f}"
            arrow = FancyArrowPatch(
                (x[place[key]], 0.55),
                (x[query], 0.55),
                connectionstyle=style,
                arrowstyle="-|>",
                mutation_scale=6,
                linewidth=0.4 + 14 * weight,
                color="#0063a3",
                alpha=min(0.9, 0.15 + 5 * weight),
            )
            axes.add_patch(arrow)
    for n, text in enumerate(texts):
        risk = risks[n - len(question)] if n >= len(question) else None
        colour = (0.75, 0.31, 0.0, 0.75 * risk) if risk is not None else "none"
        axes.text(
            x[n],
            0,
            text,
            ha="center",
            va="center",
            fontsize=9,
            color="#1c2128",
            bbox={"facecolor": colour, "edgecolor": "#d5dae0", "boxstyle": "round,pad=0.25"},
        )
    middle = (x[len(question) - 1] + x[len(question)]) / 2
    axes.plot([middle, middle], [-0.8, 0.6], color="#5b6470", linewidth=0.8, linestyle=":")
    axes.text(x[0] - widths[0] / 2, -1.15, "question", fontsize=8, color="#5b6470", ha="left")
    axes.text(
        x[-1] + widths[-1] / 2,
        -1.15,
        "answer of SmolLM2-135M: the redder, the likelier hallucinated",
        fontsize=8,
        color="#5b6470",
        ha="right",
    )
    axes.set_xlim(0, widths.sum())
    axes.set_ylim(-1.7, 5.0)
    axes.axis("off")
    OUT.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "graphhalu"}):
        figure.savefig(OUT, facecolor="white", metadata={"Date": None})
    print(OUT, [(t, round(r, 2)) for t, r in zip(texts[len(question) :], risks, strict=False)])


if __name__ == "__main__":
    main()
