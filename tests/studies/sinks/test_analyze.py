"""Made-up runs with and without a signal in one head, and the published runs of real models."""

import json

import numpy as np
import pytest

from graphhalu.cli.main import run as run_command
from graphhalu.core.config import load_config
from graphhalu.core.errors import ConfigError, DataFileError, UsageError
from graphhalu.evaluation.bootstrap import Estimate
from graphhalu.heads.table import HeadTable
from graphhalu.studies.rows import find_row
from graphhalu.studies.sinks.analyze import SinksResult, analyze, analyze_run, heterogeneity, model_size
from graphhalu.studies.sinks.records import write_run
from graphhalu.studies.sinks.settings import AnalyzeConfig

QUICK = AnalyzeConfig(n_resamples=100, n_permutations=100, fold_seeds=(0,), n_top=2)
FEW = QUICK.model_copy(update={"models": ("sink", "answer")})
SIGNAL = (3, 1)


def role_table(scores, name="some/model-2B"):
    return HeadTable(
        "induction",
        tuple(range(5)),
        (("t", "t"),),
        scores[None],
        np.zeros(scores.shape),
        model={"name": name},
    )


def test_a_signal_in_one_head_is_found_by_the_probe_and_by_localisation(make_run):
    scores = np.zeros((5, 3))
    scores[SIGNAL] = 1.0
    result = analyze_run(make_run(signal=0.5, n_nan=3), QUICK, role_table(scores))
    assert (result.n_records, result.n_usable) == (90, 87)
    found = result.findings[0]
    assert found.n_positive + found.n_negative == 87
    assert find_row(found.models, name="heads").auroc.low > 0.9
    top = found.localisation.top[0]
    assert (top.layer, top.head) == SIGNAL
    assert top.q_value < 0.001
    assert top.stability == 1.0
    assert found.localisation.difference[3][1] == pytest.approx(0.5, abs=0.1)
    overlap = found.localisation.overlaps[0]
    assert overlap.n_shared >= 1
    gain = next(g for g in found.gains if (g.model, g.baseline) == ("entropy+heads", "entropy"))
    assert gain.auroc.low > 0.2
    assert gain.log_loss.low > 0
    assert result.left_out == {"input": "no record has this label"}
    assert result.n_parameters == 2e9


def test_without_a_signal_nothing_is_found(make_run):
    config = QUICK.model_copy(update={"models": ("sink", "heads", "entropy", "entropy+heads")})
    found = analyze_run(make_run(seed=3), config).findings[0]
    assert found.localisation.n_significant <= 1
    assert find_row(found.models, name="heads").auroc.low < 0.5
    assert found.shift.p_permutation > 0.05
    assert all(gain.log_loss.low < 0.02 for gain in found.gains)
    bins = found.prediction.bins
    assert sum(each.n for each in bins) == 90
    assert [each.mean_mass for each in bins] == sorted(each.mean_mass for each in bins)


def test_a_control_that_knows_the_letter_is_seen_through(make_run):
    run = make_run()
    told = [type(r)(**{**vars(r), "pred": "B" if r.labels["hallucinated"] else "A"}) for r in run.records]
    found = analyze_run(type(run)(tuple(told), {}, run.name), FEW).findings[0]
    assert find_row(found.models, name="answer").auroc.value > 0.99


def test_the_commonest_letter_of_a_run_is_counted(make_run):
    assert make_run(9, pred="C").commonest_answer() == ("C", 1.0)
    assert make_run(9, pred="in words").commonest_answer() is None


def test_a_run_without_numbers_is_reported_and_not_analysed(make_run):
    result = analyze_run(make_run(20, n_nan=20), QUICK)
    assert (result.n_usable, result.findings) == (0, ())
    assert "0 usable records" in result.left_out["hallucinated"]
    assert result.accuracy is not None


def test_runs_are_laid_side_by_side_and_the_result_is_read_again(tmp_path, make_run):
    for name, changes in {
        "a": {},
        "b": {"chat_mode": "on", "seed": 1},
        "c": {"task": "other", "seed": 2},
        "d": {"model": "some/model-7B", "seed": 4},
    }.items():
        write_run(tmp_path / name, make_run(60, **changes))
    config = QUICK.model_copy(update={"models": ("sink", "heads")})
    result = analyze([tmp_path], config)
    assert [point.n_parameters for point in result.scaling[0].points] == [2e9, 2e9, 7e9]
    tasks = {row.task for each in result.tasks for row in each.rows}
    assert tasks == {"quiz", "other"}
    pair = next(each for each in result.sensitivity if each.setting == "chat")
    assert (pair.first, pair.second, pair.n_both) == ("off", "on", 60)
    assert pair.accuracy_difference.value == 0
    assert SinksResult.read(result.write(tmp_path)).values() == result.values()
    with pytest.raises(DataFileError, match="graphhalu-sinks-analysis"):
        (tmp_path / "x.json").write_text("{}")
        SinksResult.read(tmp_path / "x.json")


def test_a_table_of_another_models_heads_is_left_out_with_a_note(tmp_path, make_run):
    from graphhalu.heads.files import write_heads

    path = write_run(tmp_path, make_run(60))
    write_heads(tmp_path / "heads.json", [role_table(np.zeros((5, 3)), "another")])
    config = FEW.model_copy(update={"heads": tmp_path / "heads.json"})
    result = analyze([path], config)
    assert "another model" in result.notes[0]
    assert result.runs[0].findings[0].localisation.overlaps == ()
    with pytest.raises(UsageError, match="retrieval"):
        analyze([path], config.model_copy(update={"role": "retrieval"}))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 1.1e9),
        ("Qwen/Qwen2.5-7B-Instruct", 7e9),
        ("smollm2", 135e6),
        ("a/Mixtral-8x7B-v0.1", None),
        ("nothing", None),
    ],
)
def test_the_size_of_a_model_is_read_from_its_card_or_name(name, expected):
    assert model_size(name) == expected
    assert model_size(name, 5) == 5.0


def test_heterogeneity_is_cochrans_q():
    effects = [Estimate(0.0, -0.2, 0.2), Estimate(0.4, 0.2, 0.6), Estimate(0.1, -0.3, 0.5)]
    errors = np.array([0.4, 0.4, 0.8]) / (2 * 1.959963984540054)
    weights, values = errors**-2, np.array([0.0, 0.4, 0.1])
    centre = (weights * values).sum() / weights.sum()
    q, p_value, share = heterogeneity(effects)
    assert q == pytest.approx((weights * (values - centre) ** 2).sum())
    assert 0 < p_value < 0.05
    assert share == pytest.approx((q - 2) / q)
    assert np.isnan(heterogeneity(effects[:1])).all()


PUBLISHED = {
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (415, 308, 107, -0.050924, 0.489562, 0.730495, -0.167822, 0.257831),
    "Qwen/Qwen2.5-7B-Instruct": (282, 106, 176, -0.052453, 0.465373, 0.394561, 0.222547, 0.493976),
    "mistralai/Mistral-7B-Instruct-v0.3": (415, 178, 237, -0.204686, 0.429882, 0.391784, -0.138873, 0.571084),
}


@pytest.mark.slow
def test_the_published_records_give_the_published_numbers(shared_data, tmp_path, capsys):
    folder = shared_data / "sink_records"
    if not folder.is_dir():
        pytest.skip(f"the published sink records are not at {folder}")
    quick = [
        "--resamples",
        "100",
        "--seeds",
        "0",
        "--set",
        "n_permutations=100",
        "--set",
        "models=[sink, heads]",
    ]
    code = run_command(["sinks", "analyze", str(folder), "--json", "--out", str(tmp_path), *quick])
    assert code == 0
    runs = {run["model"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert len(runs) == 4
    for model, expected in PUBLISHED.items():
        found = runs[model]["findings"][0]
        shift, prediction = found["shift"], found["prediction"]
        numbers = (
            runs[model]["n_usable"],
            found["n_positive"],
            found["n_negative"],
            shift["cohens_d"]["value"],
            prediction["auroc"]["value"],
            prediction["auprc_trapezoid"],
            shift["entropy_pearson"],
            runs[model]["accuracy"],
        )
        assert numbers == pytest.approx(expected, abs=6e-7)
        assert prediction["auprc"]["value"] > prediction["auprc_trapezoid"]
        assert "heads" in [each["name"] for each in found["models"]]
    empty = runs["Qwen/Qwen2.5-1.5B-Instruct"]
    assert (empty["n_records"], empty["n_usable"], empty["findings"]) == (415, 0, [])
    assert empty["accuracy"] == pytest.approx(0.238554, abs=6e-7)


def test_models_that_are_unknown_or_lack_the_scalar_are_refused():
    with pytest.raises(ConfigError, match="Did you mean 'sink'"):
        load_config(AnalyzeConfig, None, {"models": ["sikn"]})
    with pytest.raises(ConfigError, match="must be among them"):
        load_config(AnalyzeConfig, None, {"models": ["heads"]})


def test_models_on_a_column_that_hardly_varies_rank_nothing_and_that_is_said(make_run, caplog):
    # the logarithm of one length has a standard deviation of 4e-16, which is rounding and no signal
    run = make_run(53, seq_len=31)
    with caplog.at_level("INFO", logger="graphhalu"):
        found = analyze_run(run, QUICK.model_copy(update={"models": ("sink", "length", "entropy+length")}))
    assert np.log(np.full(53, 31.0)).std() > 0
    models = {row.name: row.auroc.value for row in found.findings[0].models}
    assert models["length"] == 0.5
    assert models["entropy+length"] != 0.5
    assert [line for line in caplog.messages if "length" in line] == [
        "length is the same in all 53 records: a model that reads nothing else ranks no record above another"
    ]
