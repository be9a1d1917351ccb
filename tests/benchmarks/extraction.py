"""Extraction against plain ``generate``, the usual way of collecting attention, and a plain pass.

All ways answer the same prompts with the same model, beams, batch and end marks in one process;
the usual way is one question at a time with ``output_attentions=True`` and a pickle in float32.
Memory is measured in a process of its own for each way (``replay_cost.py`` beside this file).
"""

import io
import json
import lzma
import pickle  # the rival writes it; nothing of ours does
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numcodecs.zstd import Zstd

from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import load_questions
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.run import question_batches
from graphhalu.extract.settings import CaptureSettings, ExtractConfig, GenerationSettings
from graphhalu.extract.worker import Worker, extract_batch
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import LoadedModel, left_padded, load_model
from graphhalu.traces.store import TraceStore

BATCH = 16
REPLAYS = ("plain", "plain_one_row", "streams", "streams_no_hidden", "streams_answer")
COST = Path(__file__).with_name("parts") / "replay_cost.py"


def figures(quick: bool) -> dict[str, Any]:
    """Seconds, ratios, bytes and megabytes."""
    loaded = load_model(ModelSpec(name="smollm2"))
    generation = GenerationSettings(max_new_tokens=8 if quick else 64)
    extraction = _extraction(loaded, generation)
    found: dict[str, Any] = {"threads": torch.get_num_threads()}
    # at 1,000 tokens plain generate takes minutes for 16 questions
    lengths = ((0, 1),) if quick else ((0, 64), (200, 64), (1000, 16))
    for context_tokens, n_questions in lengths:
        questions = _questions(extraction, n_questions, context_tokens)
        found |= _compare(extraction, questions, f"p{context_tokens}")
    found |= _against_the_usual_way(loaded, generation, 1 if quick else 64)
    for context_tokens in (0,) if quick else (0, 200):
        questions = _questions(extraction, 1 if quick else 16, context_tokens)
        found |= _sizes(loaded, generation, questions, f"p{context_tokens}", quick=quick)
    if quick:
        return found | _replay_costs(128, ("streams",))
    # at 4,096 tokens the usual way needs 19 GB for the attention alone
    found |= _replay_costs(2048, (*REPLAYS, "usual"))
    return found | _replay_costs(4096, REPLAYS)


def _extraction(loaded: LoadedModel, generation: GenerationSettings, **capture: Any) -> Extraction:
    settings = {"generation": generation, "capture": CaptureSettings(**capture)}
    return Extraction(ExtractConfig(model=loaded.spec, batch_size=BATCH, **settings), loaded)


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
    asked = [extraction.prompt(question) for question in questions]
    asked.sort(key=lambda item: item.length)
    prompts = [item.encoded.token_ids.tolist() for item in asked]
    plain_s, plain = _timed(lambda: _plain(extraction, prompts))
    with _Folder() as folder:
        ours_s, store = _timed(lambda: _extracted(extraction, asked, folder))
        answers = {record.question_id: record.answer for record in store.records}
        names = [item.question.question_id for item in asked]
        same = sum(answers.get(n, "") == text for n, text in zip(names, plain, strict=True))
        return {
            f"{name}_questions": len(questions),
            f"{name}_prompt_tokens_median": float(np.median([len(p) for p in prompts])),
            f"{name}_plain_generate_s": plain_s,
            f"{name}_extract_full_s": ours_s,
            f"{name}_extract_over_generate": ours_s / plain_s,
            f"{name}_same_answers": same,
            f"{name}_bytes_a_trace": sum(store.n_bytes().values()) / max(1, len(store)),
            **(_reads(store, name) if len(store) else {}),
        }


def _reads(store: TraceStore, name: str) -> dict[str, Any]:
    """One layer of one random trace, and everything once, beside a raw read of the same bytes."""
    generator = np.random.default_rng(0)
    picks = generator.integers(len(store), size=16)
    layers = generator.choice(store.shape.attention_layers, size=16)
    seconds = []
    for pick, layer in zip(picks.tolist(), layers.tolist(), strict=True):
        fresh = TraceStore.open(store.path)
        seconds.append(_timed(lambda s=fresh, p=pick, at=layer: s[p].attention(at))[0])
    fresh = TraceStore.open(store.path)
    all_s, n_bytes = _timed(
        lambda: sum(np.asarray(t.arrays[n][:]).nbytes for t in fresh for n in fresh.arrays)
    )
    files = [path for path in store.path.rglob("*") if path.is_file()]
    raw_s, raw = _timed(lambda: sum(len(path.read_bytes()) for path in files))
    return {
        f"{name}_read_one_layer_ms_median": 1000 * float(np.median(seconds)),
        f"{name}_read_all_mb_per_s": n_bytes / all_s / 1e6,
        f"{name}_raw_read_mb_per_s": raw / raw_s / 1e6,
    }


def _plain(extraction: Extraction, prompts: list[list[int]]) -> list[str]:
    search, model = extraction.search, extraction.loaded.model
    answers = []
    for start in range(0, len(prompts), BATCH):
        token_ids, is_token = left_padded(prompts[start : start + BATCH], model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=token_ids,
                attention_mask=is_token.long(),
                num_beams=search.n_beams,
                max_new_tokens=search.max_new_tokens,
                do_sample=False,
                eos_token_id=list(search.stop_ids),
                pad_token_id=search.stop_ids[0],
            )
        for row in output[:, token_ids.shape[1] :].tolist():
            end = next((i for i, t in enumerate(row) if t in search.stop_ids), len(row))
            text = extraction.loaded.tokenizer.decode(row[:end], skip_special_tokens=True)
            answers.append(text.strip())
    return answers


class _Folder:
    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp())
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


def extract_here(extraction: Extraction, store: TraceStore, questions: list[Question]) -> None:
    """Answer questions with a model that is loaded, and commit them to an empty store."""
    with store.writer() as holder:
        worker = Worker(extraction, store.name, holder.name)
        with worker.parts:
            for batch in question_batches(questions, extraction.config):
                extract_batch(worker, batch)


def _extracted(extraction: Extraction, asked: list[Any], folder: Path) -> TraceStore:
    store = TraceStore.create(
        folder / "a.zarr", configuration={}, shape=extraction.shape, arrays=extraction.arrays
    )
    extract_here(extraction, store, [item.question for item in asked])
    return TraceStore.open(folder / "a.zarr")


def _against_the_usual_way(
    loaded: LoadedModel, generation: GenerationSettings, n_questions: int
) -> dict[str, Any]:
    """The usual way takes one question at a time; ours its default batch."""
    extraction = Extraction(ExtractConfig(model=loaded.spec, generation=generation), loaded)
    asked = [extraction.prompt(each) for each in _questions(extraction, n_questions, 0)]
    with _Folder() as folder:
        usual_s, n_bytes = _timed(lambda: _usual(extraction, asked))
        ours_s, _ = _timed(lambda: _extracted(extraction, asked, folder))
    return {
        "usual_questions": len(asked),
        "usual_s": usual_s,
        "usual_over_extract": usual_s / ours_s,
        "usual_pickle_mb": n_bytes / 1e6,
    }


def _usual(extraction: Extraction, asked: list[Any]) -> int:
    """One question at a time; everything that ``generate`` returns, pickled in float32."""
    search, model = extraction.search, extraction.loaded.model
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    n_bytes = 0
    try:
        for item in asked:
            token_ids = torch.tensor([item.encoded.token_ids.tolist()])
            with torch.inference_mode():
                output = model.generate(
                    input_ids=token_ids,
                    attention_mask=torch.ones_like(token_ids),
                    num_beams=search.n_beams,
                    max_new_tokens=search.max_new_tokens,
                    do_sample=False,
                    eos_token_id=list(search.stop_ids),
                    pad_token_id=search.stop_ids[0],
                    return_dict_in_generate=True,
                    output_attentions=True,
                    output_hidden_states=True,
                )
            stream = io.BytesIO()
            kept = [
                [[layer.numpy() for layer in step] for step in steps]
                for steps in (output.attentions, output.hidden_states)
            ]
            pickle.dump(kept, stream, protocol=5)
            n_bytes += stream.getbuffer().nbytes
    finally:
        model.set_attn_implementation(before)
    return n_bytes


def _sizes(
    loaded: LoadedModel, generation: GenerationSettings, questions: list[Question], name: str, *, quick: bool
) -> dict[str, Any]:
    """Bytes on disk against a float32 pickle of the same complete matrices."""
    ways = {
        "float16": {},
        "fixed16": {"attention_format": "fixed16"},
        "four_hidden": {"hidden_layers": (0, 10, 20, 30)},
        "fixed16_four_hidden": {"attention_format": "fixed16", "hidden_layers": (0, 10, 20, 30)},
        "edges": {"keep": "edges", "hidden_layers": "none"},
        "streams": {"keep": "streams", "hidden_layers": "none"},
    }
    found: dict[str, Any] = {}
    for way, capture in list(ways.items())[: 1 if quick else None]:
        extraction = _extraction(loaded, generation, **capture)
        asked = [extraction.prompt(question) for question in questions]
        with _Folder() as folder:
            store = _extracted(extraction, asked, folder)
            n_bytes, shape = store.n_bytes(), store.shape
            squares = sum(record.length**2 for record in store.records)
            tokens = sum(record.length for record in store.records)
            attention = 4 * shape.n_layers * shape.n_heads * squares
            hidden = 4 * (shape.n_layers + 1) * shape.hidden_size * tokens
            total = sum(n_bytes.values())
            own = n_bytes.get("attention", n_bytes.get("attention_fixed"))
            found |= {
                f"{name}_{way}_bytes_a_trace": total / len(store),
                f"{name}_{way}_pickle_over_all": (attention + hidden) / total,
                **({f"{name}_{way}_pickle_over_attention": attention / own} if own else {}),
            }
            if way == "float16" and not quick:
                found |= _best_codecs(store, name)
    return found


def _best_codecs(store: TraceStore, name: str) -> dict[str, Any]:
    """The strongest general compressors on the arrays of a few traces, beside the store's codec."""
    found: dict[str, Any] = {}
    n_traces = min(4, len(store))
    for array in ("attention", "hidden"):
        raw = b"".join(np.asarray(store[i].arrays[array][:]).tobytes() for i in range(n_traces))
        stored = store.n_bytes()[array] / sum(np.asarray(t.arrays[array][:]).nbytes for t in store)
        shuffled = np.frombuffer(raw, np.uint8).reshape(-1, 2).T.tobytes()
        found |= {
            f"{name}_{array}_store_share": stored,
            f"{name}_{array}_zstd19_share": len(Zstd(19).encode(shuffled)) / len(raw),
            f"{name}_{array}_xz_share": len(lzma.compress(shuffled)) / len(raw),
        }
    return found


def _replay_costs(n_tokens: int, ways: tuple[str, ...]) -> dict[str, Any]:
    """Seconds and peak memory above the loaded model, each way in a process of its own."""
    found: dict[str, Any] = {}
    for way in ways:
        command = [sys.executable, str(COST), way, str(n_tokens)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        cost = json.loads(done.stdout.strip().splitlines()[-1])
        found |= {f"t{n_tokens}_{way}_{key}": value for key, value in cost.items()}
    for way in ways[1:]:
        for key in ("cpu_s", "peak_mb"):
            plain = found[f"t{n_tokens}_plain_{key}"]
            found[f"t{n_tokens}_{way}_over_plain_{key}"] = found[f"t{n_tokens}_{way}_{key}"] / plain
    return found


def _timed(work: Any) -> tuple[float, Any]:
    started = time.perf_counter()
    done = work()
    return time.perf_counter() - started, done
