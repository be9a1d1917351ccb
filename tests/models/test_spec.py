"""How a model is asked for."""

import pytest

from graphhalu.core.config import load_config, validate
from graphhalu.core.errors import ConfigError
from graphhalu.models.cards import ModelSpec


def test_the_embedded_model_is_the_default():
    spec = ModelSpec()
    assert (spec.name, spec.quantization, spec.dtype, spec.device) == ("smollm2", "none", "auto", "auto")
    assert not spec.trust_remote_code


def test_a_spec_can_be_written_in_one_line():
    spec = load_config(ModelSpec, overrides=["name=llama2-7b", "quantization=nf4", "threads=2"])
    assert (spec.name, spec.quantization, spec.threads) == ("llama2-7b", "nf4", 2)


@pytest.mark.parametrize(
    "values", [{"quantization": "int4"}, {"dtype": "half"}, {"threads": 0}, {"nme": "smollm2"}]
)
def test_a_value_outside_the_contract_names_its_field(values):
    with pytest.raises(ConfigError, match=next(iter(values))):
        validate(ModelSpec, values, source="the test")


def test_code_of_a_repository_runs_only_at_a_fixed_revision():
    with pytest.raises(ConfigError, match="trust_remote_code"):
        validate(ModelSpec, {"trust_remote_code": True}, source="the test")
    assert ModelSpec(name="own", trust_remote_code="own@abc").trust_remote_code == "own@abc"
    with pytest.raises(ConfigError, match="the revisions differ: 'main' of the model, 'abc'"):
        values = {"name": "own", "revision": "main", "trust_remote_code": "own@abc"}
        validate(ModelSpec, values, source="the test")
