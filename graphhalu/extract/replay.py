"""One teacher-forced pass over prompt and answer, from which everything stored is taken.

During generation with a cache the last step holds one query row only, and beams are reordered
under way; the pass over the final sequence has every row of the final answer. Sequences of a
batch are padded on the right: causal rows never see the padding, and it is cut off afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Integer, UInt16
from torch import Tensor

from graphhalu.extract.capture import capturing
from graphhalu.extract.recorders import Batch, RecorderSet
from graphhalu.traces.schema import TraceShape

_STATISTICS_ROWS = 128
"""Rows of logits that are reduced at a time, so that they stay in the cache."""


@dataclass(frozen=True)
class TokenSequence:
    """Prompt and answer as tokens.

    Attributes:
        token_ids: Vocabulary indices.
        span_code: Named span of each token.
        prompt_length: Tokens before the answer.
        row_start: First query row to keep.
    """

    token_ids: Int[np.ndarray, "token"]
    span_code: Integer[np.ndarray, "token"]
    prompt_length: int
    row_start: int = 0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.token_ids)


class Replayed(NamedTuple):
    """Arrays of one sequence in the stored number format, or why there are none."""

    arrays: dict[str, np.ndarray]
    failure: str | None


class TokenStatistics(NamedTuple):
    """What the output distribution said about each next token."""

    logprob: Float[Tensor, "row"]
    entropy: Float[Tensor, "row"]
    margin: Float[Tensor, "row"]


@dataclass(frozen=True)
class _Pass:
    """What one forward pass left behind."""

    recorders: RecorderSet
    output: Any
    shape: TraceShape


@torch.inference_mode()
def replay(
    model: Any,
    sequences: Sequence[TokenSequence],
    *,
    shape: TraceShape,
    arrays: tuple[str, ...],
    row_chunk: int = 512,
) -> list[Replayed]:
    """Run the sequences through the model once and keep ``arrays`` of each.

    Args:
        model: A causal language model on the attention interface.
        sequences: One batch; its longest sequence sets the width.
        shape: Which layers and hidden states to keep.
        arrays: Names of the arrays to keep.
        row_chunk: Query rows whose attention exists at a time.

    Returns:
        One result a sequence, in order. A sequence on which the model gives NaN or infinity
        has a failure that names the first such layer, and the others are not touched by it.
    """
    device = next(model.parameters()).device
    batch, token_ids = _pad(sequences, shape, device)
    recorders = RecorderSet(batch, arrays)
    with capturing(model, recorders, row_chunk=row_chunk):
        output = model(
            input_ids=token_ids,
            attention_mask=batch.is_token.long(),
            position_ids=torch.arange(batch.width, device=device).expand(batch.size, -1),
            use_cache=False,
            output_hidden_states=list(shape.hidden_layers) if "hidden" in arrays else False,
        )
    _require_all_rows(recorders, batch)
    done = _Pass(recorders, output, shape)
    return [_one_result(index, item, done, arrays) for index, item in enumerate(sequences)]


def token_statistics(
    logits: Float[Tensor, "row vocabulary"], next_ids: Int[Tensor, "row"]
) -> TokenStatistics:
    """Log-probability of the next token, entropy (nat) and top-1 margin, in float32.

    Args:
        logits: Output of each row.
        next_ids: The token that follows each row.
    """
    parts = [
        _statistics_of_rows(rows.float(), ids)
        for rows, ids in zip(
            torch.split(logits, _STATISTICS_ROWS),
            torch.split(next_ids, _STATISTICS_ROWS),
            strict=True,
        )
    ]
    return TokenStatistics(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _statistics_of_rows(
    logits: Float[Tensor, "row vocabulary"], next_ids: Int[Tensor, "row"]
) -> TokenStatistics:
    log_probabilities = torch.log_softmax(logits, dim=-1)
    probabilities = log_probabilities.exp()
    # a logit of -inf has probability 0 and adds nothing, where 0 * -inf would be NaN
    products = probabilities * log_probabilities.clamp(min=torch.finfo(torch.float32).min)
    top = probabilities.topk(2, dim=-1).values
    return TokenStatistics(
        logprob=log_probabilities.gather(1, next_ids[:, None])[:, 0],
        entropy=-products.sum(-1),
        margin=top[:, 0] - top[:, 1],
    )


def _pad(
    sequences: Sequence[TokenSequence], shape: TraceShape, device: torch.device
) -> tuple[Batch, Int[Tensor, "trace token"]]:
    lengths = tuple(sequence.length for sequence in sequences)
    token_ids = torch.zeros(len(sequences), max(lengths), dtype=torch.long)
    span_codes = torch.zeros(len(sequences), max(lengths), dtype=torch.long)
    for index, sequence in enumerate(sequences):
        token_ids[index, : sequence.length] = torch.from_numpy(sequence.token_ids.astype(np.int64))
        span_codes[index, : sequence.length] = torch.from_numpy(sequence.span_code.astype(np.int64))
    is_token = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    batch = Batch(
        lengths=lengths,
        row_starts=tuple(sequence.row_start for sequence in sequences),
        span_codes=span_codes.to(device),
        is_token=is_token.to(device),
        shape=shape,
        layer_position={layer: place for place, layer in enumerate(shape.attention_layers)},
    )
    return batch, token_ids.to(device)


def _require_all_rows(recorders: RecorderSet, batch: Batch) -> None:
    for layer, n_rows in recorders.n_rows_seen.items():
        assert n_rows == batch.width, f"layer {layer} showed {n_rows} of {batch.width} rows"


def _one_result(
    index: int, sequence: TokenSequence, done: _Pass, arrays: tuple[str, ...]
) -> Replayed:
    failure = _failure(index, sequence, done)
    if failure is not None:
        return Replayed({}, failure)
    kept: dict[str, np.ndarray] = {
        "token_ids": sequence.token_ids.astype(np.int32),
        "span_code": sequence.span_code.astype(np.uint8),
        **_token_streams(done.output.logits[index, : sequence.length], sequence),
        **done.recorders.trace_arrays(index),
    }
    if "hidden" in arrays:
        kept["hidden"] = _hidden_bits(done, index, sequence.length)
    return Replayed({name: kept[name] for name in arrays}, None)


def _failure(index: int, sequence: TokenSequence, done: _Pass) -> str | None:
    if done.output.hidden_states is not None:
        for layer in done.shape.hidden_layers:
            states = done.output.hidden_states[layer][index, : sequence.length]
            # the sum is cheap and catches all but an overflow of the sum itself
            if not bool(torch.isfinite(states.sum())) and not bool(torch.isfinite(states).all()):
                return f"the hidden states after layer {layer} hold NaN or infinity"
    if index in done.recorders.bad_layers:
        return f"the attention of layer {done.recorders.bad_layers[index]} holds NaN or infinity"
    if bool(torch.isnan(done.output.logits[index, : sequence.length]).any()):
        return "the logits hold NaN"
    return None


def _token_streams(
    logits: Float[Tensor, "token vocabulary"], sequence: TokenSequence
) -> dict[str, np.ndarray]:
    next_ids = torch.from_numpy(sequence.token_ids[1:].astype(np.int64)).to(logits.device)
    statistics = token_statistics(logits[:-1], next_ids)
    first = np.full(1, np.nan, dtype=np.float32)
    return {
        name: np.concatenate([first, values.cpu().numpy()])
        for name, values in (
            ("token_logprob", statistics.logprob),
            ("token_entropy", statistics.entropy),
            ("top1_margin", statistics.margin),
        )
    }


def _hidden_bits(
    done: _Pass, index: int, length: int
) -> UInt16[np.ndarray, "hidden_layer token feature"]:
    bits = [
        done.output.hidden_states[layer][index, :length].to(torch.bfloat16).view(torch.uint16)
        for layer in done.shape.hidden_layers
    ]
    return np.stack([layer_bits.cpu().numpy() for layer_bits in bits])
