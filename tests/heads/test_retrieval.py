"""Retrieval runs on tiny models: the rows against the model's own attention, gates, refusals."""

import json
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.axes import RowRange
from graphhalu.core.errors import NotEnoughDataError, UsageError
from graphhalu.heads.retrieval import (
    Passage,
    find_retrieval_heads,
    hidden_needles,
    needle_rows,
    rouge1_recall,
)
from graphhalu.heads.settings import RetrievalSettings
from tests.heads.test_patterns import own_attention


@pytest.fixture
def settings(tmp_path):
    haystack, needles = tmp_path / "hay.txt", tmp_path / "needles.jsonl"
    haystack.write_text("A mill is old. It has a wheel. " * 9, encoding="utf-8")
    needle = {"needle": "A fox ran.", "question": "Who?", "real_needle": "A fox"}
    needles.write_text(json.dumps(needle), encoding="utf-8")
    return RetrievalSettings(
        lengths=(70, 90),
        n_depths=2,
        haystack=haystack,
        needles=needles,
        chat="off",
        max_new_tokens=7,
        gate=None,
    )


@pytest.mark.parametrize("name", ["tiny", "tiny_windowed"])
def test_rows_equal_the_models_own_attention(name, request):
    loaded = request.getfixturevalue(name)
    tokens = np.random.default_rng(0).integers(4, 97, 31)
    passage = Passage(tokens, 23, RowRange(20, 22), RowRange(3, 23), loaded.layer_windows)
    argmax, mass = needle_rows(loaded.model, passage)
    own = own_attention(loaded, tokens)[:, :, 22:30]
    np.testing.assert_array_equal(argmax, own.argmax(-1))
    np.testing.assert_allclose(mass, own[..., 20:22].sum(-1), atol=1e-5)


def test_every_trial_is_scored_when_there_is_no_gate(tiny, settings):
    seen = []
    tables = find_retrieval_heads(tiny, settings, lambda *step: seen.append(step))
    assert [table.role for table in tables] == ["retrieval", "retrieval_mass"]
    assert seen[-1] == (4, 4)
    for table in tables:
        assert len(table.trials) + len(table.rejected) == 4
        assert table.scores.shape[1:] == (3, 6)
        assert table.model == tiny.identity
        assert table.settings["rule"] == "set"
        assert (table.scores >= 0).all()
        assert (table.scores <= 1).all()
    assert (tables[1].mean > 0).all()
    assert (tables[1].chance > 0).all()


def test_a_layer_whose_window_ends_behind_the_needle_is_missing(tiny_windowed, settings):
    table = find_retrieval_heads(tiny_windowed, settings)[0]
    assert np.isnan(table.mean[[0, 2]]).all()
    assert not np.isnan(table.mean[1]).any()
    assert {row["layer"] for row in table.ranked()} == {1}


def test_a_gate_that_nothing_passes_is_an_error_with_reasons(tiny, settings):
    gated = settings.model_copy(update={"gate": 99.0})
    with pytest.raises(NotEnoughDataError, match=r"no trial of 4 counts.*is not above 99 %"):
        find_retrieval_heads(tiny, gated)


def test_recall_is_the_share_of_the_references_words():
    assert rouge1_recall("The fox ran away", "a fox ran") == pytest.approx(100 * 2 / 3)
    assert rouge1_recall("", "a fox") == 0


def test_prompts_that_do_not_fit_the_context_are_refused(tiny, settings):
    with pytest.raises(UsageError, match=r"need up to 132 tokens.*has 128"):
        hidden_needles(tiny, settings.model_copy(update={"lengths": (125,)}))
    with pytest.raises(UsageError, match="no length"):
        hidden_needles(tiny, settings.model_copy(update={"lengths": ()}))
    unlimited = replace(tiny, max_positions=None)
    with pytest.raises(UsageError, match="a longer text with --haystack"):
        hidden_needles(unlimited, settings.model_copy(update={"lengths": (999,)}))
