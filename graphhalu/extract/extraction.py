"""A model with its settings: from a question to prompt, answer and trace."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphhalu.axes import Span
from graphhalu.datasets.prompts import EncodedPrompt, build_prompt, encode_prompt
from graphhalu.datasets.question import Question
from graphhalu.errors import GraphhaluError, UsageError
from graphhalu.extract.beams import Candidate
from graphhalu.extract.generate import BeamSearch
from graphhalu.extract.replay import TokenSequence, replay
from graphhalu.extract.settings import ExtractConfig, PromptSettings, trace_shape
from graphhalu.models.load import LoadedModel
from graphhalu.provenance import file_sha256
from graphhalu.traces.schema import TraceRecord, TraceShape
from graphhalu.traces.trace import Trace

REPLAY_TOKENS = 2048
"""Tokens of one replay batch, padding included, unless a single sequence is longer."""

ATTENTION_BYTES = 64 * 2**20
"""Attention weights of one layer that exist at a time, in float32."""


@dataclass(frozen=True)
class Asked:
    """A question with its prompt, or with the reason why it has none."""

    question: Question
    prompt: EncodedPrompt | None
    text: str
    failure: str | None = None


class Extraction:
    """A model with the settings by which it turns questions into traces.

    Args:
        config: What to do.
        loaded: The model.
    """

    def __init__(self, config: ExtractConfig, loaded: LoadedModel) -> None:
        self.config = config
        self.loaded = loaded
        self.is_chat = _uses_chat(config.prompt, loaded)
        stop = config.generation.stop_at_newline
        self.stops_at_newline = not self.is_chat if stop is None else stop
        self.shape: TraceShape = trace_shape(loaded, config.capture)
        newlines = newline_token_ids(loaded.tokenizer) if self.stops_at_newline else ()
        self.search = BeamSearch(
            loaded.model,
            layer_windows=loaded.layer_windows,
            stop_ids=[*loaded.eos_token_ids, *newlines],
            n_beams=config.generation.num_beams,
            max_new_tokens=config.generation.max_new_tokens,
        )

    def identity(self) -> dict[str, Any]:
        """What decides the content of the traces; batch sizes and devices are not among it."""
        config, path = self.config, self.config.dataset.path
        return {
            "model": dict(self.loaded.identity),
            "dataset": {
                "name": config.dataset.name,
                "seed": config.dataset.seed,
                "file_sha256": file_sha256(path) if path is not None else None,
            },
            "prompt": {**config.prompt.model_dump(mode="json"), "chat": self.is_chat},
            "generation": {
                **config.generation.model_dump(mode="json"),
                "stop_at_newline": self.stops_at_newline,
            },
            "capture": config.capture.model_dump(mode="json"),
        }

    def notes(self, n_questions: int) -> tuple[str, ...]:
        """What a user should know before the run."""
        notes = []
        if self.search.fallback_reason is not None:
            notes.append(
                f"answers come from plain generate, which is slower: {self.search.fallback_reason}"
            )
        asked = self.config.num_samples
        if asked is not None and asked > n_questions:
            notes.append(f"the data set holds {n_questions} questions, {asked} were asked for")
        return tuple(notes)

    def ask(self, question: Question) -> Asked:
        """The prompt of a question, or why it cannot be asked."""
        settings, tokenizer = self.config.prompt, self.loaded.tokenizer
        try:
            prompt = build_prompt(
                question, template=settings.template, chat=self.is_chat,
                tokenizer=tokenizer, system=settings.system or question.system,
            )  # fmt: skip
            encoded = encode_prompt(prompt, tokenizer)
        except UsageError:
            raise
        except GraphhaluError as error:
            return Asked(question, None, "", str(error))
        longest = len(encoded.token_ids) + self.config.generation.max_new_tokens
        limit = self.loaded.max_positions
        if limit is not None and longest > limit:
            reason = (
                f"prompt and answer need up to {longest} tokens, the model's context has {limit}"
            )
            return Asked(question, None, prompt.text, reason)
        return Asked(question, encoded, prompt.text)

    def trace_length(self, asked: Asked) -> int:
        """Longest possible trace of a question, in tokens; 0 where there is none."""
        if asked.prompt is None:
            return 0
        return len(asked.prompt.token_ids) + self.config.generation.max_new_tokens

    def part(
        self, block: Sequence[Asked], on_done: Callable[[int], None]
    ) -> tuple[list[Trace], list[dict[str, str]]]:
        """Traces and failures of one block of questions, in the order of the questions."""
        failures = {a.question.question_id: a.failure for a in block if a.failure is not None}
        pending: list[tuple[Asked, int, Candidate]] = []
        for batch in _batches_by_length(block, self.config.batch_size):
            prompts = [asked.prompt.token_ids.tolist() for asked in batch if asked.prompt]
            found = self.search.answer(prompts, on_done)
            for asked, candidates in zip(batch, found, strict=True):
                kept = candidates[: self.config.generation.keep_beams]
                pending += [(asked, rank, beam) for rank, beam in enumerate(kept) if beam.token_ids]
                if not kept or not kept[0].token_ids:
                    failures[asked.question.question_id] = "the model gave an empty answer"
        traces, failed = self._replayed(pending)
        failures |= failed
        order = {asked.question.question_id: place for place, asked in enumerate(block)}
        traces.sort(key=lambda t: (order[t.record.question_id], t.record.beam_index))
        listed = [{"question_id": name, "reason": text} for name, text in failures.items() if text]
        return traces, sorted(listed, key=lambda item: order[item["question_id"]])

    def _replayed(
        self, pending: Sequence[tuple[Asked, int, Candidate]]
    ) -> tuple[list[Trace], dict[str, str]]:
        traces: list[Trace] = []
        failures: dict[str, str] = {}
        items = [(record_and_sequence(self.loaded, *item)) for item in pending]
        items.sort(key=lambda item: item[1].length)
        for group in _within_tokens(items):
            width = group[-1][1].length
            results = replay(
                self.loaded.model,
                [sequence for _, sequence in group],
                shape=self.shape,
                arrays=self.config.capture.arrays(),
                row_chunk=max(1, ATTENTION_BYTES // (4 * len(group) * self.shape.n_heads * width)),
            )
            for (record, _), result in zip(group, results, strict=True):
                if result.failure is not None:
                    failures[record.question_id] = result.failure
                else:
                    traces.append(Trace(record, self.shape, result.arrays))
        return traces, failures


def record_and_sequence(
    loaded: LoadedModel, asked: Asked, rank: int, beam: Candidate
) -> tuple[TraceRecord, TokenSequence]:
    """Identity and tokens of prompt plus answer."""
    question, prompt = asked.question, asked.prompt
    assert prompt is not None
    answer_ids = np.asarray(beam.token_ids, dtype=np.int32)
    token_ids = np.concatenate([prompt.token_ids.astype(np.int32), answer_ids])
    answer_span = np.full(len(answer_ids), Span.ANSWER, dtype=np.uint8)
    record = TraceRecord(
        trace_id=f"{question.question_id}#{rank}",
        question_id=question.question_id,
        group_id=question.group_id,
        question=question.text,
        answers=question.answers,
        answer=loaded.tokenizer.decode(list(beam.token_ids), skip_special_tokens=True).strip(),
        prompt=asked.text,
        prompt_length=len(prompt.token_ids),
        length=len(token_ids),
        context=question.context,
        incorrect_answers=question.incorrect_answers,
        is_finished=beam.is_finished,
        beam_index=rank,
        beam_score=beam.score,
        metadata=dict(question.metadata),
    )
    span_code = np.concatenate([prompt.span_code.astype(np.uint8), answer_span])
    return record, TokenSequence(token_ids, span_code, record.prompt_length)


def newline_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens whose text holds a newline."""
    suspects = [
        index
        for token, index in tokenizer.get_vocab().items()
        if "\n" in token or "Ċ" in token or token == "<0x0A>"  # noqa: S105
    ]
    return tuple(sorted(index for index in suspects if "\n" in tokenizer.decode([index])))


def _uses_chat(settings: PromptSettings, loaded: LoadedModel) -> bool:
    has_template = getattr(loaded.tokenizer, "chat_template", None) is not None
    if settings.chat == "on" and not has_template:
        message = (
            "the model has no chat template, and --chat on asks for one\n"
            "  Use --chat off, or a chat version of the model"
        )
        raise UsageError(message)
    return settings.chat == "on" or (settings.chat == "auto" and has_template)


def _batches_by_length(block: Sequence[Asked], batch_size: int) -> Iterator[list[Asked]]:
    askable = [asked for asked in block if asked.prompt is not None]
    askable.sort(key=lambda asked: len(asked.prompt.token_ids) if asked.prompt else 0)
    for start in range(0, len(askable), batch_size):
        yield askable[start : start + batch_size]


def _within_tokens(
    items: Sequence[tuple[TraceRecord, TokenSequence]],
) -> Iterator[list[tuple[TraceRecord, TokenSequence]]]:
    """Groups of rising length whose padded size stays within ``REPLAY_TOKENS``."""
    group: list[tuple[TraceRecord, TokenSequence]] = []
    for item in items:
        if group and (len(group) + 1) * item[1].length > REPLAY_TOKENS:
            yield group
            group = []
        group.append(item)
    if group:
        yield group
