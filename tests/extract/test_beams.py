"""Beam bookkeeping against a search that holds its beams in plain Python lists."""

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from graphhalu.extract import beams as module
from graphhalu.extract.beams import Beams


def slow_beam_search(table, n_beams, max_steps, stop):
    """Beam search over a chain whose ``table[step, last, next]`` are log-probabilities."""
    running = [((), 0.0)]
    finals: list[tuple[float, tuple[int, ...], bool]] = []
    for step in range(max_steps):
        options = [
            (score + float(table[step, tokens[-1] if tokens else 0, token]), (*tokens, token))
            for tokens, score in running
            for token in range(table.shape[2])
        ]
        options.sort(key=lambda option: -option[0])
        is_last = step + 1 == max_steps
        for score, tokens in options[:n_beams]:
            if tokens[-1] in stop or is_last:
                finals.append((score / len(tokens), tokens, tokens[-1] in stop))
        finals = sorted(finals, key=lambda final: -final[0])[:n_beams]
        running = [(tokens, score) for score, tokens in options if tokens[-1] not in stop][:n_beams]
        best = running[0][1] / (step + 1)
        if len(finals) == n_beams and best <= finals[-1][0]:
            break
    return [(tokens[:-1] if stopped else tokens, score, stopped) for score, tokens, stopped in finals]


def fast_beam_search(tables, n_beams, max_steps, stop):
    """The same through ``Beams``, a batch of chains at a time."""
    tables = torch.stack([torch.from_numpy(table).float() for table in tables])
    n_questions, stops = len(tables), torch.tensor(sorted(stop))
    beams = Beams.start(n_questions, n_beams, max_steps, torch.device("cpu"))
    last = torch.zeros(n_questions, n_beams, dtype=torch.long)
    for step in range(max_steps):
        log_probabilities = torch.stack([tables[q, step][last[q]] for q in range(n_questions)])
        beams.advance(step, log_probabilities, stops)
        last = beams.running_tokens[:, :, step]
        if not beams.is_open.any():
            break
    return [beams.candidates(question) for question in range(n_questions)]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_beams=st.sampled_from([1, 2, 3, 5]),
    n_tokens=st.sampled_from([7, 11]),
    max_steps=st.sampled_from([1, 3, 5]),
    n_stops=st.sampled_from([1, 2, 4]),
    widest=st.sampled_from([0, 64]),
)
def test_a_batch_of_chains_gives_the_beams_of_the_slow_search(
    seed, n_beams, n_tokens, max_steps, n_stops, widest
):
    generator = np.random.default_rng(seed)
    stop = set(range(1, 1 + n_stops))
    tables = []
    for _ in range(3):
        # another table at every step: a chain that does not change has exact ties
        logits = generator.normal(size=(max_steps, n_tokens, n_tokens)) * 2
        tables.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
    with mock.patch.object(module, "_WIDEST", widest):  # both ways to find the likeliest
        found = fast_beam_search(tables, n_beams, max_steps, stop)
    for table, candidates in zip(tables, found, strict=True):
        expected = slow_beam_search(table, n_beams, max_steps, stop)
        assert [c.token_ids for c in candidates] == [tokens for tokens, _, _ in expected]
        assert [c.is_finished for c in candidates] == [stopped for _, _, stopped in expected]
        assert [c.score for c in candidates] == pytest.approx([score for _, score, _ in expected], abs=1e-5)


def test_a_question_that_is_done_no_longer_changes():
    certain_end = np.log(np.array([[[0.01, 0.97, 0.02]] * 3] * 7))
    slow = np.log(np.array([[[0.60, 0.02, 0.38]] * 3] * 7))
    alone = fast_beam_search([certain_end], 2, 7, {1})[0]
    together = fast_beam_search([certain_end, slow], 2, 7, {1})[0]
    assert alone == together
    assert alone[0].token_ids == ()


def test_one_beam_is_greedy_search():
    table = np.log(np.array([[[0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.15, 0.8, 0.05]]] * 5))
    (candidate,) = fast_beam_search([table], 1, 5, {1})[0]
    assert candidate.token_ids == (2,)
    assert candidate.is_finished
    assert candidate.score == pytest.approx((np.log(0.6) + np.log(0.8)) / 2, abs=1e-6)
