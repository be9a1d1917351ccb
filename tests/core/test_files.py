import pytest

from graphhalu.core.files import atomic_path, replace_file


def test_a_file_is_replaced_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "folder" / "a.json"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert [each.name for each in path.parent.iterdir()] == ["a.json"]


def test_a_fault_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.json"
    replace_file(path, b"old")

    def broken():
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_the_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "a.json"
    with atomic_path(path) as temporary:
        temporary.write_bytes(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
