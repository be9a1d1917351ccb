"""Extraction against plain ``generate``, and against the usual way of collecting attention.

All ways answer the same prompts with the same model, beams and end marks in one process; the
usual way is one question at a time with ``output_attentions=True`` and a pickle a batch.
"""

import io
import pickle  # the rival writes it; nothing of ours does
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import load_questions
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.generate import left_padded
from graphhalu.extract.run import run_questions
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.load import ModelSpec, load_model
from graphhalu.traces.store import TraceStore

BATCH = 16


def figures(quick: bool) -> dict[str, Any]:
    """Seconds, ratios and bytes at several prompt lengths."""
    config = ExtractConfig(model=ModelSpec(name="smollm2"), batch_size=BATCH)
    extraction = Extraction(config, load_model(config.model))
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    lengths = ((0, 8),) if quick else ((0, 64), (200, 64), (1000, 16))
    for context_tokens, n_questions in lengths:
        questions = _questions(extraction, n_questions, context_tokens)
        found |= _compare(extraction, questions, f"p{context_tokens}")
    usual = _questions(extraction, 4 if quick else 16, 0)
    return found | _against_the_usual_way(extraction, usual)


def _questions(extraction: Extraction, n_questions: int, n_tokens: int) -> list[Question]:
    questions = load_questions("worldfacts", num_samples=n_questions)
    if not n_tokens:
        return questions
    facts = " ".join(f"{q.text} {q.answers[0]}." for q in load_questions("worldfacts", seed=1))
    tokens = extraction.loaded.tokenizer(facts, add_special_tokens=False).input_ids
    passages = [tokens[i * 31 : i * 31 + n_tokens] for i in range(n_questions)]
    texts = [extraction.loaded.tokenizer.decode(passage) for passage in passages]
    return [
        Question(q.question_id, q.text, q.answers, context=text)
        for q, text in zip(questions, texts, strict=True)
    ]


def _compare(extraction: Extraction, questions: list[Question], name: str) -> dict[str, Any]:
    asked = [extraction.ask(question) for question in questions]
    asked.sort(key=lambda item: item.prompt.length)
    prompts = [item.prompt.encoded.token_ids.tolist() for item in asked]
    plain_s, plain = _timed(lambda: _plain(extraction, prompts))
    ours_s, store = _timed(lambda: _extracted(extraction, asked))
    same = sum(
        record.answer == answer for record, answer in zip(store["records"], plain, strict=False)
    )
    return {
        f"{name}_questions": len(questions),
        f"{name}_prompt_tokens_median": float(np.median([len(p) for p in prompts])),
        f"{name}_plain_generate_s": plain_s,
        f"{name}_extract_full_s": ours_s,
        f"{name}_extract_over_generate": ours_s / plain_s,
        f"{name}_same_answers": same,
        f"{name}_bytes_a_trace": store["n_bytes"] / len(store["records"]),
    }


def _plain(extraction: Extraction, prompts: list[list[int]]) -> list[str]:
    search, model = extraction.search, extraction.loaded.model
    answers = []
    for start in range(0, len(prompts), BATCH):
        token_ids, is_token = left_padded(prompts[start : start + BATCH], model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=token_ids, attention_mask=is_token.long(), num_beams=search.n_beams,
                max_new_tokens=search.max_new_tokens, do_sample=False,
                eos_token_id=list(search.stop_ids), pad_token_id=search.stop_ids[0],
            )  # fmt: skip
        for row in output[:, token_ids.shape[1] :].tolist():
            end = next((i for i, t in enumerate(row) if t in search.stop_ids), len(row))
            text = extraction.loaded.tokenizer.decode(row[:end], skip_special_tokens=True)
            answers.append(text.strip())
    return answers


def _extracted(extraction: Extraction, asked: list[Any]) -> dict[str, Any]:
    folder = Path(tempfile.mkdtemp())
    try:
        store = TraceStore.create(
            folder / "a.zarr", configuration={}, shape=extraction.shape,
            arrays=extraction.arrays,
        )  # fmt: skip
        run_questions(extraction, store, asked, lambda _: None)
        done = TraceStore.open(folder / "a.zarr")
        return {"records": done.records, "n_bytes": sum(done.n_bytes().values())}
    finally:
        shutil.rmtree(folder)


def _against_the_usual_way(extraction: Extraction, questions: list[Question]) -> dict[str, Any]:
    asked = [extraction.ask(question) for question in questions]
    usual_s, n_bytes = _timed(lambda: _usual(extraction, asked))
    ours_s, store = _timed(lambda: _extracted(extraction, asked))
    return {
        "usual_questions": len(asked),
        "usual_s": usual_s,
        "usual_over_extract": usual_s / ours_s,
        "usual_pickle_over_store_bytes": n_bytes / store["n_bytes"],
    }


def _usual(extraction: Extraction, asked: list[Any]) -> int:
    """One question at a time, everything that ``generate`` returns, pickled in float32."""
    search, model = extraction.search, extraction.loaded.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    n_bytes = 0
    try:
        for item in asked:
            token_ids = torch.tensor([item.prompt.encoded.token_ids.tolist()])
            with torch.inference_mode():
                output = model.generate(
                    input_ids=token_ids, attention_mask=torch.ones_like(token_ids),
                    num_beams=search.n_beams, max_new_tokens=search.max_new_tokens,
                    do_sample=False, eos_token_id=list(search.stop_ids),
                    pad_token_id=search.stop_ids[0], return_dict_in_generate=True,
                    output_attentions=True, output_hidden_states=True,
                )  # fmt: skip
                full = model(
                    input_ids=output.sequences, output_attentions=True, output_hidden_states=True
                )
            stream = io.BytesIO()
            kept = [torch.stack(full.attentions).numpy(), torch.stack(full.hidden_states).numpy()]
            pickle.dump(kept, stream, protocol=5)
            n_bytes += stream.getbuffer().nbytes
    finally:
        model.set_attn_implementation(before)
    return n_bytes


def _timed(work: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done
