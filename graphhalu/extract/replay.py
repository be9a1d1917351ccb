"""One teacher-forced pass over prompt and answer, from which everything stored is taken.

During generation with a cache the last step holds one query row only, and beams are reordered
under way; the pass over the final sequence has every row of the final answer. Sequences of a
batch are padded on the right: causal rows never see the padding, and it is cut off afterwards.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from graphhalu.extract.capture import capturing
from graphhalu.extract.forward import DeferredPass, TokenSequence, body_below_head, read_likelihood
from graphhalu.extract.recorders import AttentionRecorder, PaddedBatch
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
    batch = PaddedBatch(tuple(sequences), shape, device, edge_mass)
    recorder = AttentionRecorder(batch, arrays)
    keeps_hidden = not {"hidden", "hidden_rows"}.isdisjoint(arrays)
    # found by a pass of its own, whose attention must not be recorded
    body = body_below_head(model)
    with capturing(model, recorder, row_chunk=row_chunk):
        done = DeferredPass(
            model,
            body,
            input_ids=batch.token_ids,
            attention_mask=batch.is_token.long(),
            position_ids=torch.arange(batch.rows.stop, device=device).expand(len(sequences), -1),
            use_cache=False,
            output_hidden_states=list(shape.hidden_layers) if keeps_hidden else False,
        )
    recorder.require_complete()
    hidden, bad_layers = _hidden_arrays(done.take_hidden_states(), arrays, shape, sequences)
    results = []
    for index, likely in enumerate(read_likelihood(done, sequences)):
        failure = recorder.failure(index) or likely.failure()
        if index in bad_layers:
            failure = f"the hidden states after layer {bad_layers[index]} hold NaN or infinity"
        if failure is not None:
            results.append(Replayed({}, failure))
            continue
        kept: dict[str, np.ndarray] = {
            "token_ids": likely.sequence.token_ids.astype(np.int32),
            "span_code": likely.sequence.span_code.astype(np.uint8),
            **likely.arrays(),
            **recorder.trace_arrays(index),
            **hidden[index],
        }
        results.append(Replayed({n: kept[n] for n in arrays}, None, likely.option_logprobs))
    return results


def _hidden_arrays(
    states: list[Tensor | None] | None,
    arrays: Sequence[str],
    shape: TraceShape,
    sequences: Sequence[TokenSequence],
) -> tuple[list[dict[str, np.ndarray]], dict[int, int]]:
    """The kept hidden states of a batch, as bfloat16 bits.

    Args:
        states: What the model gave for each of its hidden states; emptied while it is read, so
            that float32 and bfloat16 of all layers never exist together. ``None`` keeps nothing.
        arrays: Names of the arrays to keep: ``hidden`` has all tokens, ``hidden_rows`` those of
            the kept rows; others are passed over.
        shape: Which hidden states are kept.
        sequences: The batch.

    Returns:
        The arrays of each sequence, and the first layer that is not finite by sequence.
    """
    kept: list[dict[str, np.ndarray]] = [{} for _ in sequences]
    bad_layers: dict[int, int] = {}
    if states is None:
        return kept, bad_layers
    n_layers, n_features = len(shape.hidden_layers), shape.hidden_size
    for own, sequence in zip(kept, sequences, strict=True):
        for name, start in (("hidden", 0), ("hidden_rows", sequence.row_start)):
            if name in arrays:
                n_tokens = sequence.length - start
                own[name] = np.empty((n_layers, n_tokens, n_features), dtype=np.uint16)
    for place, layer in enumerate(shape.hidden_layers):
        state, states[layer] = states[layer], None
        assert state is not None, f"the model gave no hidden states of layer {layer}"
        for index, sequence in enumerate(sequences):
            for packed in kept[index].values():
                tokens = state[index, sequence.length - packed.shape[1] : sequence.length]
                # the sum is cheap and catches all but an overflow of the sum itself
                if not (torch.isfinite(tokens.sum()) or torch.isfinite(tokens).all()):
                    bad_layers.setdefault(index, layer)
                packed[place] = tokens.to(torch.bfloat16).view(torch.uint16).cpu().numpy()
    return kept, bad_layers
