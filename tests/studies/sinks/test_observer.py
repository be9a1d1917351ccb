"""Sums of attention to the first tokens equal a slow loop, chunk by chunk and with padding."""

from itertools import product

import numpy as np
import pytest
import torch

from graphhalu.studies.sinks.passes import SinkObserver

LENGTHS, N_HEADS, WIDTH = (11, 7), 3, 13
WINDOWS = (None, 5)


def attention(seed):
    logits = torch.randn(2, N_HEADS, WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed))
    mask = torch.ones(WIDTH, WIDTH).tril().bool()
    return torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1)


def observed(layers, *, ks=(1, 3), modes=("last", "range"), start=2, chunk=4):
    last = [length - 1 for length in LENGTHS]
    cells = list(product(ks, modes))
    observer = SinkObserver(last, cells, start=start, windows=WINDOWS, n_heads=N_HEADS)
    for layer, weights in enumerate(layers):
        first, stop = observer.wanted_rows(layer)
        for row in range(first, stop, chunk):
            last = min(row + chunk, stop)
            observer.rows(layer, row, weights[:, :, row:last, :last])
    return observer


def slow(weights, trace, k, mode, window, start=2):
    last = LENGTHS[trace] - 1
    rows = [last] if mode == "last" else range(start, last + 1)
    counted = [i for i in rows if i >= k and (window is None or i < window)]
    if not counted:
        return None
    return np.mean([weights[trace, :, i, :k].sum(-1).numpy() for i in counted], axis=0)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("mode", ["last", "range"])
def test_every_window_and_mode_of_one_pass_equals_a_slow_loop(k, mode):
    layers = [attention(0), attention(1)]
    observer = observed(layers)
    for trace in (0, 1):
        mass = observer.mass(trace, k, mode)
        for layer, window in enumerate(WINDOWS):
            expected = slow(layers[layer], trace, k, mode, window)
            assert bool(mass["is_seen"][layer]) == (expected is not None)
            if expected is not None:
                np.testing.assert_allclose(mass["by_head"][layer], expected, atol=1e-6)


def test_the_scalar_is_the_mean_over_heads_and_then_over_layers_that_see_the_sink():
    mass = observed([attention(0), attention(1)]).mass(0, 3, "last")
    assert mass["is_seen"].tolist() == [True, False]
    assert mass["sink_mass"] == pytest.approx(mass["by_head"][0].mean())


def test_nan_is_kept_and_that_of_padding_does_not_count():
    layers = [attention(0), attention(1)]
    layers[0][1, :, LENGTHS[1] :] = torch.nan
    assert np.isfinite(observed(layers).mass(1, 1, "range")["by_head"]).all()
    layers[0][1, 2, 4] = torch.nan
    found = observed(layers).mass(1, 1, "range")["by_head"]
    assert np.isnan(found[0]).tolist() == [False, False, True]


def test_the_last_row_alone_asks_for_few_rows():
    observer = observed([attention(0), attention(1)], modes=("last",))
    assert observer.wanted_rows(0) == (LENGTHS[1] - 1, LENGTHS[0])


def test_a_sequence_shorter_than_the_sink_has_no_sink_mass():
    mass = observed([attention(0), attention(1)], ks=(12,)).mass(0, 12, "last")
    assert not mass["is_seen"].any()
    assert np.isnan(mass["sink_mass"])
