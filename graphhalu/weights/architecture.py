"""Layouts of model families, and the sizes of a model: heads, scaling, RoPE, windows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Float

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import DataFileError, ModelRefusedError
from graphhalu.core.files import shown
from graphhalu.core.registry import unknown_name

_THETA: Final = 10_000.0
_GEMMA_PATTERN: Final = {"gemma2": 2, "gemma3_text": 6}
"""Every so many layers, one of a gemma sees all keys; GGUF files do not always say so."""


Fused = Literal["none", "contiguous", "per_head", "grouped"]
"""How queries, keys and values lie in one matrix:

``contiguous``
    all queries, then all keys, then all values (Phi-3, GPT-2);
``per_head``
    query, key and value of each head together (GPT-NeoX, older falcons);
``grouped``
    the queries of a group, then its key, then its value (newer falcons).
"""


@dataclass(frozen=True)
class Family:
    """Names of tensors below a layer, ``None`` if a family has none; the defaults are those of Llama.

    Attributes:
        layer: Name of a layer, with ``{layer}``.
        q: Queries, or the fused matrix.
        o: Output of attention.
        up: First matrix of the feed-forward block; fused with ``gate`` if ``is_up_fused``.
        attention_norm: Before attention.
        mlp_norm: Before the feed-forward block; that of attention in a parallel block.
        attention_post_norm: Of what attention gives to the stream.
        mlp_post_norm: Of what the feed-forward block gives to it.
        q_norm: Gain of normalised queries.
        fused: How ``q`` is split.
        is_transposed: Whether matrices are stored inputs first (Conv1D).
        is_up_fused: Whether ``up`` holds gate and up, one after the other.
        is_centred: Whether norms take the mean off (LayerNorm).
        gain_offset: What is added to a stored gain.
        rotated: Share of a head's dimensions that turn; 0 where positions are learned.
        head_dim: Size of a head where a configuration does not say it.
        is_interleaved: Whether rows of q and k stand in the order of llama.cpp.
    """

    layer: str = "model.layers.{layer}."
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    gate: str | None = "mlp.gate_proj"
    up: str | None = "mlp.up_proj"
    down: str | None = "mlp.down_proj"
    attention_norm: str | None = "input_layernorm"
    mlp_norm: str | None = "post_attention_layernorm"
    attention_post_norm: str | None = None
    mlp_post_norm: str | None = None
    q_norm: str | None = None
    k_norm: str | None = None
    embedding: str = "model.embed_tokens"
    final_norm: str = "model.norm"
    unembedding: str = "lm_head"
    fused: Fused = "none"
    is_transposed: bool = False
    is_up_fused: bool = False
    is_centred: bool = False
    gain_offset: float = 0.0
    rotated: float = 1.0
    head_dim: int | None = None
    is_interleaved: bool = False


_FAMILIES: Final = read_yaml(Path(__file__).with_name("families.yaml"))
FAMILIES: Final = {name: Family(**entry) for name, entry in _FAMILIES["transformers"].items()}
"""By the model type of transformers."""
GGUF_LAYOUTS: Final = {name: Family(**entry) for name, entry in _FAMILIES["gguf"].items()}
"""By the architecture of a GGUF file."""
GGUF_FAMILIES: Final = {name: {"gemma3": "gemma3_text"}.get(name, name) for name in GGUF_LAYOUTS}
"""Model type in transformers of each architecture of a GGUF file."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions of one layer.

    Attributes:
        theta: Base of the frequencies.
        n_rotated: Dimensions of a head that turn; 0 where positions are learned.
        scaling: The kind of stretching, ``default``, ``linear``, ``llama3`` or another one,
            which is not modelled.
        settings: Its numbers.
    """

    theta: float
    n_rotated: int
    scaling: str = "default"
    settings: tuple[tuple[str, float], ...] = ()

    @property
    def is_modelled(self) -> bool:
        """Whether the frequencies are those of the model."""
        return self.scaling in ("default", "linear", "llama3")

    def frequencies(self) -> Float[np.ndarray, "pair"]:
        """Radians a position, one a pair of dimensions.

        Source:
            Su et al. 2021, arXiv:2104.09864; the stretching of Llama 3 as in transformers'
            ``_compute_llama3_parameters``.
        """
        pairs = np.arange(0, self.n_rotated, 2, dtype=np.float64)
        plain: Float[np.ndarray, "pair"] = self.theta ** (-pairs / max(1, self.n_rotated))
        values = dict(self.settings)
        if self.scaling == "linear":
            return plain / values["factor"]
        if self.scaling != "llama3":
            return plain
        wavelength, old = 2 * np.pi / plain, values["original_max_position_embeddings"]
        low, high = values["low_freq_factor"], values["high_freq_factor"]
        smooth = np.clip((old / wavelength - low) / (high - low), 0.0, 1.0)
        return (1 - smooth) * plain / values["factor"] + smooth * plain


@dataclass(frozen=True)
class Architecture:
    """What the weights of a model mean.

    Attributes:
        family: Its model type in transformers.
        scaling: Factor of the attention logits.
        ropes: One a layer.
        windows: Sliding window of each layer, itself included, or ``None``.
        softcap: Largest logit of a model that caps them.
        activation: Of the feed-forward block.
        intermediate_size: Its width.
    """

    family: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    scaling: float
    ropes: tuple[Rope, ...]
    windows: tuple[int | None, ...]
    softcap: float | None
    activation: str

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together.

        Raises:
            DataFileError: If they do not.
        """
        sizes = {
            "layers": self.n_layers,
            "heads": self.n_heads,
            "key heads": self.n_kv_heads,
            "head size": self.head_dim,
            "width": self.hidden_size,
        }
        if min(sizes.values()) < 1 or self.n_heads % self.n_kv_heads:
            raise DataFileError(f"the sizes of the model do not fit together: {sizes}")

    @property
    def group_size(self) -> int:
        """Query heads that share a key head."""
        return self.n_heads // self.n_kv_heads

    def values(self) -> dict[str, Any]:
        """Plain values for a record."""
        ropes = [
            {"layer": n, "theta": r.theta, "n_rotated": r.n_rotated, "scaling": r.scaling}
            for n, r in enumerate(self.ropes)
        ]
        return {**asdict(self), "ropes": ropes}


def from_config(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a ``config.json`` states.

    Raises:
        ModelRefusedError: If the family is not among those that can be read.
        DataFileError: If a size is missing.
    """
    text = dict(config.get("text_config") or config)
    family = str(text.get("model_type", ""))
    if family not in FAMILIES:
        raise _unknown(family)
    n_heads = int(_need(text, "num_attention_heads", "n_head", "num_heads"))
    hidden_size = int(_need(text, "hidden_size", "n_embd", "d_model"))
    n_layers = int(_need(text, "num_hidden_layers", "n_layer", "n_layers"))
    head_dim = int(text.get("head_dim") or FAMILIES[family].head_dim or hidden_size // n_heads)
    wanted = text.get("query_pre_attn_scalar") if family.startswith("gemma") else None
    names = ("hidden_activation", "hidden_act", "activation_function", "activation")
    width = _first(text, "intermediate_size", "ffn_hidden_size", "n_inner")
    return Architecture(
        family=family,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=_n_kv_heads(text, n_heads),
        head_dim=head_dim,
        hidden_size=hidden_size,
        intermediate_size=int(width or 4 * hidden_size),
        scaling=float(text.get("attention_multiplier") or float(wanted or head_dim) ** -0.5),
        ropes=_ropes(text, family, n_layers, head_dim),
        windows=_windows(text, n_layers),
        softcap=_number(text.get("attn_logit_softcapping")),
        activation=str(_first(text, *names) or "silu"),
    )


def from_gguf(metadata: Mapping[str, Any]) -> Architecture:
    """The architecture that the metadata of a GGUF file state.

    Raises:
        ModelRefusedError: If the family is not among those that can be read.
        DataFileError: If a size is missing.
    """
    name = str(metadata.get("general.architecture", ""))
    if name not in GGUF_FAMILIES:
        raise _unknown(name, GGUF_FAMILIES)
    family = GGUF_FAMILIES[name]
    own = {key.removeprefix(f"{name}."): value for key, value in metadata.items()}
    n_heads = _same(_need(own, "attention.head_count"), "head_count")
    hidden_size, n_layers = (int(_need(own, key)) for key in ("embedding_length", "block_count"))
    head_dim = int(own.get("attention.key_length") or hidden_size // n_heads)
    windows = _patterned(own.get("attention.sliding_window"), family, n_layers)
    kind, factor = own.get("rope.scaling.type"), own.get("rope.scaling.factor")
    rope = Rope(
        float(own.get("rope.freq_base") or _THETA),
        0 if FAMILIES[family].rotated == 0 else int(own.get("rope.dimension_count") or head_dim),
        *(() if kind in (None, "none") else (str(kind), (("factor", float(factor or 1.0)),))),
    )
    local = Rope(_THETA, head_dim) if family == "gemma3_text" else rope
    is_gelu = family.startswith("gemma") or FAMILIES[family].gate is None
    return Architecture(
        family=family,
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=_same(own.get("attention.head_count_kv", n_heads), "head_count_kv"),
        head_dim=head_dim,
        hidden_size=hidden_size,
        intermediate_size=_same(own.get("feed_forward_length", 4 * hidden_size), "width"),
        scaling=float(own.get("attention.scale") or head_dim**-0.5),
        ropes=tuple(rope if window is None else local for window in windows),
        windows=windows,
        softcap=_number(own.get("attn_logit_softcapping")),
        activation="gelu_pytorch_tanh" if is_gelu else "silu",
    )


def _ropes(text: Mapping[str, Any], family: str, n_layers: int, head_dim: int) -> tuple[Rope, ...]:
    share = 0.0 if text.get("alibi") else FAMILIES[family].rotated
    stated = text.get("rope_parameters") or text.get("rope_scaling") or {}
    found = []
    for kind in text.get("layer_types") or [None] * n_layers:
        own = stated.get(kind, stated) if isinstance(stated.get(kind), Mapping) else stated
        theta = own.get("rope_theta") or _first(text, "rope_theta", "rotary_emb_base") or _THETA
        if kind == "sliding_attention" and "rope_local_base_freq" in text:
            theta = text["rope_local_base_freq"]
        part = own.get("partial_rotary_factor") or _first(text, "partial_rotary_factor", "rotary_pct")
        n_rotated = int(head_dim * float(part or share)) if share else 0
        name = str(own.get("rope_type") or own.get("type") or "default")
        numbers = tuple(
            (key, float(value))
            for key, value in own.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        )
        found.append(Rope(float(theta), n_rotated + n_rotated % 2, name, numbers))
    return tuple(found)


def _windows(text: Mapping[str, Any], n_layers: int) -> tuple[int | None, ...]:
    """As :func:`graphhalu.models.attention.layer_windows`, from the plain file."""
    window = text.get("sliding_window")
    kinds = text.get("layer_types")
    if not window or text.get("use_sliding_window", True) is False:
        return (None,) * n_layers
    if kinds is None:
        return _patterned(window, str(text["model_type"]), n_layers)
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


def _patterned(window: Any, family: str, n_layers: int) -> tuple[int | None, ...]:
    pattern = _GEMMA_PATTERN.get(family, n_layers + 1)
    return tuple(int(window) if window and (layer + 1) % pattern else None for layer in range(n_layers))


def _n_kv_heads(text: Mapping[str, Any], n_heads: int) -> int:
    if text["model_type"] == "falcon" and not text.get("new_decoder_architecture"):
        return 1 if text.get("multi_query", True) else n_heads
    return int(_first(text, "num_key_value_heads", "num_kv_heads") or n_heads)


def _first(values: Mapping[str, Any], *names: str) -> Any:
    return next((values[name] for name in names if values.get(name) is not None), None)


def _need(values: Mapping[str, Any], *names: str) -> Any:
    found = _first(values, *names)
    if found is None:
        raise DataFileError(f"the configuration of the model states no {names[0]}")
    return found


def _same(value: Any, what: str) -> int:
    """One number for all layers."""
    values = set(value) if isinstance(value, list) else {value}
    if len(values) != 1 or not isinstance(found := values.pop(), int):
        raise ModelRefusedError(f"the model does not have one {what} for all its layers ({shown(value)})")
    return found


def _number(value: Any) -> float | None:
    return float(value) if value else None


def _unknown(family: str, known: Mapping[str, Any] = FAMILIES) -> ModelRefusedError:
    hint = str(unknown_name("family", family, known))
    return ModelRefusedError(f"weights of the family {family[:80]!r} cannot be read: {hint}")
