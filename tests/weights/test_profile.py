"""The profile of tiny models: tables, storage types, risk, comparison, memory."""

import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from graphhalu.core.config import load_config
from graphhalu.core.errors import ConfigError, DataFileError, NotEnoughDataError, UsageError
from graphhalu.weights.layer import ProfileSettings
from graphhalu.weights.profile import profile_model
from graphhalu.weights.read import open_weights
from graphhalu.weights.risk import RiskComponent, RiskSettings, risk_curve
from graphhalu.weights.tables import HEAD_DESCRIPTIONS, LAYER_DESCRIPTIONS, compare_profiles, read_profile
from tests.models.test_gguf import write_gguf

SETTINGS = ProfileSettings(n_samples=31, composition_reach=2)


@pytest.fixture(scope="module")
def llama(tiny_folder):
    return profile_model(open_weights(str(tiny_folder("llama"))), SETTINGS)


@pytest.fixture(scope="module")
def mixed(tiny_folder, tmp_path_factory):
    """The same model with the values of one layer stored in another type."""
    folder = tmp_path_factory.mktemp("mixed")
    whole = load_file(tiny_folder("llama") / "model.safetensors")
    name = "model.layers.1.self_attn.v_proj.weight"
    save_file({**whole, name: whole[name].half()}, folder / "model.safetensors")
    (folder / "config.json").write_bytes((tiny_folder("llama") / "config.json").read_bytes())
    return profile_model(open_weights(str(folder)), SETTINGS)


def test_every_quantity_of_every_head_and_layer_is_there(llama):
    for name in HEAD_DESCRIPTIONS:
        values = llama.of_heads(name)
        assert values.shape == (3, 6)
        # below the first layer there is nothing to compose with
        there = values[1:] if name.endswith("composition") else values
        assert np.isfinite(there).mean() > (0 if name == "entropy_estimate" else 0.99)
    for name in LAYER_DESCRIPTIONS:
        assert llama.of_layers(name).shape == (3,)
    assert len(llama.slices) == 3 * (6 + 2 + 2 + 6)
    assert len(llama.composition) == (1 + 2) * 36


def test_a_profile_needs_neither_torch_nor_transformers():
    code = (
        "import sys, graphhalu.weights.profile, graphhalu.weights.tables\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_heads_of_a_group_share_their_key_and_value(llama):
    for name in ("k_norm", "v_norm"):
        values = llama.of_heads(name)
        assert (np.ptp(values[:, :3], axis=1) == 0).all()
        assert (values[:, 0] != values[:, 3]).all()


def test_norms_are_those_of_the_stored_matrices(llama, tiny_folder):
    whole = load_file(tiny_folder("llama") / "model.safetensors")
    rows = {row["name"]: row for row in llama.tensors.to_pylist()}
    assert rows.keys() == whole.keys()
    for name, values in whole.items():
        dense = values.double().numpy()
        assert rows[name]["frobenius"] == pytest.approx(np.linalg.norm(dense), rel=1e-6)
        if dense.ndim == 2:
            assert rows[name]["sigma_max"] == pytest.approx(np.linalg.norm(dense, 2), rel=1e-6)
    layer, part = rows["model.layers.2.mlp.up_proj.weight"]["layer"], "up"
    assert (layer, rows["model.layers.2.mlp.up_proj.weight"]["part"]) == (2, part)


def test_circuits_have_the_norm_of_their_dense_product(llama, tiny_folder):
    whole = load_file(tiny_folder("llama") / "model.safetensors")
    prefix = "model.layers.1."
    gain = whole[prefix + "input_layernorm.weight"].double().numpy()
    q, k, v, o = (whole[f"{prefix}self_attn.{part}_proj.weight"].double().numpy() for part in "qkvo")
    head, size = 4, 4
    rows, shared = slice(head * size, (head + 1) * size), slice(size, 2 * size)
    qk = (q[rows] * gain).T @ (k[shared] * gain) * size**-0.5
    ov = o[:, rows] @ (v[shared] * gain)
    assert llama.of_heads("qk_norm")[1, head] == pytest.approx(np.linalg.norm(qk), rel=1e-6)
    assert llama.of_heads("ov_norm")[1, head] == pytest.approx(np.linalg.norm(ov), rel=1e-6)
    assert llama.of_heads("ov_sigma_max")[1, head] == pytest.approx(np.linalg.norm(ov, 2), rel=1e-6)


def test_a_gguf_file_has_the_same_profile(llama, tmp_path):
    other = profile_model(open_weights(str(write_gguf(tmp_path / "tiny.gguf"))), SETTINGS)
    for name in HEAD_DESCRIPTIONS:
        assert np.allclose(llama.of_heads(name), other.of_heads(name), rtol=1e-5, atol=1e-8, equal_nan=True)
    for name in LAYER_DESCRIPTIONS:
        values = llama.of_layers(name), other.of_layers(name)
        assert np.allclose(*values, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "falcon", "mixtral", "phi3", "olmo2"])
def test_families_with_other_blocks_have_a_profile(family, tiny_folder):
    found = profile_model(open_weights(str(tiny_folder(family))), SETTINGS)
    assert np.isfinite(found.of_heads("logit_variance")).all()
    has_gain = np.isfinite(found.of_layers("mlp_gain")).all()
    assert has_gain == (family != "mixtral")
    is_exact = not found.layers["is_gain_estimate"].to_pylist()[0]
    assert is_exact == (family in ("gemma3_text", "olmo2"))


def test_a_profile_is_read_back_as_it_was(llama, tmp_path):
    llama.write(tmp_path)
    found = read_profile(tmp_path)
    assert found.tensors.equals(llama.tensors)
    assert np.array_equal(found.of_heads("q_composition"), llama.of_heads("q_composition"), equal_nan=True)
    (tmp_path / "profile.json").write_text("{}")
    with pytest.raises(DataFileError, match="expected graphhalu-weights of version 1"):
        read_profile(tmp_path)
    with pytest.raises(UsageError, match="graphhalu weights profile"):
        read_profile(tmp_path / "nothing")


def test_mixed_storage_types_are_flagged_with_their_tensors(llama, mixed):
    assert not llama.mixed()
    ((part, types),) = mixed.mixed().items()
    assert part == "v"
    assert types["F16"] == ("model.layers.1.self_attn.v_proj.weight",)
    assert len(types["F32"]) == 2


def test_two_ways_of_storing_a_model_agree_but_for_their_zeros(llama, mixed):
    found = compare_profiles(llama, mixed)
    rows = {(row.quantity, row.level): row for row in found.rows}
    assert found.is_same_shape
    assert rows["ov_norm", "head"].correlation > 0.99
    assert rows["ov_norm", "head"].change < 1e-3
    assert "types differ in having a zero" in found.refused["v"]
    assert found.zeros["q"] == (0.0, 0.0)
    assert any("2 x F32, 1 x F16" in line for line in found.warnings)


def test_models_of_other_shapes_have_medians_and_no_correlation(llama, tiny_folder):
    other = profile_model(open_weights(str(tiny_folder("gpt2"))), SETTINGS)
    found = compare_profiles(llama, other)
    assert not found.is_same_shape
    assert all(np.isnan(row.correlation) for row in found.rows)


def test_profiles_with_other_settings_are_not_compared(llama, tiny_folder):
    weights = open_weights(str(tiny_folder("llama")))
    other = profile_model(weights, ProfileSettings(composition_reach=0, spectra="largest"))
    assert np.isnan(other.of_heads("q_composition")).all()
    with pytest.raises(UsageError, match="different settings"):
        compare_profiles(llama, other)


def test_the_risk_is_the_weighted_mean_of_ranks(llama):
    components = {
        "a": RiskComponent(quantity="logit_variance", weight=3.0, reason="high"),
        "b": RiskComponent(quantity="copying", risky="low", weight=1.0, reason="low"),
    }
    found = risk_curve(llama, RiskSettings(components=components))
    ranks = llama.of_layers("logit_variance").argsort().argsort() / 2
    other = (-llama.of_layers("copying")).argsort().argsort() / 2
    assert np.allclose(found.values, 0.75 * ranks + 0.25 * other)
    assert found.weights == {"a": 0.75, "b": 0.25}


def test_a_component_of_mixed_types_is_marked(mixed):
    assert "amplification" in risk_curve(mixed).mixed_types
    assert "sharpness" not in risk_curve(mixed).mixed_types


def test_components_without_a_number_are_left_out_and_named(tiny_folder):
    experts = profile_model(open_weights(str(tiny_folder("mixtral"))), SETTINGS)
    found = risk_curve(experts)
    assert set(found.left_out) == {"memory"}
    only = {"memory": RiskComponent(quantity="gain_ratio", reason="gain")}
    with pytest.raises(NotEnoughDataError, match="no component of the risk"):
        risk_curve(experts, RiskSettings(components=only))


def test_a_component_that_there_is_not_is_refused():
    values = {"components": {"a": {"quantity": "copyng", "reason": "x"}}}
    with pytest.raises(ConfigError, match="Did you mean 'copying'"):
        load_config(RiskSettings, None, values)
