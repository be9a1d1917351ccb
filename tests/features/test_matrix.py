"""A matrix of features is computed once for each part, and is the same from everywhere."""

import numpy as np
import pytest

from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError, UnknownNameError, UsageError
from graphhalu.detectors.base import ChosenTraces
from graphhalu.features import block as block_module
from graphhalu.features.matrix import FeatureCache, feature_matrix
from graphhalu.features.registry import FeatureSpec, as_specs, reduce, split_text
from graphhalu.features.table import feature_table
from graphhalu.labels.planted import planted_traces
from graphhalu.traces.part import Part

NAMES = ["sink_mass_k4", "lookback_ratio", "received_top", "logprob_mean"]


@pytest.fixture
def reads(monkeypatch):
    """Names of the arrays that are read from parts."""
    found = []
    read = Part.read
    monkeypatch.setattr(Part, "read", lambda self, name, *rest: found.append(name) or read(self, name, *rest))
    return found


def test_traces_in_memory_give_the_same_matrix_as_those_of_a_store(store, traces):
    of_store, of_memory = feature_matrix(store, NAMES), feature_matrix(traces, NAMES)

    assert of_store.columns == of_memory.columns
    np.testing.assert_array_equal(of_store.values, of_memory.values)


def test_a_subset_gives_its_rows_in_its_order(store):
    order = [8, 1, 5, 2]
    whole = feature_matrix(store, NAMES).values[order]

    np.testing.assert_array_equal(feature_matrix(ChosenTraces(store, tuple(order)), NAMES).values, whole)
    np.testing.assert_array_equal(feature_matrix(store.select(order), NAMES).values, whole)
    mixed = [store[8], *[store[i] for i in order[1:]]]
    np.testing.assert_array_equal(feature_matrix(mixed, NAMES).values, whole)


def test_each_part_is_read_once_however_often_it_is_asked_for(store, reads):
    cache = FeatureCache()
    first = feature_matrix(ChosenTraces(store, (1, 9)), NAMES, cache=cache)
    n_reads = len(reads)
    again = feature_matrix(ChosenTraces(store, tuple(range(10))), NAMES, cache=cache)

    assert n_reads > 0
    # the middle part alone was not there yet
    assert len(reads) - n_reads < n_reads
    n_reads = len(reads)
    feature_matrix(store, ["logprob_mean", "sink_mass_k4"], cache=cache)
    assert len(reads) == n_reads
    np.testing.assert_array_equal(again.values[[1, 9]], first.values)


def test_several_features_decode_a_stream_once(store, reads):
    feature_matrix(store, ["sink_mass_k1", "sink_mass_k4", "head_std_sink"], cache=FeatureCache())

    assert reads.count("sink_keys") == len(store.parts)


def test_the_cache_stays_below_its_limit_and_lets_go_of_the_oldest(store, reads):
    cache = FeatureCache(limit_bytes=2_000)
    for name in ("sink_mass_k4", "lookback_ratio", "sink_mass_k4"):
        feature_matrix(store, [name], cache=cache)
        assert 0 < cache.n_bytes <= 2_000
    assert reads.count("sink_keys") > len(store.parts)


def test_what_is_remembered_cannot_be_changed_from_outside(store):
    cache = FeatureCache()
    feature_matrix(store, ["logprob_mean"], cache=cache).values[:] = 0

    assert feature_matrix(store, ["logprob_mean"], cache=cache).values.all()


def test_a_store_that_was_made_anew_at_the_same_place_is_not_mistaken(make_store, traces):
    import shutil

    cache = FeatureCache()
    first = make_store(traces)
    before = feature_matrix(first, NAMES, cache=cache).values
    shutil.rmtree(first.path)
    after = feature_matrix(make_store(traces[::-1]), NAMES, cache=cache).values
    np.testing.assert_array_equal(after, before[::-1])


def test_a_part_that_is_too_large_is_cut_between_traces(make_store, traces, monkeypatch):
    whole = feature_matrix(traces, NAMES).values
    rows = feature_table(traces, ["token_sink_mass"], per_token=True).values
    monkeypatch.setattr(block_module, "BLOCK_WEIGHTS", 30 * 40)
    store = make_store(traces)

    n_blocks = len(list(block_module.blocks(store)))
    assert len(store.parts) < n_blocks < len(traces)
    np.testing.assert_array_equal(feature_matrix(store, NAMES).values, whole)
    order = [7, 2, 9]
    np.testing.assert_array_equal(feature_matrix(store.select(order), NAMES).values, whole[order])
    found = feature_table(store, ["token_sink_mass"], per_token=True)
    np.testing.assert_array_equal(found.values, rows)


@pytest.mark.parametrize(
    ("free", "kept"), [(7 * 2**30, 3.5 * 2**30), (2**20, 512 * 2**20), (2**40, 4 * 2**30)]
)
def test_a_cache_takes_what_the_memory_allows(monkeypatch, free, kept):
    monkeypatch.setattr("graphhalu.models.load.free_memory", lambda: 2 * free)
    assert FeatureCache().limit_bytes == kept
    assert FeatureCache(limit_bytes=7).limit_bytes == 7


@pytest.mark.parametrize("is_stored", [True, False])
def test_beams_of_a_question_always_lie_in_one_block(make_store, monkeypatch, is_stored):
    beams, _ = planted_traces(22, seed=1, traces_a_question=2)
    monkeypatch.setattr(block_module, "BLOCK_WEIGHTS", 15 * 23)
    monkeypatch.setattr(block_module, "MEMORY_BLOCK", 5)
    found = list(block_module.blocks(make_store(beams) if is_stored else beams))

    questions = [{record.question_id for record in block.records} for block, _, _ in found]
    assert len(questions) > 2
    assert sum(len(names) for names in questions) == len(set.union(*questions)) == 11
    assert sorted(np.concatenate([indices for _, indices, _ in found])) == list(range(22))


def test_columns_name_the_layer_of_the_model_head_and_rank(traces):
    columns = feature_matrix(traces[:1], ["received_top[k=2]", "span_mass"]).columns

    assert columns[:3] == (
        "received_top[k=2].l00.h00.r00",
        "received_top[k=2].l00.h00.r01",
        "received_top[k=2].l00.h01.r00",
    )
    assert "received_top[k=2].l06.h05.r01" in columns
    assert columns[-1] == "span_mass.l06.h05.answer"


def test_reductions_are_taken_over_what_is_there(traces):
    values = feature_matrix(traces, ["sink_first_answer"]).values.reshape(-1, 5, 6)
    found = {
        how: feature_matrix(traces, [f"sink_first_answer[head={how}]"]) for how in ("mean", "std", "max")
    }

    assert found["mean"].columns[1] == "sink_first_answer[head=mean].l01"
    for trace, layer in np.ndindex(len(traces), 5):
        kept = [v for v in values[trace, layer].tolist() if not np.isnan(v)]
        mean = sum(kept) / len(kept) if kept else np.nan
        expected = {
            "mean": mean,
            "max": max(kept, default=np.nan),
            "std": (sum((v - mean) ** 2 for v in kept) / len(kept)) ** 0.5 if kept else np.nan,
        }
        for how, value in expected.items():
            assert found[how].values[trace, layer] == pytest.approx(value, abs=1e-6, nan_ok=True)


def test_two_axes_can_be_reduced(traces):
    both = feature_matrix(traces, ["sink_mass_k4[head=mean,layer=max]"])

    values = feature_matrix(traces, ["sink_mass_k4"]).values.reshape(-1, 5, 6)
    assert both.columns == ("sink_mass_k4[head=mean,layer=max]",)
    expected = reduce(reduce(values, 2, "mean"), 1, "max")
    np.testing.assert_array_equal(both.values[:, 0], expected)


def test_a_specification_can_be_written_and_read():
    spec = FeatureSpec("sink_count", {"epsilon": 0.25, "where": "answer"}, {"head": "mean"})

    assert str(spec) == "sink_count[epsilon=0.25,head=mean,where=answer]"
    assert FeatureSpec.parse(str(spec)) == spec
    assert split_text("a[k=1,head=mean], b c") == ["a[k=1,head=mean]", "b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("received_top[q=3]", "no parameter 'q'"),
        ("received_top[head=median]", "head=median"),
        ("received_top[k]", "name=value"),
        ("received_top[k=3", "name or name"),
    ],
)
def test_a_text_that_cannot_be_read_says_why(text, message):
    with pytest.raises(UsageError, match=message):
        FeatureSpec.parse(text)


def test_wrong_questions_are_errors(store, traces):
    with pytest.raises(UnknownNameError, match="sink_mass_k4"):
        feature_matrix(store, ["sink_mass_k5"])
    with pytest.raises(UsageError, match="each of them once"):
        as_specs(["sink_mass_k4", "sink_mass_k4"])
    with pytest.raises(UsageError, match="got none"):
        feature_matrix(store, [])
    with pytest.raises(NotEnoughDataError, match="no trace"):
        feature_matrix([], NAMES)
    with pytest.raises(UsageError, match="stored row"):
        feature_matrix(store, ["token_logprob"])
    with pytest.raises(UsageError, match="k must be 1 to 100"):
        feature_matrix(store, ["received_top[k=101]"])
    bare = type(traces[0])(traces[0].record, traces[0].shape, {"token_ids": np.arange(3)})
    with pytest.raises(TraceNotFoundError, match="sink_keys"):
        feature_matrix([bare], ["sink_mass_k4"])


def test_a_block_is_let_go_as_soon_as_nobody_uses_it(store):
    import gc
    import weakref

    gc.disable()
    try:
        placed = next(block_module.blocks(store))
        as_specs(["lookback_ratio"])[0].compute(placed.block)
        gone = weakref.ref(placed.block)
        del placed
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["sink_mass_k4", "lapeig_top", "state_mean_answer", "rauq"])
def test_best_beams_are_computed_without_the_others_and_alike(store, name, monkeypatch):
    best = store.select([0, 2, 6, 8])
    sizes = []
    compute = FeatureSpec.compute
    monkeypatch.setattr(
        FeatureSpec, "compute", lambda self, block: sizes.append(len(block)) or compute(self, block)
    )
    found = feature_matrix(best, [name], cache=FeatureCache())
    assert sum(sizes) == 5  # the five questions of the parts that are read
    whole = feature_matrix(store, [name], cache=FeatureCache())
    assert sum(sizes) == 5 + 10
    np.testing.assert_array_equal(found.values, whole.values[[0, 2, 6, 8]])


def test_a_feature_of_beams_sees_them_all_though_only_the_best_are_asked_for(store):
    best = feature_matrix(store.select([0, 2, 4]), ["beam_eigenscore"], cache=FeatureCache())
    whole = feature_matrix(store, ["beam_eigenscore"], cache=FeatureCache())
    assert np.isfinite(best.values).all()
    np.testing.assert_array_equal(best.values, whole.values[[0, 2, 4]])
