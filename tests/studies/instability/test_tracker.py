"""Important heads and the focus score of Attention Tracker."""

import json

import numpy as np
import pytest

from graphhalu.core.errors import DataFileError, NotEnoughDataError, UsageError
from graphhalu.studies.instability.methods import (
    focus_scores,
    focus_share,
    important_heads,
    read_important_heads,
)

LABELS = np.array([0, 0, 0, 1, 1, 1, 1])


def focus_of(seed=0):
    return np.random.default_rng(seed).uniform(0.4, 0.5, (7, 5, 3))


def test_a_head_is_important_if_k_deviations_lie_between_the_classes():
    focus = focus_of()
    focus[LABELS == 0, 2, 1] += 0.4
    focus[LABELS == 0, 4, 0] += 0.12
    for k in (4.0, 1.0):
        slow = []
        for layer in range(5):
            for head in range(3):
                benign, attacks = focus[:3, layer, head], focus[3:, layer, head]
                low = benign.mean() - k * np.sqrt(np.mean((benign - benign.mean()) ** 2))
                high = attacks.mean() + k * np.sqrt(np.mean((attacks - attacks.mean()) ** 2))
                slow += [(layer, head)] if low > high else []
        assert slow
        assert important_heads(focus, LABELS, k_values=(k,)) == (tuple(slow), k)


def test_a_smaller_k_is_taken_where_no_head_reaches_the_larger():
    focus = focus_of()
    focus[LABELS == 0, 4, 0] += 0.11
    heads, k = important_heads(focus, LABELS)
    assert (4, 0) in heads
    assert k is not None
    assert k < 4


def test_all_heads_that_see_the_system_prompt_are_taken_where_none_is_apart():
    focus = focus_of()
    focus[LABELS == 0] -= 0.3
    focus[:, 1] = np.nan
    heads, k = important_heads(focus, LABELS)
    assert k is None
    assert len(heads) == 4 * 3
    assert np.isfinite(focus_scores(focus, heads)).all()


def test_important_heads_need_two_prompts_of_each_class():
    with pytest.raises(NotEnoughDataError, match="1 attacks and 3 benign"):
        important_heads(focus_of()[:4], LABELS[:4])


def test_the_focus_score_is_the_mean_over_the_named_heads():
    focus = focus_of()
    expected = (focus[:, 2, 1] + focus[:, 4, 0]) / 2
    np.testing.assert_allclose(focus_scores(focus, ((2, 1), (4, 0))), expected)


@pytest.mark.parametrize("heads", [((5, 0),), ((0, 3),), ()])
def test_heads_outside_the_model_are_refused(heads):
    with pytest.raises(UsageError, match="5 layers of 3 heads"):
        focus_scores(focus_of(), heads)


def test_a_row_on_neither_span_has_the_focus_zero_and_no_division_by_zero():
    found = focus_share(np.array([0.0, 0.3]), np.array([0.0, 0.1]))
    np.testing.assert_allclose(found, [0.0, 0.75], rtol=1e-6)


def test_the_published_lists_are_read(shared_data):
    folder = shared_data / "prompt_injection" / "attention_tracker_head_configs"
    found = {path.name: read_important_heads(path) for path in sorted(folder.glob("*.json"))}
    assert found["llama3_8b-attn_config.json"] == ((5, 18), (7, 12), (9, 29), (17, 2))
    assert len(found["qwen2-attn_config.json"]) == 14
    assert len(found["granite3_8b-attn_config.json"]) == 41


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[[1, 2], [3]]", DataFileError, "pairs"),
        ("[[1, -2]]", DataFileError, "pairs"),
        ("[[true, 1]]", DataFileError, "pairs"),
        ("[]", DataFileError, "pairs"),
        ('{"params": {}}', DataFileError, "important_heads"),
        ("nonsense", DataFileError, "not readable JSON"),
        (None, UsageError, "no list of heads"),
    ],
)
def test_what_is_no_list_of_heads_is_refused(tmp_path, text, error, words):
    path = tmp_path / "heads.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(error, match=words):
        read_important_heads(path)


def test_a_bare_list_is_read_too(tmp_path):
    (tmp_path / "heads.json").write_text(json.dumps([[7, 2], [3, 1]]), encoding="utf-8")
    assert read_important_heads(tmp_path / "heads.json") == ((7, 2), (3, 1))
