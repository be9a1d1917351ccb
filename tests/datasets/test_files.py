import gzip
import json
from codecs import BOM_UTF8
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphhalu.core.errors import DataFileError, UsageError
from graphhalu.datasets import files
from graphhalu.datasets.files import open_file, read_rows, table_cells
from graphhalu.datasets.rows import Row, mapping_field, require_columns, text_field, texts_field

ROWS = [{"name": "Ann", "city": "Łódź"}, {"name": "Bo, jr.", "city": 'the "Big" one\nnext line'}]


def as_bytes(layout: str) -> bytes:
    if layout == "csv":
        return 'name,city\nAnn,Łódź\n"Bo, jr.","the ""Big"" one\nnext line"\n'.encode()
    if layout == "tsv":
        return 'name\tcity\nAnn\tŁódź\nBo, jr.\t"the ""Big"" one\nnext line"\n'.encode()
    if layout == "json":
        return json.dumps(ROWS, indent=2).encode()
    if layout == "wrapped":
        return json.dumps({"Data": ROWS, "Version": 1}).encode()
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def read(path: Path) -> list[Row]:
    return list(read_rows(open_file(path)))


def saved(tmp_path: Path, content: bytes, name: str = "data") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("layout", ["csv", "tsv", "json", "wrapped", "jsonl"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_every_text_layout_is_read_by_its_content(
    layout: str, packed: bool, mark: bytes, tmp_path: Path
) -> None:
    content = mark + as_bytes(layout)
    path = saved(tmp_path, gzip.compress(content) if packed else content)
    assert [dict(row.values) for row in read(path)] == ROWS


@pytest.mark.parametrize("packed", [False, True])
def test_parquet_is_read_with_nested_fields(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    rows = [{"name": f"n{n}", "answer": {"value": "x", "aliases": ["y"] * n}} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    if packed:
        path.write_bytes(gzip.compress(path.read_bytes()))
    assert [dict(row.values) for row in read(path)] == rows


def test_parquet_rows_are_numbered_over_the_borders_of_batches(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    pq.write_table(pa.Table.from_pylist([{"n": n} for n in range(2053)]), path)
    assert read(path)[-1] == Row(f"{path}, row 2053", {"n": 2052})


def test_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = saved(tmp_path, as_bytes("csv").replace(b"\n", b"\r\n"))
    assert read(path)[0].values == ROWS[0]


def test_a_row_is_named_by_its_line(tmp_path: Path) -> None:
    path = saved(tmp_path, as_bytes("csv") + b"Cy,Rome\n")
    assert [row.where for row in read(path)] == [f"{path}, row {n}" for n in (2, 3, 5)]


def test_a_missing_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no data file at .*absent"):
        open_file(tmp_path / "absent")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder; expected one data file"):
        open_file(tmp_path)


@pytest.mark.parametrize("content", [b"", b" \n\n", BOM_UTF8 + b"\n", gzip.compress(b"", mtime=0)])
def test_an_empty_file_is_refused(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="is empty"):
        open_file(saved(tmp_path, content))


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.97])
def test_a_gzip_file_cut_off_is_refused(kept: float, tmp_path: Path) -> None:
    packed = gzip.compress(as_bytes("csv") * 97)
    path = saved(tmp_path, packed[: int(len(packed) * kept)])
    with pytest.raises(DataFileError, match="gzip data is cut off or damaged"):
        open_file(path)


def test_a_wrong_encoding_is_named_with_its_row(tmp_path: Path) -> None:
    path = saved(tmp_path, "name,city\nAnn,Oslo\nEve,Malmö\n".encode("latin-1"))
    with pytest.raises(DataFileError, match="row 3: expected UTF-8 text, got byte 0xf6"):
        read(path)


def test_utf_16_is_recognised_as_such(tmp_path: Path) -> None:
    path = saved(tmp_path, "name,city\nEve,Malmö\n".encode("utf-16"))
    with pytest.raises(DataFileError, match="got UTF-16 text; save it as UTF-8"):
        read(path)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 2: expected text, got a NUL byte"):
        read(saved(tmp_path, b"abc\n\0\0def"))


def test_a_bad_line_of_json_lines_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, as_bytes("jsonl") + b'\n{"name": "Cy", "city"')
    with pytest.raises(DataFileError, match="row 3: expected JSON, got a bad line"):
        read(path)


def test_a_bad_line_inside_json_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, b'[\n{"name": "Ann"},\n{"name" "Bo"}\n]')
    with pytest.raises(DataFileError, match="row 3: expected JSON, got a bad line"):
        read(path)


def test_json_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="nested too deeply"):
        read(saved(tmp_path, b"[" * 100_003))


@pytest.mark.parametrize("depth", [997, 2003, 50_021])
def test_a_row_with_json_nested_too_deeply_is_refused(depth: int, tmp_path: Path) -> None:
    row = '{"name": "Ann", "city": ' + "[" * depth + "]" * depth + "}"
    path = saved(tmp_path, b'{"name": "Bo"}\n' + row.encode())
    with pytest.raises(DataFileError, match="row 2: the JSON is nested too deeply"):
        read(path)


def test_a_number_that_python_does_not_read_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, b'{"name": "Ann"}\n{"name": ' + b"7" * 5003 + b"}")
    with pytest.raises(DataFileError, match="row 2: expected JSON, got a bad value: Exceeds"):
        read(path)


@pytest.mark.parametrize("value", [r'"\ud83d"', r'["x", {"y": "\udc00z"}]', r'{"\udfff": 1}'])
def test_half_a_surrogate_pair_is_named(value: str, tmp_path: Path) -> None:
    path = saved(tmp_path, f'{{"name": "\\ud83d\\ude00"}}\n{{"name": {value}}}'.encode())
    with pytest.raises(DataFileError, match="row 2: expected Unicode text, got half a surrogate"):
        read(path)


def test_json_lines_may_have_blank_lines_between_them(tmp_path: Path) -> None:
    path = saved(tmp_path, b'\n{"n": 2}\n\n \r\n{"n": 5}\n\n')
    assert [row.where for row in read(path)] == [f"{path}, row {n}" for n in (2, 5)]


def test_a_list_in_one_line_is_read(tmp_path: Path) -> None:
    assert [dict(row.values) for row in read(saved(tmp_path, json.dumps(ROWS).encode()))] == ROWS


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_unpacks_without_end_is_refused(
    packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MAX_BYTES", 3 * 2**20)
    content = b"x" * (3 * 2**20 + 1)
    path = saved(tmp_path, gzip.compress(content) if packed else content)
    unit = "bytes after gzip" if packed else "bytes"
    with pytest.raises(DataFileError, match=f"expected at most 3,145,728 {unit}, got more"):
        open_file(path)


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_MAX_LINE_BYTES", 13)
    assert open_file(saved(tmp_path, b"a,b,c,d,e,f,g\n" * 5)).layout == "table"
    path = saved(tmp_path, b"a,b,c,d,e,f,g\n1,2,3,4,5,6,7\n1,2,3,4,5,6,7,8\n1,2\n")
    with pytest.raises(DataFileError, match="row 3: expected at most 13 bytes a line"):
        open_file(path)


def test_parquet_of_more_rows_than_can_be_held_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_MAX_PARQUET_ROWS", 1009)
    path = tmp_path / "rows"
    pq.write_table(pa.table({"name": ["Ann"] * 1013}), path)
    with pytest.raises(DataFileError, match="expected at most 1,009 rows, got more"):
        read(path)


def test_parquet_that_unpacks_to_more_than_can_be_held_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows"
    pq.write_table(pa.table({"name": ["x" * 100_003]}), path)
    monkeypatch.setattr(files, "_MAX_BYTES", 50_021)
    with pytest.raises(DataFileError, match="expected at most 50,021 bytes after unpacking"):
        read(path)


def test_parquet_with_text_that_is_not_unicode_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    bad = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"G\xf6d")]
    )
    pq.write_table(pa.table({"name": bad}), path)
    with pytest.raises(DataFileError, match="expected Parquet, got damaged data"):
        read(path)


def test_a_table_of_semicolons_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, b'name;city\n"Bo; jr.";Oslo, Norway\n')
    assert read(path)[0].values == {"name": "Bo; jr.", "city": "Oslo, Norway"}


def test_a_row_that_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="row 2: expected an object with named fields, got a "):
        read(saved(tmp_path, b'[{"name": "Ann"}, 7]'))


def test_a_row_with_too_few_cells_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, b"name,city\nAnn,Oslo\nBo\n")
    with pytest.raises(DataFileError, match=r"row 3: expected 2 cells \(name, city\), got 1"):
        read(path)


def test_a_long_header_is_cut_in_the_error(tmp_path: Path) -> None:
    header = "a" * 9000 + ",b\nx\n"
    with pytest.raises(DataFileError, match=r"row 2: expected 2 cells") as caught:
        list(read_rows(open_file(saved(tmp_path, header.encode()))))
    assert len(str(caught.value)) < 1000


def test_a_column_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="a column name stands twice: name, name"):
        read(saved(tmp_path, b"name,name\nAnn,Oslo\n"))


def test_a_quote_that_is_never_closed_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, b'name,city\nAnn,Oslo\nBo,"Rome\nCy,Bern\n')
    with pytest.raises(DataFileError, match="row 3: expected cells quoted as CSV"):
        list(table_cells(open_file(path), ","))


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    pq.write_table(pa.table({"name": ["Ann"] * 101}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataFileError, match="expected Parquet, got damaged data"):
        read(path)


def test_a_missing_column_lists_the_columns_that_are_there() -> None:
    row = Row("f.csv, row 2", {"name": "Ann", "city": "Oslo"})
    with pytest.raises(DataFileError, match=r"f\.csv, row 2: .*missing: age; found: name, city"):
        require_columns(row, "name", "age")


@pytest.mark.parametrize("value", ["", "  ", None, 7, ["x"]])
def test_a_field_that_must_be_text_refuses_everything_else(value: object) -> None:
    with pytest.raises(DataFileError, match="row 2: name must be a text that is not empty, got"):
        text_field(Row("f.csv, row 2", {"name": value}), "name")


@pytest.mark.parametrize("value", ["x", None, [7], {"x": "y"}])
def test_a_field_that_must_be_a_list_of_texts_refuses_everything_else(value: object) -> None:
    with pytest.raises(DataFileError, match="row 2: names must be a list of texts, got"):
        texts_field(Row("f.csv, row 2", {"names": value}), "names")


def test_a_field_that_must_be_an_object_refuses_everything_else() -> None:
    with pytest.raises(DataFileError, match="answer must be an object"):
        mapping_field(Row("f.csv, row 2", {"answer": "x"}), "answer")


def test_texts_come_without_outer_space_and_without_empty_ones() -> None:
    row = Row("f", {"names": [" Ann ", "", "  ", "Bo"]})
    assert texts_field(row, "names") == ("Ann", "Bo")
