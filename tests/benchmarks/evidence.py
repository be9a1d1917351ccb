"""What contrast replay, sampled answers, smoothing and question graphs cost.

Processor seconds on one thread, ways by turns in one process, so that other work disturbs all alike:
extraction with contrast against without it (contexts of about 450 tokens; six given answers a prompt, and
beams), ten samples beside the beams against beams alone (prompts of 25 tokens, and those contexts), and
milliseconds an answer of what is made of them.
"""

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from extraction import extract_here  # beside this file

from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.datasets.registry import load_questions
from graphhalu.detectors.gnn.detectors import question_graph, sample_places
from graphhalu.detectors.smoothing import persistent_logits
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.settings import CaptureSettings, ExtractConfig, GenerationSettings
from graphhalu.graphs.dataset import AttentionGraphs, default_layers
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import LoadedModel, load_model
from graphhalu.traces.store import TraceStore

CAPTURE = {
    "keep": "edges",
    "edges": 8,
    "rows": "answer",
    "hidden_tokens": "rows",
    "hidden_layers": (9, 14, 19, 24, 29, 30),
}
CONTEXT_TOKENS = 450
N_SAMPLES = 10


def figures(quick: bool) -> dict[str, Any]:
    """Seconds, ratios of one run, and milliseconds an answer."""
    torch.set_num_threads(1)
    loaded = load_model(ModelSpec(name="smollm2"))
    n_questions, n_turns, n_tokens = (2, 1, 40) if quick else (8, 2, CONTEXT_TOKENS)
    limit = 6 if quick else 64
    short = load_questions("worldfacts", num_samples=n_questions)
    long = _with_contexts(loaded, short, n_tokens)
    given = [replace(question, given=_answers(short, at)) for at, question in enumerate(long)]
    beams = GenerationSettings(max_new_tokens=limit)
    sampled = GenerationSettings(max_new_tokens=limit, samples=N_SAMPLES)
    replayed = GenerationSettings(answers="given")
    found: dict[str, Any] = {"questions": n_questions, "context_tokens": n_tokens}
    pairs = {
        "contrast_given": (given, (replayed, {}), (replayed, {"contrast": True})),
        "contrast_beams": (long, (beams, {}), (beams, {"contrast": True})),
        "samples": (short, (beams, {}), (sampled, {})),
        "samples_in_context": (long, (beams, {}), (sampled, {})),
    }
    for name, (questions, *ways) in pairs.items():
        seconds: list[list[float]] = [[], []]
        for turn in range(n_turns):
            for place in (0, 1) if turn % 2 == 0 else (1, 0):
                generation, more = ways[place]
                seconds[place].append(_extraction_s(loaded, questions, generation, more))
        without, with_it = (float(np.median(each)) for each in seconds)
        found |= {f"{name}_without_s": without, f"{name}_with_s": with_it, f"{name}_ratio": with_it / without}
    return found | _made_of_them(loaded, short, sampled)


def _with_contexts(loaded: LoadedModel, questions: Sequence[Question], n_tokens: int) -> list[Question]:
    facts = " ".join(f"{q.text} {q.answers[0]}." for q in load_questions("worldfacts", seed=1))
    tokens = loaded.tokenizer(facts, add_special_tokens=False).input_ids
    texts = [loaded.tokenizer.decode(tokens[at * 31 : at * 31 + n_tokens]) for at in range(len(questions))]
    return [replace(each, context=text) for each, text in zip(questions, texts, strict=True)]


def _answers(questions: Sequence[Question], at: int) -> tuple[GivenAnswer, ...]:
    """Six answers of one length in words, as a model gives them to one prompt."""
    names = [questions[(at + step) % len(questions)].answers[0] for step in range(6)]
    texts = [f"As the passage says, the answer is {name}." for name in names]
    return tuple(GivenAnswer(text, is_hallucinated=place > 0) for place, text in enumerate(texts))


def _extraction_s(
    loaded: LoadedModel, questions: Sequence[Question], generation: GenerationSettings, more: dict[str, Any]
) -> float:
    folder = Path(tempfile.mkdtemp())
    try:
        return _cpu_s(lambda: _extracted(loaded, questions, generation, more, folder))
    finally:
        shutil.rmtree(folder)


def _extracted(
    loaded: LoadedModel,
    questions: Sequence[Question],
    generation: GenerationSettings,
    more: dict[str, Any],
    folder: Path,
) -> TraceStore:
    config = ExtractConfig(
        model=loaded.spec, generation=generation, capture=CaptureSettings(**CAPTURE, **more), batch_size=16
    )
    extraction = Extraction(config, loaded)
    store = TraceStore.create(
        folder / "a.zarr", configuration={}, shape=extraction.shape, arrays=extraction.arrays
    )
    extract_here(extraction, store, list(questions))
    return TraceStore.open(folder / "a.zarr")


def _made_of_them(
    loaded: LoadedModel, questions: Sequence[Question], sampled: GenerationSettings
) -> dict[str, Any]:
    """Milliseconds an answer of joining its graph with its samples' graphs, and of smoothing."""
    folder = Path(tempfile.mkdtemp())
    try:
        store = _extracted(loaded, questions, sampled, {}, folder)
        layers = default_layers(store.shape)
        own = [trace for trace in store if not trace.record.is_sample]
        ready = list(AttentionGraphs(own, layers=layers, view="multiplex", prompt_edges=False))
        pool = AttentionGraphs(list(store), layers=layers, view="multiplex", prompt_edges=False)
        samples = sample_places(pool.traces)
        list(pool)  # what is measured is the joining, and not the graphs themselves
        joined_s = _cpu_s(
            lambda: [question_graph(data, traces=own, pool=pool, samples=samples) for data in ready]
        )
        lengths = np.random.default_rng(0).integers(3, 300, size=500)
        evidence = [np.random.default_rng(n).normal(size=n) for n in lengths.tolist()]
        smoothed_s = _cpu_s(lambda: persistent_logits(evidence, p_stay=0.9, prior=0.1))
        return {
            "question_graph_ms_an_answer": 1000 * joined_s / len(own),
            "smoothing_ms_an_answer": 1000 * smoothed_s / len(evidence),
        }
    finally:
        shutil.rmtree(folder)


def _cpu_s(work: Callable[[], Any]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started
