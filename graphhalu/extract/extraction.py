"""A model with its settings: from questions to answers, and from answers to traces."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from graphhalu.axes import Span
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import own_path
from graphhalu.extract.answers import Answer, generated_answer
from graphhalu.extract.asking import Asked, Asker, newline_token_ids
from graphhalu.extract.beams import Candidate
from graphhalu.extract.capture import capture_note, reads_values
from graphhalu.extract.generate import BeamSearch
from graphhalu.extract.replay import replay
from graphhalu.extract.sequence import TokenSequence
from graphhalu.extract.settings import DatasetSettings, ExtractConfig, trace_shape
from graphhalu.models.load import LoadedModel
from graphhalu.models.memory import free_memory
from graphhalu.provenance import file_sha256
from graphhalu.traces.disk import estimate_bytes
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

REPLAY_TOKENS: Final = 2048
"""Tokens of one replay batch, padding included, unless a single sequence is longer."""


@dataclass(frozen=True)
class PlacedAnswer:
    """An answer to a question, on its way to the replay.

    Attributes:
        asked: The question.
        rank: Rank among the beams, or place among the given answers.
        answer: Its tokens.
        beam: The beam that it comes from; ``None`` for a given answer.
    """

    asked: Asked
    rank: int
    answer: Answer
    beam: Candidate | None


@dataclass(frozen=True)
class Answered:
    """A question with its answers, and why there are none, or fewer than there should be."""

    asked: Asked
    answers: tuple[PlacedAnswer, ...]
    failures: tuple[str, ...]


class Extraction:
    """A model with the settings by which it turns questions into traces.

    Args:
        config: What to do.
        loaded: The model.

    Attributes:
        shape: What the axes of its traces mean.
        arrays: Names of the arrays that are kept.
    """

    def __init__(self, config: ExtractConfig, loaded: LoadedModel) -> None:
        self.config = config
        self.loaded = loaded
        self.asker = Asker(config, loaded)
        stop = config.generation.stop_at_newline
        self.stops_at_newline = not self.asker.is_chat if stop is None else stop
        self.shape: TraceShape = trace_shape(loaded, config.capture)
        without_values = () if reads_values(loaded.model) else ("value_norm",)
        self.arrays = tuple(n for n in config.capture.arrays() if n not in without_values)
        self.search = self._search() if config.generation.answers == "generated" else None

    def identity(self, dataset: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What decides the content of the traces; batch sizes and devices are not among it.

        Args:
            dataset: What identifies the data set; by default its file is read.
        """
        config = self.config
        return {
            "model": dict(self.loaded.identity),
            "dataset": dict(dataset_identity(config.dataset) if dataset is None else dataset),
            "prompt": {
                **config.prompt.model_dump(mode="json"),
                "template": self.asker.template,
                "chat": self.asker.is_chat,
            },
            "generation": {
                **config.generation.identity(),
                "stop_at_newline": self.stops_at_newline,
            },
            "capture": config.capture.identity(),
        }

    def notes(self, n_questions: int) -> tuple[str, ...]:
        """What a user should know before the run."""
        notes = []
        captured = capture_note(self.loaded.model)
        if captured is not None:
            notes.append(captured)
        if self.search is not None and self.search.fallback_reason is not None:
            notes.append(
                f"answers come from plain generate, which is slower: {self.search.fallback_reason}"
            )
        asked = self.config.num_samples
        if asked is not None and asked > n_questions:
            notes.append(f"the data set holds {n_questions} questions, {asked} were asked for")
        return tuple(notes)

    def ask(self, question: Question) -> Asked:
        """The prompt of a question, or why it cannot be asked."""
        return self.asker.ask(question)

    def estimate_bytes(self, asked: Sequence[Asked]) -> int:
        """Most bytes on disk of the traces of these questions."""
        expected = [
            (length, self.asker.row_start(item))
            for item in asked
            for length in self.asker.trace_lengths(item)
        ]
        lengths, starts = zip(*expected, strict=True) if expected else ((), ())
        return estimate_bytes(self.shape, self.arrays, lengths, starts)

    def answer(self, asked: Sequence[Asked], on_done: Callable[[int], None]) -> list[Answered]:
        """The answers of questions, in their order.

        Args:
            asked: The questions.
            on_done: Called with the number of questions that just got their answers.
        """
        if self.search is None:
            on_done(len(asked))
            return [self._given(each) for each in asked]
        found: dict[str, Answered] = {}
        for each in asked:
            if each.prompt is None:
                found[each.question.question_id] = Answered(each, (), each.failures)
        on_done(len(found))
        for batch in self._batches([each for each in asked if each.prompt is not None]):
            prompts = [each.prompt.encoded.token_ids.tolist() for each in batch if each.prompt]
            candidates = self.search.answer(prompts, on_done)
            for each, beams in zip(batch, candidates, strict=True):
                found[each.question.question_id] = self._generated(each, beams)
        return [found[each.question.question_id] for each in asked]

    def size(self, answered: Answered) -> int:
        """Bytes in memory of the traces of one question."""
        asked = answered.asked
        if asked.prompt is None or not answered.answers:
            return 0
        lengths = [asked.prompt.length + len(each.answer.token_ids) for each in answered.answers]
        starts = [self.asker.row_start(asked)] * len(lengths)
        return estimate_bytes(self.shape, self.arrays, lengths, starts, is_compressed=False)

    def traces(self, block: Sequence[Answered]) -> tuple[list[Trace], list[dict[str, str]]]:
        """Traces and failures of one block of questions, in the order of the questions."""
        failures = [(each.asked, reason) for each in block for reason in each.failures]
        traces, failed = self._replayed([a for each in block for a in each.answers])
        order = {each.asked.question.question_id: place for place, each in enumerate(block)}
        traces.sort(key=lambda t: (order[t.record.question_id], t.record.beam_index))
        listed = [
            {"question_id": asked.question.question_id, "reason": reason}
            for asked, reason in [*failures, *failed]
        ]
        return traces, sorted(listed, key=lambda item: order[item["question_id"]])

    def _search(self) -> BeamSearch:
        newlines = newline_token_ids(self.loaded.tokenizer) if self.stops_at_newline else ()
        return BeamSearch(
            self.loaded.model,
            layer_windows=self.loaded.layer_windows,
            stop_ids=[*self.loaded.eos_token_ids, *newlines],
            n_beams=self.config.generation.num_beams,
            max_new_tokens=self.config.generation.max_new_tokens,
        )

    def _batches(self, askable: Sequence[Asked]) -> Iterator[list[Asked]]:
        """Batches of rising length; long prompts come in smaller ones, so that caches fit."""
        ordered = sorted(askable, key=lambda each: each.prompt.length if each.prompt else 0)
        batch: list[Asked] = []
        for each in ordered:
            assert each.prompt is not None
            longest = each.prompt.length + self.config.generation.max_new_tokens
            fits = (len(batch) + 1) * longest * self._bytes_a_token() <= free_memory(
                self.loaded.model.device
            )
            if batch and (len(batch) == self.config.batch_size or not fits):
                yield batch
                batch = []
            batch.append(each)
        if batch:
            yield batch

    def _bytes_a_token(self) -> int:
        """Bytes of keys and values, with as much again for what a pass makes beside them."""
        n_channels = self.shape.n_kv_heads * (self.shape.hidden_size // self.shape.n_heads)
        return 4 * self.shape.n_layers * n_channels * self.loaded.model.dtype.itemsize

    def _given(self, asked: Asked) -> Answered:
        answers = tuple(PlacedAnswer(asked, place, own, None) for place, own in asked.given)
        return Answered(asked, answers, asked.failures)

    def _generated(self, asked: Asked, beams: Sequence[Candidate]) -> Answered:
        kept = beams[: self.config.generation.keep_beams]
        answers = tuple(
            PlacedAnswer(asked, rank, generated_answer(beam.token_ids, self.loaded.tokenizer), beam)
            for rank, beam in enumerate(kept)
            if beam.token_ids
        )
        is_empty = not kept or not kept[0].token_ids
        return Answered(asked, answers, ("the model gave an empty answer",) if is_empty else ())

    def _replayed(
        self, pending: Sequence[PlacedAnswer]
    ) -> tuple[list[Trace], list[tuple[Asked, str]]]:
        traces: list[Trace] = []
        failures: list[tuple[Asked, str]] = []
        items = [(each, self._sequence(each)) for each in pending]
        items.sort(key=lambda item: item[1].length)
        for group in _within_tokens(items):
            results = replay(
                self.loaded.model,
                [sequence for _, sequence in group],
                shape=self.shape,
                arrays=self.arrays,
                edge_mass=self.config.capture.edge_mass,
            )
            for (each, sequence), result in zip(group, results, strict=True):
                if result.failure is not None:
                    failures.append((each.asked, result.failure))
                    continue
                record = replace(
                    _record(each), row_start=sequence.row_start,
                    choice_logprobs=result.option_logprobs,
                )  # fmt: skip
                traces.append(Trace(record, self.shape, result.arrays))
        return traces, failures

    def _sequence(self, pending: PlacedAnswer) -> TokenSequence:
        """Prompt and answer as tokens."""
        prompt = pending.asked.prompt
        assert prompt is not None
        answer_ids = np.asarray(pending.answer.token_ids, dtype=np.int32)
        answer_span = np.full(len(answer_ids), Span.ANSWER, dtype=np.uint8)
        return TokenSequence(
            token_ids=np.concatenate([prompt.encoded.token_ids.astype(np.int32), answer_ids]),
            span_code=np.concatenate([prompt.encoded.span_code.astype(np.uint8), answer_span]),
            prompt_length=prompt.length,
            row_start=self.asker.row_start(pending.asked),
            option_ids=prompt.option_ids,
        )


def dataset_identity(settings: DatasetSettings) -> dict[str, Any]:
    """What decides which questions there are; reads the file that they come from."""
    own = own_path(settings.name)
    path = own or settings.path
    return {
        "name": own.name if own is not None else settings.name,
        "seed": settings.seed,
        "file_sha256": file_sha256(path) if path is not None else None,
        **({"fields": dict(settings.fields)} if settings.fields else {}),
    }


def _record(pending: PlacedAnswer) -> TraceRecord:
    """What is known of a trace beside its arrays."""
    question, prompt, beam = pending.asked.question, pending.asked.prompt, pending.beam
    assert prompt is not None
    stated = None if beam is not None else question.given[pending.rank]
    record = TraceRecord(
        trace_id=f"{question.question_id}#{pending.rank}",
        question_id=question.question_id,
        group_id=question.group_id,
        question=question.text,
        answers=question.answers,
        answer=pending.answer.text,
        prompt=prompt.rendered.text,
        prompt_length=prompt.length,
        length=prompt.length + len(pending.answer.token_ids),
        context=question.context,
        incorrect_answers=question.incorrect_answers,
        is_finished=beam is None or beam.is_finished,
        is_on_policy=beam is not None,
        beam_index=pending.rank,
        beam_score=None if beam is None else beam.score,
        choices=question.choices,
        correct_choices=question.correct_choices,
        input_label=question.input_label,
        answer_offsets=pending.answer.offsets,
        metadata=dict(question.metadata),
    )
    if stated is None:
        return record
    label = None if stated.is_hallucinated is None else int(stated.is_hallucinated)
    given = {**({"source": stated.source} if stated.source else {}), **stated.metadata}
    return replace(
        record, given_label=label, given_spans=stated.spans,
        metadata={**record.metadata, **({"given": given} if given else {})},
    )  # fmt: skip


def _within_tokens(
    items: Sequence[tuple[PlacedAnswer, TokenSequence]],
) -> Iterator[list[tuple[PlacedAnswer, TokenSequence]]]:
    """Groups of rising length whose padded size stays within ``REPLAY_TOKENS``."""
    group: list[tuple[PlacedAnswer, TokenSequence]] = []
    for item in items:
        if group and (len(group) + 1) * item[1].length > REPLAY_TOKENS:
            yield group
            group = []
        group.append(item)
    if group:
        yield group
