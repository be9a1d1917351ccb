"""Tiny random language models of every family, and a tokenizer to go with them.

Sizes are small and different primes wherever the architecture lets them be, so that a swapped
axis cannot pass. The models know nothing; they are for structure.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import torch
from torch import nn

from graphhalu.core.files import packaged_table
from graphhalu.core.registry import unknown_name
from graphhalu.models.hub import quiet_loading

VOCABULARY: Final = 97
POSITIONS: Final = 128
WINDOW: Final = 5
"""Sliding window of the families that have one; shorter than the sequences of the tests."""

QUANTIZABLE: Final = {"hidden_size": 192, "intermediate_size": 320}
"""Sizes of a llama that NF4 takes on every processor: rows of whole blocks of 64, 32 at a time."""


_TABLE: Final = packaged_table(Path(__file__).with_suffix(".yaml"))
TINY_FAMILIES: Final = {
    name: SimpleNamespace(**{"on_interface": True, **family}) for name, family in _TABLE["families"].items()
}
"""Families by their model type in transformers: ``config`` (name of the configuration class),
``settings`` (sizes), and whether attention runs through transformers' interface, ``on_interface``."""


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
    with torch.random.fork_rng(devices=[]):
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

    table = _TABLE["tokenizer"]
    tokens = [*table["vocabulary_start"], *table["letters"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    assert len(vocabulary) == VOCABULARY
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))  # noqa: S106
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **table["marks"])
    if chat:
        tokenizer.chat_template = table["chat_template"]
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
