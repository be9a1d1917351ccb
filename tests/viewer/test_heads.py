"""What a browser gets of a layer, held to slow loops over whole matrices."""

import base64
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.traces.schema import N_SINK_KEYS
from graphhalu.viewer.heads import (
    HIDDEN_SINKS,
    MEAN_STEPS,
    NO_KEY,
    NO_MEAN,
    layer_rows,
    layer_text,
    packed_bytes,
    weight_format,
)

LAYER = 3
N_EDGES = 2


def trace_of(stores, kept, index=1):
    return stores[kept][index]


def span_starts(trace):
    """One piece a span: the least that lie within spans."""
    return (0, *(np.flatnonzero(np.diff(trace.span_code.astype(int))) + 1).tolist())


def unpacked(text, n_rows, n_edges, n_pieces):
    """One head, read back as the module's docstring says."""
    data = base64.b64decode(text)
    sizes = {
        "rest": ("<f4", (n_rows,)),
        "sinks": ("<u2", (n_rows, 4)),
        "own": ("<u2", (n_rows,)),
        "key": ("<u2", (n_rows, n_edges)),
        "weight": ("<u2", (n_rows, n_edges)),
        "spans": ("<u2", (3, 6, 6)),
        "pieces": ("<u2", (3, n_pieces, n_pieces)),
    }
    found, place = {}, 0
    for name, (kind, shape) in sizes.items():
        size = int(np.prod(shape)) * int(kind[-1])
        found[name] = np.frombuffer(data[place : place + size], kind).reshape(shape)
        place += size
    assert place == len(data)
    return found


def strongest(row, token):
    """Keys of a row that are neither first nor its own, strongest first."""
    others = [key for key in range(N_SINK_KEYS, token) if row[key] > 0]
    return sorted(others, key=lambda key: (-row[key], key))


@pytest.mark.parametrize("kept", ["full", "fixed16"])
def test_each_head_holds_the_stored_weights_bit_for_bit(stores, kept):
    trace = trace_of(stores, kept)
    stored = trace.attention(LAYER)
    texts = layer_text(trace, LAYER, N_EDGES, (0,)).split("\n")
    assert len(texts) == trace.shape.n_heads
    for head, text in enumerate(texts):
        found = unpacked(text, trace.length, N_EDGES, 1)
        read = (
            (lambda bits: bits.view("<f2").astype(np.float32))
            if kept == "full"
            else (lambda bits: (bits / 65_535).astype(np.float32))
        )
        for token in range(trace.length):
            row = stored[head, token]
            np.testing.assert_array_equal(read(found["sinks"][token])[: token + 1], row[:4][: token + 1])
            assert read(found["own"][token : token + 1])[0] == row[token]
            keys = strongest(row, token)[:N_EDGES]
            assert [int(k) for k in found["key"][token] if k != NO_KEY] == keys
            np.testing.assert_array_equal(read(found["weight"][token])[: len(keys)], row[keys])
            assert found["rest"][token] == pytest.approx(row[4:].sum(dtype=np.float64), rel=1e-6)


def test_means_of_spans_and_pieces_are_those_of_a_slow_loop(stores):
    trace = trace_of(stores, "full")
    starts = (0, 1, 4, trace.prompt_length - 2, trace.prompt_length)
    rows = layer_rows(trace, LAYER, N_EDGES, starts)
    attention = trace.attention(LAYER).astype(np.float64)
    piece_of = np.searchsorted(starts, np.arange(trace.length), side="right") - 1
    for groups, n_groups, means in (
        (trace.span_code.astype(int), 6, rows.spans),
        (piece_of, len(starts), rows.pieces),
    ):
        for variant, n_hidden in enumerate(HIDDEN_SINKS):
            expected = slow_means(attention, groups, n_groups, n_hidden)
            np.testing.assert_allclose(means[variant], expected, atol=1e-6, equal_nan=True)


def slow_means(attention, groups, n_groups, n_hidden):
    n_heads, length, _ = attention.shape
    means = np.full((n_heads, n_groups, n_groups), np.nan)
    for head in range(n_heads):
        for row_group in range(n_groups):
            shares = []
            for token in range(length):
                row = attention[head, token, n_hidden:]
                if groups[token] == row_group and row.sum() > 0:
                    shares.append(row / (row.sum() if n_hidden else 1))
            for group in range(n_groups):
                if shares:
                    is_in = groups[n_hidden:] == group
                    means[head, row_group, group] = np.mean([share[is_in].sum() for share in shares])
    return means


def test_a_row_of_shares_adds_up_to_one_once_sinks_are_hidden(stores):
    rows = layer_rows(trace_of(stores, "full"), LAYER, N_EDGES, (0,))
    for means in rows.spans[1:]:
        sums = means.sum(-1)
        np.testing.assert_allclose(sums[~np.isnan(sums)], 1, atol=1e-5)


def test_a_store_of_edges_gives_its_edges_and_the_rest_of_each_row(stores):
    whole, trace = trace_of(stores, "full"), trace_of(stores, "edges")
    attention = whole.attention(LAYER)
    rows = layer_rows(trace, LAYER, 9, (0,))
    edges = trace.edges(LAYER)
    assert rows.key.shape[-1] == trace.shape.n_edges
    assert rows.pieces.size == 0
    for head in range(trace.shape.n_heads):
        for token in range(trace.length):
            keys = [k for k in edges.key[head, token] if k >= N_SINK_KEYS]
            assert [k for k in rows.key[head, token] if k >= 0] == keys
            assert rows.weight[head, token, : len(keys)] == pytest.approx(attention[head, token, keys])
    expected = attention[..., N_SINK_KEYS:].sum(-1)
    np.testing.assert_allclose(rows.rest, expected, atol=4e-3)  # half precision of a row near 1
    np.testing.assert_allclose(rows.own, attention.diagonal(axis1=1, axis2=2))


@pytest.mark.parametrize("kept", ["edges", "streams"])
def test_spans_come_from_the_stored_span_mass_where_weights_are_not_kept(stores, kept):
    whole = trace_of(stores, "full")
    expected = layer_rows(whole, LAYER, N_EDGES, span_starts(whole))
    found = layer_rows(trace_of(stores, kept), LAYER, N_EDGES, ())
    np.testing.assert_allclose(found.spans[0], expected.spans[0], atol=1e-3, equal_nan=True)
    np.testing.assert_allclose(found.spans[2], expected.spans[2], atol=2e-2, equal_nan=True)


def test_a_store_of_streams_gives_first_tokens_and_own_token_alone(stores):
    trace = trace_of(stores, "streams")
    rows = layer_rows(trace, LAYER, 9, (0,))
    attention = trace_of(stores, "full").attention(LAYER)
    assert rows.key.shape == (3, trace.length, 0)
    np.testing.assert_array_equal(rows.sinks, attention[..., :4])
    np.testing.assert_allclose(rows.rest, attention[..., 4:].sum(-1), atol=4e-3)
    text = layer_text(trace, LAYER, 9, ()).split("\n")[2]
    assert unpacked(text, trace.length, 0, 0)["rest"].shape == (trace.length,)


def test_answer_rows_alone_are_placed_by_their_first_row(planted):
    whole = planted[0]
    start = whole.prompt_length - 1
    arrays = dict(whole.arrays)
    from graphhalu.traces.schema import n_pairs

    arrays["attention"] = whole.arrays["attention"][:, :, n_pairs(start, 0) :]
    arrays.pop("attention_fixed")
    part = replace(whole, record=replace(whole.record, row_start=start), arrays=arrays)
    rows = layer_rows(part, LAYER, N_EDGES, (0, start))
    attention = whole.attention(LAYER)[:, start:]
    np.testing.assert_array_equal(rows.sinks, attention[..., :4])
    np.testing.assert_array_equal(rows.own[:, 0], attention[:, 0, start])
    assert np.isnan(rows.pieces[0, :, 0]).all()


def test_means_that_do_not_exist_are_told_apart_from_zero(stores):
    trace = trace_of(stores, "full")
    starts = span_starts(trace)
    text = layer_text(trace, LAYER, N_EDGES, starts).split("\n")[0]
    found = unpacked(text, trace.length, N_EDGES, len(starts))
    assert (found["spans"][0, 1] == NO_MEAN).all()  # no token is of the system span
    assert found["spans"][0, 0, 0] == MEAN_STEPS  # the first token sees itself alone
    assert (found["spans"][1, 0] == NO_MEAN).all()  # and nothing, once it is hidden


def test_the_format_is_that_of_the_store():
    assert weight_format(("token_ids", "attention_fixed")) == "fixed16"
    assert weight_format(("attention", "attention_fixed")) == "float16"
    assert weight_format(("edge_key",)) == "float16"


def test_the_estimate_of_a_page_is_near_its_size(stores):
    trace = trace_of(stores, "full")
    size = sum(len(layer_text(trace, layer, 5, (0,))) for layer in trace.shape.attention_layers)
    means = 3 * 37 * 2 * 4 / 3 * 15
    assert size - means == pytest.approx(packed_bytes(trace.shape, trace.length, 5), rel=0.05)


def test_a_text_that_positions_of_16_bits_cannot_hold_is_refused(planted):
    long = replace(planted[0], record=replace(planted[0].record, length=65_535))
    with pytest.raises(UsageError, match="65,535 tokens; shown are up to 65,534"):
        layer_text(long, LAYER, N_EDGES, (0,))
