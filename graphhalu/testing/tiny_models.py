"""Tiny random language models of every family, and a tokenizer to go with them.

Sizes are small and different primes wherever the architecture lets them be, so that a swapped
axis cannot pass. The models know nothing; they are for structure.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from graphhalu.core.registry import unknown_name
from graphhalu.models.quiet import quiet_loading

VOCABULARY: Final = 97
POSITIONS: Final = 128
WINDOW: Final = 5
"""Sliding window of the families that have one; shorter than the sequences of the tests."""

_LLAMA_LIKE: Final = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "intermediate_size": 37,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT_LIKE: Final = {
    "vocab_size": VOCABULARY,
    "n_embd": 24,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": POSITIONS,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
# torch multiplies experts on a CPU only when their rows are whole blocks of 16 bytes
_EXPERTS: Final = {"num_local_experts": 3, "num_experts_per_tok": 2, "intermediate_size": 28}

QUANTIZABLE: Final = {"hidden_size": 192, "intermediate_size": 320}
"""Sizes of a llama that NF4 takes on every processor: rows of whole blocks of 64, 32 at a time."""


@dataclass(frozen=True)
class TinyFamily:
    """How to make a tiny model of a family.

    Attributes:
        config: Name of its configuration class in transformers.
        settings: Sizes.
        on_interface: Whether its attention runs through transformers' attention interface.
    """

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    on_interface: bool = True


def _llama_like(config: str, **settings: Any) -> TinyFamily:
    return TinyFamily(config, {**_LLAMA_LIKE, **settings})


TINY_FAMILIES: Final[dict[str, TinyFamily]] = {
    "llama": _llama_like("LlamaConfig"),
    "qwen2": _llama_like("Qwen2Config"),
    "qwen3": _llama_like("Qwen3Config", head_dim=8),
    "qwen2_moe": _llama_like(
        "Qwen2MoeConfig",
        num_experts=3,
        num_experts_per_tok=2,
        moe_intermediate_size=12,
        shared_expert_intermediate_size=13,
    ),
    "gemma2": _llama_like(
        "Gemma2Config", head_dim=8, sliding_window=WINDOW, attn_logit_softcapping=2.0, query_pre_attn_scalar=8
    ),
    "gemma3_text": _llama_like(
        "Gemma3TextConfig",
        head_dim=8,
        sliding_window=WINDOW,
        query_pre_attn_scalar=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
    "mistral": _llama_like("MistralConfig", sliding_window=WINDOW),
    "mixtral": _llama_like("MixtralConfig", **_EXPERTS),
    "phi": _llama_like("PhiConfig", num_key_value_heads=6),
    "phi3": _llama_like("Phi3Config", sliding_window=None),
    "gpt_neox": TinyFamily(
        "GPTNeoXConfig", {k: v for k, v in _LLAMA_LIKE.items() if k != "num_key_value_heads"}
    ),
    "gpt2": TinyFamily("GPT2Config", _GPT_LIKE),
    "opt": TinyFamily(
        "OPTConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "ffn_dim": 37,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "max_position_embeddings": POSITIONS,
            "word_embed_proj_dim": 24,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
    ),
    "olmo2": _llama_like("Olmo2Config"),
    "granite": _llama_like("GraniteConfig"),
    "cohere2": _llama_like("Cohere2Config", sliding_window=WINDOW),
    "stablelm": _llama_like("StableLmConfig"),
    "gpt_oss": _llama_like(
        "GptOssConfig",
        head_dim=8,
        sliding_window=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        **_EXPERTS,
    ),
    "falcon": TinyFamily(
        "FalconConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 3,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        on_interface=False,
    ),
    "bloom": TinyFamily(
        "BloomConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "n_layer": 3,
            "n_head": 3,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        on_interface=False,
    ),
    "mpt": TinyFamily(
        "MptConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": 24,
            "n_layers": 3,
            "n_heads": 3,
            "max_seq_len": POSITIONS,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        on_interface=False,
    ),
    "gptj": TinyFamily("GPTJConfig", {**_GPT_LIKE, "rotary_dim": 4}, on_interface=False),
    "gpt_neo": TinyFamily(
        "GPTNeoConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 24,
            "num_layers": 2,
            "num_heads": 3,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": POSITIONS,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        },
        on_interface=False,
    ),
}
"""Families by their model type in transformers."""


def tiny_model(family: str, seed: int = 0, **sizes: int) -> tuple[Any, Any]:
    """A random model of a family in evaluation mode, and its configuration.

    Weights are larger than a fresh model's, so that attention is far from uniform.

    Args:
        family: Name in :data:`TINY_FAMILIES`.
        seed: Decides the weights.
        sizes: Fields of the configuration that differ from those of the family.

    Raises:
        UnknownNameError: If there is no such family; lists the nearest names.
    """
    import transformers

    if family not in TINY_FAMILIES:
        raise unknown_name("tiny model family", family, TINY_FAMILIES)

    chosen = TINY_FAMILIES[family]
    config = getattr(transformers, chosen.config)(**{**chosen.settings, **sizes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        _enlarge(model)
    return model.eval().requires_grad_(requires_grad=False), config


def tiny_tokenizer(*, chat: bool = True) -> Any:
    """A fast byte-level tokenizer with offsets: one token a letter, ``<unk>`` for rare bytes.

    It puts a start mark before plain text, as llama's does.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from tokenizers.decoders import ByteLevel
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "</s>", "<unk>"]
    letters = [
        *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,:?!'\"-<>|/_ĠĊ",
        *"()[]{}+*=;%&@#$~",
    ]
    vocabulary = {token: index for index, token in enumerate([*special, *letters])}
    assert len(vocabulary) == VOCABULARY
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",  # noqa: S106
        eos_token="</s>",  # noqa: S106
        pad_token="<pad>",  # noqa: S106
        unk_token="<unk>",  # noqa: S106
    )
    if chat:
        tokenizer.chat_template = (
            "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>"
            "{{ message['content'] }}</{{ message['role'] }}>\n{% endfor %}"
            "{% if add_generation_prompt %}<assistant>{% endif %}"
        )
    return tokenizer


def save_tiny(folder: Path, family: str = "llama", *, chat: bool = True, seed: int = 0, **sizes: int) -> Path:
    """Write a tiny model with its tokenizer as a folder that loads like a real one."""
    model, _ = tiny_model(family, seed, **sizes)
    with quiet_loading():
        model.save_pretrained(folder)
    tiny_tokenizer(chat=chat).save_pretrained(folder)
    return folder


def _enlarge(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=0.3)
        elif "sinks" in name:
            parameter.data.normal_(std=0.5)
