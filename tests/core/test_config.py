import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from graphhalu.core.config import Config, config_hash, differing_fields, load_config, validate
from graphhalu.core.errors import ConfigError


class Optimiser(Config):
    rate: float = 0.001
    """Learning rate."""


class Training(Config):
    name: str = "gat"
    epochs: int = 7
    """Passes over the data."""
    layers: tuple[int, ...] = ()
    optimiser: Optimiser = Optimiser()


def test_defaults_need_no_file():
    assert load_config(Training) == Training()


def test_a_file_says_only_what_differs(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 3\noptimiser: {rate: 0.1}\n")
    assert load_config(Training, path) == Training(epochs=3, optimiser=Optimiser(rate=0.1))


def test_an_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert load_config(Training, path) == Training()


def test_overrides_win_over_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 3\noptimiser: {rate: 0.1}\n")
    found = load_config(Training, path, ["optimiser.rate=1e-4", "layers=[3, 5]", "name=a=b"])
    assert found == Training(epochs=3, optimiser=Optimiser(rate=1e-4), layers=(3, 5), name="a=b")


def test_overrides_may_be_a_mapping():
    assert load_config(Training, None, {"optimiser.rate": 0.5}).optimiser.rate == 0.5


@pytest.mark.parametrize("text", ["epochs", "=3", ""])
def test_an_override_without_key_or_value_is_refused(text):
    with pytest.raises(ConfigError, match="key=value"):
        load_config(Training, None, [text])


def test_an_override_through_a_plain_value_is_refused(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("epochs: 3\n")
    with pytest.raises(ConfigError, match="goes through epochs"):
        load_config(Training, path, ["epochs.x=1"])


def test_an_unknown_field_names_its_path_and_the_file(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("optimiser: {rte: 0.1}\n")
    with pytest.raises(ConfigError, match=r"optimiser\.rte.*got 0\.1") as caught:
        load_config(Training, path)
    assert str(path) in str(caught.value)
    assert "Did you mean 'rate'" in str(caught.value)


def test_a_wrong_value_names_the_field_and_what_came():
    with pytest.raises(ConfigError, match=r"epochs: .*got 'many'"):
        validate(Training, {"epochs": "many"}, source="the test")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a: [", "not readable YAML"), (b"- 1", "a mapping of fields"), (b"\xff", "not readable")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_config(Training, path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no configuration file at .*b\.yaml"):
        load_config(Training, tmp_path / "b.yaml")


def test_a_file_cannot_run_code(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(ConfigError, match="not readable YAML"):
        load_config(Training, path)


def test_a_configuration_is_frozen():
    with pytest.raises(ValidationError):
        Training().epochs = 3


def test_the_text_under_a_field_is_its_description():
    assert Training.model_fields["epochs"].description == "Passes over the data."


def test_the_hash_ignores_the_order_and_sees_every_value():
    assert config_hash({"a": 1, "b": {"c": 2}}) == config_hash({"b": {"c": 2}, "a": 1})
    assert config_hash(Training()) == config_hash(Training().model_dump(mode="json"))
    assert config_hash(Training()) != config_hash(Training(epochs=8))
    assert len(config_hash({})) == 16


def test_differing_leaves_are_named_with_both_values():
    stored, asked = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 5, "d": 3}, "e": None}
    assert differing_fields(stored, asked) == ["b.c: 2 in the store, 5 asked for"]


def test_a_field_that_one_side_lacks_is_named():
    assert differing_fields({"a": 1}, {}) == ["a: 1 in the store, None asked for"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_a_configuration_does_not_differ_from_itself(values):
    assert differing_fields(values, values) == []
