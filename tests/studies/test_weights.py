"""Weights against a running tiny model: measurement, verdicts, roles, page and command."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from graphhalu.cli.main import run
from graphhalu.core.config import load_config
from graphhalu.core.errors import DataFileError, NotEnoughDataError, UsageError
from graphhalu.extract.forward import TokenSequence
from graphhalu.extract.replay import Kept, replay
from graphhalu.extract.settings import CaptureSettings, trace_shape
from graphhalu.heads.files import read_heads, write_heads
from graphhalu.labels.labels import Labels
from graphhalu.labels.planted import planted_traces
from graphhalu.models.attention import eager_attention
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import load_model
from graphhalu.report.weights import comparison_page, profile_page, risk_figure
from graphhalu.studies.weights.agreement import HEAD_QUANTITIES, PAIRS, Agreement, counts, with_verdicts
from graphhalu.studies.weights.measure import measure_store
from graphhalu.studies.weights.validation import (
    ValidateSettings,
    Validation,
    check_same_model,
    head_tables,
    layer_detection,
    validate,
)
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.schema import TraceRecord
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace
from graphhalu.weights.layer import ProfileSettings
from graphhalu.weights.profile import profile_model
from graphhalu.weights.read import open_weights
from graphhalu.weights.tables import compare_profiles

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
N_TRACES, LENGTH, PROMPT = 53, 31, 19
SETTINGS = ValidateSettings(n_output_traces=5, n_resamples=100, n_permutations=100)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model with traces of random tokens, kept whole."""
    folder = save_tiny(tmp_path_factory.mktemp("tiny") / "tiny", "llama")
    loaded = load_model(ModelSpec(name=str(folder), device="cpu", threads=1))
    capture = CaptureSettings(keep="full")
    shape = trace_shape(loaded, capture)
    generator = np.random.default_rng(0)
    traces = []
    for number in range(N_TRACES):
        ids = generator.integers(4, 97, LENGTH)
        codes = np.where(np.arange(LENGTH) < PROMPT, 3, 5)
        sequence = TokenSequence(ids, codes, PROMPT, row_start=0)
        (found,) = replay(loaded.model, [sequence], Kept(shape=shape, arrays=capture.arrays()))
        name = f"q{number}"
        record = TraceRecord(
            trace_id=f"{name}#0",
            question_id=name,
            group_id=name,
            question=f"{name}?",
            answers=("yes",),
            answer="no",
            prompt=name,
            prompt_length=PROMPT,
            length=LENGTH,
        )
        traces.append(Trace(record, shape, found.arrays))
    weights = open_weights(str(folder))
    profile = profile_model(weights, ProfileSettings(n_samples=31, composition_reach=1))
    return folder, loaded, traces, weights, profile


@pytest.fixture(scope="module")
def labels(tiny):
    values = np.arange(N_TRACES) % 2
    return Labels(
        trace_ids=tuple(trace.trace_id for trace in tiny[2]),
        values=values,
        is_valid=np.ones(N_TRACES, dtype=bool),
        reasons=("made",) * N_TRACES,
        labeller="made",
    )


@pytest.fixture(scope="module")
def found(tiny, labels):
    _, _, traces, weights, profile = tiny
    return validate(profile, weights, traces, labels, settings=SETTINGS)


def test_outputs_of_heads_and_blocks_are_those_of_the_model(tiny):
    _, loaded, traces, weights, _ = tiny
    measured = measure_store(traces[:1], weights)
    kept = {}
    layer = loaded.model.model.layers[1]
    hooks = [
        layer.mlp.register_forward_hook(lambda m, i, o: kept.update(mlp=o[0])),
        layer.self_attn.o_proj.register_forward_hook(
            lambda m, i, o: kept.update(heads=i[0][0], attention=o[0])
        ),
    ]
    with torch.inference_mode(), eager_attention(loaded.model):
        loaded.model(torch.from_numpy(traces[0].token_ids).long()[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    attention, mlp = (kept[n][4:].norm(dim=1).numpy() for n in ("attention", "mlp"))
    assert measured.layers["attention_output"][1] == pytest.approx(np.median(attention), rel=0.01)
    assert measured.layers["mlp_output"][1] == pytest.approx(np.median(mlp), rel=0.02)
    assert measured.layers["output_ratio"][1] == pytest.approx(np.median(mlp / attention), rel=0.02)
    matrix = layer.self_attn.o_proj.weight
    head = (kept["heads"][4:, 8:12] @ matrix[:, 8:12].T).norm(dim=1).numpy()
    assert measured.heads["head_output"][1, 2] == pytest.approx(np.median(head), rel=0.01)
    assert np.isnan(measured.layers["mlp_output"][2])
    assert list(measured.missing.values()) == ["layers 2"]


def test_attention_is_averaged_over_the_rows_that_count(tiny):
    _, _, traces, weights, _ = tiny
    measured = measure_store(traces[:2], weights)
    entropies, shares = [], []
    for trace in traces[:2]:
        attention = trace.attention(1).astype(np.float64)
        rows = [
            -(a[a > 0] * np.log(a[a > 0])).sum() / np.log(row + 1)
            for row, a in enumerate(attention[4])
            if row >= 16
        ]
        entropies.append(np.mean(rows))
        shares.append(attention[4, 4:, :4].sum(1).mean())
    assert measured.heads["entropy"][1, 4] == pytest.approx(np.mean(entropies), rel=5e-3)
    assert measured.heads["sink_share"][1, 4] == pytest.approx(np.mean(shares), rel=5e-3)


def test_every_pair_gets_a_verdict_with_interval_and_permutation(found):
    rows = {(row.static, row.measured, row.level): row for row in found.rows}
    assert {(p.static, p.measured, p.level) for p in PAIRS} <= rows.keys()
    value = rows["v_norm", "value_norm", "kv_head"]
    assert value.n == 6
    assert value.rho > 0
    assert sum(counts(found.rows).values()) == len(found.rows)
    tested = [row for row in found.rows if row.verdict != "not tested"]
    assert all(0 < row.p_value <= row.q_value <= 1 for row in tested)
    # three layers are too few for a correlation, and say so
    assert rows["gain_ratio", "output_ratio", "layer"].verdict == "not tested"
    assert "needs 5 cells" in rows["gain_ratio", "output_ratio", "layer"].reason


def test_a_verdict_follows_from_sign_and_false_discoveries():
    made = [
        Agreement("a", "m", "head", 1, 50, 0.8, 0.7, 0.9, p_value=0.001),
        Agreement("b", "m", "head", -1, 50, 0.8, 0.7, 0.9, p_value=0.001),
        Agreement("c", "m", "head", 1, 50, 0.1, -0.1, 0.3, p_value=0.4),
        Agreement("d", "m", "head", 1, reason="nothing there"),
    ]
    assert [row.verdict for row in with_verdicts(made)] == [
        "supported",
        "contradicted",
        "unsupported",
        "not tested",
    ]


def test_detection_by_layer_finds_the_layers_that_differ():
    traces, labels = planted_traces(120, signals=("hidden",))
    hidden = layer_detection(traces, labels, "hidden", n_resamples=100)
    assert hidden.auroc[0] < 0.7  # the state after layer 0 is the one before the signal
    assert (hidden.auroc[1:] > 0.9).all()
    attention = layer_detection(traces, labels, "attention", n_resamples=100)
    assert (np.abs(attention.auroc - 0.5) < 0.25).all()
    assert (attention.low <= attention.auroc).all()


def test_detection_needs_both_classes(tiny, labels):
    few = replace(labels, values=(np.arange(N_TRACES) < 5).astype(np.int64))
    with pytest.raises(NotEnoughDataError, match="20 answers of each class, got 5 halluc"):
        layer_detection(tiny[2], few, "attention")


def test_traces_of_another_model_are_refused(tiny):
    with pytest.raises(UsageError, match="of another model than the profile"):
        check_same_model({"name": "a", "weights": "1"}, {"name": "a", "weights": "2"})
    traces, _ = planted_traces(3)
    with pytest.raises(UsageError, match="the traces are of another model"):
        measure_store(traces, tiny[3])


def test_a_validation_is_read_back_as_it_was(found, tmp_path):
    found.write(tmp_path)
    again = Validation.read(tmp_path)
    assert [vars(row).keys() for row in again.rows] == [vars(row).keys() for row in found.rows]
    assert again.entropy.shares == found.entropy.shares
    assert np.array_equal(again.risk.values, found.risk.values)
    assert again.values().keys() == found.values().keys()
    (tmp_path / "validation.json").write_text("[]")
    with pytest.raises(DataFileError, match=r"validation\.json must hold a JSON object, got list"):
        Validation.read(tmp_path)


def test_tables_of_heads_are_written_and_read_as_others_are(tiny, tmp_path):
    profile = tiny[4]
    write_heads(tmp_path / "heads.json", head_tables(profile))
    tables = read_heads(tmp_path / "heads.json")
    assert [table.role for table in tables] == [f"weights_{name}" for name in HEAD_QUANTITIES]
    assert np.allclose(tables[0].mean, profile.of_heads("logit_variance"))
    assert tables[0].ranked()[0]["count"] == 1


def test_the_risk_is_never_drawn_without_its_validation(tiny, found):
    alone = found.model_copy(update={"detection": ()})
    with pytest.raises(NotEnoughDataError, match="never shown alone"):
        risk_figure(alone)
    names = [f.name for f in profile_page(tiny[4], None).figures]
    assert "risk" not in names
    assert "risk" in [f.name for f in profile_page(tiny[4], found).figures]


def test_the_page_holds_the_verdicts_and_says_what_was_not_tested(tiny, found):
    page = profile_page(tiny[4], found)
    tables = {table.name: table for section in page.sections for table in section.tables}
    assert {"verdicts", "missing", "components", "layers", "meanings"} <= tables.keys()
    texts = [cell.text for row in tables["verdicts"].rows for cell in row]
    assert {"unsupported", "not tested", "strength (published)"} <= set(texts)
    assert [figure.name for figure in page.figures] == ["scatter", "risk", "depth", "heads"]
    assert f"Of {len(found.rows)} claims" in page.headline[0]


def test_the_page_of_two_profiles_says_how_they_agree(tiny):
    profile = tiny[4]
    page = comparison_page(profile, profile, compare_profiles(profile, profile))
    assert "rank correlation of +1.000 or more" in page.headline[0]
    tables = {table.name: table for section in page.sections for table in section.tables}
    assert len(tables["compared"].rows) > 30
    assert [figure.name for figure in page.figures] == ["depth"]


def test_the_commands_profile_validate_plot_and_compare(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, _, traces, *_ = tiny
    model = {"name": "tiny", "weights": None}
    store = TraceStore.create(
        tmp_path / "a.zarr",
        configuration={"model": model},
        shape=traces[0].shape,
        arrays=tuple(traces[0].arrays),
    )
    with store.writer() as writer:
        writer.write_part(0, traces, [trace.record.question_id for trace in traces])
    assert run(["weights", "profile", str(folder), "--out", "p", "--rows", "2"]) == 0
    printed = capsys.readouterr()
    assert "hypotheses from weights alone" in printed.out
    assert max(map(len, printed.out.splitlines())) <= 80
    options = ["--model", str(folder), "--profile", "p"]
    quick = ["--set", "n_resamples=100", "--set", "n_permutations=100"]
    assert run(["weights", "validate", "a.zarr", *options, *quick, "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["verdicts"]["not tested"] >= 1
    assert "detection by attention" in values["missing"]
    assert "Weights against the running model" in (tmp_path / "p" / "report.html").read_text()
    (tmp_path / "p" / "validation.json").unlink()
    assert run(["weights", "plot", "p", "--out", "q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["html"] == "q/report.html"
    assert run(["weights", "compare", "p", "p"]) == 0
    assert "medians" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["profile", "smolm2"], 2, "Did you mean 'smollm2'"),
        (["profile", "smollm2", "--spectra", "half"], 2, "spectra"),
        (["validate", "missing.zarr"], 1, "no trace store at missing.zarr"),
        (["plot", "nothing"], 2, "no weight profile at nothing"),
        (["compare", "nothing", "nothing"], 2, "no weight profile at nothing"),
    ],
)
def test_a_users_mistake_is_one_clear_text(arguments, code, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["weights", *arguments]) == code
    printed = capsys.readouterr().err
    assert text in printed
    assert "Traceback" not in printed


def test_a_file_that_is_cut_off_gives_one_line(tmp_path, capsys):
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\x00\x00\x00")
    assert run(["weights", "profile", str(tmp_path / "a.gguf")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_settings_of_the_validation_take_a_file_of_components():
    from pathlib import Path

    from graphhalu.core.config import read_yaml

    path = Path(__file__).resolve().parents[2] / "configs" / "weights" / "risk.yaml"
    settings = load_config(ValidateSettings, None, {"risk": read_yaml(path)})
    assert set(settings.risk.components) == {"sharpness", "amplification", "narrow_output"}
