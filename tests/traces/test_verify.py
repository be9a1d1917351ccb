"""Damage of every kind is found, and none of it is read as a number."""

import dataclasses
import hashlib
import itertools
import json
import shutil

import pytest

from graphhalu.core.errors import CorruptStoreError, GraphhaluError, StoreError
from graphhalu.labels.run import label_store
from graphhalu.labels.stated import GivenLabel
from graphhalu.traces import part as part_module
from graphhalu.traces.metadata import read_attributes
from graphhalu.traces.part import ChunkCache, LazyArray, Part
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import open_traces
from graphhalu.traces.verify import verify_store


def problems(path):
    return {(problem["part"], problem["file"]) for problem in verify_store(path)}


def flipped(content, bit):
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def read_whole(part, name, file):
    if name.endswith("_offsets"):
        return part.offsets
    return part.records if name == "records" else part.read(name)


def read_chunk(part, name, file):
    """The one chunk that a file holds, or the first one if it is the description of the array."""
    place = [int(number) for number in file.split("/")[2:]] or [0] * len(ARRAYS[name].axes)
    return part.read_chunk(name, place[0], place[ARRAYS[name].ragged_dim])


def read_traces(part, name, file):
    places = range(len(part.commit.trace_ids))
    return [LazyArray(part, name, place, ChunkCache())[:] for place in places]


READERS = [read_whole, read_chunk, read_traces]


def test_a_sound_store_has_no_problems(store):
    assert len(store.parts) == 2
    assert verify_store(store.path) == []


@pytest.mark.parametrize("name", [*ARRAYS, "records", "token_offsets", "row_offsets"])
def test_a_flipped_bit_of_any_file_is_never_read_as_a_number(store, name):
    folder = store.parts[0].folder
    files = sorted(f for f in store.parts[0].commit.files if f.startswith(f"{name}/"))
    assert len(files) >= 2
    for place, file in itertools.product((0.0, 0.4, 0.99), files):
        sound = (folder / file).read_bytes()
        (folder / file).write_bytes(flipped(sound, int(place * len(sound) * 8)))
        for read in READERS if name in ARRAYS else [read_whole]:
            with pytest.raises(CorruptStoreError, match=rf"'{name}' of part 000000 in .*toys"):
                read(Part(folder, store.shape, store.backend), name, file)
        (folder / file).write_bytes(sound)


@pytest.mark.parametrize("place", [0.0, 0.4, 0.99])
def test_a_flipped_bit_of_any_file_is_found(store, place):
    folder = store.parts[0].folder
    n_files = 0
    for name, files in itertools.groupby(store.parts[0].commit.files, lambda f: f.split("/")[0]):
        file = max(files, key=len)
        sound = (folder / file).read_bytes()
        (folder / file).write_bytes(flipped(sound, int(place * len(sound) * 8)))
        assert problems(store.path) == {("000000", file)}, name
        (folder / file).write_bytes(sound)
        n_files += 1
    assert n_files > len(ARRAYS)


def test_a_damaged_label_file_is_found(store):
    assert label_store(store, GivenLabel()).trace_ids
    assert problems(store.path) == set()
    (path,) = (store.path / "labels").iterdir()
    path.write_bytes(flipped(path.read_bytes(), path.stat().st_size))
    (problem,) = verify_store(store.path)
    assert (problem["part"], problem["file"]) == ("-", f"labels/{path.name}")
    assert "label again" in problem["what"]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("name", ["attention", "hidden", "span_mass", "token_ids"])
def test_a_missing_or_short_chunk_is_an_error_and_not_zeros(store, name, read):
    folder, opened_before = store.parts[1].folder, store.parts[1]
    file = next(f for f in opened_before.commit.files if f.startswith(f"{name}/c/"))
    sound = (folder / file).read_bytes()
    (folder / file).write_bytes(sound[:-1])
    with pytest.raises(CorruptStoreError, match=f"{len(sound) - 1} bytes long, expected"):
        read(Part(folder, store.shape, store.backend), name, file)
    assert problems(store.path) == {("000001", file)}
    (folder / file).unlink()
    for part in (Part(folder, store.shape, store.backend), opened_before):
        with pytest.raises(CorruptStoreError, match=f"{file} is missing"):
            read(part, name, file)
    assert problems(store.path) == {("000001", file)}


def test_the_error_says_how_to_find_all_damage_and_how_to_mend_it(store):
    shutil.rmtree(store.parts[0].folder / "attention" / "c")
    with pytest.raises(CorruptStoreError, match=r"graphhalu verify .*\n.*run the extraction again"):
        store.parts[0].read("attention")


def test_an_array_that_the_store_does_not_keep_is_not_damage(store):
    with pytest.raises(GraphhaluError, match="attention"):
        store.parts[0].read("atention")


def test_no_bit_of_a_commit_record_can_change_unseen(store):
    path = store.parts[1].folder / "commit.json"
    sound = path.read_bytes()
    for bit in range(0, len(sound) * 8, 211):
        path.write_bytes(flipped(sound, bit))
        with pytest.raises(CorruptStoreError, match=r"commit\.json of part 000001.*\n.*again"):
            _ = open_traces(store.path).parts
    assert problems(store.path) == {("000001", "commit.json")}


def test_a_flipped_bit_that_spells_the_same_in_another_way_is_found(toys, tmp_path):
    store = toys.create(tmp_path / "a.zarr")
    toys.add(store, [toys.trace("n\u00e9", 3)])
    path = store.path / "parts" / "000000" / "commit.json"
    text = path.read_text()
    assert text.count(r"\u00e9") == 2
    path.write_text(text.replace(r"\u00e9", r"\u00E9", 1))
    assert store.parts[0].commit.question_ids == ("n\u00e9",)
    assert problems(store.path) == {("000000", "commit.json")}


def test_no_bit_of_the_root_can_change_unseen(store):
    path = store.path / "zarr.json"
    sound = path.read_bytes()
    attributes, refusals = read_attributes(store.path), []
    for bit in range(0, len(sound) * 8, 13):
        path.write_bytes(flipped(sound, bit))
        try:
            found = read_attributes(store.path)
        except CorruptStoreError:
            continue
        except StoreError as error:
            refusals.append(str(error))
            continue
        # a bit of the description beside the attributes: zarr may not mind, a verification does
        assert found == attributes
        assert ("-", "zarr.json") in problems(store.path)
    assert all("format version" in text for text in refusals)


def test_no_bit_of_the_group_of_parts_can_change_unseen(toys, tmp_path):
    store = toys.create(tmp_path / "a.zarr")
    path = store.path / "parts" / "zarr.json"
    sound = path.read_bytes()
    for bit in range(len(sound) * 8):
        path.write_bytes(flipped(sound, bit))
        assert problems(store.path) == {("-", "parts/zarr.json")}, (bit, path.read_bytes())


def test_missing_parts_and_records_and_files_that_do_not_belong_are_found(toys, store):
    toys.add(store, [toys.trace("q3", 3)])
    shutil.rmtree(store.parts[1].folder)
    (store.path / "parts" / "000000" / "commit.json").unlink()
    (store.path / "parts" / "000002" / "extra").write_text("x")
    (store.path / "parts" / "notes.txt").write_text("x")
    assert problems(store.path) == {
        ("000001", "-"),
        ("000000", "commit.json"),
        ("000002", "extra"),
        ("-", "parts/notes.txt"),
    }
    assert open_traces(store.path).trace_ids == ("q3#0",)


def test_the_last_parts_of_a_store_are_missed_too_until_they_are_done_again(toys, store):
    (parts,) = {folder.parent for folder in (store.parts[0].folder, store.parts[1].folder)}
    shutil.rmtree(parts / "000001")
    assert problems(store.path) == {("000001", "-")}
    shutil.rmtree(parts / "000000")
    assert problems(store.path) == {("000000", "-"), ("000001", "-")}
    toys.add(open_traces(store.path), [toys.trace("q2", 3)])
    assert problems(store.path) == {("000001", "-")}
    toys.add(open_traces(store.path), [toys.trace("q5", 3)])
    assert problems(store.path) == set()


def test_a_part_whose_writer_died_before_the_ledger_is_no_damage(toys, store):
    toys.add(store, [toys.trace("q3", 3)])
    (store.path / "ledger" / "000002").unlink()
    assert problems(store.path) == set()


def redigested(values, **changes):
    """A root or a commit record with other values, and the digest of these."""
    plain = {name: value for name, value in (values | changes).items() if name != "digest"}
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
    return {**plain, "digest": digest}


def change_root(store, **changes):
    description = json.loads((store.path / "zarr.json").read_text())
    description["attributes"] = redigested(description["attributes"], **changes)
    (store.path / "zarr.json").write_text(json.dumps(description))


def as_first_version(store):
    """The same store as version 1 wrote it: no ledger, and a count of parts in the root."""
    shutil.rmtree(store.path / "ledger")
    change_root(store, format_version=1, n_parts=2)


def test_an_axis_that_no_store_has_is_refused_though_its_digest_fits(store):
    shape = json.loads((store.path / "zarr.json").read_text())["attributes"]["shape"]
    change_root(store, shape={**shape, "depth": 3})
    with pytest.raises(CorruptStoreError):
        open_traces(store.path)


def test_a_size_that_no_file_has_is_refused_though_its_digest_fits(store):
    path = store.parts[0].folder / "commit.json"
    values = json.loads(path.read_text())
    files = {name: {**said, "bytes": 10**400} for name, said in values["files"].items()}
    path.write_text(json.dumps(redigested(values, files=files)))
    with pytest.raises(CorruptStoreError, match=r"commit.json of part 000000"):
        open_traces(store.path).n_bytes()


def test_files_of_an_array_that_the_store_does_not_keep_count_as_others(toys, tmp_path):
    made = toys.create(tmp_path / "a.zarr")
    toys.add(made, [toys.trace("q3", 3)])
    whole = open_traces(made.path).n_bytes()
    change_root(made, arrays=[name for name in made.arrays if name != "attention"])
    found = open_traces(made.path).n_bytes()
    assert "attention" not in found
    assert found["records"] == whole["records"] + whole["attention"]
    assert sum(found.values()) == sum(whole.values())


def test_a_store_of_the_first_version_is_read_and_extended(toys, store):
    as_first_version(store)
    assert problems(store.path) == set()
    again = open_traces(store.path)
    assert len(again) == 5
    toys.add(again, [toys.trace("q3", 3)], index=64)
    assert problems(store.path) == set()
    shutil.rmtree(store.path / "parts" / "000001")
    shutil.rmtree(store.path / "parts" / "000064")
    assert problems(store.path) == {("000001", "-"), ("000064", "-")}


def test_a_part_that_was_copied_to_another_place_is_refused(store):
    shutil.copytree(store.parts[0].folder, store.path / "parts" / "000002")
    with pytest.raises(CorruptStoreError, match="is that of part 000000"):
        _ = open_traces(store.path).parts
    assert problems(store.path) == {("000002", "commit.json")}


def test_a_question_in_two_parts_is_found(store):
    folder = store.parts[1].folder
    commit = dataclasses.replace(store.parts[1].commit, question_ids=("q2", "q5", "q11"))
    (folder / "commit.json").write_text(commit.to_json())
    (problem,) = verify_store(store.path)
    assert problem["what"] == "question 'q2' is in part 000000 too"


@pytest.mark.parametrize("version", [3, 999])
def test_a_newer_version_is_refused_with_a_way_out(store, version):
    description = json.loads((store.path / "zarr.json").read_text())
    description["attributes"]["format_version"] = version
    (store.path / "zarr.json").write_text(json.dumps(description))
    with pytest.raises(StoreError, match=rf"format version {version}.*up to 2\n.*pip install"):
        open_traces(store.path)


def test_a_zarr_group_of_someone_else_is_refused(store):
    description = {"attributes": {"format": "other"}, "zarr_format": 3, "node_type": "group"}
    (store.path / "zarr.json").write_text(json.dumps(description))
    with pytest.raises(StoreError, match=r"something else in Zarr's format(?s:.*)'other'"):
        open_traces(store.path)


def test_a_file_and_a_folder_of_something_else_are_no_store(tmp_path):
    (tmp_path / "a.zarr").write_text("x")
    with pytest.raises(StoreError, match=r"not a trace store, but a file; expected a folder that"):
        open_traces(tmp_path / "a.zarr")
    with pytest.raises(StoreError, match=r"not a trace store, but a folder without a zarr\.json"):
        open_traces(tmp_path)


def test_a_store_without_its_root_is_damaged(store):
    (store.path / "zarr.json").unlink()
    for look in (open_traces, verify_store):
        with pytest.raises(CorruptStoreError, match=r"damaged or missing\n.*parts are not touched"):
            look(store.path)


def test_records_are_read_without_touching_an_array(store, monkeypatch):
    names = []
    open_array = part_module.zarr.open_array

    def spy(path, **options):
        names.append(path.name)
        return open_array(path, **options)

    monkeypatch.setattr(part_module.zarr, "open_array", spy)
    assert open_traces(store.path).groups.tolist() == ["q2", "q7", "q13", "q5", "q11"]
    assert set(names) == {"records"}
