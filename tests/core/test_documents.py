"""Result files and estimates: what is written is read, and everything else is one clear error."""

import json
from dataclasses import dataclass

import numpy as np
import pyarrow.parquet as pq
import pytest

from graphhalu.core.documents import FileFormat, read_document, write_document
from graphhalu.core.errors import DataFileError
from graphhalu.evaluation.bootstrap import Estimate, mean_rows

KIND = FileFormat("graphhalu-example", 2, "Run:  graphhalu example")


@dataclass(frozen=True)
class Example:
    name: str
    found: Estimate


def test_a_document_is_read_as_it_was_written_with_null_for_what_is_not_finite(tmp_path):
    example = Example("a", Estimate(0.5))
    path = write_document(tmp_path / "deep" / "example.json", example, KIND, rows=[example])
    values = json.loads(path.read_text())
    assert (values["format"], values["format_version"]) == ("graphhalu-example", 2)
    assert values["found"] == {"value": 0.5, "low": None, "high": None, "n": None}
    read = read_document(path, Example, KIND)
    assert read.name == "a"
    assert read.found.value == 0.5
    assert not read.found.has_interval
    assert pq.read_table(path.with_suffix(".parquet"))["name"].to_pylist() == ["a"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "example.json is missing"),
        ('{"format": "other", "format_version": 2}', "expected graphhalu-example of version 2"),
        ('{"format": "graphhalu-example", "format_version": 3}', "got 'graphhalu-example' of"),
        ('{"format": "graphhalu-example", "format_version": 2, "name": "a"}', "validate: found"),
    ],
)
def test_another_file_is_refused_with_the_way_out(tmp_path, text, told):
    path = tmp_path / "example.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataFileError, match=told) as caught:
        read_document(path, Example, KIND)
    assert "graphhalu example" in str(caught.value)


def test_an_estimate_writes_its_interval_where_it_has_one():
    assert f"{Estimate(0.25, -0.5, 1.0):+.2f}" == "+0.25 [-0.50, +1.00]"
    assert f"{Estimate(0.25):.1f}" == "0.2"
    assert Estimate(1.0, 0.5, 2.0).excludes_zero
    assert not Estimate(1.0).excludes_zero


def test_the_estimate_of_a_mean_resamples_whole_groups():
    values = np.array([0.0, 0.0, 1.0, 1.0, 4.0])
    found = Estimate.of(mean_rows(values, np.array(list("aabbb")), n_resamples=500))
    assert found.value == pytest.approx(1.2)
    # a group at a time: no resample lies beyond the mean of one group
    assert (found.low, found.high) == (0.0, 2.0)
    assert found.n == 500
