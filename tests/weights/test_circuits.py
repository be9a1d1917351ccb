"""Circuits of heads against dense products and simulation."""

import numpy as np
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.weights.circuits import (
    circuit_values,
    composed_norm,
    copying_eigenvalues,
    copying_score,
    entropy_estimate,
    grams,
    logit_variance,
    normalised,
    rotations,
    self_logit,
    triangles,
)

WIDTH, SIZE, HEADS = 47, 10, 3
SCALING = 0.31


def factors(seed, scale=1.0, heads=HEADS, width=WIDTH):
    drawn = np.random.default_rng(seed).normal(size=(heads, SIZE, width))
    return (scale * drawn / width**0.5).astype(np.float32)


def test_singular_values_are_those_of_the_dense_circuit():
    query, key = factors(0), factors(1)
    found = circuit_values(triangles(query), triangles(key))
    for head in range(HEADS):
        dense = np.linalg.svd(query[head].T.astype(float) @ key[head], compute_uv=False)
        assert np.allclose(found[head], dense[:SIZE], atol=1e-6)


def test_the_variance_at_offset_0_is_the_squared_norm_of_the_circuit():
    query, key = factors(0), factors(1)
    turns = rotations(np.array([1.0, 0.1, 0.01, 0.5, 0.3]), (0,), SIZE)
    found = logit_variance(grams(triangles(query)), grams(triangles(key)), turns, SCALING)
    dense = np.einsum("hsw,hsv->hwv", query, key)
    assert np.allclose(found[0], SCALING**2 * (dense**2).sum((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("offset", [0, 1, 7])
def test_the_variance_is_that_of_simulated_logits_at_every_offset(offset):
    generator = np.random.default_rng(2)
    query, key = factors(3, 3.0), factors(4, 3.0)
    frequencies = 10_000.0 ** (-np.arange(0, SIZE, 2) / SIZE)
    turns = rotations(frequencies, (offset,), SIZE)
    expected = logit_variance(grams(triangles(query)), grams(triangles(key)), turns, SCALING)[0]
    at_query, at_key = rotations(frequencies, (20 + offset, 20), SIZE)
    x, y = generator.normal(size=(2, 1500, WIDTH))
    for head in range(HEADS):
        logits = SCALING * (x @ query[head].T @ at_query.T) @ (y @ key[head].T @ at_key.T).T
        assert logits.var(axis=1).mean() == pytest.approx(expected[head], rel=0.05)


@pytest.mark.parametrize("scale", [0.7, 1.0, 1.2])
def test_the_entropy_estimate_is_within_5_percent_where_it_says_so(scale):
    generator = np.random.default_rng(5)
    n_keys, width = 256, 128
    query, key = factors(6, scale, width=width), factors(7, scale, width=width)
    variance = logit_variance(
        grams(triangles(query)), grams(triangles(key)), np.eye(SIZE)[None], scaling=1 / SIZE**0.5
    )[0]
    estimate, zone = entropy_estimate(variance, n_keys)
    assert (zone == "valid").all()
    x, y = generator.normal(size=(200, width)), generator.normal(size=(12, n_keys, width))
    for head in range(HEADS):
        keys = y @ key[head].T
        logits = np.einsum("qs,bks->bqk", x @ query[head].T, keys) / SIZE**0.5
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(-1).mean()
        assert estimate[head] == pytest.approx(entropy, rel=0.05)


def test_beyond_its_range_the_estimate_says_so_and_gives_no_number():
    limit = np.log(64)
    found, zone = entropy_estimate(np.array([0.49, 0.51, 1.99, 2.01]) * limit, 64)
    assert zone.tolist() == ["valid", "rough", "rough", "peaked"]
    assert np.isfinite(found).tolist() == [True, True, True, False]
    with pytest.raises(UsageError, match="1 keys has no entropy"):
        entropy_estimate(np.ones(2), 1)


def test_the_mean_logit_on_itself_is_the_trace():
    query, key = factors(0), factors(1)
    dense = np.einsum("hsw,hsv->hwv", query, key)
    expected = SCALING * np.trace(dense, axis1=1, axis2=2)
    assert np.allclose(self_logit(query, key, SCALING), expected, atol=1e-6)


def test_copying_eigenvalues_are_those_of_the_map_from_word_to_word():
    generator = np.random.default_rng(8)
    n_words = 71
    embedding, unembedding = generator.normal(size=(2, n_words, WIDTH))
    value, output = factors(9, heads=1), factors(10, heads=1)
    found = copying_eigenvalues(value, output, embedding.T @ unembedding)[0]
    dense = unembedding @ output[0].T.astype(float) @ value[0] @ embedding.T
    largest = sorted(np.linalg.eigvals(dense), key=abs)[-SIZE:]
    assert np.allclose(np.sort(np.abs(found)), np.sort(np.abs(largest)), rtol=1e-6)
    score = float(np.sum(largest).real / np.abs(largest).sum())
    assert copying_score(found[None])[0] == pytest.approx(score, rel=1e-6)


def test_a_head_that_hands_on_what_it_reads_copies_wholly():
    shared = factors(11, heads=1)
    found = copying_score(copying_eigenvalues(shared, shared, np.eye(WIDTH)))
    assert found[0] == pytest.approx(1.0)


def test_composition_is_the_norm_of_the_dense_product():
    near, far, output, value = factors(12), factors(13), factors(14, heads=2), factors(15, heads=2)
    found = composed_norm(near, grams(triangles(far)), output, grams(triangles(value)))
    for later, earlier in np.ndindex(HEADS, 2):
        left = far[later].T.astype(float) @ near[later]
        dense = left @ (output[earlier].T @ value[earlier])
        assert found[later, earlier] == pytest.approx(np.linalg.norm(dense), rel=1e-4)


@pytest.mark.parametrize("is_shared", [False, True])
def test_normalised_queries_have_the_second_moment_of_their_gain(is_shared):
    factor = factors(16, 5.0)
    gain = np.ones(SIZE * (HEADS if is_shared else 1), dtype=np.float32)
    found = normalised(factor, gain, is_shared=is_shared)
    total = np.square(found).sum((1, 2))
    assert total.mean() == pytest.approx(SIZE, rel=1e-5)
