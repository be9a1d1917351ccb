import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from graphhalu.core.errors import (
    CorruptStoreError,
    NotEnoughDataError,
    StoreFullError,
    StoreMismatchError,
    TraceNotFoundError,
    UnknownNameError,
    UsageError,
)
from graphhalu.labels.labels import MEANINGS, Labels
from graphhalu.labels.match import AliasMatch
from graphhalu.labels.registry import LABELLERS, make_labeller
from graphhalu.labels.rouge import RougeOverlap
from graphhalu.labels.run import label_records, label_store, named_labels, read_labels, stored_labellers
from graphhalu.labels.stated import GivenLabel
from graphhalu.testing.contracts.inputs import check_labeller
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.store import TraceStore

ANSWERS = ("Paris", "Lyon", "", "It is Paris.", "I don't know")


class Store(TraceStore):
    """As much of a trace store as labels need."""

    path: Path = Path()

    def __init__(self, path: Path, answers: tuple[str, ...] = ANSWERS) -> None:
        self.path, self.answers = path, answers

    @property
    def records(self) -> list[TraceRecord]:
        return [
            TraceRecord(f"q{n}#0", f"q{n}", f"q{n}", "What?", ("Paris",), answer, "What?", 2, 3)
            for n, answer in enumerate(self.answers)
        ]

    @property
    def trace_ids(self) -> tuple[str, ...]:
        return tuple(record.trace_id for record in self.records)

    def publish(self, file: Path) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.zarr")


def assert_same(one: Labels, other: Labels) -> None:
    assert one.trace_ids == other.trace_ids
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.is_valid, other.is_valid)
    assert (one.reasons, one.labeller, one.settings, one.meaning) == (
        other.reasons,
        other.labeller,
        other.settings,
        other.meaning,
    )


def files_of(store: Store) -> list[str]:
    return sorted(path.name for path in store.labels_folder.iterdir())


def test_every_labeller_in_the_table_has_its_name_and_plain_settings() -> None:
    assert {"match", "rouge", "choice", "given", "premise", "spans", "judge"} <= set(LABELLERS.names())
    for name in LABELLERS.names():
        labeller = make_labeller(name)
        assert labeller.name == name
        assert labeller.meaning in MEANINGS
        assert json.loads(json.dumps(labeller.settings())) == labeller.settings()
        if name != "judge":  # asks a model
            check_labeller(labeller)


def test_a_setting_reaches_its_labeller() -> None:
    assert make_labeller("rouge", threshold=0.7).settings()["threshold"] == 0.7


def test_an_unknown_setting_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="no setting treshold; it has metric, threshold"):
        make_labeller("rouge", treshold=0.7)
    with pytest.raises(UsageError, match="no setting threshold; it has as_wrong"):
        make_labeller("match", threshold=0.7)


def test_a_setting_of_the_wrong_kind_is_refused_in_words() -> None:
    with pytest.raises(UsageError, match="labeller 'rouge' cannot use threshold='half'"):
        make_labeller("rouge", threshold="half")


def test_an_unknown_labeller_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'match'"):
        make_labeller("mach")


def test_labels_come_in_the_order_of_the_store_with_their_reasons(store: Store) -> None:
    labels = label_store(store, AliasMatch())
    assert labels.trace_ids == ("q0#0", "q1#0", "q2#0", "q3#0", "q4#0")
    assert labels.values.tolist() == [0, 1, 0, 0, 0]
    assert labels.is_valid.tolist() == [True, True, False, True, False]
    assert labels.reasons == ("alias", "no alias", "empty answer", "alias inside", "refusal")
    assert labels.coverage == pytest.approx(3 / 5)
    assert labels.prevalence == pytest.approx(1 / 3)


def test_what_is_written_is_read_back(store: Store) -> None:
    label_store(store, AliasMatch())
    assert_same(read_labels(store, "match"), label_records(store.records, AliasMatch()))


def test_the_file_says_what_it_is_to_any_reader_of_parquet(store: Store) -> None:
    label_store(store, RougeOverlap(threshold=0.5))
    table = pq.read_table(store.labels_folder / "rouge.parquet")
    said = {key.decode(): json.loads(value) for key, value in table.schema.metadata.items()}
    assert table.column_names == ["trace_id", "value", "is_valid", "reason"]
    assert (said["format"], said["format_version"]) == ("graphhalu-labels", 1)
    assert said["labeller"] == "rouge"
    assert said["settings"]["threshold"] == 0.5
    assert said["coverage"] == pytest.approx(3 / 5)
    assert said["prevalence"] == pytest.approx(1 / 3)


def test_without_a_valid_label_there_is_no_prevalence(tmp_path: Path) -> None:
    store = Store(tmp_path / "s.zarr", ("", ""))
    label_store(store, AliasMatch())
    metadata = pq.read_schema(store.labels_folder / "match.parquet").metadata
    assert metadata[b"prevalence"] == b"null"
    with pytest.raises(NotEnoughDataError, match="could decide none of 2"):
        _ = read_labels(store, "match").prevalence


def test_labellers_lie_side_by_side_and_leave_nothing_else(store: Store) -> None:
    label_store(store, AliasMatch())
    label_store(store, RougeOverlap())
    label_store(store, AliasMatch())
    assert files_of(store) == ["match.parquet", "rouge.parquet"]


def test_the_meaning_of_a_label_is_stored_with_it(store: Store) -> None:
    label_store(store, GivenLabel())
    label_store(store, AliasMatch())
    assert read_labels(store, "given").meaning == "input"
    assert read_labels(store, "match").meaning == "hallucinated"
    metadata = pq.read_schema(store.labels_folder / "given.parquet").metadata
    assert metadata[b"meaning"] == b'"input"'


def rewrite_metadata(path: Path, meaning: bytes | None) -> None:
    table = pq.read_table(path)
    kept = {k: v for k, v in table.schema.metadata.items() if k != b"meaning"}
    if meaning is not None:
        kept[b"meaning"] = meaning
    pq.write_table(table.replace_schema_metadata(kept), path)


def test_labels_from_before_there_were_two_meanings_are_about_the_models_output(store: Store) -> None:
    made = label_store(store, AliasMatch())
    rewrite_metadata(store.labels_folder / "match.parquet", None)
    assert_same(read_labels(store, "match"), made)


def test_a_meaning_that_nobody_knows_is_refused(store: Store) -> None:
    label_store(store, AliasMatch())
    rewrite_metadata(store.labels_folder / "match.parquet", b'"moods"')
    with pytest.raises(CorruptStoreError, match="labels mean 'moods', expected hallucinated or"):
        read_labels(store, "match")


def test_one_rule_with_two_settings_lies_side_by_side_under_two_names(store: Store) -> None:
    label_store(store, RougeOverlap())
    strict = label_store(store, RougeOverlap(threshold=0.9), "rouge-strict")
    assert stored_labellers(store) == ["rouge", "rouge-strict"]
    found = named_labels(store, "rouge-strict")
    assert_same(found, strict)
    assert (found.labeller, found.settings["labeller"]) == ("rouge-strict", "rouge")
    assert read_labels(store, "rouge").settings["threshold"] == 0.3
    assert "labeller" not in read_labels(store, "rouge").settings


def test_labels_cannot_take_the_name_of_another_rule(store: Store) -> None:
    with pytest.raises(UsageError, match="another rule's name"):
        label_store(store, RougeOverlap(), "match")
    with pytest.raises(UsageError, match="a labeller's name holds"):
        label_store(store, RougeOverlap(), "../match")
    assert not store.labels_folder.exists()


def test_named_labels_are_made_by_a_registered_rule_and_asked_for_otherwise(store: Store) -> None:
    assert named_labels(store, "match").labeller == "match"
    with pytest.raises(UnknownNameError, match="Did you mean 'rouge'"):
        named_labels(store, "rouge-9")
    assert stored_labellers(store) == ["match"]


def test_outgrown_labels_of_another_name_say_how_they_are_made_again(store: Store) -> None:
    label_store(store, RougeOverlap(), "strict")
    grown = Store(store.path, (*ANSWERS, "Rome"))
    with pytest.raises(StoreMismatchError, match="--labeller RULE --as strict"):
        named_labels(grown, "strict")


def test_a_view_gets_its_labels_by_identity(store: Store) -> None:
    label_store(store, AliasMatch())

    class View(Store):
        @property
        def records(self) -> list[TraceRecord]:
            return [super(View, self).records[place] for place in (3, 1)]

    labels = read_labels(View(store.path), "match")
    assert labels.trace_ids == ("q3#0", "q1#0")
    assert labels.reasons == ("alias inside", "no alias")
    assert labels.values.tolist() == [0, 1]


def test_missing_labels_name_the_command_and_what_is_there(store: Store) -> None:
    label_store(store, RougeOverlap())
    with pytest.raises(
        TraceNotFoundError,
        match=r"no labels by 'match' .*there: rouge(?s:.*)graphhalu label .*zarr --labeller match",
    ):
        read_labels(store, "match")


def test_a_store_that_has_grown_asks_for_new_labels(store: Store) -> None:
    label_store(store, AliasMatch())
    grown = Store(store.path, (*ANSWERS, "Rome", "Oslo"))
    with pytest.raises(StoreMismatchError, match=r"2 of 7 traces have no label\n.*graphhalu label"):
        read_labels(grown, "match")


def test_labels_are_made_where_there_are_none_and_again_when_the_store_has_grown(store: Store) -> None:
    assert len(named_labels(store, "match").values) == 5
    grown = Store(store.path, (*ANSWERS, "Rome"))
    assert len(named_labels(grown, "match").values) == 6
    assert len(read_labels(grown, "match").values) == 6


def test_stored_labels_keep_the_settings_that_they_were_made_with(store: Store) -> None:
    label_store(store, RougeOverlap(threshold=0.9))
    assert named_labels(store, "rouge").settings["threshold"] == 0.9


def test_labels_of_other_settings_are_not_replaced_in_silence(store: Store) -> None:
    label_store(store, RougeOverlap(threshold=0.9))
    grown = Store(store.path, (*ANSWERS, "Rome"))
    with pytest.raises(StoreMismatchError, match="1 of 6 traces"):
        named_labels(grown, "rouge")


def test_an_empty_store_cannot_be_labelled(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughDataError, match="no trace to label"):
        label_store(Store(tmp_path / "s.zarr", ()), AliasMatch())


@pytest.mark.parametrize("name", ["../match", "", ".match", "a/b"])
def test_a_name_that_leads_out_of_the_folder_is_refused(name: str, store: Store) -> None:
    with pytest.raises(UsageError, match="a labeller's name holds"):
        read_labels(store, name)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def foreign(_: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"x": [1, 2, 3]}), sink)
    return bytes(sink.getvalue())


@pytest.mark.parametrize("change", [cut, foreign, lambda _: b"", lambda _: b"hello"])
def test_a_damaged_file_is_an_error_that_names_the_command(
    change: Callable[[bytes], bytes], store: Store
) -> None:
    label_store(store, AliasMatch())
    path = store.labels_folder / "match.parquet"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CorruptStoreError, match=r"damaged or no label file(?s:.*)graphhalu label"):
        read_labels(store, "match")


def test_no_bit_of_a_label_can_change_unseen(store: Store) -> None:
    wanted = label_store(store, AliasMatch())
    path = store.labels_folder / "match.parquet"
    content, n_refused = path.read_bytes(), 0
    for place in range(0, len(content), 5):
        path.write_bytes(flipped(content, place))
        try:
            found = read_labels(store, "match")
        except CorruptStoreError:
            n_refused += 1
        else:
            assert found.trace_ids == wanted.trace_ids
            np.testing.assert_array_equal(found.values, wanted.values)
            np.testing.assert_array_equal(found.is_valid, wanted.is_valid)
    assert n_refused > len(content) / 20


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x10]) + content[place + 1 :]


def test_a_newer_format_is_refused(store: Store) -> None:
    label_store(store, AliasMatch())
    path = store.labels_folder / "match.parquet"
    table = pq.read_table(path)
    newer = {**table.schema.metadata, b"format_version": b"2"}
    pq.write_table(table.replace_schema_metadata(newer), path)
    with pytest.raises(CorruptStoreError, match="version 2; this graphhalu reads"):
        read_labels(store, "match")


def failing(number: int) -> Callable[..., None]:
    def write(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return write


def test_a_full_disk_leaves_the_old_labels_whole(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    before = label_store(store, AliasMatch())
    monkeypatch.setattr(pq, "write_table", failing(errno.ENOSPC))
    with pytest.raises(StoreFullError, match="the disk is full"):
        label_store(store, AliasMatch())
    assert files_of(store) == ["match.parquet"]
    assert_same(read_labels(store, "match"), before)


def test_another_fault_of_the_disk_comes_through(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pq, "write_table", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        label_store(store, AliasMatch())
    assert files_of(store) == []
