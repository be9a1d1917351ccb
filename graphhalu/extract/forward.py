"""One forward pass over prompt and answer, and what its output distribution says of each token.

The logits of a long sequence are larger than everything else in a pass (4,096 tokens of a
vocabulary of 49,152 take 805 MB in float32), and only statistics of them are kept. So the layers
run once, and the model's own head runs on a few rows at a time.
"""

import inspect
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import ceil
from typing import Any, Final, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from graphhalu.models.attention import replaced

LOGIT_BYTES: Final = 16 * 2**20
"""Logits (float32) that exist at a time, unless they are of fewer than ``LOGIT_ROWS`` rows."""

_GPU_LOGIT_BYTES: Final = 256 * 2**20
"""The same on a GPU."""

LOGIT_ROWS: Final = 64
"""Rows of a batch from which a product with the output matrix no longer waits for the matrix."""

_STATISTICS_BYTES: Final = 4 * 2**20
"""Logits that are reduced at a time on a CPU, so that they stay in the cache: 16 MiB take twice the time."""

STATISTICS: Final = ("token_logprob", "token_entropy", "top1_margin")
"""Arrays of one number a token, in the order of :func:`token_statistics`."""

_BODIES: WeakKeyDictionary[nn.Module, nn.Module | None] = WeakKeyDictionary()


@dataclass(frozen=True)
class TokenSequence:
    """Prompt and answer as tokens.

    Attributes:
        token_ids: Vocabulary indices.
        span_code: Named span of each token.
        prompt_length: Tokens before the answer.
        row_start: First query row to keep; at most the row that predicts the first answer token.
        option_ids: For each option of a multiple choice, the tokens that stand for it.
        padding: Positions of its batch before its first token.
    """

    token_ids: Int[np.ndarray, "token"]
    span_code: Integer[np.ndarray, "token"]
    prompt_length: int
    row_start: int = 0
    option_ids: tuple[tuple[int, ...], ...] = ()
    padding: int = 0

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.token_ids)


class DeferredPass:
    """One forward pass whose logits are computed when they are asked for.

    Args:
        model: A causal language model of transformers.
        body: Its :func:`body_below_head`.
        first: Position of the first token; those before it are in a cache.
        inputs: Arguments of its forward pass.
    """

    def __init__(self, model: Any, body: nn.Module | None, first: int = 0, /, **inputs: Any) -> None:
        self.model = model
        self.inputs = inputs
        self.first = first
        self._body = body
        if body is None:
            output = model(**inputs)
            self._logits: Tensor = output.logits
        else:
            forward = body.forward

            def remember(*args: Any, **settings: Any) -> Any:
                self._body_output = forward(*args, **settings)
                return _of_rows(self._body_output, slice(0, 1))

            with replaced(body, "forward", remember):
                output = model(**inputs)
        self._hidden_states = output.hidden_states

    def take_hidden_states(self) -> list[Tensor | None] | None:
        """The hidden states that were asked for by index, handed over: they are let go here."""
        states, self._hidden_states = self._hidden_states, None
        if self._body is not None:
            self._body_output.hidden_states = None
        return None if states is None else list(states)

    def logits(self, start: int, stop: int) -> Float[Tensor, "trace row vocabulary"]:
        """The logits of the batch's positions ``start … stop - 1``."""
        rows = slice(start - self.first, stop - self.first)  # of no device, where a model has several
        if self._body is None:
            return self._logits[:, rows]
        with replaced(self._body, "forward", lambda *_, **__: _of_rows(self._body_output, rows)):
            output = self.model(**self.inputs)
        return output.logits


def _of_rows(output: Any, rows: slice) -> Any:
    """The output of a body with some rows only, side by side in memory.

    A head multiplies rows that are not as one product a sequence, which takes ten times as long on a CPU.
    """
    return replace(output, last_hidden_state=output.last_hidden_state[:, rows].contiguous())


def body_below_head(model: Any) -> nn.Module | None:
    """The module below the head, which the model calls; ``None`` if the head cannot be deferred.

    It is found by trying: in some families the base model stands between and is never called.
    """
    if model not in _BODIES:
        takes_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        _BODIES[model] = _called_body(model) if takes_rows else None
    return _BODIES[model]


@torch.inference_mode()
def _called_body(model: Any) -> nn.Module | None:
    called: list[nn.Module] = []
    candidates = {id(body): body for body in (model.base_model, model.get_decoder())}
    candidates.pop(id(model), None)
    token = torch.ones(1, 1, dtype=torch.long, device=next(model.parameters()).device)
    with ExitStack() as stack:
        for body in candidates.values():
            hook = body.register_forward_hook(lambda module, _, __: called.append(module))
            stack.callback(hook.remove)
        model(input_ids=token, attention_mask=token, use_cache=False)
    # an outer module is noted after the one inside it
    return called[-1] if called else None


class Replayed(NamedTuple):
    """What a pass gives of one sequence.

    Attributes:
        arrays: By name; in the stored number format.
        failure: Why the sequence failed, or ``None``.
        option_logprobs: Log-probability (nat) of each option as the first answer token, summed
            over the tokens that stand for it.
    """

    arrays: dict[str, np.ndarray]
    failure: str | None
    option_logprobs: tuple[float, ...] = ()


def read_likelihood(done: DeferredPass, sequences: Sequence[TokenSequence]) -> list[Replayed]:
    """Likelihood statistics of a batch; only the rows that a sequence keeps are computed.

    A statistic is NaN where the row before a token is not kept; a sequence fails if the logits
    of a kept row hold NaN.
    """
    start = first = min(each.padding + each.row_start for each in sequences)
    stop = max(each.padding + each.length for each in sequences) - 1
    n_rows = least = max(1, LOGIT_ROWS // len(sequences))
    statistics: list[Tensor] = []
    answer_rows: dict[int, Tensor] = {}
    while start < stop:
        logits = done.logits(start, min(start + n_rows, stop))
        last = start + logits.shape[1]
        next_ids = done.inputs["input_ids"][:, start + 1 - done.first : last + 1 - done.first]
        spans = [(each.padding + each.row_start, each.padding + each.length - 1) for each in sequences]
        kept = [(max(start, begin) - start, min(last, end) - start) for begin, end in spans]
        statistics.append(_statistics_of_chunk(logits, next_ids.to(logits.device), kept))
        for index, sequence in enumerate(sequences):
            row = sequence.padding + sequence.prompt_length - 1
            if sequence.option_ids and start <= row < min(last, sequence.padding + sequence.length - 1):
                answer_rows[index] = logits[index, row - start].clone()
        start = last
        n_bytes = LOGIT_BYTES if logits.device.type == "cpu" else _GPU_LOGIT_BYTES
        n_rows = max(least, n_bytes // (4 * logits.shape[0] * logits.shape[2]))
    answers = torch.stack([*answer_rows.values()]).cpu() if answer_rows else ()
    options = dict(zip(answer_rows, answers, strict=True))
    of_rows = torch.cat(statistics, dim=2).cpu().numpy() if statistics else np.empty((3, len(sequences), 0))
    results = []
    for index, sequence in enumerate(sequences):
        begin = sequence.row_start
        each = np.full((3, sequence.length), np.nan, dtype=np.float32)
        at = first - sequence.padding
        each[:, begin + 1 :] = of_rows[:, index, begin - at : sequence.length - 1 - at]
        is_bad = np.isnan(each[1, begin + 1 :]).any()
        logprobs = option_logprobs(options[index], sequence.option_ids) if index in options else ()
        arrays = dict(zip(STATISTICS, each, strict=True))
        results.append(Replayed(arrays, "the logits hold NaN" if is_bad else None, logprobs))
    return results


def _statistics_of_chunk(
    logits: Float[Tensor, "trace row vocabulary"],
    next_ids: Int[Tensor, "trace row"],
    kept: Sequence[tuple[int, int]],
) -> Float[Tensor, "statistic trace row"]:
    """Statistics of the kept rows of each trace; on a GPU of all at once, so that it need not wait."""
    shape = (len(STATISTICS), *next_ids.shape)
    if logits.device.type != "cpu":
        return token_statistics(logits.flatten(0, 1), next_ids.flatten()).reshape(shape)
    found = torch.zeros(shape)
    for index, (start, stop) in enumerate(kept):
        if start < stop:
            found[:, index, start:stop] = token_statistics(
                logits[index, start:stop], next_ids[index, start:stop]
            )
    return found


def option_logprobs(
    logits: Float[Tensor, "vocabulary"], option_ids: Sequence[Sequence[int]]
) -> tuple[float, ...]:
    """Log-probability (nat) of each option, summed over the tokens that stand for it.

    Args:
        logits: Of the row before the answer.
        option_ids: Tokens of each option.
    """
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    return tuple(float(torch.logsumexp(log_probabilities[list(tokens)], dim=0)) for tokens in option_ids)


def token_statistics(
    logits: Float[Tensor, "row vocabulary"], next_ids: Int[Tensor, "row"]
) -> Float[Tensor, "statistic row"]:
    """Log-probability of the next token, entropy (nat) and top-1 margin, in float32.

    Args:
        logits: Output of each row.
        next_ids: The token that follows each row.
    """
    n_bytes = _STATISTICS_BYTES if logits.device.type == "cpu" else _GPU_LOGIT_BYTES
    # equal pieces: a row alone would be summed by several threads, which rounds differently
    n_pieces = ceil(4 * logits.numel() / n_bytes) or 1
    pieces = (each.tensor_split(n_pieces) for each in (logits, next_ids))
    chunks = zip(*pieces, strict=True)
    return torch.cat([_statistics_of_rows(rows.float(), ids) for rows, ids in chunks], dim=1)


def _statistics_of_rows(
    logits: Float[Tensor, "row vocabulary"], next_ids: Int[Tensor, "row"]
) -> Float[Tensor, "statistic row"]:
    log_probabilities = torch.log_softmax(logits, dim=-1)
    top = log_probabilities.topk(2, dim=-1).values.exp()
    probabilities = log_probabilities.exp()
    # a logit of -inf has probability 0 and adds nothing, where 0 * -inf would be NaN
    products = probabilities * log_probabilities.clamp(min=torch.finfo(torch.float32).min)
    logprob = log_probabilities.gather(1, next_ids[:, None])[:, 0]
    return torch.stack([logprob, -products.sum(-1), top[:, 0] - top[:, 1]])
