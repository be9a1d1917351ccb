from importlib.metadata import EntryPoint

import pytest

from graphhalu import registry as module
from graphhalu.errors import UnknownNameError
from graphhalu.registry import Registry


@pytest.fixture
def registry():
    return Registry(
        "fruit",
        {"ordered": "collections:OrderedDict", "decimal": "decimal:Decimal", "gone": "nowhere:X"},
    )


@pytest.fixture
def plugin(monkeypatch):
    point = EntryPoint("fraction", "fractions:Fraction", "graphhalu.fruit")
    shadow = EntryPoint("decimal", "fractions:Fraction", "graphhalu.fruit")
    points = {"graphhalu.fruit": [point, shadow]}
    monkeypatch.setattr(module, "entry_points", lambda group: points.get(group, []))


def test_a_name_gives_its_object(registry):
    from decimal import Decimal

    assert registry.get("decimal") is Decimal


def test_nothing_is_imported_until_it_is_asked_for(registry):
    assert "gone" in registry
    with pytest.raises(ModuleNotFoundError):
        registry.get("gone")


def test_an_unknown_name_lists_the_nearest_and_all_known(registry):
    with pytest.raises(UnknownNameError, match="no fruit named 'decimel'") as caught:
        registry.get("decimel")
    assert "Did you mean 'decimal'?" in str(caught.value)
    assert "Known: decimal, gone, ordered" in str(caught.value)


def test_a_name_near_to_none_gets_no_guess(registry):
    with pytest.raises(UnknownNameError) as caught:
        registry.get("zzz")
    assert "Did you mean" not in str(caught.value)


def test_names_keep_the_order_of_the_table(registry):
    assert registry.names() == ["ordered", "decimal", "gone"]
    assert "decimal" in registry
    assert "apple" not in registry


def test_plugins_join_by_entry_point_and_come_last(registry, plugin):
    from fractions import Fraction

    assert registry.names() == ["ordered", "decimal", "gone", "fraction"]
    assert registry.get("fraction") is Fraction


def test_a_plugin_cannot_take_the_place_of_a_known_name(registry, plugin):
    from decimal import Decimal

    assert registry.get("decimal") is Decimal
