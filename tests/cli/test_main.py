"""The command line: quick help, clear faults, the exit codes."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import graphhalu
from graphhalu.cli import library
from graphhalu.cli.main import run
from graphhalu.labels.planted import PLANTED_SHAPE, planted_traces
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.store import TraceStore

HEAVY = ("torch", "transformers", "lightning", "zarr", "sklearn", "torch_geometric", "numpy")


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, time; started = time.perf_counter()\n"
        "from graphhalu.cli.main import run\n"
        "assert run(['--help']) == 0\n"
        "print(time.perf_counter() - started, file=sys.stderr)\n"
        f"print([m for m in {HEAVY} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, heavy = done.stderr.strip().splitlines()
    assert heavy == "[]"
    # half a second on a quiet machine; the bound leaves room for a busy one
    assert float(seconds) < 2.5
    assert "extract" in done.stdout


def test_a_wrong_option_is_told_without_anything_heavy():
    code = (
        "import sys\n"
        "from graphhalu.cli.main import run\n"
        "assert run(['extract', '--wrong']) == 2\n"
        f"print([m for m in {(*HEAVY, 'rich', 'jinja2')} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "No such option: --wrong" in done.stderr


@pytest.mark.parametrize("option", ["--model", "--dataset"])
def test_a_name_that_is_none_is_told_before_torch_is_imported(option):
    code = (
        "import sys\n"
        "from graphhalu.cli.main import run\n"
        f"assert run(['extract', '{option}', 'nonesuch']) == 2\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert f"no {option[2:]} named 'nonesuch'" in done.stderr


def test_without_arguments_the_help_is_shown(capsys):
    assert run([]) == 2
    assert "Find hallucinations of language models" in capsys.readouterr().out


def test_a_command_that_is_stopped_says_how_to_go_on(capsys, monkeypatch):
    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("graphhalu.traces.verify.verify_store", stop)
    assert run(["verify", "a.zarr"]) == 130
    assert "Run the same command again to go on" in capsys.readouterr().err


def test_every_name_of_the_library_that_commands_use_is_there():
    names = {
        name
        for path in Path(library.__file__).parent.glob("*.py")
        for name in re.findall(r"\blibrary\.(\w+)", path.read_text(encoding="utf-8"))
    } - {"pyi"}
    assert len(names) > 100
    assert all(getattr(library, name) is not None for name in names)
    with pytest.raises(AttributeError, match="no_such_name"):
        library.no_such_name  # noqa: B018


def test_the_version_is_printed_on_a_line(capsys):
    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"graphhalu {graphhalu.__version__}\n"


@pytest.mark.parametrize("command", ["extract", "label", "train", "compare", "verify", "doctor"])
def test_every_command_explains_itself(command, capsys):
    assert run([command, "--help"]) == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["extract", "--model", "smolm2"], 2, "Did you mean 'smollm2'"),
        (["extract", "--dataset", "trivia"], 2, "triviaqa"),
        (["extract", "--model", "./nothing"], 2, "no model folder or GGUF file at ./nothing"),
        (["extract", "--set", "generation.beams=3"], 2, "generation.beams"),
        (["extract", "--layers", "x"], 2, "numbers with commas"),
        (["extract", "--device", "tpu9"], 2, "device"),
        (["compare", "--traces", "missing.zarr"], 1, "no trace store at missing.zarr"),
        (["train", "gta", "--traces", "missing.zarr"], 1, "no trace store"),
        (["compare"], 1, "no finished trace store"),
        (["verify", "missing.zarr"], 1, "no trace store"),
        (["show", "traces", "missing.zarr"], 1, "no trace store"),
        (["nonsense"], 2, "nonsense"),
        (["extract", "--num-samples", "0"], 2, "--num-samples"),
    ],
)
def test_a_users_mistake_is_one_clear_text_and_an_exit_code(
    arguments, code, text, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert run(arguments) == code
    printed = capsys.readouterr().err
    assert text in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) <= 8


def test_a_hub_model_without_network_is_one_error_with_three_ways_out(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    started = time.monotonic()
    assert run(["extract", "--model", "llama2-7b", "--dataset", "worldfacts"]) == 1
    printed = capsys.readouterr().err
    assert time.monotonic() - started < 60
    for way_out in ("hf auth login", "HF_HOME", "--model FOLDER"):
        assert way_out in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("kind", ["models", "datasets", "detectors"])
def test_show_lists_what_there_is(kind, capsys):
    assert run(["show", kind]) == 0
    capsys.readouterr()
    assert run(["show", kind, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)[kind]) >= 3


def test_detectors_of_answers_and_of_tokens_are_shown_with_their_level(capsys):
    assert run(["show", "detectors", "--json"]) == 0
    cards = json.loads(capsys.readouterr().out)["detectors"]
    levels = {card["name"]: card["level"] for card in cards}
    assert (levels["gat"], levels["token-probe"]) == ("answer", "token")
    assert run(["show", "detectors"]) == 0
    assert "level" in capsys.readouterr().out


def test_a_tiny_model_is_extracted_labelled_shown_and_verified(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = save_tiny(tmp_path / "tiny", "llama")
    rows = [f"What is {n} plus {n}?\t['e', '{n}']" for n in range(61)]
    (tmp_path / "q.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    extract = [
        "extract",
        "--model",
        str(folder),
        "--dataset",
        "triviaqa",
        "--data-path",
        "q.tsv",
        "--beams",
        "2",
        "--max-new-tokens",
        "7",
        "--threads",
        "1",
        "--json",
    ]
    assert run(extract) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["store"] == "data/traces/tiny_triviaqa.zarr"
    assert run(["label", "--json"]) == 0
    labels = json.loads(capsys.readouterr().out)
    assert labels["n_traces"] == summary["n_traces"]
    assert run(["show", "traces", summary["store"], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_traces"] == summary["n_traces"]
    assert run(["verify", summary["store"]]) == 0


def planted_store(path, n_traces, arrays=tuple(ARRAYS)):
    traces, _ = planted_traces(n_traces)
    store = TraceStore.create(path, configuration={}, shape=PLANTED_SHAPE, arrays=arrays)
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    return store


def test_layers_that_a_store_lacks_are_refused_before_it_is_labelled(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = planted_store("a.zarr", 11)
    assert run(["train", "gat", "--traces", "a.zarr", "--set", "layers=[50]"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("ConfigError: the traces keep no attention of layers [50]")
    assert not store.labels_folder.exists()
    assert not (tmp_path / "data").exists()


def test_a_training_that_fails_exits_with_1_and_keeps_no_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planted_store("a.zarr", 61, arrays=("token_ids", "span_code"))
    assert run(["train", "sink-mass", "--traces", "a.zarr", "--threads", "1"]) == 1
    said = capsys.readouterr()
    assert "NotEnoughDataError: sink-mass needs both classes" in said.err
    assert "saved in" not in said.err
    assert said.out == ""
    assert not (tmp_path / "data").exists()


def test_a_small_newest_store_is_passed_over_and_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planted_store("data/traces/large.zarr", 53, arrays=("token_ids",))
    planted_store("data/traces/small.zarr", 7, arrays=("token_ids",))
    os.utime("data/traces/large.zarr/parts/000000", (1_000_000, 1_000_000))
    assert run(["label", "--json"]) == 0
    said = capsys.readouterr()
    assert "passed over with fewer than 50 answers, unless named: data/traces/small.zarr (7)" in said.err
    assert json.loads(said.out)["store"] == "data/traces/large.zarr"
    assert run(["label", "data/traces/small.zarr", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n_traces"] == 7


@pytest.mark.slow
def test_a_store_is_trained_on_and_compared_without_another_argument(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planted_store("data/traces/planted.zarr", 61)
    assert run(["train", "gat", "--json", "--set", "epochs=2"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert (tmp_path / trained["run"] / "detector" / "model.safetensors").is_file()
    assert run(["compare", "--quick", "--seeds", "0", "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)
    names = {row["detector"] for row in compared["detectors"]}
    assert {"gcn", "gat", "sink-mass", "head-std", "perplexity", "length"} <= names
    assert (tmp_path / compared["folder"] / "roc.png").stat().st_size > 1000
    assert not list(tmp_path.glob("lightning_logs"))
