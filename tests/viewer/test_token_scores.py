import base64
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest

from graphhalu.core.errors import DetectorMismatchError, UsageError
from graphhalu.evaluation.compare import compare
from graphhalu.evaluation.settings import CompareConfig
from graphhalu.evaluation.training import fit_for_use
from graphhalu.labels.planted import planted_token_traces
from graphhalu.labels.stated import label_tokens
from graphhalu.traces.store import TraceStore
from graphhalu.viewer.scores import ShownTokenScores, detector_scores, shown_token_scores
from graphhalu.viewer.view import ViewRequest, make_view

ARRAYS = (
    "token_ids",
    "span_code",
    "token_logprob",
    "token_entropy",
    "top1_margin",
    "attention",
    "span_mass",
    "self_attention",
    "sink_keys",
)


def created(path, traces):
    store = TraceStore.create(path, configuration={}, shape=traces[0].shape, arrays=ARRAYS)
    with store.writer() as writer:
        writer.write_part(0, traces, list(dict.fromkeys(t.record.question_id for t in traces)))
    return store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return created(tmp_path_factory.mktemp("view") / "a.zarr", planted_token_traces(30, seed=1))


@pytest.fixture(scope="module")
def result(store, tmp_path_factory):
    config = CompareConfig(detectors=("token-overlap",), seeds=(4, 2), n_resamples=100)
    folder = tmp_path_factory.mktemp("result")
    found = compare(store, label_tokens(store.records), config=config)
    found.write(folder)
    return found, folder


def test_scores_of_the_first_seed_stand_at_the_answer_tokens(store, result):
    found, folder = result
    view = make_view(store, ViewRequest(labeller=None, features=("answer_length",), token_scores=folder))
    streams = view.trace(3)["streams"]
    samples = found.samples.to_pylist()
    trace = store[3]
    for name in ("token-overlap", "token-position"):
        shown = np.frombuffer(base64.b64decode(streams[name]), dtype="<f4")
        assert len(shown) == trace.length
        assert np.isnan(shown[: trace.prompt_length]).all()
        rows = [
            row
            for row in samples
            if (row["detector"], row["seed"], row["trace_id"]) == (name, 2, trace.trace_id)
        ]
        expected = [row["score"] for row in sorted(rows, key=itemgetter("token"))]
        np.testing.assert_allclose(shown[trace.prompt_length :], expected, rtol=1e-6)
    told = view.overview(is_served=False)["token_scores"]
    assert told["run"] == folder.name
    assert all(low <= high for low, high in told["scales"].values())


def test_a_result_of_the_first_version_is_shown_and_one_of_answers_refused(store):
    folder = Path(__file__).parents[1] / "evaluation" / "fixtures"
    shown = shown_token_scores(folder / "tokens_v1", store)
    assert set(shown.scores) == {"token-position", "token-overlap", "token-text"}
    with pytest.raises(UsageError, match="scores of answers"):
        shown_token_scores(folder / "result_v2", store)


def test_scores_of_other_answers_are_refused(store, result, tmp_path):
    short = {store[0].trace_id: np.zeros(2)}
    shown = ShownTokenScores("tokens-run", {"token-overlap": short}, {"token-overlap": (0.0, 1.0)})
    assert shown.of(store[1]) == {}
    with pytest.raises(DetectorMismatchError, match="of another store"):
        shown.of(store[0])
    named = created(tmp_path / "c.zarr", planted_token_traces(99, seed=9, traces_a_question=1)[98:])
    with pytest.raises(UsageError, match="no score of the answers shown"):
        shown_token_scores(result[1], named)


def test_a_detector_of_tokens_gives_each_answer_its_highest_token(store, tmp_path):
    labels = label_tokens(store.records)
    model = fit_for_use("token-position", store, labels, CompareConfig(n_folds=3), tmp_path)
    about, entries = detector_scores(tmp_path, store)
    expected = [max(each) for each in model.detector.score(store).by_trace()]
    assert [entry["score"] for entry in entries] == expected
    assert about["threshold"] == model.calibration.threshold
    assert all(entry["probability"] is None for entry in entries)
