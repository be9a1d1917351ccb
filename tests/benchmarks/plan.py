"""The model of cost against what extraction takes: rates from smollm2, held to what they foresee.

Rates are those of the search, of the recorded pass and of writing on one thread of this machine,
fitted on smollm2 at two lengths. They then foresee smollm2 at a third length, gemma3-270m at two,
and one layer of Llama-2-7B's shape with random weights. Seconds are those of the processor, so
that other work on the machine counts little.
"""

import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from extraction import _questions
from transformers import LlamaConfig, LlamaForCausalLM

from graphhalu.extract.cost import (
    SIZES,
    Cost,
    ModelSize,
    PlanSettings,
    Rates,
    question_cost,
    question_seconds,
)
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.forward import TokenSequence
from graphhalu.extract.replay import Kept, replay
from graphhalu.extract.settings import CaptureSettings, ExtractConfig, GenerationSettings
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.traces.schema import TraceShape
from graphhalu.traces.store import TraceStore

PARTS = ("generate", "replay", "store")
LAYER = ModelSize(1, 4096, 32, 32, 128, 11_008, 64)


class Measured(NamedTuple):
    """Seconds and bytes a question, and what arithmetic says of the same questions."""

    seconds: dict[str, float]
    stored_bytes: float
    cost: Cost
    work: PlanSettings


def figures(quick: bool) -> dict[str, Any]:
    """Rates, seconds measured and foreseen, and their ratios."""
    torch.set_num_threads(1)
    n_questions = 1 if quick else 12
    n_tokens = 8 if quick else 64
    smollm2 = _extraction("smollm2", n_tokens)
    short, long = (_measure(smollm2, n_questions, n) for n in (0, 250))
    rates = _rates(short, long)
    found = {f"rate_{name}": value for name, value in rates.items()}
    runs = {"smollm2_p0": short, "smollm2_p250": long}
    if not quick:
        runs["smollm2_p120"] = _measure(smollm2, n_questions, 120)
        gemma = _extraction("gemma3-270m", n_tokens)
        runs |= {f"gemma3-270m_p{n}": _measure(gemma, n_questions, n) for n in (0, 120)}
    for name, run in runs.items():
        found |= _compared(name, run, rates)
    for length in (32,) if quick else (132, 512):
        found |= _layer(length, rates)
    return found


def _extraction(name: str, n_tokens: int) -> Extraction:
    generation = GenerationSettings(max_new_tokens=n_tokens)
    config = ExtractConfig(model=ModelSpec(name=name), batch_size=4, generation=generation)
    return Extraction(config, load_model(config.model))


def _measure(extraction: Extraction, n_questions: int, context_tokens: int) -> Measured:
    questions = _questions(extraction, n_questions, context_tokens)
    prompts = [extraction.prompt(question) for question in questions]
    generate_s, answered = _timed(lambda: list(extraction.generate(prompts)))
    answered = [each for each in answered if each.answers]
    replay_s, (traces, _) = _timed(lambda: extraction.traces(answered))
    with tempfile.TemporaryDirectory() as folder:
        store = TraceStore.create(
            Path(folder, "t.zarr"),
            configuration={},
            shape=extraction.shape,
            arrays=extraction.arrays,
            provenance={},
        )
        ids = [trace.record.question_id for trace in traces]
        with store.writer() as writer:
            store_s, _ = _timed(lambda: writer.write_part(0, traces, ids))
        stored = sum(TraceStore.open(store.path).n_bytes().values()) / len(traces)
    work = PlanSettings(
        prompt_tokens=round(np.mean([t.record.prompt_length for t in traces])),
        answer_tokens=round(np.mean([t.record.length - t.record.prompt_length for t in traces])),
        batch=4,
        weight_bytes=4,
        beams=extraction.config.generation.num_beams,
    )
    seconds = zip(PARTS, (generate_s, replay_s, store_s), strict=True)
    cost = question_cost(SIZES[extraction.config.model.name], work)
    return Measured({name: value / len(traces) for name, value in seconds}, stored, cost, work)


def _rates(short: Measured, long: Measured) -> Rates:
    """Rates by which the model of cost gives the seconds of both runs."""
    runs = (short, long)
    parts = {name: sum(run.seconds[name] for run in runs) for name in PARTS}
    table = np.array([[run.cost.replay_flops, run.cost.pairs] for run in runs])
    seconds = np.array([run.seconds["replay"] for run in runs])
    per_flop, per_pair = np.linalg.solve(table, seconds)
    if min(per_flop, per_pair) <= 0:  # noise: charge everything to operations
        per_flop, per_pair = seconds.sum() / table[:, 0].sum(), 1e-12
    return {
        "generate": sum(run.cost.generate_flops for run in runs) / parts["generate"],
        "replay": 1 / per_flop,
        "pairs": 1 / per_pair,
        "read": 1e12,
        "store": sum(run.cost.raw_bytes for run in runs) / parts["store"],
    }


def _compared(name: str, run: Measured, rates: Rates) -> dict[str, float]:
    foreseen = sum(question_seconds(run.cost, rates).values())
    total = sum(run.seconds.values())
    return {
        f"{name}_prompt_tokens": run.work.prompt_tokens,
        f"{name}_answer_tokens": run.work.answer_tokens,
        **{f"{name}_{part}_cpu_s": seconds for part, seconds in run.seconds.items()},
        f"{name}_cpu_s": total,
        f"{name}_foreseen_s": foreseen,
        f"{name}_foreseen_over_measured": foreseen / total,
        f"{name}_bytes": run.stored_bytes,
        f"{name}_foreseen_over_measured_bytes": run.cost.stored_bytes / run.stored_bytes,
    }


def _layer(n_tokens: int, rates: Rates) -> dict[str, float]:
    """A recorded pass through one layer of Llama-2-7B's shape, beside what the rates foresee."""
    config = LlamaConfig(
        vocab_size=LAYER.vocabulary,
        hidden_size=LAYER.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=32,
        intermediate_size=LAYER.feed_forward,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    shape = TraceShape(1, 32, 32, LAYER.hidden_size, (0,), (0, 1), (None,))
    token_ids = np.random.default_rng(0).integers(0, LAYER.vocabulary, n_tokens)
    sequence = TokenSequence(token_ids, np.where(np.arange(n_tokens) < n_tokens - 8, 3, 5), n_tokens - 8)
    arrays = CaptureSettings().arrays()
    seconds, (done,) = _timed(lambda: replay(model, [sequence], Kept(shape=shape, arrays=arrays)))
    assert done.failure is None
    cost = question_cost(LAYER, PlanSettings(prompt_tokens=n_tokens - 8, answer_tokens=8, weight_bytes=4))
    foreseen = question_seconds(cost, rates)["replay"]
    name = f"llama_layer_{n_tokens}"
    return {
        f"{name}_replay_cpu_s": seconds,
        f"{name}_foreseen_s": foreseen,
        f"{name}_foreseen_over_measured": foreseen / seconds,
        f"{name}_32_layers_cpu_s": 32 * seconds,
    }


def _timed(work) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result
