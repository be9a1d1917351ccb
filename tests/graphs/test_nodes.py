import math
from dataclasses import replace

import numpy as np
import pytest

from graphhalu.core.axes import SPAN_NAMES, Span
from graphhalu.core.errors import NonFiniteError, UnknownNameError, UsageError
from graphhalu.features.block import block_of
from graphhalu.graphs.edges import HeadRoles
from graphhalu.graphs.nodes import NODE_BLOCKS, LayerBlock, node_features
from graphhalu.traces.trace import Trace

LENGTH, PROMPT, HEADS = 13, 7, 3
# no head of layer 1 plays the second role
ROLES = HeadRoles(
    ("retrieval", "induction"), np.array([[[0.5, 1], [0, 1], [2, 0]], [[1, 0], [1, 0], [0, 0]]])
)


def features_of(trace, layer, *names):
    return node_features(LayerBlock(block_of([trace]), (layer,), ROLES), names)


def block_values(trace, layer, name):
    return features_of(trace, layer, name).values[0]


def stored(trace, name, layer):
    return np.asarray(trace.arrays[name][layer], dtype=np.float64)


def slow_hidden(trace, layer, token):
    return list(trace.hidden(layer + 1)[token])


def slow_position(trace, layer, token):
    from_end = (token - PROMPT + 1) / LENGTH
    return [token / (LENGTH - 1), float(token >= PROMPT), from_end, math.log(LENGTH)]


def slow_span(trace, layer, token):
    return [float(trace.span_code[token] == code) for code in range(len(SPAN_NAMES))]


def sees_sink(trace, layer, token):
    return 4 <= token < (trace.shape.layer_windows[layer] or LENGTH)


def slow_paid(trace, layer, token):
    keys = stored(trace, "sink_keys", layer)
    if not sees_sink(trace, layer, token):
        return [0.0] * HEADS
    return [min(1.0, sum(keys[head, token])) for head in range(HEADS)]


def slow_sink(trace, layer, token):
    window = trace.shape.layer_windows[layer] or LENGTH
    n_rows = sum(1 for row in range(LENGTH) if 0 <= row - token < window)
    received = stored(trace, "received", layer)
    shares = [received[head, token] / n_rows for head in range(HEADS)]
    is_missing = float(not sees_sink(trace, layer, token))
    return [*shares, *slow_paid(trace, layer, token), is_missing]


def slow_instability(trace, layer, token):
    paid = slow_paid(trace, layer, token)
    mean = sum(paid) / HEADS
    std = math.sqrt(sum((value - mean) ** 2 for value in paid) / HEADS)
    if not sees_sink(trace, layer, token) or not 0 < mean < 1:
        return [0.0, 0.0, 1.0]
    return [std, std / math.sqrt(mean * (1 - mean)), 0.0]


def slow_roles(trace, layer, token):
    window = trace.shape.layer_windows[layer] or LENGTH
    n_rows = sum(1 for row in range(LENGTH) if 0 <= row - token < window)
    mass, received = stored(trace, "span_mass", layer), stored(trace, "received", layer)
    found = [[], [], [], []]
    for role in range(len(ROLES.names)):
        weights = ROLES.values[layer, :, role]
        total = sum(weights)
        shares = [weight / total if total else 0.0 for weight in weights]
        of_head = [
            [received[head, token] / n_rows for head in range(HEADS)],
            [mass[head, token, Span.CONTEXT] + mass[head, token, Span.QUESTION] for head in range(HEADS)],
            [mass[head, token, Span.ANSWER] for head in range(HEADS)],
        ]
        for column, values in zip(found, of_head, strict=False):
            column.append(sum(share * value for share, value in zip(shares, values, strict=True)))
        found[3].append(float(total == 0))
    return [value for column in found for value in column]


def slow_self_attention(trace, layer, token):
    own = stored(trace, "self_attention", layer)
    return [math.log(max(own[head, token], 1e-6)) for head in range(HEADS)]


def slow_diagonal(trace, layer, token):
    return [stored(trace, "self_attention", layer)[head, token] for head in range(HEADS)]


def slow_entropy(trace, layer, token):
    entropy = stored(trace, "row_entropy", layer)
    n_seen = min(token + 1, trace.shape.layer_windows[layer] or LENGTH)
    if n_seen == 1:
        return [0.0] * HEADS + [1.0]
    return [entropy[head, token] / math.log(n_seen) for head in range(HEADS)] + [0.0]


def slow_likelihood(trace, layer, token):
    if token == 0:
        return [0.0, 0.0, 0.0, 1.0]
    names = ("token_logprob", "token_entropy", "top1_margin")
    return [*(float(trace.arrays[name][token]) for name in names), 0.0]


def slow_heads(trace, layer, token):
    columns = [[], [], []]
    for each in range(trace.shape.n_layers):
        for head in range(HEADS):
            mass, keys = stored(trace, "span_mass", each)[head, token], stored(trace, "sink_keys", each)
            answer = mass[Span.ANSWER]
            columns[0].append(max(0.0, sum(mass) - answer - sum(keys[head, token])))
            columns[1].append(answer)
        columns[2] += slow_entropy(trace, each, token)[:HEADS]
    return [value for column in columns for value in column]


def slow_shift(trace, layer, token):
    without = trace.stream("contrast_hidden")[layer + 1][token]
    return list(trace.hidden(layer + 1)[token] - without)


def slow_contrast(trace, layer, token):
    if token < PROMPT:
        return [0.0] * (3 + len(trace.shape.hidden_layers)) + [1.0]
    names = ("contrast_logprob", "contrast_entropy", "output_shift")
    without, entropy, shift = (float(trace.arrays[name][token]) for name in names)
    ranks = [math.log(1 + rank) for rank in trace.arrays["lens_rank"][:, token].tolist()]
    return [float(trace.arrays["token_logprob"][token]) - without, entropy, shift, *ranks, 0.0]


def slow_overlap(trace, layer, token):
    if token < PROMPT:
        return [0.0] * 3
    ids = trace.token_ids.tolist()
    found = []
    for size in (1, 2, 3):
        run = ids[token - size + 1 : token + 1]
        found.append(float(any(ids[at : at + size] == run for at in range(PROMPT - size + 1))))
    return found


ORACLES = {
    "heads": slow_heads,
    "shift": slow_shift,
    "contrast": slow_contrast,
    "overlap": slow_overlap,
    "hidden": slow_hidden,
    "position": slow_position,
    "span": slow_span,
    "sink": slow_sink,
    "instability": slow_instability,
    "roles": slow_roles,
    "self_attention": slow_self_attention,
    "diagonal": slow_diagonal,
    "entropy": slow_entropy,
    "likelihood": slow_likelihood,
}


def test_every_block_has_an_oracle():
    assert set(ORACLES) == set(NODE_BLOCKS)


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("layer", [0, 1])
def test_a_block_equals_its_loop(trace, name, layer):
    block = features_of(trace, layer, name)

    expected = np.array([ORACLES[name](trace, layer, token) for token in range(LENGTH)])
    np.testing.assert_allclose(block.values[0], expected, rtol=1e-5, atol=1e-6)
    assert len(block.names) == len(set(block.names)) == expected.shape[1]


def test_columns_of_several_blocks_stand_side_by_side_with_their_names(trace):
    both = features_of(trace, 1, "span", "entropy")

    assert both.names[:2] == ("span.bos", "span.system")
    assert both.names[6:-1] == tuple(f"entropy.relative_head{head}" for head in range(HEADS))
    assert both.names[-1] == "entropy.is_missing"
    np.testing.assert_allclose(both.values[0][:, 6:], block_values(trace, 1, "entropy"))


def test_what_a_token_receives_is_a_mean_and_so_at_most_one(trace):
    received = block_values(trace, 1, "sink")[:, :HEADS]

    assert received.min() >= 0
    assert received.max() <= 1 + 1e-6


def test_an_unknown_block_is_refused_with_the_known_names(trace):
    with pytest.raises(UnknownNameError, match="instability"):
        features_of(trace, 0, "instable")


def test_a_graph_without_node_features_is_refused(trace):
    with pytest.raises(UsageError, match="at least one block"):
        features_of(trace, 0)


def test_a_value_that_is_not_finite_is_an_error_that_names_block_layer_and_token(trace):
    broken = np.array(trace.arrays["token_entropy"])
    broken[5] = np.inf
    faulty = Trace(trace.record, trace.shape, {**trace.arrays, "token_entropy": broken})

    with pytest.raises(NonFiniteError, match=r"layer 1.*inf in likelihood\.entropy at token 5"):
        features_of(faulty, 1, "likelihood")


def test_layers_are_found_by_their_number_in_the_model(trace):
    kept = Trace(
        trace.record,
        replace(trace.shape, n_layers=19, attention_layers=(11, 17), hidden_layers=(0, 12, 18)),
        {**trace.arrays, "hidden": trace.arrays["hidden"][:3]},
    )

    for name in ("sink", "hidden"):
        np.testing.assert_array_equal(block_values(kept, 17, name), block_values(trace, 1, name))
