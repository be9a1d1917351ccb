"""Tiny models of the families, on disk."""

import pytest

from graphhalu.models.quiet import quiet_loading
from graphhalu.testing.tiny_models import tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """Folder of a tiny model of a family, without a tokenizer; made once."""
    made = {}

    def make(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            with quiet_loading():
                tiny_model(family)[0].save_pretrained(made[family])
        return made[family]

    return make
