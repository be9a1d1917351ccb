"""Columns of the tokens of an answer: family by family, row by row, and averaged over neighbours.

Columns of a family of rows come for the rows ``prompt_length - 1 … length - 1``: one more than
there are answer tokens, since row ``i`` predicts token ``i + 1`` and the last token has a row
too. So each token has two rows: the one that produces it and the one that has read it.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Final, Literal, NamedTuple

import numpy as np
from jaxtyping import Float

from graphhalu.core.axes import Span
from graphhalu.core.errors import DetectorMismatchError, TraceNotFoundError
from graphhalu.core.registry import unknown_name
from graphhalu.features.matrix import REMEMBERED, part_digest
from graphhalu.graphs.nodes import runs_in_prompt
from graphhalu.traces.part import LazyArray
from graphhalu.traces.schema import TraceShape, from_bfloat16_bits
from graphhalu.traces.trace import Trace, layer_position

Place = Literal["token", "before", "own"]

_LEAST: Final = 1e-6


class TokenColumns(NamedTuple):
    """Columns of the tokens or rows of one answer.

    Attributes:
        values: NaN where a value does not exist.
        names: One a column.
        is_of_rows: Whether there is one row more than tokens; see the module.
    """

    values: Float[np.ndarray, "item column"]
    names: tuple[str, ...]
    is_of_rows: bool


def family_columns(trace: Trace, family: str) -> TokenColumns:
    """The columns of a family; hidden states of layer 10 are ``hidden.10``.

    So are ``shift`` (those states minus the ones without the context) and ``residual`` (what of a shift
    does not come from earlier tokens of the answer).

    Raises:
        UnknownNameError: If there is no such family.
        TraceNotFoundError: If the trace does not keep what the family reads.
    """
    name, _, layer = family.partition(".")
    if name in OF_LAYER and layer.isdecimal():
        return OF_LAYER[name](trace, int(layer))
    if family not in FAMILIES:
        known = [*FAMILIES, *(f"{name}.LAYER" for name in OF_LAYER)]
        raise unknown_name("family of token features", family, known)
    return FAMILIES[family](trace)


def expanded(families: Sequence[str], shape: TraceShape) -> tuple[str, ...]:
    """The families, those that are read of a layer replaced by one of each kept layer."""
    layers = dict.fromkeys(OF_LAYER, shape.hidden_layers)
    layers["residual"] = tuple(n for n in shape.hidden_layers if n - 1 in shape.attention_layers)
    every = ([f"{name}.{n}" for n in layers[name]] if name in OF_LAYER else (name,) for name in families)
    return tuple(chain(*every))


class View(NamedTuple):
    """One way to read a family.

    Attributes:
        family: Name of the family.
        place: The row that produces a token (``before``), the one that has read it (``own``), or
            ``token`` for a family that is not of rows.
        window: Tokens that are averaged, the token itself in their middle; odd.
    """

    family: str
    place: Place
    window: int


def view_columns(trace: Trace, view: View) -> tuple[Float[np.ndarray, "token column"], tuple[str, ...]]:
    """A view of all answer tokens of a trace, float32, and what its columns are called."""
    columns = _columns(trace, view.family)
    values = columns.values.astype(np.float32)
    if columns.is_of_rows:
        values = values[1:] if view.place == "own" else values[:-1]
    return averaged(values, view.window), _view_names(view, columns.names)


@lru_cache(maxsize=64)
def _view_names(view: View, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the columns of a view; a live answer asks for the same thousands at every token."""
    return tuple(f"{view.family}.{view.place}.w{view.window}.{name}" for name in names)


def views_of(trace: Trace, family: str, windows: Sequence[int]) -> Iterator[View]:
    """Every view of a family."""
    places: tuple[Place, ...] = ("before", "own") if _columns(trace, family).is_of_rows else ("token",)
    for place in places:
        for window in windows:
            yield View(family, place, window)


def averaged(values: Float[np.ndarray, "token column"], window: int) -> Float[np.ndarray, "token column"]:
    """Mean over a window around each token; shorter where the answer begins and ends.

    A missing value makes the mean of its neighbourhood missing.
    """
    if window == 1:
        return values
    half, n_tokens = window // 2, len(values)
    index = np.arange(n_tokens)
    first, stop = np.maximum(index - half, 0), np.minimum(index + half + 1, n_tokens)

    def window_sum(terms: np.ndarray) -> Float[np.ndarray, "token column"]:
        sums = np.zeros((n_tokens + 1, values.shape[1]))
        np.cumsum(terms, axis=0, dtype=np.float64, out=sums[1:])
        return sums[stop] - sums[first]

    is_missing = np.isnan(values)
    mean = window_sum(np.where(is_missing, 0, values)) / (stop - first)[:, None]
    if is_missing.any():
        mean[window_sum(is_missing) > 0] = np.nan
    return mean.astype(values.dtype)


def _attention(trace: Trace) -> TokenColumns:
    """Six numbers a head, as float16 like the streams they come from.

    ``sink``: share of the first four tokens; ``context`` and ``question``: share of these spans;
    ``lookback``: what goes to the prompt, its first four tokens aside, of that and what goes to
    the answer; ``own``: attention to the own token; ``entropy`` of the row, in nat.

    Source:
        Lookback ratio: Chuang et al. 2024, arXiv:2407.07071, without the sink, which otherwise
        outweighs everything else of the prompt.
    """
    rows = _rows(trace)
    sink = np.clip(trace.stream("sink_keys")[:, :, rows].sum(-1), 0, 1)
    mass = trace.stream("span_mass")[:, :, rows]
    answer = mass[..., Span.ANSWER]
    prompt = np.maximum(mass.sum(-1) - answer - sink, 0)
    columns = {
        "sink": sink,
        "context": mass[..., Span.CONTEXT],
        "question": mass[..., Span.QUESTION],
        "lookback": prompt / np.maximum(prompt + answer, _LEAST),
        "own": trace.stream("self_attention")[:, :, rows],
        "entropy": trace.stream("row_entropy")[:, :, rows],
    }
    stacked = np.stack(list(columns.values()))
    values = stacked.reshape(-1, stacked.shape[-1]).T.astype(np.float16)
    names = _head_names(tuple(columns), trace.shape.attention_layers, trace.shape.n_heads)
    return TokenColumns(np.ascontiguousarray(values), names, is_of_rows=True)


@lru_cache(maxsize=8)
def _head_names(columns: tuple[str, ...], layers: tuple[int, ...], n_heads: int) -> tuple[str, ...]:
    heads = [f"l{layer}.h{head}" for layer in layers for head in range(n_heads)]
    return tuple(f"{name}.{head}" for name in columns for head in heads)


def _hidden(trace: Trace, layer: int) -> TokenColumns:
    values = trace.hidden_rows(layer)[_rows(trace)]
    return TokenColumns(np.ascontiguousarray(values), _unit_names(layer, values.shape[1]), is_of_rows=True)


@lru_cache(maxsize=64)
def _unit_names(layer: int, n_units: int) -> tuple[str, ...]:
    return tuple(f"l{layer}.unit{unit}" for unit in range(n_units))


def _shift(trace: Trace, layer: int) -> TokenColumns:
    """Hidden states with the context minus those without."""
    position = layer_position(layer, trace.shape.hidden_layers, "hidden states of layer")
    hidden, names, _ = _hidden(trace, layer)
    without = from_bfloat16_bits(trace.array("contrast_hidden")[position])[_rows(trace)]
    return TokenColumns(hidden - without, names, is_of_rows=True)


def _residual(trace: Trace, layer: int) -> TokenColumns:
    """What of a shift is not the mean of the earlier answer tokens' shifts by attention.

    ``c_i = d_i - sum_{j < i} a_ij d_j`` over answer tokens ``j``, with the mean over heads of the attention
    whose output makes this hidden state.

    Source:
        CORTEX, arXiv:2606.31033. Rows of attention are not renormalised over the answer.
    """
    shift, names, _ = _shift(trace, layer)
    rows = _rows(trace)
    attention = trace.censored_attention(layer - 1)[:, rows].mean(0)
    # columns of the rows themselves: the last prompt token first
    among = attention[:, trace.prompt_length - 1 :].copy()
    among[:, 0] = 0
    np.fill_diagonal(among, 0)
    return TokenColumns(shift - among @ shift, names, is_of_rows=True)


def _contrast(trace: Trace) -> TokenColumns:
    """Likelihood with and without the context, the shift of the output, and ranks in every kept layer."""
    answer = slice(trace.prompt_length, None)
    logprob, without = (trace.stream(name)[answer] for name in ("token_logprob", "contrast_logprob"))
    ranks = np.log1p(trace.stream("lens_rank")[:, answer])
    columns = {
        "drop": logprob - without,
        "surprise_without": -without,
        "entropy_without": trace.stream("contrast_entropy")[answer],
        "output_shift": trace.stream("output_shift")[answer],
        **{f"rank{layer}": rank for layer, rank in zip(trace.shape.hidden_layers, ranks, strict=True)},
    }
    return TokenColumns(np.stack(list(columns.values()), axis=1), tuple(columns), False)


def _likelihood(trace: Trace) -> TokenColumns:
    answer = slice(trace.prompt_length, None)
    columns = (
        -trace.stream("token_logprob")[answer],
        trace.stream("token_entropy")[answer],
        trace.stream("top1_margin")[answer],
    )
    return TokenColumns(np.stack(columns, axis=1), ("surprise", "entropy", "margin"), False)


def _position(trace: Trace) -> TokenColumns:
    """Place in the answer and its length; nothing of what the model computed."""
    length = trace.answer_length
    index = np.arange(length, dtype=np.float64)
    relative = index / max(length - 1, 1)
    columns = {
        "index": index,
        "log_index": np.log1p(index),
        "relative": relative,
        "relative_squared": relative**2,
        "left": length - 1 - index,
        "log_left": np.log1p(length - 1 - index),
        "length": np.full(length, float(length)),
        "log_length": np.full(length, np.log(length)),
    }
    return TokenColumns(np.stack(list(columns.values()), axis=1), tuple(columns), False)


def _overlap(trace: Trace) -> TokenColumns:
    """Whether the token, it with the one before, and it with the two before are in the prompt."""
    values = runs_in_prompt(trace.token_ids.tolist(), trace.prompt_length)
    return TokenColumns(values, ("one", "two", "three"), False)


def _rows(trace: Trace) -> slice:
    """The stored rows of the last prompt token and of all answer tokens."""
    first = trace.prompt_length - 1 - trace.record.row_start
    if first < 0:
        raise TraceNotFoundError(
            f"trace {trace.trace_id!r} does not keep the row that produces its answer\n"
            f"  Extract it again:  graphhalu extract --rows answer"
        )
    return slice(first, None)


FAMILIES: Final[dict[str, Callable[[Trace], TokenColumns]]] = {
    "attention": _attention,
    "likelihood": _likelihood,
    "position": _position,
    "overlap": _overlap,
    "contrast": _contrast,
}
"""Families by name."""
OF_LAYER: Final[dict[str, Callable[[Trace, int], TokenColumns]]] = {
    "hidden": _hidden,
    "shift": _shift,
    "residual": _residual,
}
"""Families that are read of a layer, as ``hidden.10``."""


def _columns(trace: Trace, family: str) -> TokenColumns:
    """As :func:`family_columns`, remembered for a trace of a store."""
    array = next(iter(trace.arrays.values()), None)
    place: tuple[str, ...] = ()
    if isinstance(array, LazyArray):
        place = (str(array.part.folder), part_digest(array.part), trace.trace_id, family)
    found: TokenColumns = REMEMBERED.get(place, lambda: family_columns(trace, family))
    expected = trace.answer_length + found.is_of_rows
    if len(found.values) != expected:
        raise DetectorMismatchError(
            f"trace {trace.trace_id!r}: {len(found.values)} rows of {family}, not {expected}"
        )
    return found
