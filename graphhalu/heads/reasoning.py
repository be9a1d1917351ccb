"""Reasoning heads: which heads look back at what was generated, and at the question.

Measured on stored traces. A trace counts if its answer is right, by ROUGE-1 recall or by any
labeller; the wrong ones are kept for the contrast.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.axes import Span, answer_producing_rows
from graphhalu.core.errors import StoreMismatchError, TraceNotFoundError, UsageError
from graphhalu.heads.settings import ReasoningSettings
from graphhalu.heads.table import HeadScores, HeadTable, contrast, mean_of_present
from graphhalu.labels.registry import LABELLERS, make_labeller
from graphhalu.labels.rouge import RougeOverlap
from graphhalu.labels.run import label_records, labels_path, read_labels
from graphhalu.traces.store import TraceStore
from graphhalu.traces.trace import Trace, attention_kept

_SMALLEST_REST: Final = 0.01
"""Attention outside the sinks below which a share of it would be rounding (half precision)."""


Verdict = tuple[bool | None, str]
"""Whether an answer is right, if that is known; and why its trace is not accepted."""


def find_reasoning_heads(
    store: TraceStore,
    settings: ReasoningSettings | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[HeadTable]:
    """Score every head on the traces of a store whose answers are right.

    Args:
        store: Traces with full attention, or edges, or streams only.
        settings: Local window, sink and gate.
        on_progress: Called with the number of traces done, and of all.

    Returns:
        The tables ``reasoning`` (attention to generated tokens) and ``question``. Their columns
        hold the contrast: the mean over right answers minus that over wrong ones, of the score
        and of its excess over chance, with interval by question, p- and q-value over all heads.
        Edges give a lower bound of ``reasoning``; streams alone give ``question`` only.

    Raises:
        NotEnoughDataError: If no trace is accepted; counts the reasons.
        UsageError: If the labels do not judge the model's own output.
        TraceNotFoundError: If the store keeps not even streams.

    Source:
        Study of reasoning heads, corrected: see :func:`attention_share`.
        A head that looks nowhere counts with its zero; the public file averages over those
        traces only in which a head's sum was positive.
    """
    settings = settings or ReasoningSettings()
    source = attention_source(store.arrays)
    verdicts = judge(store, settings)
    found = []
    for done, (trace, (is_right, _)) in enumerate(zip(store, verdicts, strict=True), start=1):
        found.append(None if is_right is None else trace_shares(trace, settings))
        on_progress(done, len(store))
    roles = ("question",) if source == "streams" else ("reasoning", "question")
    tables = [_table(role, store, found, verdicts, settings) for role in roles]
    return [table.require_trials() for table in tables]


def attention_source(arrays: Sequence[str]) -> str:
    """What a store's attention is read from: ``full``, ``edges`` or ``streams``.

    Raises:
        TraceNotFoundError: If it keeps none of them.
    """
    missing = sorted({"span_mass", "sink_keys"} - set(arrays))
    if missing:
        raise TraceNotFoundError(f"reasoning heads need the streams {' and '.join(missing)}; extract again")
    return attention_kept(arrays)


def judge(store: TraceStore, settings: ReasoningSettings) -> list[Verdict]:
    """Which answers are right, by the gate or by a labeller; nothing is written."""
    if settings.labeller is not None:
        return _by_labels(store, settings.labeller)
    scores, decides = RougeOverlap("rouge1_recall").best_scores(store.records)
    reason = f"ROUGE-1 recall is not above {settings.gate:g} %"
    return [
        (score > settings.gate, reason) if is_decided else (None, "ROUGE cannot judge the answer")
        for score, is_decided in zip((100 * scores).tolist(), decides.tolist(), strict=True)
    ]


def trace_shares(trace: Trace, settings: ReasoningSettings) -> dict[str, HeadScores]:
    """Mean shares of one trace over the rows that produce its answer, by role.

    Returns:
        For ``reasoning`` and ``question`` a share and its chance level for each layer and head;
        NaN where there is none.
    """
    source = attention_source(tuple(trace.arrays))
    shape = trace.shape
    layers = [
        _layer_shares(trace, settings, layer, window, source)
        for layer, window in zip(shape.attention_layers, shape.layer_windows, strict=True)
    ]
    found = {}
    for role in layers[0]:
        share = np.stack([mean_of_present(rows[role].score, axis=-1) for rows in layers])
        chance = np.array([mean_of_present(rows[role].chance, axis=-1) for rows in layers])
        found[role] = HeadScores(share, np.broadcast_to(chance[:, None], share.shape))
    return found


def _layer_shares(
    trace: Trace, settings: ReasoningSettings, layer: int, window: int | None, source: str
) -> dict[str, HeadScores]:
    """Shares and chance levels of each row; a share is missing where its chance level is."""
    n_sink, rows = settings.n_sink, np.arange(*answer_producing_rows(trace.prompt_length, trace.length))
    span_mass, sink_keys = (
        trace.layer_stream(name, layer)[:, trace.answer_rows].astype(np.float64)
        for name in ("span_mass", "sink_keys")
    )
    total = span_mass.sum(-1) - sink_keys[..., :n_sink].sum(-1)
    is_question = trace.span_code == Span.QUESTION
    asked = np.broadcast_to(is_question, (len(rows), len(is_question)))
    question_chance = uniform_share(asked, rows, n_sink=n_sink, window=window)
    n_stored = min(n_sink, len(is_question))
    sunk_question = (sink_keys[..., :n_stored] * is_question[:n_stored]).sum(-1)
    part = np.maximum(span_mass[..., Span.QUESTION] - sunk_question, 0.0)
    question = _shares(part, total, question_chance)
    generated = generated_keys(
        rows, trace.length, prompt_length=trace.prompt_length, local_window=settings.local_window
    )
    chance = uniform_share(generated, rows, n_sink=n_sink, window=window)
    if source == "streams":
        return {"reasoning": HeadScores(np.full_like(question.score, np.nan), chance), "question": question}
    attention = trace.censored_attention(layer)[:, trace.answer_rows].astype(np.float64)
    # edges do not hold the whole of a row
    whole = total if source == "edges" else None
    reasoning = attention_share(attention, generated, chance, n_sink=n_sink, totals=whole)
    return {"reasoning": reasoning, "question": question}


def generated_keys(
    rows: Int[np.ndarray, "row"], n_keys: int, *, prompt_length: int, local_window: int
) -> Bool[np.ndarray, "row key"]:
    """The generated tokens before a row's local window: keys ``P <= j < i - w``."""
    keys = np.arange(n_keys)
    return (keys >= prompt_length) & (keys < rows[:, None] - local_window)


def uniform_share(
    is_asked: Bool[np.ndarray, "row key"], rows: Int[np.ndarray, "row"], *, n_sink: int, window: int | None
) -> Float[np.ndarray, "row"]:
    """Share of uniform attention on the visible keys outside the sink that falls on asked keys.

    NaN where a row cannot see all of the asked keys, and where there are none.
    """
    keys = np.arange(is_asked.shape[1])
    distance = rows[:, None] - keys
    is_visible = (distance >= 0) & (distance < (window or len(keys) + 1))
    is_sink = keys < n_sink
    n_asked = (is_asked & ~is_sink).sum(1)
    is_whole = ~(is_asked & ~is_sink & ~is_visible).any(1) & (n_asked > 0)
    return np.where(is_whole, n_asked / np.maximum((is_visible & ~is_sink).sum(1), 1), np.nan)


def attention_share(
    attention: Float[np.ndarray, "head row key"],
    is_asked: Bool[np.ndarray, "row key"],
    chance: Float[np.ndarray, "row"],
    *,
    n_sink: int,
    totals: Float[np.ndarray, "head row"] | None = None,
) -> HeadScores:
    """Attention to the asked keys over all attention outside the sinks, row by row.

    ``sum_{j asked, not sink} A[i, j] / (sum_j A[i, j] - sum_{j in sink} A[i, j])``

    Args:
        attention: Weights, as far as they are kept.
        is_asked: Which keys each row is asked about.
        chance: Share of uniform attention; NaN where a row does not count.
        n_sink: Leading tokens that form the sink.
        totals: Sum of each whole row without its sink, where ``attention`` does not hold all of
            it; by default that of ``attention``.

    Source:
        The public file ``reasoning_head_detection.py`` sums the five largest weights of a row,
        its own token and the sinks among them. Here all weights count, the own token, a local
        window and the sinks do not, and the rest is normalised by what is not sunk.
    """
    is_rest = np.arange(attention.shape[-1]) >= n_sink
    part = (attention * (is_asked & is_rest)).sum(-1)
    return _shares(part, (attention * is_rest).sum(-1) if totals is None else totals, chance)


def _shares(
    part: Float[np.ndarray, "head row"], rest: Float[np.ndarray, "head row"], chance: Float[np.ndarray, "row"]
) -> HeadScores:
    looks = rest > _SMALLEST_REST
    # a head that sinks all it has looks at nothing: a zero that counts, not a missing value
    share = np.where(looks, part / np.where(looks, rest, 1.0), 0.0)
    share = np.where(np.isnan(chance), np.nan, share)
    # half precision can bring a part just above the whole
    return HeadScores(np.minimum(share, 1.0), chance)


def _table(
    role: str,
    store: TraceStore,
    found: Sequence[dict[str, HeadScores] | None],
    verdicts: Sequence[Verdict],
    settings: ReasoningSettings,
) -> HeadTable:
    shares = {index: each[role] for index, each in enumerate(found) if each is not None}
    known = {index: each for index, each in shares.items() if not np.isnan(each.score).all()}
    sides = [[index for index in known if verdicts[index][0] is side] for side in (True, False)]
    shape = (-1, len(store.shape.attention_layers), store.shape.n_heads)
    scores = [np.array([known[index].score for index in side]).reshape(shape) for side in sides]
    chance = [np.array([known[index].chance for index in side]).reshape(shape) for side in sides]
    records, accepted = store.records, set(sides[0])
    rejected = [
        # a right answer that is not among the accepted has no share
        (records[i].trace_id, "no row can see what is looked for" if is_right else reason)
        for i, (is_right, reason) in enumerate(verdicts)
        if i not in accepted
    ]
    columns = {}
    if all(sides):  # right minus wrong, of the score and of its excess over chance
        right, wrong = ([records[index].group_id for index in side] for side in sides)
        columns["mean_wrong"] = mean_of_present(scores[1])
        excess = [score - level for score, level in zip(scores, chance, strict=True)]
        for prefix, (first, second) in (("contrast", scores), ("excess_contrast", excess)):
            endings = contrast(first, second, (right, wrong))
            columns |= {f"{prefix}{ending}": values for ending, values in endings.items()}
    return HeadTable(
        role=role,
        layers=store.shape.attention_layers,
        trials=tuple((records[i].trace_id, records[i].group_id) for i in sides[0]),
        scores=scores[0],
        chance=mean_of_present(chance[0]),
        rejected=tuple(rejected),
        model=dict(store.configuration.get("model", {})),
        settings={
            **settings.model_dump(mode="json"),
            "source": attention_source(store.arrays),
            "n_wrong": len(sides[1]),
        },
        columns=columns,
    )


def _by_labels(store: TraceStore, labeller: str) -> list[Verdict]:
    try:
        labels = read_labels(store, labeller)
    except (StoreMismatchError, TraceNotFoundError):
        if labels_path(store, labeller).is_file() and labeller not in LABELLERS:
            raise
        # not written: a look at heads changes no store
        labels = label_records(store.records, make_labeller(labeller))
    if labels.meaning != "hallucinated":
        raise UsageError(
            f"labels by {labeller!r} say what the data set says of its input, and reasoning heads "
            f"need labels of the model's own answers\n  Use --labeller match"
        )
    decided = zip(labels.values.tolist(), labels.is_valid, labels.reasons, strict=True)
    return [
        (value == 0 if is_valid else None, f"{labeller}: {reason}") for value, is_valid, reason in decided
    ]
