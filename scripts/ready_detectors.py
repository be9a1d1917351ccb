"""Makes the detectors that ship with graphhalu: questions, extraction, fit, card.

    scripts/ready_detectors.py answers DATA OUT     # files of right and wrong answers to questions of DATA
    scripts/ready_detectors.py extract DATA OUT MODEL
    scripts/ready_detectors.py fit OUT MODEL        # writes graphhalu/scoring/ready/MODEL-*

DATA is a folder of data sets in their published layouts. A wrong answer is the right one to another
question: half of the time to one of the same category, so that its kind does not give it away.
"""

import argparse
import json
import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from graphhalu import load_questions
from graphhalu.datasets.question import Question

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = ("{}", "{}.", "The answer is {}.", "It is {}.")
OPTIONS = (
    *("--template", "direct", "--chat", "auto", "--beams", "1", "--keep", "streams", "--rows", "answer"),
    *("--hidden-tokens", "rows"),
)
LAYERS = {"smollm2": "9,14,19,24,29,30", "gemma3-270m": "5,8,11,14,17,18"}
"""Hidden states that are kept: from a third of the depth to the last."""


def files(data: Path) -> dict[str, Path]:
    """Where each data set lies."""
    return {
        "triviaqa": data / "triviaqa/topics.dpr.trivia.dev.txt.gz",
        "squad": data / "squad/xquad.en.json",
        "truthfulqa": data / "truthfulqa/TruthfulQA.csv",
        "halueval": data / "halueval/qa_data_union.jsonl.gz",
        "nq_open": data / "nq_open",
    }


def pairs(questions: Sequence[Question], *, seed: int) -> Iterator[dict[str, Any]]:
    """One right and one wrong answer to each question."""
    generator = random.Random(seed)  # noqa: S311
    answered = [each for each in questions if each.answers]
    for place, question in enumerate(answered):
        like = [other for other in answered if other.category == question.category and other is not question]
        others = like if like and generator.random() < 0.5 else answered  # noqa: PLR2004
        wrong = question.answers[0]
        while wrong.casefold() in {answer.casefold() for answer in question.answers}:
            wrong = generator.choice(others if generator.random() < 0.9 else answered).answers[0]  # noqa: PLR2004
        sentence = generator.choice(SENTENCES)
        yield {
            "id": f"{question.question_id}-{place}",
            "question": question.text,
            "answers": list(question.answers),
            "given": [sentence.format(question.answers[0]), sentence.format(wrong)],
            "label": [0, 1],
            **({"category": question.category} if question.category else {}),
        }


def write_answers(data: Path, out: Path) -> None:
    """Files of right and wrong answers; those of ``held_out`` are never trained on."""
    where = files(data)
    trivia = load_questions("triviaqa", where["triviaqa"])
    facts = load_questions("worldfacts")
    random.Random(0).shuffle(trivia)  # noqa: S311
    random.Random(0).shuffle(facts)  # noqa: S311
    nq = load_questions("nq_open", next(where["nq_open"].glob("*.jsonl")))
    made = {
        "given_triviaqa": trivia[:500],
        "given_worldfacts": facts[:500],
        "held_out_worldfacts": facts[1600:1900],
        "held_out_nq_open": nq[:300],
    }
    for name, questions in made.items():
        lines = [json.dumps(each, ensure_ascii=False) for each in pairs(questions, seed=1)]
        (out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{len(lines)} questions in {out / name}.jsonl")


def extract(data: Path, out: Path, model: str) -> None:
    """All stores, one after another; each goes on where it stopped."""
    where = files(data)
    given = ("--answers", "given")
    jobs: dict[str, tuple[str, ...]] = {
        "given_triviaqa": ("--dataset", str(out / "given_triviaqa.jsonl"), *given),
        "given_worldfacts": ("--dataset", str(out / "given_worldfacts.jsonl"), *given),
        "halueval": (
            "--dataset",
            "halueval",
            "--data-path",
            str(where["halueval"]),
            *given,
            "--num-samples",
            "250",
        ),
        "truthfulqa": (
            "--dataset",
            "truthfulqa",
            "--data-path",
            str(where["truthfulqa"]),
            *given,
            "--num-samples",
            "200",
        ),
        "worldfacts": ("--dataset", "worldfacts", "--num-samples", "700"),
        "triviaqa": ("--dataset", "triviaqa", "--data-path", str(where["triviaqa"]), "--num-samples", "600"),
        "squad": ("--dataset", "squad", "--data-path", str(where["squad"]), "--num-samples", "250"),
        "held_out_nq_open": ("--dataset", str(out / "held_out_nq_open.jsonl"), *given),
        "held_out_worldfacts": ("--dataset", str(out / "held_out_worldfacts.jsonl"), *given),
    }
    for name, chosen in jobs.items():
        command = [sys.executable, "-m", "graphhalu", "extract", "--model", model, *OPTIONS, *chosen]
        command += [
            "--hidden-layers",
            LAYERS[model],
            "--out",
            str(out / f"{model}-{name}.zarr"),
            "--threads",
            "1",
        ]
        print("$", *command[1:], flush=True)
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["answers", "extract", "fit"])
    parser.add_argument("paths", nargs="+")
    given = parser.parse_args()
    paths = given.paths
    if given.step == "answers":
        write_answers(Path(paths[0]), Path(paths[1]))
    elif given.step == "extract":
        extract(Path(paths[0]), Path(paths[1]), paths[2])


if __name__ == "__main__":
    main()
