"""Files of heads: round trips, the published scores, and damage."""

import gzip
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.heads.files import FORMAT, read_heads, read_table, write_heads
from graphhalu.heads.table import HeadTable, heads_above
from tests.heads.conftest import make_table

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False) | st.just(float("nan"))


def assert_equal(found: HeadTable, expected: HeadTable):
    for name in ("role", "layers", "trials", "rejected", "model", "settings", "n_resamples", "seed"):
        assert getattr(found, name) == getattr(expected, name)
    np.testing.assert_array_equal(found.scores, expected.scores)
    np.testing.assert_array_equal(found.chance, expected.chance)
    assert found.columns.keys() == expected.columns.keys()
    for name, values in expected.columns.items():
        np.testing.assert_array_equal(found.columns[name], values)


@given(values=arrays(np.float64, (5, 3, 2), elements=NUMBERS), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_table_comes_back_as_it_was(values, seed, tmp_path):
    table = make_table(values, seed=seed, columns={"contrast": values[0]}, settings={"gate": 50.0})
    path = tmp_path / "heads.json"
    write_heads(path, [table, make_table(values[:0], role="other")])
    found = read_heads(path)
    assert_equal(found[0], table)
    assert found[1].scores.shape == (0, 3, 2)
    assert_equal(read_table(path, "other"), found[1])


@given(values=arrays(np.float64, (5, 3, 2), elements=st.floats(0, 2)))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_score_of_the_published_layout_is_read(values, tmp_path):
    values[:, 1, 1] = np.nan
    for name in ("scores.json", "scores.json.gz"):
        published = {
            f"{layer}-{head}": values[:, layer, head].tolist()
            for layer, head in np.ndindex(3, 2)
            if not np.isnan(values[0, layer, head])
        }
        content = json.dumps(published).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        np.testing.assert_array_equal(read_table(tmp_path / name).scores, values)


def test_a_reader_without_graphhalu_finds_the_numbers_of_each_head(table, tmp_path):
    write_heads(tmp_path / "a.json", [table])
    plain = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert (plain["format"], plain["format_version"]) == (FORMAT, 1)
    assert "packages" in plain["provenance"]
    best = plain["tables"][0]["heads"][0]
    place = (best["layer"], best["head"])
    assert best["mean"] == table.mean[place] == table.mean.max()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("name", "n_trials", "top"),
    [
        ("llama-2-7b-80k", 586, [(16, 19), (11, 15), (8, 26), (6, 9), (7, 12)]),
        ("Mistral-7B-v0.2-hf", 362, None),
    ],
)
def test_published_scores_are_read(name, n_trials, top, shared_data):
    path = shared_data / "retrieval_head" / "head_score" / f"{name}.json.gz"
    if not path.is_file():
        pytest.skip(f"the published head scores are not at {path}")
    table = read_table(path)
    assert table.scores.shape == (n_trials, 32, 32)
    assert not np.isnan(table.scores).any()
    if top is not None:
        assert [(row["layer"], row["head"]) for row in table.ranked()[:5]] == top
        assert table.ranked()[0]["mean"] == pytest.approx(0.943, abs=1e-3)
        assert heads_above(table, 0.1).is_chosen.mean() == pytest.approx(0.032, abs=1e-3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not readable JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ("{}", "holds no head"),
        ('{"16_19": [1]}', 'keys such as "16-19"'),
        ('{"1-2": [1, null]}', "no list of finite scores"),
        ('{"1-2": []}', "no list of finite scores"),
        ('{"1-2": [NaN]}', "no list of finite scores"),
        ('{"1-2": [1' + 400 * "0" + "]}", "no list of finite scores"),
        ('{"1-2": [1], "1-3": [1, 2]}', "1 to 2 scores"),
        ('{"format": "other"}', "reads 'graphhalu-heads' version 1"),
        ('{"format": "graphhalu-heads", "format_version": 2}', "version 2; this"),
        ('{"format": "graphhalu-heads", "format_version": 1}', "lacks the field 'tables'"),
        ('{"format": "graphhalu-heads", "format_version": 1, "tables": []}', "no table"),
        ('{"format": "graphhalu-heads", "format_version": 1, "tables": [[]]}', "damaged"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(text, said, tmp_path):
    path = tmp_path / "broken.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataFileError, match=r"broken\.json") as caught:
        read_heads(path)
    assert said in str(caught.value)


def test_a_field_that_does_not_fit_is_damage(table, tmp_path):
    path = tmp_path / "a.json"
    write_heads(path, [table])
    values = json.loads(path.read_text(encoding="utf-8"))
    values["tables"][0]["layers"].pop()
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(DataFileError, match="damaged"):
        read_heads(path)


def test_damaged_compression_is_named(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(b'{"1-2": [1]}')[:-9])
    with pytest.raises(DataFileError, match="not readable JSON"):
        read_heads(path)


def test_what_cannot_be_written_or_found_is_refused(scores, tmp_path):
    with pytest.raises(UsageError, match="no file of heads"):
        read_heads(tmp_path / "none.json")
    with pytest.raises(UsageError, match="no table of heads to write"):
        write_heads(tmp_path / "a.json", [])
    write_heads(tmp_path / "a.json", [make_table(scores)])
    with pytest.raises(UsageError, match="no table of the role 'sink'; it has tested"):
        read_table(tmp_path / "a.json", "sink")
