"""Makes the detectors that ship with graphhalu: questions, extraction, fit, card.

    scripts/ready_detectors.py answers DATA OUT     # files of right and wrong answers to questions of DATA
    scripts/ready_detectors.py extract DATA OUT MODEL
    scripts/ready_detectors.py fit OUT MODEL [RAGTRUTH [KIND …]]   # writes graphhalu/scoring/ready_detectors/MODEL*

DATA is a folder of data sets in their published layouts. A wrong answer is the right one to another
question: half of the time to one of the same category, so that its kind does not give it away.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from graphhalu import load_questions, open_traces
from graphhalu.core.numerics import auroc
from graphhalu.core.splits import Split
from graphhalu.datasets.question import Question, question_key
from graphhalu.detectors.identity import Identity
from graphhalu.evaluation.bootstrap import bootstrap_interval
from graphhalu.evaluation.crossfit import FoldModel, cross_fit_folds, fit_fold
from graphhalu.evaluation.novelty import training_novelty
from graphhalu.evaluation.settings import detector_spec
from graphhalu.evaluation.training import save_model
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.labels.registry import make_labeller
from graphhalu.labels.run import label_records, named_labels
from graphhalu.labels.stated import label_tokens
from graphhalu.scoring.ready import CARD_FILE, READY
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = ("{}", "{}.", "The answer is {}.", "It is {}.")
AROUND = tuple(each.partition("{}")[0] for each in SENTENCES if not each.startswith("{}"))
OPTIONS = ("--beams", "1", "--keep", "streams", "--rows", "answer", "--hidden-tokens", "rows")
PROMPTS = {
    "smollm2": ("--template", "direct", "--chat", "auto"),
    "gemma3-270m": ("--template", "concise", "--chat", "off"),
}
"""How a question is asked: the second model has seen no conversations, and does not answer a bare question."""
FPR = 0.15
"""Share of correct validation answers that may be called hallucinated."""
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "answers": ("live-probe", {}),
    "likelihood": ("likelihood-probe", {}),
    "tokens": ("token-probe", {"windows": [1]}),
}
SUMMARIES = {
    "answers": "attention, hidden states and likelihood of an answer, given or the model's own",
    "likelihood": "likelihood of an answer alone, for copies of the model in another number format",
    "tokens": "each token of an answer while it is written",
}
NOT_FOR = (
    "answers of another model, long texts, other languages than English, decisions that nobody checks; "
    "it says how an answer looks to this small model, not whether it is true"
)
LAYERS = {"smollm2": "9,14,19,24,29,30", "gemma3-270m": "5,8,11,14,17,18"}
"""Hidden states that are kept: from a third of the depth to the last."""


def files(data: Path) -> dict[str, Path]:
    """Where each data set lies."""
    return {
        "triviaqa": data / "triviaqa/topics.dpr.trivia.dev.txt.gz",
        "squad": data / "squad/xquad.en.json",
        "truthfulqa": data / "truthfulqa/TruthfulQA.csv",
        "halueval": data / "halueval/data/qa_data.json",
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
            "halueval_qa",
            "--data-path",
            str(where["halueval"]),
            *given,
            "--num-samples",
            "200",
        ),
        "worldfacts": ("--dataset", "worldfacts", "--num-samples", "700"),
        "triviaqa": ("--dataset", "triviaqa", "--data-path", str(where["triviaqa"]), "--num-samples", "600"),
        "squad": ("--dataset", "squad", "--data-path", str(where["squad"]), "--num-samples", "128"),
        "held_out_nq_open": ("--dataset", str(out / "held_out_nq_open.jsonl"), *given),
        "held_out_worldfacts": ("--dataset", str(out / "held_out_worldfacts.jsonl"), *given),
        "truthfulqa": (
            "--dataset",
            "truthfulqa",
            "--data-path",
            str(where["truthfulqa"]),
            *given,
            "--num-samples",
            "200",
        ),
    }
    for name, chosen in jobs.items():
        how = [*PROMPTS[model], *OPTIONS, "--hidden-layers", LAYERS[model], "--threads", "1"]
        where_to = ["--out", str(out / f"{model}-{name}.zarr")]
        command = [sys.executable, "-m", "graphhalu", "extract", "--model", model, *how, *chosen, *where_to]
        print("$", *command[1:], flush=True)
        subprocess.run(command, check=True)


def sets(out: Path, model: str) -> dict[str, TraceStore]:
    """The stores by the name of their set."""
    found = sorted(out.glob(f"{model}-*.zarr"))
    return {path.stem.removeprefix(f"{model}-"): open_traces(path) for path in found}


def known_labels(store: TraceStore) -> Labels:
    """What the data set says of given answers; of the model's own, by its aliases.

    An answer that the token limit cut before it said an alias counts as wrong: people meet such answers, too.
    """
    if store.configuration["generation"].get("answers") == "given":
        return named_labels(store, "given")
    return label_records([trace.record for trace in store], make_labeller("match", as_wrong=("cut",)))


def joined(parts: Sequence[Labels]) -> Labels:
    """Labels of several stores, one after another."""
    return Labels(
        trace_ids=tuple(name for each in parts for name in each.trace_ids),
        values=np.concatenate([each.values for each in parts]),
        is_valid=np.concatenate([each.is_valid for each in parts]),
        reasons=tuple(reason for each in parts for reason in each.reasons),
        labeller="stated or match",
    )


def as_tokens(traces: Sequence[Trace], labels: Labels) -> Labels:
    """Tokens of a given answer have its label; words that were put around the answer are correct."""
    tokens = []
    for trace, value in zip(traces, labels.values, strict=True):
        text = trace.record.answer
        before = next((len(each) for each in AROUND if text.startswith(each)), 0)
        stop = len(text.rstrip(".")) if before or text.endswith(".") else len(text)
        inside = [start < stop and end > before for start, end in trace.record.answer_offsets]
        tokens.append(np.array(inside, dtype=np.int64) * int(value))
    return replace(labels, tokens=tuple(tokens))


def split_of(labels: Labels, groups: np.ndarray, *, seed: int) -> Split:
    """Four fifths to fit on, one fifth to calibrate on; by question."""
    folds = cross_fit_folds(labels.values, groups, labels.is_valid, n_folds=5, seed=seed)
    train = np.sort(np.concatenate([folds[0].train, folds[0].test]))
    return Split(train, folds[0].validation, np.zeros(0, dtype=np.int64), groups)


def fitted(
    name: str, settings: dict[str, Any], traces: Sequence[Trace], labels: Labels
) -> tuple[FoldModel, Split]:
    """A detector with a threshold at 15 % false alarms of its validation answers."""
    split = split_of(labels, question_groups(traces), seed=0)
    spec = replace(detector_spec(name), settings=settings)
    model = fit_fold(partial(spec.make, 0), traces, labels, split)
    assert model.calibration is not None
    threshold = model.calibration.threshold_at_fpr(FPR)
    model = replace(model, calibration=model.calibration.model_copy(update={"threshold": threshold}))
    return model, split


def figure(name: str, model: FoldModel, traces: Sequence[Trace], labels: Labels) -> dict[str, Any]:
    """AUROC of a fitted detector on answers that it never saw, with an interval over questions."""
    kept = np.flatnonzero(labels.is_valid)
    chosen = [traces[place] for place in kept.tolist()]
    scores = model.detector.score(chosen)
    owner = np.repeat(np.arange(len(chosen)), [len(each) for each in scores.by_trace()])
    truth = (
        labels.values[kept][owner]
        if labels.tokens is None
        else np.concatenate([labels.tokens[p] for p in kept])
    )
    groups, known = question_groups(chosen)[owner], np.isfinite(scores.values)
    values, truth, groups = scores.values[known], truth[known], groups[known]
    low, high, _ = bootstrap_interval("auroc", values, truth, groups, n_resamples=1000, seed=0)
    threshold = model.calibration.threshold if model.calibration else np.nan
    called = values >= threshold
    return {
        "set": name,
        "metric": "AUROC of answers" if labels.tokens is None else "AUROC of tokens",
        "value": auroc(values, truth),
        "low": low,
        "high": high,
        "n": len(chosen),
        "hallucinated": float(truth.mean()),
        "false_alarms": float(called[truth == 0].mean()),
        "found": float(called[truth == 1].mean()),
    }


def fit(out: Path, model: str, ragtruth: Path | None, kinds: Sequence[str]) -> None:
    """Fit, measure and write the detectors of a model."""
    stores = sets(out, model)
    train = {name: store for name, store in stores.items() if not name.startswith("held_out")}
    unseen = {name: store for name, store in stores.items() if name.startswith("held_out")}
    hidden = {question_key(trace.question) for store in unseen.values() for trace in store}
    rows = {
        name: [t for t in store if question_key(t.question) not in hidden] for name, store in train.items()
    }
    labels = {}
    for name, store in train.items():
        found = known_labels(store)
        kept = [place for place, trace in enumerate(store) if question_key(trace.question) not in hidden]
        labels[name] = found.select(kept)
        print(name, len(kept), "answers,", int(labels[name].is_valid.sum()), "labelled", flush=True)
    held = {name: (list(store), known_labels(store)) for name, store in unseen.items()}
    store = next(iter(train.values()))
    identity = Identity.of(store.configuration, store.provenance.get("config"))
    for kind in kinds:
        name, settings = KINDS[kind]
        is_of_tokens = kind == "tokens"
        own_rows, own_labels = dict(rows), dict(labels)
        if is_of_tokens:
            given = [
                each for each in rows if train[each].configuration["generation"].get("answers") == "given"
            ]
            own_rows = {each: rows[each] for each in given}
            own_labels = {each: as_tokens(rows[each], labels[each]) for each in given}
            if ragtruth is not None:
                marked = list(open_traces(ragtruth))
                own_rows["ragtruth"] = marked
                own_labels["ragtruth"] = label_tokens([trace.record for trace in marked])
        figures = []
        for left_out in own_rows:
            others = [each for each in own_rows if each != left_out]
            fit_rows = [trace for each in others for trace in own_rows[each]]
            fit_labels = merged([own_labels[each] for each in others])
            one, _ = fitted(name, settings, fit_rows, fit_labels)
            figures.append(figure(f"{left_out}, left out", one, own_rows[left_out], own_labels[left_out]))
            print(kind, figures[-1], flush=True)
        all_rows = [trace for each in own_rows.values() for trace in each]
        all_labels = merged(list(own_labels.values()))
        made, split = fitted(name, settings, all_rows, all_labels)
        for each, (traces, truth) in held.items():
            known = as_tokens(traces, truth) if is_of_tokens else truth
            figures.append(
                figure(f"{each.removeprefix('held_out_')}, right against wrong", made, traces, known)
            )
            print(kind, figures[-1], flush=True)
        folder = READY / f"{model}{'' if kind == 'answers' else '-' + kind}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        save_model(made, folder, identity, training_novelty(all_rows, all_labels, split))
        card = {
            "summary": SUMMARIES[kind],
            "model": model,
            "training": [f"{each} ({len(own_rows[each])} answers)" for each in own_rows],
            "held_out": figures,
            "not_for": NOT_FOR,
            "made": f"scripts/ready_detectors.py, {datetime.now(UTC):%Y-%m-%d}",
        }
        (folder / CARD_FILE).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
        print(folder, sum(path.stat().st_size for path in folder.iterdir()), "bytes", flush=True)


def merged(parts: Sequence[Labels]) -> Labels:
    """As :func:`joined`, with labels of tokens where all have them."""
    found = joined(parts)
    if all(each.tokens is not None for each in parts):
        return replace(found, tokens=tuple(row for each in parts for row in each.tokens or ()))
    return found


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
    else:
        out, model, *more = paths
        fit(Path(out), model, Path(more[0]) if more else None, more[1:] or list(KINDS))


if __name__ == "__main__":
    main()
