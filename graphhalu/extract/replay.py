"""One teacher-forced pass over prompt and answer, from which everything stored is taken.

During generation with a cache the last step holds one query row only, and beams are reordered
under way; the pass over the final sequence has every row of the final answer. Sequences of a
batch are padded on the right: causal rows never see the padding, and it is cut off afterwards.
A prompt that is run alone, before its answers, ends where the others of its batch do, and is padded
on the left.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers.cache_utils import Cache

from graphhalu.extract.capture import capturing
from graphhalu.extract.decode import GrowingLayer, PromptPass, joined_cache
from graphhalu.extract.forward import (
    STATISTICS,
    DeferredPass,
    Replayed,
    TokenSequence,
    body_below_head,
    option_logprobs,
    read_likelihood,
    token_statistics,
)
from graphhalu.extract.recorder import AttentionRecorder, main_memory
from graphhalu.traces.schema import ARRAYS, TraceShape


class Kept(NamedTuple):
    """What is kept of a pass.

    Attributes:
        shape: Which layers and hidden states.
        arrays: Names of the arrays.
        edge_mass: Share of a row after which no more of its edges are kept.
        row_chunk: Query rows whose attention exists at a time; by default as many as fit a few
            megabytes.
    """

    shape: TraceShape
    arrays: tuple[str, ...]
    edge_mass: float | None = None
    row_chunk: int | None = None


@torch.inference_mode()
def replay(model: Any, sequences: Sequence[TokenSequence], kept: Kept) -> list[Replayed]:
    """Run the sequences through the model once.

    Args:
        model: A causal language model.
        sequences: One batch; its longest sequence sets the width.
        kept: What is kept of each.

    Returns:
        One result a sequence, in order. A sequence on which the model gives NaN or infinity
        has a failure that names the first such layer, and the others are not touched by it.
    """
    return _recorded(model, sequences, kept)[1]


@torch.inference_mode()
def prefill(model: Any, prompts: Sequence[TokenSequence], kept: Kept) -> list[PromptPass]:
    """Run prompts once for all that comes behind them: the search of their answers, and the replay.

    Args:
        model: A causal language model whose decoding can be shared
            (:func:`graphhalu.extract.generate.shared_decoding_fault`).
        prompts: One batch, without answers.
        kept: What is kept of each.

    Returns:
        One pass a prompt, in order.
    """
    width = max(each.length for each in prompts)
    padded = [replace(each, option_ids=(), padding=width - each.length) for each in prompts]
    cache = Cache(layer_class_to_replicate=GrowingLayer)
    done, results = _recorded(model, padded, kept, cache=cache)
    logits = done.logits(width - 1, width)[:, 0]
    return [
        PromptPass(
            result,
            tuple(
                (layer.keys[index, None, :, start:], layer.values[index, None, :, start:])
                for layer in cache.layers
            ),
            logits[index],
        )
        for index, (result, start) in enumerate(zip(results, (p.padding for p in padded), strict=True))
    ]


@torch.inference_mode()
def replay_behind(
    model: Any, passes: Sequence[PromptPass], sequences: Sequence[TokenSequence], kept: Kept
) -> list[Replayed]:
    """As :func:`replay`, for answers whose prompts have run: only their own tokens do.

    Args:
        model: As of :func:`prefill`.
        passes: The pass of each sequence's prompt, of which the same is kept.
        sequences: Prompts with answers.
        kept: What is kept of each.
    """
    width = max(each.prompt_length for each in sequences)
    tails = [
        replace(each, row_start=each.prompt_length, padding=width - each.prompt_length) for each in sequences
    ]
    _, results = _recorded(model, tails, kept, width, joined_cache(passes))
    logits = torch.stack([each.logits for each in passes])
    first_ids = torch.tensor([each.token_ids[each.prompt_length] for each in sequences], device=logits.device)
    first = token_statistics(logits, first_ids).cpu().numpy().T
    found = []
    for done, sequence, result, statistics in zip(passes, sequences, results, first, strict=True):
        failure = done.result.failure or result.failure
        if failure is not None:
            found.append(Replayed({}, failure))
            continue
        options = option_logprobs(done.logits, sequence.option_ids) if sequence.option_ids else ()
        found.append(Replayed(_joined(done.result.arrays, result.arrays, statistics), None, options))
    return found


def _joined(
    prompt: Mapping[str, np.ndarray], answer: Mapping[str, np.ndarray], first: Float[np.ndarray, "statistic"]
) -> dict[str, np.ndarray]:
    """Arrays of prompt and answer from those of either; ``first`` is of the first answer token."""
    joined = {}
    for name, values in answer.items():
        before, spec = prompt[name], ARRAYS[name]
        if name in ("token_ids", "span_code", "value_norm"):  # whole already
            joined[name] = values
        elif name in STATISTICS:
            length = len(before)
            joined[name] = np.concatenate([before, [first[STATISTICS.index(name)]], values[length + 1 :]])
            joined[name] = joined[name].astype(spec.dtype)
        elif name == "received":
            joined[name] = values.copy()
            joined[name][..., : before.shape[-1]] += before
        else:
            joined[name] = np.concatenate([before, values], axis=spec.ragged_dim)
    return joined


def _recorded(
    model: Any, sequences: Sequence[TokenSequence], kept: Kept, first: int = 0, cache: Cache | None = None
) -> tuple[DeferredPass, list[Replayed]]:
    """A pass over the tokens from position ``first`` on; keys and values are added to those of a cache."""
    device = next(model.parameters()).device
    shape, arrays = kept.shape, kept.arrays
    recorder = AttentionRecorder(sequences, shape, arrays, device=device, edge_mass=kept.edge_mass)
    keeps_hidden = not {"hidden", "hidden_rows"}.isdisjoint(arrays)
    # found by a pass of its own, whose attention must not be recorded
    body = body_below_head(model)
    with capturing(model, recorder, row_chunk=kept.row_chunk):
        done = DeferredPass(
            model,
            body,
            first,
            input_ids=recorder.token_ids[:, first:],
            attention_mask=recorder.is_token.long(),
            position_ids=recorder.positions[:, first:],
            output_hidden_states=list(shape.hidden_layers) if keeps_hidden else False,
            use_cache=cache is not None,
            **({} if cache is None else {"past_key_values": cache}),
        )
    states = done.take_hidden_states()
    hidden, bad_layers = _hidden_arrays(states, arrays, shape, sequences, first)
    likelihood = read_likelihood(done, sequences)
    recorder.collect()
    for place in {each.device for each in model.parameters() if each.device.type == "cuda"}:
        torch.cuda.synchronize(place)
    results = []
    for index, (sequence, likely) in enumerate(zip(sequences, likelihood, strict=True)):
        failure = recorder.failure(index) or likely.failure
        if index in bad_layers:
            failure = f"the hidden states after layer {bad_layers[index]} hold NaN or infinity"
        if failure is not None:
            results.append(Replayed({}, failure))
            continue
        found: dict[str, np.ndarray] = {
            "token_ids": sequence.token_ids.astype(np.int32),
            "span_code": sequence.span_code.astype(np.uint8),
            **likely.arrays,
            **recorder.trace_arrays(index),
            **hidden[index],
        }
        results.append(likely._replace(arrays={name: found[name] for name in arrays if name in found}))
    return done, results


def _hidden_arrays(
    states: list[Tensor | None] | None,
    arrays: Sequence[str],
    shape: TraceShape,
    sequences: Sequence[TokenSequence],
    first: int,
) -> tuple[list[dict[str, np.ndarray]], dict[int, int]]:
    """The kept hidden states of a batch, as bfloat16 bits.

    Args:
        states: What the model gave for each of its hidden states; emptied while it is read, so
            that float32 and bfloat16 of all layers never exist together. ``None`` keeps nothing.
        arrays: Names of the arrays to keep: ``hidden`` has all tokens, ``hidden_rows`` those of
            the kept rows; others are passed over.
        shape: Which hidden states are kept.
        sequences: The batch.
        first: Position of the first token of the states.

    Returns:
        The arrays of each sequence, and the first layer that is not finite by sequence.
    """
    starts = {
        "hidden": [max(first, each.padding) for each in sequences],
        "hidden_rows": [each.padding + each.row_start for each in sequences],
    }
    starts = {name: places for name, places in starts.items() if name in arrays}
    kept: list[dict[str, np.ndarray]] = [{} for _ in sequences]
    bad_layers: dict[int, int] = {}
    if states is None:
        return kept, bad_layers
    begin = min(min(places) for places in starts.values())
    sizes = (len(sequences), max(each.padding + each.length for each in sequences) - begin, shape.hidden_size)
    device = next(each.device for each in states if each is not None)
    packed = main_memory((len(shape.hidden_layers), *sizes), torch.uint16, device)
    checks = []
    for place, layer in enumerate(shape.hidden_layers):
        state, states[layer] = states[layer], None
        assert state is not None, f"the model gave no hidden states of layer {layer}"
        tokens = state[:, begin - first :]
        packed[place].copy_(tokens.to(torch.bfloat16).view(torch.uint16), non_blocking=True)
        checks.append((tokens.abs().amax(-1) < torch.inf).to(device))
    is_finite = torch.stack(checks).cpu().numpy()
    for index, sequence in enumerate(sequences):
        for name, places in starts.items():
            own = slice(places[index] - begin, sequence.padding + sequence.length - begin)
            kept[index][name] = packed.numpy()[:, index, own]
            is_bad = ~is_finite[:, index, own].all(axis=1)
            if is_bad.any():
                bad_layers[index] = shape.hidden_layers[int(is_bad.argmax())]
    return kept, bad_layers
