"""Layouts of model families: names of tensors, and how a fused matrix is split."""

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

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
    """Names of tensors below a layer; ``None`` where a family has none.

    Attributes:
        layer: How a layer is called, with ``{layer}``.
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

    def with_names(self, **names: Any) -> "Family":
        """The same with some entries replaced."""
        return replace(self, **names)


_LLAMA: Final = Family()
_QK_NORM: Final = _LLAMA.with_names(q_norm="self_attn.q_norm", k_norm="self_attn.k_norm")
_SANDWICH: Final = _LLAMA.with_names(
    mlp_norm="pre_feedforward_layernorm",
    attention_post_norm="post_attention_layernorm",
    mlp_post_norm="post_feedforward_layernorm",
    gain_offset=1.0,
)
_PLAIN_MLP: Final = _LLAMA.with_names(gate=None, is_centred=True)

FAMILIES: Final[dict[str, Family]] = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    # the experts are no single feed-forward block
    "mixtral": _LLAMA.with_names(gate=None, up=None, down=None),
    "qwen2": _LLAMA,
    "qwen3": _QK_NORM,
    "granite": _LLAMA,
    "gemma": _LLAMA.with_names(gain_offset=1.0, head_dim=256),
    "gemma2": _SANDWICH.with_names(head_dim=256),
    "gemma3_text": _SANDWICH.with_names(q_norm="self_attn.q_norm", k_norm="self_attn.k_norm", head_dim=256),
    "olmo2": _QK_NORM.with_names(
        attention_norm=None,
        mlp_norm=None,
        attention_post_norm="post_attention_layernorm",
        mlp_post_norm="post_feedforward_layernorm",
    ),
    "phi3": _LLAMA.with_names(
        q="self_attn.qkv_proj",
        up="mlp.gate_up_proj",
        gate="mlp.gate_up_proj",
        fused="contiguous",
        is_up_fused=True,
    ),
    "stablelm": _LLAMA.with_names(is_centred=True, rotated=0.25),
    "phi": _PLAIN_MLP.with_names(
        o="self_attn.dense",
        up="mlp.fc1",
        down="mlp.fc2",
        mlp_norm="input_layernorm",
        final_norm="model.final_layernorm",
        rotated=0.5,
    ),
    "gpt_neox": _PLAIN_MLP.with_names(
        layer="gpt_neox.layers.{layer}.",
        q="attention.query_key_value",
        o="attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        fused="per_head",
        rotated=0.25,
        embedding="gpt_neox.embed_in",
        unembedding="embed_out",
        final_norm="gpt_neox.final_layer_norm",
    ),
    "gpt2": _PLAIN_MLP.with_names(
        layer="transformer.h.{layer}.",
        q="attn.c_attn",
        o="attn.c_proj",
        up="mlp.c_fc",
        down="mlp.c_proj",
        attention_norm="ln_1",
        mlp_norm="ln_2",
        fused="contiguous",
        is_transposed=True,
        rotated=0.0,
        embedding="transformer.wte",
        final_norm="transformer.ln_f",
    ),
    "falcon": _PLAIN_MLP.with_names(
        layer="transformer.h.{layer}.",
        q="self_attention.query_key_value",
        o="self_attention.dense",
        up="mlp.dense_h_to_4h",
        down="mlp.dense_4h_to_h",
        mlp_norm="input_layernorm",
        fused="grouped",
        embedding="transformer.word_embeddings",
        final_norm="transformer.ln_f",
    ),
}
"""By the model type of transformers."""

_GGUF: Final = Family(
    layer="blk.{layer}.",
    q="attn_q",
    k="attn_k",
    v="attn_v",
    o="attn_output",
    gate="ffn_gate",
    up="ffn_up",
    down="ffn_down",
    attention_norm="attn_norm",
    mlp_norm="ffn_norm",
    embedding="token_embd",
    final_norm="output_norm",
    unembedding="output",
)
_GGUF_SANDWICH: Final = {"attention_post_norm": "post_attention_norm", "mlp_post_norm": "post_ffw_norm"}
_GGUF_QK_NORM: Final = {"q_norm": "attn_q_norm", "k_norm": "attn_k_norm"}

GGUF_LAYOUTS: Final[dict[str, Family]] = {
    "llama": _GGUF.with_names(is_interleaved=True),
    "granite": _GGUF.with_names(is_interleaved=True),
    "qwen2": _GGUF,
    "qwen3": _GGUF.with_names(**_GGUF_QK_NORM),
    "gemma": _GGUF,
    "gemma2": _GGUF.with_names(**_GGUF_SANDWICH),
    "gemma3": _GGUF.with_names(**_GGUF_SANDWICH, **_GGUF_QK_NORM),
    "phi3": _GGUF.with_names(q="attn_qkv", fused="contiguous", gate="ffn_up", is_up_fused=True),
    "stablelm": _GGUF.with_names(is_centred=True),
    "gpt2": _GGUF.with_names(q="attn_qkv", fused="contiguous", gate=None, is_centred=True),
}
"""By the architecture of a GGUF file, whose converter adds the 1 to gemma's gains."""

GGUF_FAMILIES: Final = {name: {"gemma3": "gemma3_text"}.get(name, name) for name in GGUF_LAYOUTS}
"""Model type in transformers of each architecture of a GGUF file."""
