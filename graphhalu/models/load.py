"""Loading a language model with its tokenizer, and what the other rooms must know of it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch

from graphhalu.errors import ModelRefusedError, ModelUnavailableError, UsageError
from graphhalu.models.card import ModelCard, ModelSource
from graphhalu.models.cards import resolve_model
from graphhalu.models.gguf import converted_folder, wheel_gguf
from graphhalu.models.spec import ModelSpec

__all__ = ["LoadedModel", "ModelSpec", "layer_windows", "load_model"]

_NO_ATTENTION: Final = ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm")
_LOAD_ERRORS: Final = (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError)


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer, and its measures.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: A fast tokenizer: named spans come from its offsets.
        identity: What decides its numbers: source, weights, quantisation, number format.
        layer_windows: Sliding window of each layer, or ``None`` where a row sees all keys.
        max_positions: Length of the context window, or ``None`` if there is no limit.
        eos_token_ids: Tokens that end an answer.
    """

    model: Any
    tokenizer: Any
    spec: ModelSpec
    card: ModelCard | None
    identity: dict[str, Any]
    n_layers: int
    n_heads: int
    n_kv_heads: int
    hidden_size: int
    layer_windows: tuple[int | None, ...]
    max_positions: int | None
    eos_token_ids: tuple[int, ...]


def load_model(spec: ModelSpec) -> LoadedModel:
    """Load a model and its tokenizer.

    Raises:
        UnknownNameError: If the name stands for nothing.
        ModelUnavailableError: If weights or tokenizer cannot be had.
        ModelRefusedError: If the model has no attention, or the tokenizer no offsets.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    source = resolve_model(spec.name)
    place = _place(source)
    device = _device(spec.device)
    with _quiet_transformers():
        config = _config(place, spec, source)
        _require_attention(config, spec.name)
        tokenizer = _tokenizer(place, spec, source)
        model = _model(place, spec, source, config, device)
    model.eval().requires_grad_(requires_grad=False)
    text = config.get_text_config()
    n_heads = int(text.num_attention_heads)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        spec=spec,
        card=source.card,
        identity=_identity(source, place, spec, model),
        n_layers=int(text.num_hidden_layers),
        n_heads=n_heads,
        n_kv_heads=int(getattr(text, "num_key_value_heads", None) or n_heads),
        hidden_size=int(text.hidden_size),
        layer_windows=layer_windows(config),
        max_positions=getattr(text, "max_position_embeddings", None),
        eos_token_ids=_eos_token_ids(model, tokenizer),
    )


def layer_windows(config: Any) -> tuple[int | None, ...]:
    """Sliding window of each layer, itself included, or ``None`` where a row sees all keys."""
    text = config.get_text_config()
    window = getattr(text, "sliding_window", None)
    if not window or getattr(text, "use_sliding_window", True) is False:
        return (None,) * text.num_hidden_layers
    kinds = getattr(text, "layer_types", None)
    if kinds is None:
        return (int(window),) * text.num_hidden_layers
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _place(source: ModelSource) -> str:
    if source.kind == "wheel":
        assert source.card is not None
        assert source.card.wheel is not None
        return str(converted_folder(wheel_gguf(source.card.wheel)))
    if source.kind == "gguf":
        return str(converted_folder(Path(source.place)))
    return source.place


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        message = f"no device named {name!r}; expected auto, cpu, cuda or cuda:<number>"
        raise UsageError(message) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        message = f"device {name!r} was asked for, and torch sees no GPU; use --device cpu"
        raise UsageError(message)
    return device


def _dtype(spec: ModelSpec, config: Any, device: torch.device) -> torch.dtype | str:
    if spec.dtype != "auto":
        chosen: torch.dtype = getattr(torch, spec.dtype)
        return chosen
    if getattr(config, "quantization_config", None) is not None:
        return "auto"
    if device.type == "cuda" and torch.cuda.is_bf16_supported():
        return torch.bfloat16
    return torch.float32


def _config(place: str, spec: ModelSpec, source: ModelSource) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(place, **_from(spec, source))
    except _LOAD_ERRORS as error:
        raise _unavailable(spec, source, error, "configuration") from None


def _tokenizer(place: str, spec: ModelSpec, source: ModelSource) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **_from(spec, source))
    except _LOAD_ERRORS as error:
        raise _unavailable(spec, source, error, "tokenizer") from None
    if not tokenizer.is_fast:
        message = (
            f"the tokenizer of {spec.name} gives no character offsets, and the named spans of a "
            f"prompt come from them\n  Use a version of the model with a tokenizer.json"
        )
        raise ModelRefusedError(message)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _model(
    place: str, spec: ModelSpec, source: ModelSource, config: Any, device: torch.device
) -> Any:
    from transformers import AutoModelForCausalLM

    settings = {"dtype": _dtype(spec, config, device), **_from(spec, source)}
    is_stored_quantized = getattr(config, "quantization_config", None) is not None
    if spec.quantization != "none" and is_stored_quantized:
        message = f"{spec.name} is stored quantised and loads as it is; use --quantization none"
        raise UsageError(message)
    if spec.quantization != "none":
        settings["quantization_config"] = _quantization(spec.quantization)
    if spec.quantization != "none" or is_stored_quantized or device.type == "cuda":
        settings["device_map"] = {"": device}
    try:
        return AutoModelForCausalLM.from_pretrained(place, **settings)
    except torch.OutOfMemoryError:
        message = (
            f"{spec.name} does not fit the memory of {device}\n"
            f"  Use --quantization nf4, or a smaller model"
        )
        raise ModelUnavailableError(message) from None
    except _LOAD_ERRORS as error:
        raise _unavailable(spec, source, error, "weights") from None


def _quantization(name: str) -> Any:
    from transformers import BitsAndBytesConfig

    # the cast is what int8 is; it is said once for every layer and call
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def _from(spec: ModelSpec, source: ModelSource) -> dict[str, Any]:
    if source.kind == "hub":
        return {"revision": spec.revision, "trust_remote_code": spec.trust_remote_code}
    return {"local_files_only": True, "trust_remote_code": spec.trust_remote_code}


def _require_attention(config: Any, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        message = f"{name} is an encoder-decoder model; graphhalu reads causal language models"
        raise ModelRefusedError(message)
    if config.model_type in _NO_ATTENTION:
        message = f"{name} ({config.model_type}) has no attention to draw graphs from"
        raise ModelRefusedError(message)


def _unavailable(
    spec: ModelSpec, source: ModelSource, error: Exception, what: str
) -> ModelUnavailableError:
    if source.kind != "hub":
        reason = " ".join(str(error).split())[:240]
        message = (
            f"the {what} of {spec.name} cannot be read ({type(error).__name__}: {reason})\n"
            f"  Expected a folder with config.json, tokenizer.json and whole *.safetensors files"
        )
        return ModelUnavailableError(message)
    gated = " and accept its licence on its page" if source.card and source.card.gated else ""
    message = (
        f"the model {source.place} cannot be had from the hub, and is not in the local cache\n"
        f"  Three ways out: log in with `hf auth login`{gated}; "
        f"set HF_HOME to a folder that holds its files; "
        f"or give a local folder, --model FOLDER"
    )
    return ModelUnavailableError(message)


def _eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    stated = getattr(model.generation_config, "eos_token_id", None)
    ids = set(stated if isinstance(stated, list) else [stated])
    ids.add(tokenizer.eos_token_id)
    return tuple(sorted(index for index in ids if index is not None))


def _identity(source: ModelSource, place: str, spec: ModelSpec, model: Any) -> dict[str, Any]:
    stored = getattr(model.config, "quantization_config", None)
    method = getattr(stored, "quant_method", None)
    name = source.card.alias if source.card else source.place
    return {
        "name": name if source.kind in ("hub", "wheel") else Path(source.place).name,
        "source": source.place if source.kind in ("hub", "wheel") else source.kind,
        "revision": getattr(model.config, "_commit_hash", None) or spec.revision,
        "weights": _fingerprint(Path(place)) if source.kind != "hub" else None,
        "architecture": type(model).__name__,
        "dtype": str(model.dtype).removeprefix("torch."),
        "quantization": (
            spec.quantization if spec.quantization != "none" or method is None else str(method)
        ),
    }


def _fingerprint(folder: Path) -> str:
    """Digest of configuration, tensor headers and sizes of the weight files in a folder."""
    digest = sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            header = file.read(8)
            digest.update(header + file.read(min(int.from_bytes(header, "little"), 2**24)))
            file.seek(-min(path.stat().st_size, 2**20), 2)
            digest.update(file.read())
        digest.update(str(path.stat().st_size).encode())
    return digest.hexdigest()[:16]


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars and warnings: what matters is raised."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        transformers_logging.enable_progress_bar()
