"""Evidence beside a single answer: planted, found by the detector that reads it and by no other."""

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch_geometric.data import Batch

from graphhalu.core.numerics import auroc
from graphhalu.core.splits import grouped_split
from graphhalu.detectors.gnn.evidence import (
    NEIGHBOURS,
    RELATIONS,
    EvidenceAlone,
    EvidenceConfig,
    EvidenceNetwork,
    StreamingConfig,
    attended,
    evidence_graph,
    neighbours,
    random_pairs,
)
from graphhalu.detectors.gnn.networks import n_parameters
from graphhalu.detectors.registry import DETECTORS
from graphhalu.detectors.token_features import family_columns
from graphhalu.graphs.dataset import AttentionGraphs
from graphhalu.labels.labels import question_groups
from graphhalu.labels.planted import planted_token_traces
from graphhalu.labels.stated import label_tokens

FINDERS = {"context": ("token-contrast", "token-shift", "token-residual", "token-cortex"), "copying": ()}
BLIND = {
    "context": ("token-attention", "token-hidden", "token-likelihood", "token-overlap"),
    "copying": ("token-attention", "token-hidden", "token-overlap", "token-contrast"),
}
NETWORK = {
    "epochs": 30,
    "patience": 8,
    "n_folds": 2,
    "n_components": 4,
    "hidden_size": 16,
    "edges_per_row": 4,
}


@pytest.fixture(scope="module")
def stores():
    made = {}

    def get(evidence, n_traces=120):
        if evidence not in made:
            traces = planted_token_traces(n_traces, seed=2, evidence=evidence)
            labels = label_tokens([trace.record for trace in traces])
            made[evidence] = traces, labels, grouped_split(labels.values, question_groups(traces))
        return made[evidence]

    return get


def scores_of(name, store, **settings):
    """Scores and labels of the test side's tokens."""
    traces, labels, split = store
    kind = DETECTORS.get(name)
    detector = kind(**kind.settings(seed=0, **settings)).fit(traces, labels, split)
    scores = detector.score([traces[index] for index in split.test])
    assert scores.is_valid.all()
    return scores.values, np.concatenate([labels.tokens[index] for index in split.test])


@pytest.mark.parametrize("name", FINDERS["context"])
def test_what_only_the_context_changes_is_found_by_those_that_compare(name, stores):
    assert auroc(*scores_of(name, stores("context"))) > 0.9


@pytest.mark.parametrize("name", BLIND["context"])
def test_it_is_not_found_by_those_that_do_not(name, stores):
    assert auroc(*scores_of(name, stores("context"))) < 0.7


def test_the_network_finds_what_the_context_changes(stores):
    assert auroc(*scores_of("token-evidence", stores("context"), **NETWORK)) > 0.9


def test_copied_tokens_are_found_by_the_network_that_knows_what_is_copied(stores):
    assert auroc(*scores_of("token-evidence", stores("copying"), **NETWORK)) > 0.9


def test_the_stack_of_networks_is_their_weighed_sum_and_leans_on_the_one_that_knows(stores):
    traces, labels, split = stores("copying")
    kind = DETECTORS.get("token-graphhalu")
    stack = kind(**kind.settings(seed=0, **NETWORK)).fit(traces, labels, split)
    tested = [traces[index] for index in split.test]
    scores, joints = stack.score(tested), stack.joints
    assert joints["attention"].weight > 2 * joints["text"].weight
    assert auroc(scores.values, np.concatenate([labels.tokens[index] for index in split.test])) > 0.9
    for trace, found in zip(tested[:5], scores.by_trace(), strict=False):
        expected = [stack.bias] * trace.answer_length
        for name, member in stack.members.items():
            for token, logit in enumerate(member.score([trace]).values.tolist()):
                expected[token] += joints[name].weight * joints[name].scale * (logit - joints[name].mean)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", BLIND["copying"])
def test_they_are_not_found_by_probes(name, stores):
    assert auroc(*scores_of(name, stores("copying"))) < 0.7


@pytest.mark.parametrize("name", ["token-evidence-alone", "token-evidence-neighbours"])
def test_nor_without_the_edges(name, stores):
    assert auroc(*scores_of(name, stores("copying"), **NETWORK | {"epochs": 8})) < 0.7


def test_runs_of_labels_are_found_by_smoothing(stores):
    store = stores("runs", 200)
    plain, truth = scores_of("token-attention", store, windows=[1])
    settings = {"base": "token-attention", "settings": {"windows": [1]}}
    smoothed, _ = scores_of("token-smoothed", store, **settings)
    assert average_precision_score(truth, smoothed) > average_precision_score(truth, plain) + 0.05


@pytest.mark.parametrize("layer", [1, 3])
def test_the_residual_of_a_shift_equals_a_loop(stores, layer):
    trace = stores("context")[0][3]
    found = family_columns(trace, f"residual.{layer}")
    shift = family_columns(trace, f"shift.{layer}").values
    start = trace.prompt_length
    expected = trace.hidden(layer)[start - 1 :] - trace.stream("contrast_hidden")[layer][start - 1 :]
    np.testing.assert_allclose(shift, expected, rtol=1e-6)
    attention = trace.attention(layer - 1).mean(0)
    for row in range(len(shift)):
        total = shift[row].copy()
        for earlier in range(1, row):
            total -= attention[start - 1 + row, start - 1 + earlier] * shift[earlier]
        np.testing.assert_allclose(found.values[row], total, rtol=1e-4, atol=1e-5)
    assert found.is_of_rows


@pytest.fixture(scope="module")
def graphs(stores):
    traces = stores("copying")[0]
    config = EvidenceConfig(edges_per_row=3)
    recipe = config.recipe((1, 3), traces[0])
    return traces, AttentionGraphs.of_recipe(traces, (1, 3), recipe)


def slow_pairs(trace, data):
    """Own rows within the answer, the rows before to the prompt, and neighbours; with their attention."""
    attention = {tuple(pair): data.edge_attr[at] for at, pair in enumerate(data.edge_index.T.tolist())}
    start, found = trace.prompt_length, []
    found += [(k, q, w) for (k, q), w in attention.items() if k >= start]
    produced = [(k, q + 1, w) for (k, q), w in attention.items() if k < start and q + 1 < trace.length]
    found += [each for each in produced if each[1] >= start]
    none = torch.zeros(data.edge_attr.shape[1])
    return found + [(q - 1, q, none) for q in range(start, trace.length)]


def slow_edges(trace, pairs):
    """Relations of each pair by a loop, and the flipped ones within the answer."""
    forward, backward = [], []
    ids, spans = trace.token_ids.tolist(), trace.span_code.tolist()
    for key, query, _ in pairs:
        relations = [np.log1p(query - key), spans[key] == 2, spans[key] in (0, 1, 3, 4), spans[key] == 5]
        relations += [ids[key] == ids[query], 0]
        forward.append((key, query, *map(float, relations)))
        if key >= trace.prompt_length:
            backward.append((query, key, *map(float, [*relations[:-1], 1])))
    return forward + backward


def test_an_evidence_graph_has_the_relations_of_a_loop(graphs):
    traces, every = graphs
    for index in (0, 5, 8):
        trace, data = traces[index], every[index]
        n_heads = data.edge_attr.shape[1]
        made = evidence_graph(data, pairs=attended)
        pairs = slow_pairs(trace, data)
        expected = slow_edges(trace, pairs)
        answer = range(trace.prompt_length, trace.length)
        touched = sorted({end for k, q, *_ in expected for end in (k, q)} | {*answer})
        number = {token: place for place, token in enumerate(touched)}
        assert made.num_nodes == len(touched) < trace.length
        torch.testing.assert_close(made.x, data.x[touched])
        assert made.edge_index.T.tolist() == [[number[k], number[q]] for k, q, *_ in expected]
        torch.testing.assert_close(made.edge_attr[:, n_heads:], torch.tensor([each[2:] for each in expected]))
        assert made.edge_attr.shape[1] == n_heads + len(RELATIONS)
        weights = torch.stack([weight for *_, weight in pairs]).sqrt()
        torch.testing.assert_close(made.edge_attr[: len(pairs), :n_heads], weights)


def test_neighbours_and_random_pairs_carry_no_attention(graphs):
    traces, every = graphs
    for index in (0, 5):
        trace, data = traces[index], every[index]
        for choose in (neighbours, random_pairs):
            (key, query), attention = choose(data)
            assert not attention.any()
            assert (key < query).all()
        (key, query), _ = neighbours(data)
        last = trace.length - 1
        assert sorted(key[query == last].tolist()) == list(range(last - NEIGHBOURS, last))
        counts = [choose(data)[0][1].bincount(minlength=trace.length) for choose in (attended, random_pairs)]
        assert torch.equal(*counts)


def test_a_streaming_score_stays_while_the_answer_goes_on(graphs):
    traces, _ = graphs
    recipe = StreamingConfig(edges_per_row=3).recipe((1, 3), traces[0])
    make = partial(evidence_graph, pairs=attended, is_streaming=True)
    every = AttentionGraphs.of_recipe(traces, (1, 3), recipe)
    torch.manual_seed(0)
    data = make(every[4])
    network = EvidenceNetwork(data.x.shape[1], data.edge_attr.shape[1], hidden_channels=8).eval()
    with torch.no_grad():
        whole = network(Batch.from_data_list([data]))
        for n_left in (1, 4, len(whole) - 1):
            cut = every[4]
            n_tokens = cut.num_nodes - n_left
            for name in ("x", "span", "token_id", "is_answer", "is_readout", "layer_index", "kept_mass"):
                cut[name] = cut[name][:n_tokens]
            is_kept = cut.edge_index[1] < n_tokens
            cut.edge_index, cut.edge_attr = cut.edge_index[:, is_kept], cut.edge_attr[is_kept]
            part = network(Batch.from_data_list([make(cut)]))
            torch.testing.assert_close(part, whole[: len(part)])


def test_the_control_without_messages_is_as_large():
    with_edges, alone = (kind(13, 11, hidden_channels=16) for kind in (EvidenceNetwork, EvidenceAlone))
    assert n_parameters(alone) == pytest.approx(n_parameters(with_edges), rel=0.05)
