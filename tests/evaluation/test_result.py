import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from graphhalu.core.errors import CorruptStoreError, DataFileError
from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.result import SAMPLE_SCHEMA, read_result
from graphhalu.evaluation.settings import CompareConfig


@pytest.fixture
def result(toys):
    detectors = {
        "toy": toys.Toy,
        "constant": toys.Constant,
        "partial": toys.Partial,
        "=HYPERLINK(1)": toys.Failing,
    }
    config = CompareConfig(quick=True, seeds=(0,), n_resamples=100)
    return compare(*toys.planted(), detectors, config=config, store={"path": "x.zarr"})


def test_what_is_written_is_read_back_equal(result, tmp_path):
    result.write(tmp_path / "new" / "run")
    again = read_result(tmp_path / "new" / "run")
    assert again.rows == result.rows
    assert again.samples.equals(result.samples)
    for name in ("config", "provenance", "store", "labeller", "n_traces", "prevalence", "coverage"):
        assert getattr(again, name) == json.loads(json.dumps(getattr(result, name)))


def test_the_files_are_plain_json_csv_and_parquet(result, tmp_path):
    result.write(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"result.json", "table.csv", "scores.parquet"}
    values = json.loads((tmp_path / "result.json").read_text())
    assert (values["format"], values["format_version"]) == ("graphhalu-result", 4)
    assert values["labeller"] == {"name": "alias", "settings": {"threshold": 0.5}, "meaning": "hallucinated"}
    assert values["store"]["path"] == "x.zarr"
    assert values["rows"][0]["metrics"]["auroc"]["seed_sd"] is None
    assert pq.read_schema(tmp_path / "scores.parquet").equals(SAMPLE_SCHEMA)


def test_a_result_is_a_table_of_pandas_with_one_row_a_detector(result):
    frame = result.to_frame()
    assert frame["detector"].tolist() == [row.detector for row in result.rows]
    assert frame.columns.tolist() == next(csv.reader(result.to_csv().splitlines()))
    metric = result.rows[2].metrics["auroc"]
    found = frame.loc[2, ["auroc", "auroc_low", "auroc_high"]].tolist()
    assert found == [metric.value, metric.low, metric.high]
    assert frame["coverage"].tolist()[:3] == [row.coverage for row in result.rows[:3]]
    assert frame["auroc"].isna().tolist() == [False, False, False, True]
    assert "one class" in frame.loc[3, "failure"]


def test_a_result_shows_itself_in_one_line(result):
    best = result.ranked()[0]
    assert repr(result) == (
        f"Result(4 detectors on {result.n_traces} traces, best 'toy' {best.auroc_invalid_at_median:.3f})"
    )


def test_json_holds_null_and_never_nan(result, tmp_path):
    row = replace(result.rows[0], score_ms=float("nan"))
    replace(result, rows=(row,)).write(tmp_path)
    assert "NaN" not in (tmp_path / "result.json").read_text()
    assert read_result(tmp_path).rows[0].score_ms is None


def test_writing_again_replaces_the_result_and_keeps_other_files(result, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result.write(tmp_path)
    replace(result, n_left_out=17).write(tmp_path)
    assert read_result(tmp_path).n_left_out == 17
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_write_that_breaks_off_leaves_no_half_file(result, tmp_path, monkeypatch):
    result.write(tmp_path)
    before = (tmp_path / "scores.parquet").read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("graphhalu.core.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        replace(result, samples=result.samples.slice(3)).write(tmp_path)
    assert (tmp_path / "scores.parquet").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 3


def test_cells_that_a_spreadsheet_would_run_are_quoted(result):
    lines = list(csv.DictReader(io.StringIO(result.to_csv(), newline="")))
    assert lines[3]["detector"] == "'=HYPERLINK(1)"
    assert lines[0]["detector"] == "toy"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_every_formula_start_is_quoted(result, start):
    row = replace(result.rows[0], detector=f"{start}1+1")
    (line,) = csv.DictReader(io.StringIO(replace(result, rows=(row,)).to_csv(), newline=""))
    assert line["detector"] == f"'{start}1+1"


def test_the_table_has_a_line_a_detector_and_a_column_a_number(result):
    lines = list(csv.DictReader(io.StringIO(result.to_csv(), newline="")))
    assert [line["detector"] for line in lines][:3] == ["toy", "constant", "partial"]
    auroc = result.rows[0].metrics["auroc"]
    assert float(lines[0]["auroc"]) == auroc.value
    assert float(lines[0]["auroc_low"]) == auroc.low
    assert lines[3]["auroc"] == ""
    assert "one class" in lines[3]["failure"]
    assert next(iter(lines[0])) == "detector"
    assert list(lines[0])[-1] == "failure"


def test_a_table_of_failures_only_is_a_table(result):
    (line,) = csv.DictReader(io.StringIO(replace(result, rows=result.rows[3:]).to_csv()))
    assert "one class" in line["failure"]


def test_a_folder_without_a_result_is_refused(tmp_path):
    with pytest.raises(DataFileError, match=r"result\.json is missing"):
        read_result(tmp_path)


def change(folder, **values):
    path = folder / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_newer_version_is_refused_with_a_way_out(result, tmp_path):
    result.write(tmp_path)
    change(tmp_path, format_version=5)
    with pytest.raises(DataFileError, match=r"format version 5.*reads up to 4\n.*--upgrade"):
        read_result(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "other"}, "no graphhalu-result file"),
        ({"format_version": None}, "format version None"),
        ({"prevalence": "high"}, "prevalence"),
        ({"colour": 1}, "colour"),
    ],
)
def test_a_result_that_does_not_validate_is_refused(result, tmp_path, values, message):
    result.write(tmp_path)
    change(tmp_path, **values)
    with pytest.raises(DataFileError, match=message):
        read_result(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
def test_a_file_that_is_no_json_object_is_refused(tmp_path, text):
    (tmp_path / "result.json").write_text(text, errors="surrogateescape")
    with pytest.raises(DataFileError, match=r"result\.json"):
        read_result(tmp_path)


def test_scores_of_another_run_are_refused(result, tmp_path):
    result.write(tmp_path)
    pq.write_table(result.samples.slice(1), tmp_path / "scores.parquet")
    with pytest.raises(CorruptStoreError, match="compare again"):
        read_result(tmp_path)


def test_missing_scores_are_refused(result, tmp_path):
    result.write(tmp_path)
    (tmp_path / "scores.parquet").unlink()
    with pytest.raises(DataFileError, match=r"scores\.parquet"):
        read_result(tmp_path)


VERSION_1 = Path(__file__).parent / "fixtures" / "result_v1"


def test_a_result_of_version_1_is_read_with_what_it_lacks_left_empty():
    assert json.loads((VERSION_1 / "result.json").read_text())["format_version"] == 1
    old = read_result(VERSION_1)
    assert [row.detector for row in old.ranked()] == ["toy", "partial", "failing"]
    assert old.rows[0].metric("auroc") == pytest.approx(0.9167, abs=1e-4)
    assert old.baseline is None
    assert old.comparisons == old.subgroups == ()
    assert old.samples.schema.equals(SAMPLE_SCHEMA)
    assert old.samples["probability"].null_count == len(old.samples) == 122
    assert old.samples["score"].null_count < len(old.samples)


def test_a_result_of_version_2_is_read_whole():
    folder = VERSION_1.with_name("result_v2")
    told = json.loads((folder / "result.json").read_text())
    assert told["format_version"] == 2
    old = read_result(folder)
    assert (old.level, old.counts, old.notes) == ("answer", None, ())
    assert [row.detector for row in old.rows] == ["length", "sink-mass", "perplexity"]
    assert old.rows[0].metric("auroc") == told["rows"][0]["metrics"]["auroc"]["value"]
    assert old.comparisons[0].p_holm == told["comparisons"][0]["p_holm"]
    before = pq.read_table(folder / "scores.parquet")
    assert old.samples["is_predicted_positive"].equals(before["is_called"])
    assert old.samples["score"].equals(before["score"])
    assert old.samples["token"].null_count == len(old.samples)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_result_of_an_earlier_version_is_written_again_as_version_4(tmp_path, version):
    folder = VERSION_1.with_name(f"result_v{version}")
    read_result(folder).write(tmp_path)
    assert json.loads((tmp_path / "result.json").read_text())["format_version"] == 4
    assert read_result(tmp_path).rows == read_result(folder).rows
