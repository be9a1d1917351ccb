"""What every registered feature promises."""

import pytest

from graphhalu.features.block import block_of
from graphhalu.features.registry import FEATURES, FeatureSpec
from graphhalu.testing.contracts.inputs import FEATURE_CHECKS

NAMES = FEATURES.names()


def test_there_are_features():
    assert len(NAMES) > 60


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_bears_its_registered_name(name):
    assert FEATURES.get(name).name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", FEATURE_CHECKS, ids=lambda check: check.__name__)
def test_a_registered_feature_keeps_the_contract(name, check, store):
    check(FEATURES.get(name), store)


@pytest.mark.parametrize("name", NAMES)
def test_a_feature_gives_columns_with_names_of_their_own(name, traces):
    columns = FeatureSpec.parse(name).compute(block_of(traces[:2]))

    assert columns.values.shape[1] == len(columns.columns) > 0
    assert len(set(columns.columns)) == len(columns.columns)
    assert all(column.partition(".")[0] == name for column in columns.columns)
