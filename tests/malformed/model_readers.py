"""Readers of weights and of saved detectors."""

from pathlib import Path
from typing import Any

from tests.malformed.table import Reader, Target


def make_gguf(folder: Path) -> None:
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_embedding_length(32)
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_scores([0.5, 0.25, 0.125])
    writer.add_string("note", "text")
    rng = np.random.default_rng(0)
    writer.add_tensor("a.weight", rng.normal(size=(3, 32)).astype(np.float32))
    writer.add_tensor("b.weight", rng.normal(size=(5, 32)).astype(np.float16))
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    packed = quantize(rng.normal(size=(2, 64)).astype(np.float32), GGMLQuantizationType.Q8_0)
    writer.add_tensor("c.weight", packed, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("d.bias", rng.normal(size=32).astype(np.float32))
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()


def read_gguf(path: Path) -> Any:
    from graphhalu.weights.storage import open_gguf

    tensors, metadata = open_gguf(path)
    return _shapes(tensors), str(metadata)[:2000]


def make_shards(folder: Path) -> None:
    import json

    import numpy as np
    from safetensors.numpy import save_file

    rng = np.random.default_rng(0)
    first = {"a": rng.normal(size=(3, 5)).astype(np.float32), "b": np.arange(7, dtype=np.int64)}
    packed = {
        "w": rng.integers(0, 255, size=(32, 1)).astype(np.uint8),
        "w.absmax": np.ones(1, np.float32),
        "w.quant_map": np.linspace(-1, 1, 16).astype(np.float32),
        "w.quant_state.bitsandbytes__nf4": np.frombuffer(
            json.dumps({"shape": [8, 8], "blocksize": 64, "dtype": "float32"}).encode(), np.uint8
        ),
        "e.SCB": np.ones(3, np.float32),
        "e.weight": np.ones((3, 4), np.int8),
    }
    save_file(first, folder / "model-1.safetensors", {"format": "pt"})
    save_file(packed, folder / "model-2.safetensors")
    index = {
        "weight_map": dict.fromkeys(first, "model-1.safetensors")
        | dict.fromkeys(packed, "model-2.safetensors")
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8}))


def read_shards(path: Path) -> Any:
    from graphhalu.weights.storage import open_shards

    return _shapes(open_shards(path.parent))


def _shapes(tensors: Any) -> Any:
    return [(name, tensor.shape, tensor.read().sum(dtype="float64")) for name, tensor in tensors.items()]


def make_model(folder: Path) -> None:
    from graphhalu.testing.tiny_models import save_tiny

    save_tiny(folder, "llama")


def read_model_digest(path: Path) -> Any:
    from graphhalu.models.identity import weights_digest

    return weights_digest(path.parent)


def read_architecture(path: Path) -> Any:
    """What the weights say of a model, without a language model being loaded."""
    from graphhalu.weights.read import open_weights

    weights = open_weights(str(path.parent))
    return str(weights.architecture), weights.heads(0, "q").shape


DETECTORS = (
    "sink-mass",
    "sink-probe-heads",
    "saplma",
    "haloscope",
    "tfidf",
    "all-features",
    "gat",
    "graphhalu",
    "shuffled-labels",
    "joint-probe",
)


def make_detectors(*names: str) -> Any:
    def make(folder: Path) -> None:
        import dataclasses

        import numpy as np

        from graphhalu.core.splits import Split
        from graphhalu.detectors.identity import Identity
        from graphhalu.detectors.registry import DETECTORS as REGISTRY
        from graphhalu.detectors.saved import save_detector
        from graphhalu.labels.planted import planted_traces

        traces, labels = planted_traces(24, signals=("sink", "likelihood", "text", "hidden"))
        places = np.arange(24)
        split = Split(train=places[:16], validation=places[16:], test=places[16:])
        assert dataclasses.is_dataclass(split) or split
        for name in names:
            kind = REGISTRY.get(name)
            fields = getattr(getattr(kind, "config_class", None), "model_fields", {})
            small = {"epochs": 1, "hidden_size": 4, "n_folds": 2}
            values = {key: value for key, value in small.items() if key in fields}
            if "blocks" in fields:
                values["blocks"] = ("sink-probe-heads", "likelihood-probe")
            detector = kind(**kind.settings(**values)) if fields else kind()
            detector.fit(traces, labels, split)
            save_detector(detector, folder / name, Identity.of({"model": {"name": "planted"}}))

    return make


def read_detector(path: Path) -> Any:
    from graphhalu.detectors.saved import load_detector

    folder = next(p for p in path.parents if p.parent.name == "inner")
    found = load_detector(folder)
    return type(found).__name__, found.n_parameters, str(found.identity)


def detector_reader(title: str, *names: str, n_slice: int = 60, more: tuple[str, ...] = ()) -> Reader:
    targets = []
    for name in names:
        targets.append(Target(f"{name}/detector.json", "json"))
        if name != "sink-mass":
            targets.append(Target(f"{name}/model.safetensors", "safetensors"))
    targets += [Target(file, "json" if file.endswith("json") else "safetensors") for file in more]
    return Reader(title, make_detectors(*names), read_detector, tuple(targets), n_slice)


MODEL_READERS = (
    Reader("gguf", make_gguf, read_gguf, (Target("tiny.gguf"),), n_slice=100),
    Reader(
        "safetensors",
        make_shards,
        read_shards,
        (
            Target("model-1.safetensors", "safetensors"),
            Target("model-2.safetensors", "safetensors"),
            Target("model.safetensors.index.json", "json"),
        ),
        n_slice=150,
    ),
    Reader(
        "model digest",
        make_model,
        read_model_digest,
        (Target("model.safetensors", "safetensors"), Target("config.json", "json")),
    ),
    Reader(
        "model weights",
        make_model,
        read_architecture,
        (Target("model.safetensors", "safetensors"), Target("config.json", "json")),
    ),
    detector_reader(
        "detectors of features", "sink-mass", "sink-probe-heads", "tfidf", "saplma", "haloscope", n_slice=100
    ),
    detector_reader("detectors of graphs", "gat", n_slice=40),
)
