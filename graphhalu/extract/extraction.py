"""A model with its settings: from questions to prompts, answers and traces."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from typing import Any, Final, TypeVar

import numpy as np
import torch

from graphhalu.core.axes import Span
from graphhalu.core.errors import GraphhaluError, UsageError
from graphhalu.datasets.prompts import EncodedPrompt
from graphhalu.datasets.question import Question
from graphhalu.extract.ask import SelfQuestions
from graphhalu.extract.beams import Answer
from graphhalu.extract.capture import capture_note, reads_values
from graphhalu.extract.contrast import REPLAYED, Contrast
from graphhalu.extract.decode import GROWTH, PromptPass
from graphhalu.extract.forward import Replayed, TokenSequence
from graphhalu.extract.generate import beam_search, most_positions, sample_draws, shared_decoding_fault
from graphhalu.extract.prompts import Prompt, generated_answer, question_prompt, resolved_config, trace_record
from graphhalu.extract.replay import Kept, prefill, replay, replay_behind
from graphhalu.extract.settings import ExtractConfig, trace_shape
from graphhalu.models.attention import is_on_interface
from graphhalu.models.load import LoadedModel, batch_memory
from graphhalu.traces.disk import estimate_bytes
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

T = TypeVar("T")
R = TypeVar("R")
_log = logging.getLogger(__name__)

REPLAY_TOKENS: Final = 2048
"""Tokens of one replay batch, padding included, unless a single sequence is longer."""
BEHIND_TOKENS: Final = 4 * REPLAY_TOKENS
"""Tokens of one batch of answers with their prompts, if these have run already."""
FEW_TOKENS: Final = 128
"""Tokens of answers, padding included, up to which a batch is too small for its padding to matter."""
MOST_PADDED: Final = 1.25
"""Tokens of answers with their padding over those without it, in a batch."""
SHARED_TOKENS: Final = 128
"""Tokens of prompts that a prompt for itself must save to be worth a pass of its own."""
PASS_BYTES: Final = 2 * 2**30
"""Bytes of what is kept of prompts that have run, while their answers are searched for."""


class Extraction:
    """A model with the settings by which it turns questions into traces.

    Args:
        config: What to do.
        loaded: The model.

    Attributes:
        config: What to do, with what was left to the model and the data set written out.
        shape: What the axes of its traces mean.
        arrays: Names of the arrays that are kept.
    """

    def __init__(self, config: ExtractConfig, loaded: LoadedModel) -> None:
        self.config = resolved_config(config, loaded)
        self.loaded = loaded
        self.shape: TraceShape = trace_shape(loaded, config.capture)
        without_values = () if reads_values(loaded.model) else ("value_norm",)
        self.arrays = tuple(n for n in config.capture.arrays() if n not in without_values)
        self.contrast = Contrast(loaded.model, self.shape) if config.capture.contrast else None
        settings = self.config.generation
        self.search, self.questions = None, None
        if settings.answers == "generated":
            self.search = beam_search(
                loaded,
                n_beams=settings.num_beams,
                max_new_tokens=settings.max_new_tokens,
                stops_at_newline=bool(settings.stop_at_newline),
            )
            if settings.samples and self.search.fallback_reason is not None:
                raise UsageError(
                    f"answers of this model cannot be sampled: {self.search.fallback_reason}\n"
                    f"  Leave --samples out"
                )
            if settings.ask:
                size, chat = config.batch_size, self.config.prompt.chat == "on"
                self.questions = SelfQuestions(loaded, chat=chat, batch_size=size)

    def identity(self, dataset: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What decides the content of the traces; batch sizes and devices are not among it.

        Args:
            dataset: What identifies the data set; by default its file is read.
        """
        config = self.config
        return {
            "model": dict(self.loaded.identity),
            "dataset": dict(config.dataset.identity() if dataset is None else dataset),
            "prompt": {**config.prompt.model_dump(mode="json"), "chat": config.prompt.chat == "on"},
            "generation": config.generation.identity(),
            "capture": config.capture.identity(),
        }

    def notes(self, n_questions: int) -> tuple[str, ...]:
        """What a user should know before the run."""
        notes = [capture_note(self.loaded.model)]
        reason = None if self.search is None else self.search.fallback_reason
        if reason is not None:
            notes.append(f"answers come from plain generate, which is slower: {reason}")
        asked = self.config.num_samples
        if asked is not None and asked > n_questions:
            notes.append(f"the data set holds {n_questions} questions, {asked} were asked for")
        return tuple(note for note in notes if note is not None)

    def prompt(self, question: Question) -> Prompt:
        """The prompt of a question; see :func:`graphhalu.extract.prompts.question_prompt`."""
        return question_prompt(question, self.config, self.loaded)

    def estimate_bytes(self, prompts: Sequence[Prompt]) -> int:
        """Most bytes on disk of the traces of these prompts."""
        settings = self.config.generation
        traces = [(each, len(answer.token_ids)) for each in prompts for answer in each.answers]
        for prompt in prompts:
            if prompt.length and not prompt.answers:
                traces += [(prompt, settings.max_new_tokens)] * (settings.keep_beams + settings.samples)
        return self._bytes(traces)

    def groups(self, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
        """Prompts in their order, in groups whose passes can be kept until all of a group have answers."""
        limit = batch_memory(self.loaded.model.device) // 4

        def fits(group: list[Prompt]) -> bool:
            n_cached = sum(each.length for each in group) * self._token_bytes
            n_kept = self._bytes([(each, 0) for each in group], is_compressed=False)
            return n_cached <= limit and n_kept <= PASS_BYTES

        yield from grouped(prompts, fits) if self.search is not None else [list(prompts)]

    def generate(self, prompts: Sequence[Prompt]) -> Iterator[Prompt]:
        """Prompts with their answers, each as soon as they are found and in any order."""
        yield from (each for each in prompts if self.search is None or not each.length)
        if self.search is None:
            return
        for batch in self._batches([each for each in prompts if each.length]):
            yield from self._answered(batch)

    def _answered(self, batch: Sequence[Prompt]) -> Iterator[Prompt]:
        """A batch with its answers; where memory runs out, what is left of it in halves."""
        done: set[str] = set()
        left: list[Prompt] = []
        try:
            for answered in self._searched(batch):
                done.add(answered.question.question_id)
                yield answered
        except torch.OutOfMemoryError as error:
            left = [prompt for prompt in batch if prompt.question.question_id not in done]
            if len(left) == 1:
                raise _too_large(left[0].length, "prompt") from error
        if left:
            yield from chain(*map(self._answered, _halves(left)))

    def _searched(self, batch: Sequence[Prompt]) -> Iterator[Prompt]:
        assert self.search is not None
        token_ids = [prompt.encoded.token_ids.tolist() for prompt in batch]
        asked = list(map(self._asked, batch))
        passes = self._passes(asked, self._kept) if self._can_share else []
        samples = self._samples(batch, token_ids, passes)
        for index, beams in self.search.as_finished(token_ids, passes):
            ran = passes[index] if passes else None
            answered = self._with_answers(replace(batch[index], ran=ran), beams, samples[index])
            yield answered if self.questions is None else self.questions.asked(answered)

    def _passes(self, prompts: Sequence[TokenSequence], kept: Kept) -> list[PromptPass]:
        """Run prompts, neighbours together; where memory runs out, in halves."""

        def fits(group: list[TokenSequence]) -> bool:
            return len(group) * max(each.length for each in group) <= REPLAY_TOKENS

        def ran(group: Sequence[TokenSequence]) -> list[PromptPass]:
            return prefill(self.loaded.model, group, kept)

        done = (
            _in_halves(ran, group, "prompt", lambda each: each.length) for group in grouped(prompts, fits)
        )
        return list(chain.from_iterable(done))

    @property
    def _kept(self) -> Kept:
        """What the store keeps of a pass."""
        return Kept(self.shape, self.arrays, self.config.capture.edge_mass)

    def size(self, answered: Prompt) -> int:
        """Bytes in memory of the traces of one question."""
        return self._bytes(
            [(answered, len(each.token_ids)) for each in answered.answers], is_compressed=False
        )

    def traces(self, block: Sequence[Prompt]) -> tuple[list[Trace], list[dict[str, str]]]:
        """Traces and failures of one block of questions, in the order of the questions."""
        failures = [(each.question.question_id, reason) for each in block for reason in each.failures]
        answers = [(each, answer) for each in block for answer in each.answers]
        traces = []
        for record, result in self._replayed(answers):
            if result.failure is None:
                traces.append(Trace(record, self.shape, result.arrays))
            else:
                failures.append((record.question_id, result.failure))
        order = {each.question.question_id: place for place, each in enumerate(block)}
        traces.sort(key=lambda t: (order[t.record.question_id], t.record.beam_index))
        failures.sort(key=lambda failure: order[failure[0]])
        return traces, [{"question_id": name, "reason": reason} for name, reason in failures]

    def _bytes(self, traces: Sequence[tuple[Prompt, int]], *, is_compressed: bool = True) -> int:
        """Bytes of traces, given the prompt and the tokens of the answer of each."""
        lengths = [prompt.length + n_tokens for prompt, n_tokens in traces]
        starts = [self._row_start(prompt) for prompt, _ in traces]
        return estimate_bytes(self.shape, self.arrays, lengths, starts, is_compressed=is_compressed)

    def _row_start(self, prompt: Prompt) -> int:
        """First query row that is kept of a prompt's traces."""
        return max(0, prompt.length - 1) if self.config.capture.rows == "answer" else 0

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[Prompt]]:
        """Batches of rising length; long prompts come in smaller ones, so that caches fit.

        They follow from the model and the size of the memory, and not from what is free of it.
        """
        settings = self.config.generation
        limit = batch_memory(self.loaded.model.device)

        def fits(batch: list[Prompt]) -> bool:
            # each beam or sample has positions of its own
            n_rows = max(settings.num_beams, most_positions(len(batch), settings.samples))
            n_answer = settings.max_new_tokens * n_rows + GROWTH
            # with as much again for what a pass makes beside them
            needed = 2 * len(batch) * (batch[-1].length + n_answer) * self._token_bytes
            return len(batch) <= self.config.batch_size and needed <= limit

        return grouped(sorted(prompts, key=lambda prompt: prompt.length), fits)

    @cached_property
    def _token_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        model = self.loaded.model
        head_size = getattr(model.config.get_text_config(), "head_dim", None)
        n_channels = self.shape.n_kv_heads * (head_size or self.shape.hidden_size // self.shape.n_heads)
        return 2 * self.shape.n_layers * n_channels * model.dtype.itemsize

    def _samples(
        self, batch: Sequence[Prompt], token_ids: Sequence[Sequence[int]], passes: Sequence[PromptPass]
    ) -> list[list[Answer]]:
        """Sampled answers of each prompt; none where none are asked for."""
        settings = self.config.generation
        if self.search is None or not settings.samples:
            return [[] for _ in batch]
        shape = (settings.samples, settings.max_new_tokens)
        ids = [prompt.question.question_id for prompt in batch]
        draws = sample_draws(ids, shape, seed=self.config.dataset.seed)
        return self.search.sample(token_ids, draws, temperature=settings.temperature, passes=passes)

    def _with_answers(self, prompt: Prompt, beams: Sequence[Answer], samples: Sequence[Answer]) -> Prompt:
        kept = beams[: self.config.generation.keep_beams]
        answers = tuple(
            replace(
                generated_answer(each.token_ids, self.loaded.tokenizer),
                rank=rank,
                score=each.score,
                is_finished=each.is_finished,
                is_sample=each.is_sample,
            )
            for rank, each in enumerate([*kept, *samples])
            if each.token_ids
        )
        is_empty = not kept or not kept[0].token_ids
        return replace(
            prompt, answers=answers, failures=("the model gave an empty answer",) if is_empty else ()
        )

    def _asked(self, prompt: Prompt) -> TokenSequence:
        """A prompt alone."""
        return _asked(prompt.encoded, self._row_start(prompt))

    @cached_property
    def decoding_fault(self) -> str | None:
        """Why sequences cannot be decoded behind a prompt that has run, or ``None``."""
        if self.search is not None:
            return self.search.fallback_reason
        return shared_decoding_fault(self.loaded.model, self.loaded.layer_windows)

    @cached_property
    def _can_share(self) -> bool:
        """Whether answers can be searched for and replayed behind a prompt that has run."""
        return is_on_interface(self.loaded.model) and self.decoding_fault is None

    def _replayed(self, answers: Sequence[tuple[Prompt, Answer]]) -> Iterator[tuple[TraceRecord, Replayed]]:
        """Replay answers behind their prompts where these have run or many share one, all others whole."""
        of_question: dict[str, list[tuple[Prompt, Answer]]] = {}
        for each in answers:
            of_question.setdefault(each[0].question.question_id, []).append(each)
        alone: list[tuple[Prompt, Answer]] = []
        behind: list[list[tuple[Prompt, Answer]]] = []
        for group in of_question.values():
            prompt = group[0][0]
            is_worth_it = (len(group) - 1) * prompt.length >= SHARED_TOKENS
            if prompt.ran is not None or (is_worth_it and self._can_share):
                behind.append(group)
            else:
                alone += group
        for part in grouped(sorted(alone, key=_n_tokens), lambda part: _padded_size([part]) <= REPLAY_TOKENS):
            yield from self._results(part)
        for groups in grouped(sorted(behind, key=_largest), lambda part: _padded_size(part) <= BEHIND_TOKENS):
            for part in _even(chain(*self._behind(groups))):
                yield from self._results(part)

    def _behind(
        self, groups: Sequence[Sequence[tuple[Prompt, Answer]]]
    ) -> Iterator[list[tuple[Prompt, Answer]]]:
        """Answers of some questions whose prompts have all run."""
        left = [group[0][0] for group in groups if group[0][0].ran is None]
        ran = self._passes(list(map(self._asked, left)), self._kept)
        new = {prompt.question.question_id: done for prompt, done in zip(left, ran, strict=True)}
        for group in groups:
            prompt = group[0][0]
            prompt = replace(prompt, ran=prompt.ran or new[prompt.question.question_id])
            yield [(prompt, answer) for _, answer in group]

    def _results(self, group: Sequence[tuple[Prompt, Answer]]) -> list[tuple[TraceRecord, Replayed]]:
        """Replay one batch, in halves where memory runs out; with contrast, again without the contexts."""
        return _in_halves(self._run_once, group, "answer", _n_tokens)

    def _run_once(self, group: Sequence[tuple[Prompt, Answer]]) -> Iterator[tuple[TraceRecord, Replayed]]:
        sequences = [
            replace(_answered(self._asked(prompt), answer), option_ids=prompt.option_ids)
            for prompt, answer in group
        ]
        passes = [prompt.ran for prompt, _ in group if prompt.ran is not None]
        if passes:
            results = replay_behind(self.loaded.model, passes, sequences, self._kept)
        else:
            results = replay(self.loaded.model, sequences, self._kept)
        if self.contrast is not None:
            compared = [place for place, (prompt, _) in enumerate(group) if prompt.bare is not None]
            again = self._without_context([group[place] for place in compared])
            without = dict(zip(compared, again, strict=True))
            others = map(without.get, range(len(group)))
            results = self.contrast.compared([*zip(sequences, results, others, strict=True)])
        for (prompt, answer), sequence, result in zip(group, sequences, results, strict=True):
            yield trace_record(prompt, answer, sequence, result), result

    def _without_context(self, group: Sequence[tuple[Prompt, Answer]]) -> list[Replayed]:
        """Replay answers behind the prompts without their contexts, each of which runs once."""
        bare = {p.question.question_id: _asked(p.bare, len(p.bare.token_ids) - 1) for p, _ in group if p.bare}
        sequences = [_answered(bare[prompt.question.question_id], answer) for prompt, answer in group]
        kept = Kept(self.shape, REPLAYED)
        if len(bare) == len(group) or not self._can_share:
            return replay(self.loaded.model, sequences, kept) if group else []
        passes = dict(zip(bare, self._passes(list(bare.values()), kept), strict=True))
        behind = [passes[prompt.question.question_id] for prompt, _ in group]
        return replay_behind(self.loaded.model, behind, sequences, kept)


def _asked(encoded: EncodedPrompt, row_start: int) -> TokenSequence:
    """A prompt alone."""
    return TokenSequence(encoded.token_ids, encoded.span_code, len(encoded.token_ids), row_start)


def _answered(asked: TokenSequence, answer: Answer) -> TokenSequence:
    """A prompt with an answer behind it."""
    codes = np.append(asked.span_code, [Span.ANSWER] * len(answer.token_ids))
    return replace(asked, token_ids=np.append(asked.token_ids, answer.token_ids), span_code=codes)


def _n_tokens(each: tuple[Prompt, Answer]) -> int:
    """Tokens of prompt and answer."""
    return each[0].length + len(each[1].token_ids)


def _largest(group: Sequence[tuple[Prompt, Answer]]) -> int:
    return max(map(_n_tokens, group))


def _padded_size(groups: Sequence[Sequence[tuple[Prompt, Answer]]]) -> int:
    """Tokens of all answers of some questions with their prompts, padded to the longest."""
    return sum(map(len, groups)) * max(map(_largest, groups))


def _even(items: Iterable[tuple[Prompt, Answer]]) -> Iterator[list[tuple[Prompt, Answer]]]:
    """Answers of rising length in batches with little padding, whose prompts have run."""

    def fits(part: list[tuple[Prompt, Answer]]) -> bool:
        lengths = [len(answer.token_ids) for _, answer in part]
        most = max(FEW_TOKENS, MOST_PADDED * sum(lengths))
        return _padded_size([part]) <= BEHIND_TOKENS and len(part) * lengths[-1] <= most

    return grouped(sorted(items, key=lambda each: len(each[1].token_ids)), fits)


def _in_halves(
    run: Callable[[Sequence[T]], Iterable[R]], items: Sequence[T], what: str, n_tokens: Callable[[T], int]
) -> list[R]:
    """What a run gives of a batch; where memory runs out, of its halves."""
    try:
        return list(run(items))
    except torch.OutOfMemoryError as error:
        if len(items) == 1:
            raise _too_large(n_tokens(items[0]), what) from error
    return [each for half in _halves(items) for each in _in_halves(run, half, what, n_tokens)]


def _halves(items: Sequence[T]) -> list[Sequence[T]]:
    """Two halves of a batch for which memory ran out; what it had taken is free again."""
    _log.warning("memory ran out at %d sequences at a time: they are done in halves", len(items))
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(items) // 2
    return [items[:middle], items[middle:]]


def _too_large(n_tokens: int, what: str) -> GraphhaluError:
    return GraphhaluError(
        f"memory runs out at one {what} of {n_tokens} tokens\n"
        f"  Use --quantization nf4, --keep streams, fewer --beams, or --device cpu"
    )


def grouped(items: Iterable[T], fits: Callable[[list[T]], bool]) -> Iterator[list[T]]:
    """Items in groups, each as long as it fits; an item that does not fit is a group alone."""
    group: list[T] = []
    for item in items:
        if group and not fits([*group, item]):
            yield group
            group = []
        group.append(item)
    if group:
        yield group
