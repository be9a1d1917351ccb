"""Time and peak memory of one pass over ``n`` random tokens, in a process of its own.

``python replay_cost.py WAY N_TOKENS`` prints one JSON object: seconds of the clock and of the
processor, and the peak of resident memory above what the loaded model takes, in MB.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

from graphhalu.extract.forward import TokenSequence
from graphhalu.extract.replay import Kept, replay
from graphhalu.extract.settings import CaptureSettings, trace_shape
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model

N_ANSWER = 64


def main(way: str, n_tokens: int) -> dict[str, float]:
    """Run one way and measure it."""
    loaded = load_model(ModelSpec(name="smollm2"))
    token_ids = np.random.default_rng(0).integers(5, 40_000, n_tokens)
    _run(way, loaded, token_ids[:128])  # what is made once is not counted
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    before, wall_s, cpu_s = _memory_mb("VmRSS"), time.perf_counter(), time.process_time()
    _run(way, loaded, token_ids)
    return {
        "wall_s": time.perf_counter() - wall_s,
        "cpu_s": time.process_time() - cpu_s,
        "peak_mb": _memory_mb("VmHWM") - before,
    }


def _run(way: str, loaded, token_ids: np.ndarray) -> None:
    model = loaded.model
    tokens = torch.from_numpy(token_ids)[None]
    with torch.inference_mode():
        if way == "plain":
            model(input_ids=tokens, use_cache=False)
        elif way == "plain_one_row":
            model(input_ids=tokens, use_cache=False, logits_to_keep=1)
        elif way == "usual":
            model.set_attn_implementation("eager")
            model(input_ids=tokens, use_cache=False, output_attentions=True, output_hidden_states=True)
        else:
            _replay(way, loaded, token_ids)


def _replay(way: str, loaded, token_ids: np.ndarray) -> None:
    prompt_length = len(token_ids) - N_ANSWER
    is_answer = np.arange(len(token_ids)) >= prompt_length
    answer_only = way == "streams_answer"
    capture = CaptureSettings(keep="streams", hidden_layers="none" if way != "streams" else "all")
    sequence = TokenSequence(
        token_ids, np.where(is_answer, 5, 3), prompt_length, row_start=prompt_length - 1 if answer_only else 0
    )
    (result,) = replay(loaded.model, [sequence], Kept(trace_shape(loaded, capture), capture.arrays()))
    assert result.failure is None


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
