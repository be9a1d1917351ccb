import sys
from importlib.metadata import EntryPoint

import pytest

from graphhalu.core import registry as module
from graphhalu.core.errors import UnknownNameError, UsageError
from graphhalu.core.registry import Registry, fault_text
from graphhalu.detectors.registry import DETECTORS
from graphhalu.features.registry import FEATURES

POINTS: dict[str, list[EntryPoint]] = {}


def offer(monkeypatch, group, **places):
    """Entry points as installed packages offer them."""
    POINTS.clear()
    POINTS[group] = [EntryPoint(name, value, group) for name, value in places.items()]
    monkeypatch.setattr(module, "entry_points", lambda group: POINTS.get(group, []))


@pytest.fixture
def registry():
    return Registry(
        "fruit", {"ordered": "collections:OrderedDict", "decimal": "decimal:Decimal", "gone": "nowhere:X"}
    )


@pytest.fixture
def plugin(monkeypatch):
    offer(monkeypatch, "graphhalu.fruits", fraction="fractions:Fraction")
    shadow = EntryPoint("decimal", "fractions:Fraction", "graphhalu.fruits")
    POINTS["graphhalu.fruits"].append(shadow)


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


def test_the_group_in_the_singular_is_still_found(registry, monkeypatch):
    from fractions import Fraction

    offer(monkeypatch, "graphhalu.fruit", fraction="fractions:Fraction")
    assert registry.get("fraction") is Fraction


def test_what_cannot_be_used_is_told_apart_and_the_rest_is_there(monkeypatch):
    offer(
        monkeypatch,
        "graphhalu.fruits",
        fraction="fractions:Fraction",
        gone="no_such_module:X",
        lost="fractions:NoSuch",
    )
    POINTS["graphhalu.fruits"] += [
        EntryPoint("ordered", "fractions:Fraction", "graphhalu.fruits"),
        EntryPoint("fraction", "decimal:Decimal", "graphhalu.fruits"),
    ]
    loaded, failures = Registry("fruit", {"ordered": "collections:OrderedDict"}).load_all()
    assert list(loaded) == ["ordered", "fraction"]
    assert failures == {
        "gone": "fruit 'gone' of the plug-in no_such_module:X cannot be imported: "
        "ModuleNotFoundError: No module named 'no_such_module'",
        "lost": "fruit 'lost' of the plug-in fractions:NoSuch cannot be imported: "
        "AttributeError: module 'fractions' has no attribute 'NoSuch'",
        "ordered (fractions:Fraction)": "another one has this name already",
        "fraction (decimal:Decimal)": "another one has this name already",
    }


@pytest.mark.parametrize("code", ["raise ZeroDivisionError", "import sys; sys.exit(3)", "1 +"])
def test_a_plugin_that_raises_when_it_is_imported_fails_alone(code, monkeypatch, tmp_path):
    (tmp_path / "bad_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, "graphhalu.detectors", bad="bad_plugin:Bad")
    loaded, failures = DETECTORS.load_all()
    assert "length" in loaded
    assert "bad" not in loaded
    assert failures["bad"].startswith("detector 'bad' of the plug-in bad_plugin:Bad cannot")
    with pytest.raises(UsageError, match="uninstall it"):
        DETECTORS.get("bad")


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("Mine = 3", "expected a class that inherits graphhalu.detectors.base.Detector, got 3"),
        ("class Mine: pass", "expected a class that inherits"),
        ("class Mine(Detector): pass", "it lacks fit, load, save, score of graphhalu.detectors"),
        ("class Mine(Length): card = 3", "expected a class attribute card of"),
        ("class Mine(Length):\n card = replace(Length.card, name='a b')", "a name of"),
        ("class Mine(Length): pass", "its name 'length' is that of graphhalu's own"),
        ("class Mine(Length):\n card = replace(Length.card, name='x')", "calls itself"),
    ],
)
def test_a_plugin_of_the_wrong_kind_says_what_was_expected(code, fault, monkeypatch, tmp_path):
    head = (
        "from dataclasses import replace\n"
        "from graphhalu.detectors.base import Detector\n"
        "from graphhalu.detectors.scalars import Length\n"
    )
    name = f"wrong_{abs(hash(code))}"
    (tmp_path / f"{name}.py").write_text(head + code)
    monkeypatch.syspath_prepend(tmp_path)
    expected = "length" if "its name" in fault else "mine"
    offer(monkeypatch, "graphhalu.detectors", **{expected: f"{name}:Mine"})
    if expected == "mine":
        assert fault in DETECTORS.load_all()[1]["mine"]
    if "calls itself" not in fault:
        with pytest.raises(UsageError, match=fault.replace("(", r"\(")):
            DETECTORS.get(f"{name}:Mine")


def test_a_module_of_the_working_directory_is_found_by_its_path(monkeypatch, tmp_path):
    (tmp_path / "my_numbers.py").write_text("from fractions import Fraction as Mine")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert Registry("fruit", {}).get("my_numbers:Mine").__name__ == "Fraction"
    assert sys.path == before


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("no_such_module:X", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("fractions:Fractoin", "has no attribute 'Fractoin'"),
        ("fractions:", "AttributeError"),
        (":Fraction", "ValueError"),
        ("decimal:Decimal", "expected a class that inherits graphhalu.detectors.base.Detector"),
    ],
)
def test_a_path_that_leads_nowhere_is_one_clear_error(path, fault):
    with pytest.raises(UsageError, match=fault) as caught:
        DETECTORS.get(path)
    assert f"detector '{path}' cannot be" in str(caught.value)


def test_a_path_is_no_registered_name(registry):
    assert "decimal:Decimal" not in registry
    with pytest.raises(UnknownNameError):
        registry.registered("fractions:Fraction")
    assert registry.registered("decimal").__name__ == "Decimal"


def test_a_feature_is_an_object_and_bears_its_name(monkeypatch, tmp_path):
    code = (
        "from dataclasses import replace\n"
        "from graphhalu.features.likelihood import answer_length\n"
        "MINE = replace(answer_length, name='mine')\n"
    )
    (tmp_path / "my_feature.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, "graphhalu.features", mine="my_feature:MINE", no="fractions:Fraction")
    loaded, failures = FEATURES.load_all()
    assert loaded["mine"].name == "mine"
    assert "expected an object of graphhalu.features.base.Feature" in failures["no"]


def test_an_alias_of_another_package_names_its_model(monkeypatch, tmp_path):
    from graphhalu.models.cards import resolve_model

    code = (
        "from graphhalu.models.cards import ModelCard\n"
        "CARD = ModelCard('tiny', 'us/tiny', 'llama', '1M', 'MIT')\n"
    )
    (tmp_path / "my_models.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    offer(monkeypatch, "graphhalu.models", tiny="my_models:CARD")
    assert resolve_model("tiny").place == "us/tiny"
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny'"):
        resolve_model("tinyy")


def test_a_fault_is_told_with_the_line_of_the_code_that_was_at_work():
    class Mine:
        def work(self):
            return 1 / 0

    with pytest.raises(ZeroDivisionError) as caught:
        Mine().work()
    assert fault_text(caught.value) == "ZeroDivisionError: division by zero"
    line = caught.traceback[-1].lineno + 1
    assert fault_text(caught.value, Mine) == (
        f"ZeroDivisionError: division by zero (test_registry.py, line {line})"
    )
