"""Tiny models of the families, on disk."""

from functools import cache

import pytest
import torch

from graphhalu.models.hub import quiet_loading
from graphhalu.testing.tiny_models import TINY_FAMILIES, tiny_model


@cache
def model_of(family):
    """A tiny model; a quarter of stablelm's four dimensions would be one, which cannot turn."""
    if family != "stablelm":
        return tiny_model(family)[0]
    import transformers

    config = transformers.StableLmConfig(**TINY_FAMILIES[family].settings, partial_rotary_factor=0.5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.normal_(std=0.3)
    return model.eval().requires_grad_(requires_grad=False)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a tiny model of a family, without a tokenizer; made once."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            with quiet_loading():
                model_of(family).save_pretrained(made[family])
        return made[family]

    return make
