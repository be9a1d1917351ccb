"""What a store keeps: all rows or those of the answer, all weights, edges or streams."""

import numpy as np
import pytest

from graphhalu.core.errors import TraceNotFoundError, UsageError
from graphhalu.extract.run import extract
from graphhalu.extract.settings import ExtractConfig
from graphhalu.graphs.build import build_graph
from graphhalu.graphs.edges import GraphRecipe, TopK
from graphhalu.testing.tiny_models import save_tiny
from graphhalu.traces.store import open_traces

N_EDGES = 5


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """The same questions with each way of keeping attention."""
    folder = tmp_path_factory.mktemp("kept")
    model = save_tiny(folder / "tiny", "gemma2")

    def make(name, family_folder=model, **capture):
        config = ExtractConfig.model_validate(
            {
                "model": {"name": str(family_folder), "threads": 1},
                "generation": {"num_beams": 2, "max_new_tokens": 7},
                "capture": capture,
                "num_samples": 5,
            }
        )
        extract(config, folder / f"{name}.zarr")
        return open_traces(folder / f"{name}.zarr")

    return {
        "full": make("full"),
        "fixed": make("fixed", attention_format="fixed16"),
        "answer": make("answer", rows="answer"),
        "hidden_rows": make("hidden_rows", rows="answer", hidden_tokens="rows"),
        "edges": make("edges", keep="edges", edges=N_EDGES),
        "all_edges": make("all_edges", keep="edges", edges=200),
        "edges_answer": make("edges_answer", keep="edges", edges=N_EDGES, rows="answer"),
        "hooked": make("hooked", save_tiny(folder / "bloom", "bloom")),
    }


def pairs(stores, first, second):
    assert len(stores[first]) == len(stores[second]) > 2
    return zip(stores[first], stores[second], strict=True)


def test_the_rows_of_the_answer_are_rows_of_the_full_store(stores):
    for full, answer in pairs(stores, "full", "answer"):
        first = full.prompt_length - 1
        assert answer.record.row_start == first
        for layer in full.shape.attention_layers:
            np.testing.assert_allclose(
                answer.attention(layer), full.attention(layer)[:, first:], rtol=2e-3, atol=1e-5
            )
        np.testing.assert_allclose(
            answer.stream("span_mass")[:, :, answer.answer_rows],
            full.stream("span_mass")[:, :, full.answer_rows],
            atol=2e-3,
        )


def test_the_likelihood_of_prompt_tokens_is_missing_without_their_rows(stores):
    for full, answer in pairs(stores, "full", "answer"):
        known = full.is_answer
        assert np.isnan(answer.stream("token_logprob")[~known]).all()
        np.testing.assert_allclose(
            answer.stream("token_logprob")[known], full.stream("token_logprob")[known], rtol=1e-3
        )


def test_hidden_states_of_the_rows_are_those_of_all_tokens_cut(stores):
    for full, kept in pairs(stores, "full", "hidden_rows"):
        for layer in full.shape.hidden_layers:
            expected = full.hidden(layer)[kept.record.row_start :]
            np.testing.assert_allclose(kept.hidden_rows(layer), expected, rtol=2**-6, atol=1e-3)
        np.testing.assert_array_equal(full.hidden_rows(1), full.hidden(1))
        with pytest.raises(TraceNotFoundError, match="keeps no 'hidden'"):
            kept.hidden(1)


def test_a_store_of_answer_rows_is_smaller(stores):
    assert stores["answer"].n_bytes()["attention"] < 0.5 * stores["full"].n_bytes()["attention"]


def test_fixed_point_reads_as_attention_does(stores):
    for full, fixed in pairs(stores, "full", "fixed"):
        assert fixed.has_attention
        for layer in full.shape.attention_layers:
            np.testing.assert_allclose(fixed.attention(layer), full.attention(layer), rtol=2**-10, atol=1e-5)


def test_a_store_of_edges_gives_them_and_no_matrix(stores):
    for full, kept in pairs(stores, "full", "edges"):
        assert not kept.has_attention
        edges = kept.edges(1)
        assert edges.key.shape == (full.shape.n_heads, full.length, N_EDGES)
        with pytest.raises(TraceNotFoundError, match="keeps no 'attention'"):
            kept.attention(1)


def test_censored_attention_holds_edges_and_diagonal_and_nothing_else(stores):
    for full, kept in pairs(stores, "full", "edges"):
        square, own = kept.censored_attention(2), full.attention(2)
        is_kept = square > 0
        np.testing.assert_allclose(square[is_kept], own[is_kept], rtol=2e-3, atol=1e-5)
        assert (is_kept.sum(-1) <= N_EDGES + 1).all()
        missing = own.sum(-1) - square.sum(-1)
        np.testing.assert_allclose(missing, kept.edges(2).dropped, atol=2e-3)


def test_censored_attention_of_answer_rows_keeps_the_diagonal_in_place(stores):
    for full, kept in pairs(stores, "full", "edges_answer"):
        first = full.prompt_length - 1
        square = kept.censored_attention(0)
        rows = np.arange(first, full.length)
        own = full.attention(0)[:, rows, rows]
        np.testing.assert_allclose(square[:, rows - first, rows], own, rtol=2e-3, atol=1e-5)


def test_graphs_of_a_store_that_keeps_every_edge_are_those_of_the_full_store(stores):
    recipe = GraphRecipe(edges=TopK(3))
    for full, kept in pairs(stores, "full", "all_edges"):
        first, second = build_graph(full, 1, recipe), build_graph(kept, 1, recipe)
        np.testing.assert_array_equal(first.edge_index, second.edge_index)
        np.testing.assert_allclose(first.edge_attr, second.edge_attr, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(first.kept_mass, second.kept_mass, atol=5e-3)


def test_the_kept_mass_of_a_graph_counts_what_the_store_dropped(stores):
    recipe = GraphRecipe(edges=TopK(200))
    for _, kept in pairs(stores, "full", "edges"):
        graph, edges = build_graph(kept, 1, recipe), kept.edges(1)
        total = 1 - kept.layer_stream("self_attention", 1)
        expected = 1 - edges.dropped.mean(0)[3:] / total.mean(0)[3:]
        np.testing.assert_allclose(graph.kept_mass[3:], expected, atol=5e-3)
        assert graph.kept_mass.min() < 0.999


def test_graphs_need_every_row(stores):
    with pytest.raises(UsageError, match="Extract it again with all rows"):
        build_graph(stores["answer"][0], 1)


def test_a_family_off_the_interface_fills_the_same_store(stores):
    for trace in stores["hooked"]:
        sums = trace.stream("span_mass").sum(-1)
        np.testing.assert_allclose(sums, 1, atol=4e-3)
        assert (trace.stream("value_norm") > 0).all()
