"""Controls of graph networks: signals that only edges hold, which they must find.

A result of a graph detector is to be believed only where these controls pass: two planted ones,
and one on the attention of a real store.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from graphhalu.core.axes import Span
from graphhalu.core.errors import NotEnoughDataError
from graphhalu.core.numerics import auroc
from graphhalu.core.splits import grouped_split
from graphhalu.detectors.base import ChosenTraces
from graphhalu.detectors.gnn.config import NetworkConfig
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.evaluation.metrics import Floats, Ints
from graphhalu.evaluation.settings import DetectorSpec
from graphhalu.graphs.dataset import AttentionGraphs, default_layers
from graphhalu.labels.labels import Labels, complete_labels, question_groups
from graphhalu.traces.trace import Trace

FOUND: Final = 0.95
"""AUROC above which a planted signal counts as found."""
NOT_FOUND: Final = 0.6
"""AUROC up to which a control without messages counts as not having found it."""
TOLERANCE: Final = 0.03
"""How far below plain arithmetic on the same edges a network may stay."""
N_ANSWERS: Final = 600
"""Answers of each control."""
HEADS: Final = 3
"""Heads of each of three layers whose attention to the question is to be found."""
TRAINING: Final = {"epochs": 100, "patience": 100, "batch_size": 16, "hidden_size": 64, "dropout": 0.0}
"""Training of networks on planted signals: they have no noise, and the loss of two hops is flat until
the first is learnt."""
DEFAULT_DETECTORS: Final = ("gat", "charm", "mlp")


def control_rows(
    specs: Sequence[DetectorSpec],
    traces: Sequence[Trace],
    *,
    seed: int = 0,
    n_answers: int = N_ANSWERS,
    on_progress: Progress = no_progress,
) -> list[dict[str, Any]]:
    """Every detector on every control.

    ``one hop``: the label is which of two spans one head attends to in the rows of the answer.
    ``two hops``: the label is what the tokens that the answer attends to attend to themselves.
    Neither is in any node feature of the answer. ``question mass``: on the given traces, whether
    the mean attention of a head to the question is above its median, for nine heads one after
    another, against the sum of the weights on the detector's own edges, done by arithmetic.

    Args:
        specs: Graph detectors, and controls without messages.
        traces: Of a store with complete attention.
        seed: Of everything planted, of the split and of the detectors.
        n_answers: How many answers each control has.
        on_progress: Called after each row.

    Returns:
        Of each row ``control``, ``detector``, its ``auroc`` on the test side (for question mass the
        mean over heads), ``reference`` (that of arithmetic on the same edges; ``None`` for planted
        signals), ``n_answers`` of all three sides, and whether it ``passes``: a graph network found
        the signal, or a control did not.

    Raises:
        NotEnoughDataError: If the traces are fewer than 30.
        GraphhaluError: What a detector raised.
    """
    from graphhalu.labels.planted import EDGE_SIGNALS, planted_edge_traces

    chosen = ChosenTraces(traces, tuple(range(min(n_answers, len(traces)))))
    if len(chosen) < 30:  # noqa: PLR2004
        raise NotEnoughDataError(f"a control on real attention needs 30 answers or more, got {len(chosen)}")
    # every detector meets the same traces, so that graphs are built once
    planted = {signal: planted_edge_traces(n_answers, signal, seed=seed) for signal in EDGE_SIGNALS}

    found = list[dict[str, Any]]()

    def add(control: str, spec: DetectorSpec, auroc: float, passes: bool, **more: Any) -> None:
        row = {"control": control, "detector": spec.name, "auroc": auroc, "reference": None}
        found.append({**row, "n_answers": n_answers, "passes": passes, **more})
        on_progress(len(found), 3 * len(specs), f"{spec.name}, {control}")

    for spec in specs:
        config, is_control = getattr(spec.make(0), "config", None), spec.card().is_control
        network = config if isinstance(config, NetworkConfig) else None
        trained = replace(spec, settings={**TRAINING, **spec.settings}) if network else spec
        for signal, (its_traces, labels) in planted.items():
            value = _auroc(trained, its_traces, labels, seed)
            add(signal, spec, value, value <= NOT_FOUND if is_control else value > FOUND)
        splits = list(question_mass(chosen, network or NetworkConfig()))
        reference = float(np.mean([_auroc(on_edges, chosen, labels, seed) for labels, on_edges in splits]))
        value = float(np.mean([_auroc(spec, chosen, labels, seed) for labels, _ in splits]))
        passes = is_control or value >= reference - TOLERANCE
        add("question mass", spec, value, passes, reference=reference, n_answers=len(chosen))
    return found


def question_mass(traces: Sequence[Trace], config: NetworkConfig) -> Iterator[tuple[Labels, Floats]]:
    """Labels of each head (above the median of its attention to the question), and its edges' sum.

    The attention is that of all keys, the sum that of the edges to the question that the graphs of
    a configuration have, both averaged over the rows of the answer.
    """
    shape = traces[0].shape
    layers, n_heads = default_layers(shape), shape.n_heads
    heads = np.unique(np.linspace(0, n_heads - 1, min(HEADS, n_heads)).round().astype(int))
    recipe = replace(config.recipe(layers, traces[0]), view="layers", nodes=("span",))
    on_edges = np.zeros((len(traces), len(layers), n_heads))
    for data in AttentionGraphs.of_recipe(traces, layers, recipe):
        key, query = data.edge_index
        is_chosen = (data.span[key] == int(Span.QUESTION)) & data.is_readout[query]
        mass = data.edge_attr[is_chosen].sum(0).numpy() / int(data.is_readout.sum())
        on_edges[data.trace_index, layers.index(data.layer)] = mass
    for place, layer in enumerate(layers):
        masses = (trace.layer_stream("span_mass", layer)[:, :, int(Span.QUESTION)] for trace in traces)
        starts = (trace.prompt_length - 1 - trace.record.row_start for trace in traces)
        of_heads = np.array([m[:, start:].mean(axis=1) for m, start in zip(masses, starts, strict=True)])
        for head in heads.tolist():
            whole = of_heads[:, head]
            values: Ints = (whole > np.median(whole)).astype(np.int64)
            ids, settings = (trace.trace_id for trace in traces), {"layer": layer, "head": head}
            labels = complete_labels(ids, values, "question-mass", reason="median split", settings=settings)
            yield labels, on_edges[:, place, head]


def _auroc(scorer: DetectorSpec | Floats, traces: Sequence[Trace], labels: Labels, seed: int) -> float:
    """AUROC of a fresh detector, or of given values, on the test side of a grouped split."""
    split = grouped_split(labels.values, question_groups(traces), seed=seed)
    if isinstance(scorer, DetectorSpec):
        tested = ChosenTraces(traces, tuple(split.test.tolist()))
        scores = scorer.make(seed).fit(traces, labels, split).score(tested).values
    else:
        scores = scorer[split.test]
    return auroc(scores, labels.values[split.test])
