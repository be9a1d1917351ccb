"""Files of records: published and ours, both ways, and one clear line for each fault."""

import gzip
import json

import numpy as np
import pytest

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.studies.sinks.records import find_runs, plain_record, read_run, run_name, write_run

PUBLISHED = {
    "idx": 7,
    "task": "truthfulqa_mc",
    "model": "a/b",
    "target": "C",
    "pred": "A",
    "correct": False,
    "hallucinated": True,
    "label_hallucinated": None,
    "entropy": 0.5,
    "sink_mass": 0.25,
    "sink_by_layer": [0.2, 0.3],
    "sink_by_layer_head": [[0.1, 0.2, 0.3], [0.3, 0.3, 0.3]],
    "seq_len": 53,
    "sink_tokens": 4,
    "query_mode": "last",
    "query_start": 0,
    "chat_mode": "auto",
    "quantization": "none",
    "meta": {"question_id": "x"},
}


def write(path, *records):
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def test_what_is_written_is_read_again(tmp_path, make_run):
    run = make_run(7, n_nan=2)
    path = write_run(tmp_path, run)
    assert path.name == "quiz__some__model-2B__K4__qlast.jsonl.gz"
    again = read_run(path)
    assert len(again.usable) == 5
    for old, new in zip(run.records, again.records, strict=True):
        assert new.labels == old.labels
        assert new.group == old.group
        np.testing.assert_allclose(new.by_head, old.by_head, atol=1e-6)
        np.testing.assert_equal(new.sink_mass, old.sink_mass)


def test_a_written_record_has_every_published_field(make_run):
    assert set(PUBLISHED) <= set(plain_record(make_run(1).records[0]))


def test_equal_runs_make_equal_files(tmp_path, make_run):
    first, second = (write_run(tmp_path / name, make_run(5)).read_bytes() for name in "ab")
    assert first == second


def test_a_published_record_is_read_as_it_is(tmp_path):
    record = read_run(write(tmp_path / "x.jsonl.gz", PUBLISHED)).first
    assert record.labels == {"hallucinated": 1, "input": None}
    assert record.by_head.shape == (2, 3)
    assert record.group == "x"


def test_a_published_label_of_the_input_is_no_label_of_the_output(tmp_path):
    stated = {**PUBLISHED, "correct": True, "hallucinated": True, "label_hallucinated": True}
    record = read_run(write(tmp_path / "x.jsonl.gz", stated)).first
    assert record.labels == {"hallucinated": 0, "input": 1}


def test_a_layer_that_cannot_see_the_sink_is_null_and_the_record_stays_usable(tmp_path, make_run):
    run = make_run(1)
    record = run.records[0]
    record.is_seen[2] = False
    path = write_run(tmp_path, run)
    again = read_run(path).first
    assert np.isnan(again.by_head[2]).all()
    assert again.is_usable
    assert json.loads(gzip.decompress(path.read_bytes()))["sink_by_layer"][2] is None


def test_nan_of_a_layer_that_can_see_makes_a_record_unusable(tmp_path):
    bad = {**PUBLISHED, "sink_by_layer_head": [[0.1, float("nan"), 0.3], [0.3] * 3]}
    run = read_run(write(tmp_path / "x.jsonl.gz", bad, {**PUBLISHED, "idx": 8}))
    assert [record.idx for record in run.usable] == [8]
    assert run.accuracy() == 0.0


@pytest.mark.parametrize(
    ("records", "text"),
    [
        ([], "holds no record"),
        (["{"], "line 1 is not a sink record"),
        (["[1]"], "line 1 is not a sink record"),
        ([{k: v for k, v in PUBLISHED.items() if k != "entropy"}], "entropy: Field required"),
        ([{**PUBLISHED, "sink_by_layer_head": [[0.1], [0.1, 0.2]]}], "as many heads"),
        ([{**PUBLISHED, "sink_by_layer_head": "x"}], "list of layers"),
        ([{**PUBLISHED, "sink_by_layer": [0.1]}], "sink_by_layer has 1 layers"),
        ([{**PUBLISHED, "sink_mass": 1.5}], "between 0 and 1"),
        ([{**PUBLISHED, "query_mode": "all"}], "query_mode: Input should be 'last' or 'range'"),
        ([{**PUBLISHED, "seq_len": "long"}], "seq_len: Input should be a valid integer"),
        ([{**PUBLISHED, "seq_len": 0}], "seq_len: Input should be greater than 0"),
        ([{**PUBLISHED, "label_hallucinated": 3}], "true, false or null"),
        ([PUBLISHED, PUBLISHED], "idx 7 stands twice"),
        ([PUBLISHED, {**PUBLISHED, "idx": 8, "model": "c"}], "record 8 differs from record 7"),
    ],
)
def test_every_fault_of_a_file_has_one_clear_line(tmp_path, records, text):
    path = write(tmp_path / "x.jsonl.gz", *records)
    with pytest.raises(DataFileError, match=text) as caught:
        read_run(path)
    assert str(path) in str(caught.value)


def test_a_damaged_file_says_where_it_ends(tmp_path):
    path = write(tmp_path / "x.jsonl.gz", PUBLISHED)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataFileError, match="cannot be read after line"):
        read_run(path)
    path.write_text("plain")
    with pytest.raises(DataFileError, match="expected gzip"):
        read_run(path)


def test_a_description_of_another_run_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl.gz", PUBLISHED)
    (tmp_path / "x.meta.json").write_text(json.dumps({"model": "other"}))
    with pytest.raises(DataFileError, match="belongs to another run"):
        read_run(path)


def test_files_are_found_in_folders_and_an_empty_folder_names_the_way_out(tmp_path):
    (tmp_path / "deep").mkdir()
    path = write(tmp_path / "deep" / "x.jsonl.gz", PUBLISHED)
    assert find_runs([tmp_path, path]) == [path]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="graphhalu sinks measure"):
        find_runs([tmp_path / "empty"])
    with pytest.raises(UsageError, match="no file or folder"):
        find_runs([tmp_path / "nothing"])


def test_a_slash_of_a_hub_id_becomes_two_underscores():
    assert run_name("t", "org/Model-1.1B", 4, "last") == "t__org__Model-1.1B__K4__qlast"
