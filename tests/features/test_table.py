"""Tables of features: the same numbers as the features, in Parquet and back."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from graphhalu.core.errors import CorruptStoreError, NotEnoughDataError, StoreNotFoundError, UsageError
from graphhalu.features.matrix import feature_matrix
from graphhalu.features.registry import FEATURES, available_features, markdown_table
from graphhalu.features.table import feature_table, read_features, summarise, write_features

TRACE = ["sink_mass_k4", "received_top[k=3]", "logprob_mean"]
TOKEN = ["token_sink_mass", "token_logprob"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deeper" / "table.parquet"


def test_the_table_holds_the_features_of_each_trace_in_order(store):
    table = feature_table(store, TRACE)
    matrix = feature_matrix(store, TRACE)

    assert table.trace_ids == tuple(store.trace_ids)
    assert table.columns == matrix.columns
    assert len(table.columns) == 5 * 6 + 5 * 6 * 3 + 1
    np.testing.assert_array_equal(table.values, matrix.values)
    np.testing.assert_array_equal(table.column("logprob_mean"), matrix.values[:, -1])


def test_a_view_in_another_order_gives_the_rows_in_that_order(store):
    order = [6, 0, 9, 3]

    table = feature_table(store.select(order), TRACE)
    assert table.trace_ids == tuple(np.array(store.trace_ids)[order])
    np.testing.assert_array_equal(table.values, feature_table(store, TRACE).values[order])


def test_a_table_of_tokens_has_one_row_for_each_stored_row(store):
    order = [8, 1, 5]
    names = ["token_self_attention", "token_logprob"]
    found = feature_table(store.select(order), names, per_token=True)
    of_trace = np.array(found.trace_ids)

    assert found.columns[0] == "token_self_attention.l00.h00"
    assert list(dict.fromkeys(found.trace_ids)) == [store.trace_ids[index] for index in order]
    for index in order:
        trace, is_here = store[index], of_trace == store.trace_ids[index]
        start = trace.record.row_start
        np.testing.assert_array_equal(found.token[is_here], np.arange(start, trace.length))
        np.testing.assert_array_equal(
            found.values[is_here, 0], trace.stream("self_attention")[0, 0].astype(np.float32)
        )
        answer = np.flatnonzero(found.is_answer[is_here])
        np.testing.assert_array_equal(answer, np.arange(trace.length - start)[trace.answer_rows])
        np.testing.assert_array_equal(
            found.values[is_here, -1][answer], trace.stream("token_logprob")[trace.prompt_length :]
        )


def test_the_path_of_a_store_stands_for_its_traces(store, path):
    expected = feature_table(store, TRACE)
    for given in (store.name, Path(store.name)):
        np.testing.assert_array_equal(feature_matrix(given, TRACE).values, expected.values)
        np.testing.assert_array_equal(feature_table(given, TRACE).values, expected.values)
        write_features(given, TRACE, path)
        np.testing.assert_array_equal(read_features(path).values, expected.values)


@pytest.mark.parametrize(("names", "per_token"), [(TRACE, False), (TOKEN, True)])
def test_what_is_written_part_by_part_is_read_back(store, path, names, per_token):
    shape = write_features(store, names, path, per_token=per_token)
    found, expected = read_features(path), feature_table(store, names, per_token=per_token)

    assert shape == expected.values.shape
    assert found.trace_ids == expected.trace_ids
    assert found.columns == expected.columns
    np.testing.assert_array_equal(found.values, expected.values)
    if per_token:
        np.testing.assert_array_equal(found.token, expected.token)
        np.testing.assert_array_equal(found.is_answer, expected.is_answer)
    assert [item.name for item in path.parent.iterdir()] == [path.name]


def test_a_table_says_what_it_was_made_from(store, path):
    feature_table(store, TRACE).write(path)

    metadata = read_features(path).metadata
    assert metadata["level"] == "trace"
    assert metadata["configuration"] == store.configuration
    assert metadata["features"]["received_top[k=3]"]["parameters"] == {"k": 3}
    assert "A[i, j]" in metadata["features"]["sink_mass_k4"]["formula"]
    assert json.loads(pq.read_schema(path).metadata[b"format_version"]) == 1


def test_a_run_that_fails_leaves_no_file(store, path, monkeypatch):
    monkeypatch.setattr(pq.ParquetWriter, "write_table", _full)

    with pytest.raises(OSError, match="disk is full"):
        write_features(store, TRACE, path)
    assert list(path.parent.iterdir()) == []


def _full(self, table):
    raise OSError(28, "no space left")


def test_no_trace_and_the_wrong_level_are_errors(store):
    with pytest.raises(NotEnoughDataError, match="no trace"):
        feature_table([], TRACE)
    with pytest.raises(UsageError, match="stored row"):
        feature_table(store, TOKEN)
    with pytest.raises(UsageError, match="no column 'x'"):
        feature_table(store, TRACE).column("x")


def test_a_missing_or_foreign_file_is_an_error(tmp_path):
    with pytest.raises(StoreNotFoundError, match="graphhalu features"):
        read_features(tmp_path / "none.parquet")
    foreign = tmp_path / "foreign.parquet"
    pq.write_table(pa.table({"a": [1]}), foreign)
    with pytest.raises(CorruptStoreError, match="format None"):
        read_features(foreign)
    foreign.write_bytes(b"PAR1 no table")
    with pytest.raises(CorruptStoreError, match="damaged"):
        read_features(foreign)


def test_the_features_at_hand_are_those_whose_arrays_are_kept():
    kept = ["received", "self_attention"]

    assert "lapeig_top" in available_features(kept)
    assert "lapeig_top_cut" not in available_features([*kept, "attention"])
    assert "lapeig_top_cut" in available_features([*kept, "attention_fixed"], with_matrices=True)
    assert "sink_mass_k4" not in available_features(kept)
    assert {"token_self_attention", "token_received"} <= set(available_features(kept, per_token=True))


def test_a_summary_has_one_line_for_each_feature(store):
    table = feature_table(store, [*TRACE, "sink_rate[epsilon=0.5]", "head_std_system"])

    found = {row.feature: row for row in summarise(table)}
    assert [*found] == [*TRACE, "sink_rate[epsilon=0.5]", "head_std_system"]
    assert found["received_top[k=3]"].n_columns == 90
    values = feature_matrix(store, ["sink_mass_k4"]).values
    assert found["sink_mass_k4"].mean == pytest.approx(np.nanmean(values))
    assert found["sink_mass_k4"].largest == pytest.approx(np.nanmax(values))
    assert found["sink_mass_k4"].missing == pytest.approx(np.isnan(values).mean())


def test_the_markdown_table_has_a_row_of_equal_length_for_each_feature():
    lines = markdown_table().splitlines()

    assert len(lines) == 2 + len(FEATURES.names()) > 60
    cells = [line.replace("\\|", "").count("|") for line in lines]
    assert len(set(cells)) == 1
    assert lines[2].startswith(f"| {FEATURES.names()[0]} |")


@pytest.fixture
def run():
    from graphhalu.cli.main import app

    return lambda *arguments: CliRunner().invoke(app, ["features", *map(str, arguments)])


def test_the_command_writes_the_table_that_python_gives(store, path, run):
    done = run(store.path, "--features", "sink_mass_k4 received_top[k=3]", "--out", path, "--json")

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["n_columns"] == 120
    expected = feature_table(store, ["sink_mass_k4", "received_top[k=3]"])
    np.testing.assert_array_equal(read_features(path).values, expected.values)


@pytest.mark.parametrize("level", [[], ["--per-token"]])
def test_without_a_file_the_command_prints_a_summary_of_all_streams(store, run, level):
    done = run(store.path, "--json", *level)

    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["features"]
    assert set(found) == set(available_features(store.arrays, per_token=bool(level)))
    assert "missing" in run(store.path, *level).stdout


def test_show_lists_every_feature():
    from graphhalu.cli.main import app

    found = json.loads(CliRunner().invoke(app, ["show", "features", "--json"]).stdout)["features"]
    assert [row["name"] for row in found] == FEATURES.names()
    assert CliRunner().invoke(app, ["show", "features", "--markdown"]).stdout == markdown_table()
    assert CliRunner().invoke(app, ["show", "features"]).exit_code == 0
