"""Answers that grow token by token, decoded together, with what a detector reads of each new row.

A sequence joins and leaves at any step. Each step keeps one row of attention, reduced at once, and
one hidden state a layer, so that a trace of the answer exists as soon as the answer does.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import one_hot
from torch.nn.utils.rnn import pad_sequence
from transformers.cache_utils import Cache

from graphhalu.core.axes import N_SPANS, RowRange, Span
from graphhalu.core.errors import UsageError
from graphhalu.extract.beams import Answer
from graphhalu.extract.capture import capturing
from graphhalu.extract.decode import GrowingLayer, one_row_attention
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.forward import STATISTICS, Replayed, TokenSequence, token_statistics
from graphhalu.extract.prompts import Prompt, generated_answer, trace_record
from graphhalu.models.load import left_padded, token_positions
from graphhalu.traces.schema import ARRAYS, N_SINK_KEYS, TraceShape
from graphhalu.traces.trace import Trace

_OF_ATTENTION: Final = ("span_mass", "self_attention", "row_entropy", "argmax_key", "sink_keys")
LIVE_ARRAYS: Final = ("token_ids", "span_code", *STATISTICS, *_OF_ATTENTION, "hidden_rows")
"""Arrays that can be kept while an answer grows."""
_TINY: Final = torch.finfo(torch.float32).tiny
N_ATTENDED_ROWS: Final = 2
"""Newest rows whose attention to each key is kept."""
N_ATTENDED: Final = 12
"""Keys that are named for each token, where that is asked for."""


class RowRecorder:
    """Reduces the newest attention row of each sequence; the observer of a decoding step.

    Args:
        shape: Which layers are kept.
        arrays: Names of the arrays to keep; those that do not come from attention are passed over.
    """

    def __init__(self, shape: TraceShape, arrays: Sequence[str]) -> None:
        self.layers = shape.attention_layers
        self.arrays = tuple(name for name in _OF_ATTENTION if name in arrays)
        self.hidden_layers = list(shape.hidden_layers) if "hidden_rows" in arrays else []
        self._weights: dict[int, Tensor] = {}
        self._n_keys = 0

    def values(self, layer: int, value: Float[Tensor, "sequence kv_head key channel"]) -> None:
        """Note how many keys there are."""
        self._n_keys = value.shape[2]

    def wanted_rows(self, layer: int) -> RowRange | None:
        """The newest row of the layers that are kept."""
        return RowRange(self._n_keys - 1, self._n_keys) if self.arrays and layer in self.layers else None

    def rows(self, layer: int, row_start: int, weights: Float[Tensor, "sequence head row key"]) -> None:
        """Keep the newest row until the pass is over."""
        self._weights[layer] = weights[:, :, -1].float()

    def take(
        self, is_span: Float[Tensor, "sequence key span"], first: Int[Tensor, "sequence"]
    ) -> dict[str, np.ndarray]:
        """The arrays of the pass, ``[layer, sequence, head, …]``, and the mean of all heads as ``attended``.

        Args:
            is_span: Membership of each key in each span; padding is in none.
            first: Position of the first key of each sequence; padding comes before it.
        """
        if not self.arrays:
            return {}
        weights = torch.stack([self._weights.pop(layer).to(first.device) for layer in self.layers])
        places = (first[:, None] + torch.arange(N_SINK_KEYS, device=first.device)).clamp(
            max=weights.shape[-1] - 1
        )
        found = {
            "span_mass": weights @ is_span,
            "self_attention": weights[..., -1],
            "row_entropy": -(weights * weights.clamp_min(_TINY).log()).sum(-1),
            "argmax_key": weights.argmax(-1) - first[:, None],
            "sink_keys": weights.take_along_dim(places[None, :, None], dim=-1),
        }
        kept = {name: found[name].cpu().numpy().astype(ARRAYS[name].dtype) for name in self.arrays}
        return {**kept, "attended": weights.mean(dim=(0, 2)).cpu().numpy()}


@dataclass(eq=False)
class LiveAnswer:
    """An answer while it grows.

    Attributes:
        prompt: What it answers.
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 takes the likeliest token; else logits are divided by it and a token is drawn.
        top_p: Share of the probability that tokens are drawn from, the likeliest first.
        seed: Of the draws.
        token_ids: Its tokens so far.
        end: Why it ended: ``stop`` for an end mark, ``length`` at the limit; ``None`` while it grows.
    """

    prompt: Prompt
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    token_ids: list[int] = field(default_factory=list)
    end: Literal["stop", "length"] | None = None
    _statistics: list[tuple[float, ...]] = field(default_factory=list)
    _rows: dict[str, np.ndarray] = field(default_factory=dict)
    """Arrays whose first axis are the rows, with room for more."""
    _n_rows: int = 0

    def __post_init__(self) -> None:
        """Seed the draws."""
        self._generator = torch.Generator().manual_seed(self.seed)
        self._attended = deque[np.ndarray](maxlen=N_ATTENDED_ROWS)

    def draw(self, logits: Float[Tensor, "vocabulary"]) -> int:
        """The next token, by temperature and ``top_p``."""
        if self.temperature <= 0:
            return int(logits.argmax())
        chances = torch.softmax(logits.double().cpu() / self.temperature, dim=-1)
        ordered, tokens = chances.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered > self.top_p] = 0
        return int(tokens[torch.multinomial(ordered, 1, generator=self._generator)])

    def attended(self) -> list[tuple[int, float]]:
        """The positions that the row before the newest token attends to most, with their mean weight."""
        # of a batch only the last positions belong to this sequence
        weights = self._attended[-2][-(self.prompt.length + len(self.token_ids) - 1) :]
        best = np.argsort(-weights, kind="stable")[:N_ATTENDED]
        return [(int(key), float(weights[key])) for key in best.tolist()]

    def trace(self, shape: TraceShape, tokenizer: Any) -> Trace:
        """The trace of the answer so far; it keeps the rows that produce the answer.

        Raises:
            UsageError: If there is no token yet.
        """
        if not self.token_ids:
            raise UsageError("the model gave an empty answer")
        score = float(np.mean([each[0] for each in self._statistics]))
        answer = generated_answer(self.token_ids, tokenizer, score=score, is_finished=self.end == "stop")
        return self._trace(shape, answer, len(self.token_ids))

    def newest(self, shape: TraceShape, n_tokens: int) -> Trace:
        """A trace whose answer is the newest tokens alone; its text is empty."""
        return self._trace(shape, Answer((), score=0.0), min(n_tokens, len(self.token_ids)))

    def _trace(self, shape: TraceShape, answer: Answer, n_tokens: int) -> Trace:
        encoded, length = self.prompt.encoded, self.prompt.length + len(self.token_ids)
        start = length - n_tokens
        codes = np.append(encoded.span_code, [Span.ANSWER] * len(self.token_ids)).astype(np.uint8)
        ids = np.append(encoded.token_ids, self.token_ids).astype(np.int32)
        sequence = TokenSequence(ids, codes, start, start - 1)
        record = trace_record(self.prompt, answer, sequence, Replayed({}, None))
        record = replace(record, prompt_length=start)
        statistics = np.full((len(STATISTICS), length), np.nan, dtype=np.float32)
        statistics[:, start:] = np.array(self._statistics[-n_tokens:]).T
        arrays: dict[str, np.ndarray] = {
            "token_ids": ids,
            "span_code": codes,
            **dict(zip(STATISTICS, statistics, strict=True)),
        }
        for name, buffer in self._rows.items():
            rows = buffer[self._n_rows - n_tokens - 1 : self._n_rows]
            arrays[name] = np.moveaxis(rows, 0, ARRAYS[name].ragged_dim)
        return Trace(record, shape, arrays)

    def cut(self, n_tokens: int) -> None:
        """Take back the tokens behind the first ones, and their rows."""
        del self.token_ids[n_tokens:], self._statistics[n_tokens:]
        self._n_rows = min(self._n_rows, n_tokens + 1)

    def add_row(self, found: dict[str, np.ndarray], place: int) -> None:
        """Keep the arrays of its newest row.

        Args:
            found: Those of a pass, ``[layer, sequence, …]``.
            place: Of this sequence in it.
        """
        for name, values in found.items():
            if name == "attended":
                self._attended.append(values[place])
                continue
            row = values[:, place]
            buffer = self._rows.get(name, row[None])
            if self._n_rows == len(buffer) or name not in self._rows:
                self._rows[name] = buffer = np.resize(buffer, (2 * self._n_rows + 8, *row.shape))
            buffer[self._n_rows] = row
        self._n_rows += 1

    def add_token(self, token_id: int, statistics: Sequence[float]) -> None:
        """Keep its newest token with the statistics of its distribution."""
        self.token_ids.append(token_id)
        self._statistics.append(tuple(statistics))


class LiveBatch:
    """Answers that are decoded together; each joins and leaves at any step.

    Args:
        extraction: The model, and what is kept of it.
        arrays: Names of the arrays to keep.

    Attributes:
        answers: Those that grow.

    Raises:
        UsageError: If the model cannot decode sequences of different lengths together.
    """

    def __init__(self, extraction: Extraction, arrays: Sequence[str]) -> None:
        loaded = extraction.loaded
        searched = extraction.search
        if extraction.decoding_fault is not None:
            raise UsageError(f"answers of this model cannot be streamed: {extraction.decoding_fault}")
        self.model: Any = loaded.model
        self.shape = extraction.shape
        stop_ids = loaded.eos_token_ids if searched is None else searched.stop_ids
        self.device = next(self.model.parameters()).device
        self.recorder = RowRecorder(self.shape, arrays)
        self.answers: list[LiveAnswer] = []
        self._stops = frozenset(stop_ids)

    @contextmanager
    def decoding(self) -> Iterator[None]:
        """Capture attention of all steps inside; nothing else may run on the model there."""
        recorder = self.recorder
        with capturing(self.model, recorder, one_row=one_row_attention) if recorder.arrays else nullcontext():
            yield

    @torch.inference_mode()
    def add(self, answers: Sequence[LiveAnswer]) -> None:
        """Run the prompts of new answers together; they take part in the next step."""
        encoded = [answer.prompt.encoded for answer in answers]
        token_ids, is_token = left_padded([each.token_ids.tolist() for each in encoded], self.device)
        codes = [torch.from_numpy(each.span_code.astype(np.int64)) for each in encoded]
        padded = pad_sequence(codes, batch_first=True, padding_side="left").to(self.device)
        is_span = one_hot(padded, N_SPANS).float() * is_token[..., None]
        positions = token_positions(is_token)
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        logits = self._forward(token_ids, is_token, is_span, positions, cache)
        for place, answer in enumerate(answers):
            answer.add_row(self._found, place)
        if not self.answers:
            self._cache, self._is_token, self._is_span, self._logits = cache, is_token, is_span, logits
        else:
            for mine, theirs in zip(self._cache.layers, cache.layers, strict=True):
                mine.join(theirs)
            self._is_token = _joined(self._is_token, is_token)
            self._is_span = _joined(self._is_span, is_span)
            self._logits = torch.cat([self._logits, logits])
        self.answers += answers

    @torch.inference_mode()
    def step(self) -> list[LiveAnswer]:
        """Give every answer its next token, or its end; those that ended have left.

        Returns:
            All answers of the step, ended ones among them.
        """
        stepped = list(self.answers)
        chosen = [answer.draw(row) for answer, row in zip(stepped, self._logits, strict=True)]
        chosen_ids = torch.tensor(chosen, device=self.device)
        statistics = token_statistics(self._logits, chosen_ids).T.tolist()
        for answer, token_id, numbers in zip(stepped, chosen, statistics, strict=True):
            if token_id in self._stops:
                answer.end = "stop"
            else:
                answer.add_token(token_id, numbers)
        self._keep([answer.end is None for answer in stepped])
        if self.answers:
            self._feed()
            for answer in self.answers:
                if len(answer.token_ids) >= answer.max_new_tokens:
                    answer.end = "length"
            self._keep([answer.end is None for answer in self.answers])
        return stepped

    def drop(self, answers: Sequence[LiveAnswer]) -> None:
        """Take answers out that nobody waits for."""
        self._keep([answer not in answers for answer in self.answers])

    def clear(self) -> None:
        """Take all answers out."""
        self.answers = []
        self._cache = self._is_token = self._is_span = self._logits = None  # type: ignore[assignment]

    def _feed(self) -> None:
        """Run the newest token of every answer."""
        newest = torch.tensor([[answer.token_ids[-1]] for answer in self.answers], device=self.device)
        is_new = torch.ones_like(newest, dtype=torch.bool)
        positions = self._is_token.sum(1, keepdim=True)
        self._is_token = torch.cat([self._is_token, is_new], dim=1)
        of_answer = one_hot(torch.full_like(newest, Span.ANSWER), N_SPANS).float()
        self._is_span = torch.cat([self._is_span, of_answer], dim=1)
        self._logits = self._forward(newest, self._is_token, self._is_span, positions, self._cache)
        for place, answer in enumerate(self.answers):
            answer.add_row(self._found, place)

    def _forward(
        self,
        token_ids: Int[Tensor, "sequence new"],
        is_token: Bool[Tensor, "sequence key"],
        is_span: Float[Tensor, "sequence key span"],
        positions: Int[Tensor, "sequence new"],
        cache: Cache,
    ) -> Float[Tensor, "sequence vocabulary"]:
        """Logits after the newest token of each sequence; what is kept of its row is put aside."""
        output = self.model(
            input_ids=token_ids,
            attention_mask=is_token.long(),
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=self.recorder.hidden_layers or False,
        )
        first = is_token.long().argmax(1)
        self._found = newest_row(self.recorder, output.hidden_states, is_span, first)
        return output.logits[:, -1].float()

    def _keep(self, is_kept: Sequence[bool]) -> None:
        """Let sequences go, and positions that are padding in all that stay."""
        if all(is_kept):
            return
        self.answers = [answer for answer, kept in zip(self.answers, is_kept, strict=True) if kept]
        if not self.answers:
            self.clear()
            return
        kept = [place for place, stays in enumerate(is_kept) if stays]
        n_padding = int(self._is_token[kept].long().argmax(1).min())
        for layer in self._cache.layers:
            layer.keep(kept)
            layer.trim(n_padding)
        self._is_token, self._is_span = self._is_token[kept, n_padding:], self._is_span[kept, n_padding:]
        self._logits = self._logits[kept]


def newest_row(
    recorder: RowRecorder,
    states: Sequence[Tensor | None] | None,
    is_span: Float[Tensor, "sequence key span"],
    first: Int[Tensor, "sequence"],
) -> dict[str, np.ndarray]:
    """What is kept of a pass, ``[layer, sequence, …]``.

    Args:
        recorder: Observed the pass.
        states: Hidden states of each layer, if they are kept: as bfloat16 bits of the newest token.
        is_span: As of :meth:`RowRecorder.take`.
        first: As of :meth:`RowRecorder.take`.
    """
    found = recorder.take(is_span, first)
    if recorder.hidden_layers and states is not None:
        rows = [state[:, -1] for layer in recorder.hidden_layers if (state := states[layer]) is not None]
        newest = torch.stack([row.to(rows[0].device) for row in rows])
        found["hidden_rows"] = newest.to(torch.bfloat16).view(torch.uint16).cpu().numpy()
    return found


def _joined(first: Tensor, other: Tensor) -> Tensor:
    """Two batches as one; the shorter sequences are padded on the left."""
    rows = [*first.unbind(), *other.unbind()]
    return pad_sequence(rows, batch_first=True, padding_side="left")
