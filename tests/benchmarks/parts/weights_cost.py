"""Time and peak memory of a weight profile, in a process of its own.

``python weights_cost.py profile MODEL SPECTRA`` prints one JSON object: seconds of the clock and
of the processor, the peak of resident memory, and the largest tensor, as stored and in float32.
``python weights_cost.py make FOLDER WIDTH N_LAYERS`` writes a sharded checkpoint in half precision
with the layer shapes of Llama-2-7B (at width 4,096), random weights, a shard a layer.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

HEAD = 128
WORDS = 32_000


def make(folder: Path, width: int, n_layers: int) -> dict[str, float]:
    """Write the checkpoint; a shard is held in memory at a time."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    inner = int(width * 11_008 / 4_096)

    def drawn(*shape: int) -> np.ndarray:
        values = generator.standard_normal(shape, dtype=np.float32)
        return (values * shape[-1] ** -0.5).astype(np.float16)

    index: dict[str, str] = {}

    def save(tensors: dict[str, np.ndarray], file: str) -> None:
        save_file(tensors, folder / file)
        index.update(dict.fromkeys(tensors, file))

    n_words = WORDS * width // 4_096
    save({"model.embed_tokens.weight": drawn(n_words, width)}, "first.safetensors")
    for layer in range(n_layers):
        prefix = f"model.layers.{layer}."
        squares = {
            f"{prefix}self_attn.{part}_proj.weight": drawn(width, width) for part in ("q", "k", "v", "o")
        }
        norms = {
            f"{prefix}{name}_layernorm.weight": np.ones(width, dtype=np.float16)
            for name in ("input", "post_attention")
        }
        block = {
            f"{prefix}mlp.gate_proj.weight": drawn(inner, width),
            f"{prefix}mlp.up_proj.weight": drawn(inner, width),
            f"{prefix}mlp.down_proj.weight": drawn(width, inner),
        }
        save({**squares, **norms, **block}, f"layer{layer}.safetensors")
    save(
        {"model.norm.weight": np.ones(width, dtype=np.float16), "lm_head.weight": drawn(n_words, width)},
        "last.safetensors",
    )
    config = {
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": n_layers,
        "num_attention_heads": width // HEAD,
        "num_key_value_heads": width // HEAD,
        "rope_theta": 10_000.0,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    return {"n_files": len(set(index.values()))}


def profile(model: str, spectra: str) -> dict[str, float]:
    """Profile a model and measure it."""
    from graphhalu.weights.layer import ProfileSettings
    from graphhalu.weights.profile import profile_model
    from graphhalu.weights.read import open_weights

    wall_s, cpu_s = time.perf_counter(), time.process_time()
    weights = open_weights(model)
    ends: list[float] = []
    profile_model(weights, ProfileSettings(spectra=spectra), lambda *_: ends.append(time.process_time()))
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    # one step a tensor, one for the words, one a layer
    steps = np.diff(ends)
    names, n_layers = list(weights.tensors), weights.architecture.n_layers
    of_layers = [place for place, name in enumerate(names) if weights.role(name)[0] is not None]
    layer_s = (steps[of_layers].sum() + steps[len(names) + 1 :].sum()) / n_layers
    tensors = weights.tensors.values()
    return {
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "layer_cpu_s": float(layer_s),
        "rest_cpu_s": float(cpu_s - n_layers * layer_s),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "largest_stored_mb": max(tensor.n_bytes for tensor in tensors) / 2**20,
        "largest_float32_mb": max(4 * tensor.n_values for tensor in tensors) / 2**20,
    }


if __name__ == "__main__":
    if sys.argv[1] == "make":
        print(json.dumps(make(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))))
    else:
        print(json.dumps(profile(sys.argv[2], sys.argv[3])))
