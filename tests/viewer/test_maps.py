"""Features of one answer as maps."""

import numpy as np
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.features.registry import FeatureSpec
from graphhalu.features.table import feature_table
from graphhalu.viewer.view import ViewRequest, default_features, feature_maps, make_view


def specs(*names):
    return [FeatureSpec.parse(name) for name in names]


def test_a_map_holds_the_values_of_the_table_of_features(stores):
    store = stores["full"]
    maps, numbers = feature_maps(store[2], specs("sink_mass_k4", "answer_length"))
    table = feature_table(store, ["sink_mass_k4"])
    for row, layer in enumerate(maps[0]["rows"]):
        for column, head in enumerate(maps[0]["columns"]):
            expected = table.column(f"sink_mass_k4.{layer}.{head}")[2]
            assert maps[0]["values"][row, column] == pytest.approx(expected, rel=1e-6)
    assert maps[0]["picks"] == "head"
    assert numbers[0]["value"] == store[2].answer_length


def test_a_third_axis_gives_a_map_for_each_of_its_entries_that_say_something(stores):
    maps, _ = feature_maps(stores["full"][0], specs("span_mass"))
    names = [found["name"] for found in maps]
    assert names == [f"span_mass.{span}" for span in ("bos", "question", "template", "answer")]
    total = sum(found["values"] for found in maps)
    np.testing.assert_allclose(total, 1, atol=2e-3)


def test_features_of_layers_and_of_key_heads_choose_what_they_can(stores):
    maps, _ = feature_maps(stores["full"][0], specs("head_std_sink", "value_sink_k1", "hidden_norm"))
    picks = {found["name"].split(".")[0]: found["picks"] for found in maps}
    assert picks["head_std_sink"] == "layer"
    assert picks["hidden_norm"] == "nothing"
    assert picks["value_sink_k1"] in ("head", "kv_head")


def test_a_reduced_axis_is_gone(stores):
    maps, numbers = feature_maps(stores["full"][0], specs("sink_mass_k4[head=mean]"))
    assert maps[0]["columns"] == [""]
    assert maps[0]["values"].shape == (5, 1)
    _, numbers = feature_maps(stores["full"][0], specs("sink_mass_k4[head=mean,layer=max]"))
    assert len(numbers) == 1


def test_every_default_feature_of_every_store_can_be_shown(stores):
    for kept, store in stores.items():
        found = default_features(store.arrays)
        assert len(found) > 20, kept
        maps, numbers = feature_maps(store[0], found)
        assert {"sink_mass_k4", "lookback_ratio"} <= {each["name"] for each in maps}
        assert "answer_length" in {each["name"] for each in numbers}


def test_features_of_rows_and_features_of_many_axes_are_refused(stores):
    with pytest.raises(UsageError, match="expected one a trace"):
        make_view(stores["full"], ViewRequest(features=("token_sink_mass",)))
