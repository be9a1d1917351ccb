"""Pattern heads on attention made by hand, and on tiny models."""

import numpy as np
import pytest

from graphhalu.core.errors import UsageError
from graphhalu.heads.patterns import PATTERNS, find_pattern_heads, pattern_score, random_sequences
from graphhalu.heads.settings import PatternSettings

PERIOD, N_TOKENS = 7, 15
SETTINGS = PatternSettings(period=PERIOD, local_window=2, n_sequences=3)
TARGETS = {
    "previous_token": lambda row: [row - 1],
    "self": lambda row: [row],
    "duplicate": lambda row: [row - PERIOD],
    "induction": lambda row: [row - PERIOD + 1],
    "sink": lambda row: [0],
    "local": lambda row: [row - 2, row - 1],
}


def planted(pattern):
    """One head that follows a pattern wherever it can, and one that attends evenly."""
    attention = np.zeros((2, N_TOKENS, N_TOKENS), dtype=np.float32)
    for row in range(N_TOKENS):
        keys = [key for key in TARGETS[pattern](row) if key >= 0] or [0]
        attention[0, row, keys] = 1 / len(keys)
        attention[1, row, : row + 1] = 1 / (row + 1)
    return attention


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_head_that_follows_a_pattern_scores_one_and_an_even_one_the_chance_level(pattern):
    score, chance = pattern_score(planted(pattern), pattern, SETTINGS)
    np.testing.assert_allclose(score[0], 1, rtol=1e-6)
    np.testing.assert_allclose(score[1], chance, rtol=1e-6)
    assert (chance > 0).all()
    assert (chance < 0.5).all()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_equal_a_slow_loop(pattern):
    generator = np.random.default_rng(1)
    attention = np.tril(generator.uniform(size=(3, N_TOKENS, N_TOKENS))).astype(np.float32)
    attention /= attention.sum(-1, keepdims=True)
    first = {"previous_token": 2, "self": 1, "sink": 1, "local": 3}.get(pattern, PERIOD + 1)
    expected = [attention[:, row, TARGETS[pattern](row)].sum(-1) for row in range(first, N_TOKENS)]
    found = pattern_score(attention, pattern, SETTINGS).score
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5)


def test_a_window_hides_what_lies_too_far_back():
    attention = planted("induction")
    for pattern in ("induction", "duplicate"):
        assert np.isnan(pattern_score(attention, pattern, SETTINGS, window=5).score).all()
    assert not np.isnan(pattern_score(attention, "local", SETTINGS, window=5).score).any()
    assert not np.isnan(pattern_score(attention, "induction", SETTINGS, window=7).score).any()
    assert np.isnan(pattern_score(attention, "duplicate", SETTINGS, window=7).score).all()


def test_an_unknown_pattern_is_refused():
    with pytest.raises(UsageError, match="no pattern named 'zigzag'; known: previous_token"):
        pattern_score(planted("self"), "zigzag", SETTINGS)


def test_sequences_repeat_plain_tokens_after_the_start_mark(tiny):
    sequences = random_sequences(tiny, SETTINGS)
    assert len(sequences) == 3
    special = set(tiny.tokenizer.all_special_ids)
    for tokens in sequences:
        assert tokens[0] == tiny.tokenizer.bos_token_id
        np.testing.assert_array_equal(tokens[1 : PERIOD + 1], tokens[PERIOD + 1 :])
        assert len(set(tokens[1:].tolist())) == PERIOD
        assert not special & set(tokens[1:].tolist())
    again = random_sequences(tiny, SETTINGS)
    np.testing.assert_array_equal(np.stack(again), np.stack(sequences))


def test_tables_equal_the_models_own_attention(tiny, tiny_windowed):
    for loaded in (tiny, tiny_windowed):
        tables = {t.role: t for t in find_pattern_heads(loaded, SETTINGS)}
        assert tuple(tables) == PATTERNS
        attention = own_attention(loaded, random_sequences(loaded, SETTINGS)[0])
        for layer, window in enumerate(loaded.layer_windows):
            for name in PATTERNS:
                expected = pattern_score(attention[layer], name, SETTINGS, window=window).score
                np.testing.assert_allclose(tables[name].scores[0, layer], expected, atol=1e-5)
    assert np.isnan(tables["induction"].mean[0]).all()
    assert not np.isnan(tables["induction"].mean[1]).any()


def own_attention(loaded, tokens):
    import torch

    from graphhalu.models.attention import eager_attention

    with torch.inference_mode(), eager_attention(loaded.model):
        output = loaded.model(torch.from_numpy(tokens)[None], output_attentions=True)
    return np.stack([weights[0].numpy() for weights in output.attentions])


def test_what_does_not_fit_the_model_is_refused(tiny):
    with pytest.raises(UsageError, match=r"makes 203 tokens.*has 128"):
        random_sequences(tiny, PatternSettings(period=101))
    with pytest.raises(UsageError, match="different tokens"):
        small = PatternSettings(period=60)
        object.__setattr__(small, "period", 95)
        from dataclasses import replace

        random_sequences(replace(tiny, max_positions=None), small)
