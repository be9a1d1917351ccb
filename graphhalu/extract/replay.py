"""One teacher-forced pass over prompt and answer, from which everything stored is taken.

During generation with a cache the last step holds one query row only, and beams are reordered
under way; the pass over the final sequence has every row of the final answer. Sequences of a
batch are padded on the right: causal rows never see the padding, and it is cut off afterwards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from graphhalu.extract.capture import capturing
from graphhalu.extract.head import DeferredPass, body_below_head
from graphhalu.extract.hidden import HiddenStates
from graphhalu.extract.likelihood import read_likelihood
from graphhalu.extract.recorders import Batch
from graphhalu.extract.recording import RecorderSet
from graphhalu.extract.sequence import TokenSequence
from graphhalu.traces.schema import TraceShape


class Replayed(NamedTuple):
    """What a replay gives of one sequence.

    Attributes:
        arrays: In the stored number format; none if it failed.
        failure: Why it failed, or ``None``.
        option_logprobs: Log-probability (nat) of each option as the first answer token, summed
            over the tokens that stand for it.
    """

    arrays: dict[str, np.ndarray]
    failure: str | None
    option_logprobs: tuple[float, ...] = ()


@torch.inference_mode()
def replay(
    model: Any,
    sequences: Sequence[TokenSequence],
    *,
    shape: TraceShape,
    arrays: tuple[str, ...],
    row_chunk: int | None = None,
    edge_mass: float | None = None,
) -> list[Replayed]:
    """Run the sequences through the model once and keep ``arrays`` of each.

    Args:
        model: A causal language model.
        sequences: One batch; its longest sequence sets the width.
        shape: Which layers and hidden states to keep.
        arrays: Names of the arrays to keep.
        row_chunk: Query rows whose attention exists at a time; by default as many as fit a few
            megabytes.
        edge_mass: Share of a row after which no more of its edges are kept.

    Returns:
        One result a sequence, in order. A sequence on which the model gives NaN or infinity
        has a failure that names the first such layer, and the others are not touched by it.
    """
    device = next(model.parameters()).device
    batch, token_ids = _pad(sequences, shape, device, edge_mass)
    recorders = RecorderSet(batch, arrays)
    keeps_hidden = not {"hidden", "hidden_rows"}.isdisjoint(arrays)
    body = body_below_head(model)
    with capturing(model, recorders, row_chunk=row_chunk):
        done = DeferredPass(
            model,
            body,
            input_ids=token_ids,
            attention_mask=batch.is_token.long(),
            position_ids=torch.arange(batch.width, device=device).expand(batch.size, -1),
            use_cache=False,
            output_hidden_states=list(shape.hidden_layers) if keeps_hidden else False,
        )
    recorders.require_complete()
    hidden = HiddenStates(arrays, done.take_hidden_states(), shape, sequences)
    likelihood = read_likelihood(done, sequences)
    results = []
    for index, (sequence, likely) in enumerate(zip(sequences, likelihood, strict=True)):
        failure = hidden.failure(index) or recorders.failure(index) or likely.failure()
        if failure is not None:
            results.append(Replayed({}, failure))
            continue
        kept: dict[str, np.ndarray] = {
            "token_ids": sequence.token_ids.astype(np.int32),
            "span_code": sequence.span_code.astype(np.uint8),
            **likely.arrays(),
            **recorders.trace_arrays(index),
            **hidden.trace_arrays(index),
        }
        chosen = {name: kept[name] for name in arrays}
        results.append(Replayed(chosen, None, likely.option_logprobs))
    return results


def _pad(
    sequences: Sequence[TokenSequence],
    shape: TraceShape,
    device: torch.device,
    edge_mass: float | None,
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
        edge_mass=edge_mass,
    )
    return batch, token_ids.to(device)
