"""Prompts and generations: a question as a model is shown it, and the tokens of its answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np

from graphhalu.core.axes import Span
from graphhalu.core.errors import DataFileError, GraphhaluError, UsageError
from graphhalu.datasets.prompts import (
    DEFAULT_TEMPLATE,
    EncodedPrompt,
    build_prompt,
    encode_prompt,
    letter_spellings,
)
from graphhalu.datasets.prompts import Prompt as RenderedPrompt
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import DATASETS
from graphhalu.extract.beams import Answer
from graphhalu.extract.decode import PromptPass
from graphhalu.extract.forward import Replayed, TokenSequence
from graphhalu.extract.settings import ExtractConfig, PromptSettings
from graphhalu.models.load import LoadedModel
from graphhalu.traces.schema import TraceRecord

_DTYPES: Final = ("float32", "bfloat16", "float16")
_OF_QUESTION: Final = (
    *("question_id", "group_id", "answers", "context", "incorrect_answers"),
    *("choices", "correct_choices", "input_label"),
)
"""Fields of a question that a trace has under the same names."""

_NO_TEXT: Final = RenderedPrompt("", (), is_chat=False)
_NO_TOKENS: Final = EncodedPrompt(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.uint8))


@dataclass(frozen=True)
class Prompt:
    """A question as the model is shown it, with its answers once there are some.

    Attributes:
        question: The question.
        rendered: Its text with spans.
        encoded: Its tokens with spans; none if the question cannot be asked.
        option_ids: For each option of a multiple choice, the tokens that stand for its letter.
        answers: Answers of the data set to replay, or those that the model gave.
        failures: Why the question, or some of its answers, cannot be done.
        bare: Its tokens without the context; ``None`` if there is none, or nothing is compared with it.
        ran: The pass behind which its answers were found; they are replayed behind it too.
    """

    question: Question
    rendered: RenderedPrompt = _NO_TEXT
    encoded: EncodedPrompt = _NO_TOKENS
    option_ids: tuple[tuple[int, ...], ...] = ()
    answers: tuple[Answer, ...] = ()
    failures: tuple[str, ...] = ()
    bare: EncodedPrompt | None = None
    ran: PromptPass | None = None

    @property
    def length(self) -> int:
        """Tokens of the prompt; 0 if it cannot be asked."""
        return len(self.encoded.token_ids)


def question_prompt(question: Question, config: ExtractConfig, loaded: LoadedModel) -> Prompt:
    """The prompt of a question, with given answers if they are asked for, or why it cannot be asked.

    Args:
        question: The question.
        config: What to do, with everything written out (:func:`resolved_config`).
        loaded: The model.

    Raises:
        UsageError: If the settings do not fit the data set or the model.
    """
    settings, tokenizer = config.prompt, loaded.tokenizer
    shown: dict[str, Any] = {"template": settings.template, "chat": settings.chat == "on"}
    shown |= {"tokenizer": tokenizer, "system": settings.system or question.system}
    bare = None
    try:
        rendered = build_prompt(question, **shown)
        encoded = encode_prompt(rendered, tokenizer)
        if config.capture.contrast and rendered.has(Span.CONTEXT):
            bare = encode_prompt(build_prompt(question, **shown, without=Span.CONTEXT), tokenizer)
        n_choices = len(question.choices)
        option_ids = letter_spellings(tokenizer, n_choices) if n_choices else ()
        prompt = Prompt(question, rendered, encoded, option_ids, bare=bare)
        if config.generation.answers == "given":
            return _with_given(prompt, config, loaded)
        _require_room(prompt.length + config.generation.max_new_tokens, loaded)
    except UsageError:
        raise
    except GraphhaluError as error:
        return Prompt(question, failures=(str(error),))
    return prompt


def _with_given(prompt: Prompt, config: ExtractConfig, loaded: LoadedModel) -> Prompt:
    question = prompt.question
    if not question.given:
        raise UsageError(
            f"question {question.question_id!r} of {config.dataset.name} states no answer "
            f"to replay\n  Leave --answers given out: the model then answers itself"
        )
    found: list[Answer] = []
    failures: list[str] = []
    for rank, stated in enumerate(question.given):
        try:
            answer = given_answer(stated.text, prompt.rendered, prompt.encoded, loaded.tokenizer)
            _require_room(prompt.length + len(answer.token_ids), loaded)
            found.append(replace(answer, rank=rank))
        except GraphhaluError as error:
            failures.append(str(error))
    if not found:
        return Prompt(question, failures=tuple(failures))
    return replace(prompt, answers=tuple(found), failures=tuple(failures))


def _require_room(length: int, loaded: LoadedModel) -> None:
    limit = loaded.max_positions
    if limit is not None and length > limit:
        raise DataFileError(f"prompt and answer need up to {length} tokens, the model's context has {limit}")


def generated_answer(token_ids: Sequence[int], tokenizer: Any, **beam: Any) -> Answer:
    """The answer that the model's own tokens spell, without space around it.

    A character of several tokens belongs to the last of them.

    Args:
        token_ids: Tokens of the answer.
        tokenizer: That of the model.
        beam: Rank, score and end of the beam; see :class:`Answer`.
    """
    ends = [0]
    for count in range(1, len(token_ids) + 1):
        text = tokenizer.decode(list(token_ids[:count]), skip_special_tokens=True)
        # an unfinished character is shown as a replacement character until its last byte
        ends.append(max(ends[-1], len(text.rstrip("\ufffd"))))
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True)
    ends[-1] = len(text)
    stripped, lead = text.strip(), len(text) - len(text.lstrip())
    places = [min(max(end - lead, 0), len(stripped)) for end in ends]
    return Answer(tuple(token_ids), text=stripped, offsets=tuple(pairwise(places)), **beam)


def given_answer(text: str, prompt: RenderedPrompt, encoded: EncodedPrompt, tokenizer: Any) -> Answer:
    """The tokens of an answer that the data set states, as they follow the prompt.

    Prompt and answer are tokenized together, so that the answer begins as the model would write
    it. Where the prompt's own tokens come out otherwise, the answer is tokenized alone.

    Raises:
        DataFileError: If the answer is empty.
    """
    text = text.strip()
    gap = "" if prompt.is_chat or prompt.text[-1:].isspace() else " "
    settings: dict[str, Any] = {"return_offsets_mapping": True}
    has_bos, n_prompt = prompt.has(Span.BOS), len(encoded.token_ids)
    joint = tokenizer(prompt.text + gap + text, add_special_tokens=not has_bos, **settings)
    if joint["input_ids"][:n_prompt] == encoded.token_ids.tolist():
        ids, offsets = joint["input_ids"][n_prompt:], joint["offset_mapping"][n_prompt:]
        lead = len(prompt.text) + len(gap)
    else:
        alone = tokenizer(gap + text, add_special_tokens=False, **settings)
        ids, offsets, lead = alone["input_ids"], alone["offset_mapping"], len(gap)
    while ids and ids[-1] == tokenizer.eos_token_id and offsets[-1] == (0, 0):
        ids, offsets = ids[:-1], offsets[:-1]
    if not ids or not text:
        raise DataFileError("the given answer is empty")
    ranges = tuple((max(0, start - lead), max(0, stop - lead)) for start, stop in offsets)
    return Answer(tuple(ids), text=text, offsets=ranges)


def trace_record(prompt: Prompt, answer: Answer, sequence: TokenSequence, result: Replayed) -> TraceRecord:
    """What is known of a trace beside its arrays."""
    question, label, metadata = prompt.question, None, dict(prompt.question.metadata)
    stated = question.given[answer.rank] if answer.score is None else None
    if stated is not None:
        label = None if stated.is_hallucinated is None else int(stated.is_hallucinated)
        given = {**({"source": stated.source} if stated.source else {}), **stated.metadata}
        metadata |= {"given": given} if given else {}
    return TraceRecord(
        trace_id=f"{question.question_id}#{answer.rank}",
        question=question.text,
        answer=answer.text,
        prompt=prompt.rendered.text,
        prompt_length=prompt.length,
        length=sequence.length,
        row_start=sequence.row_start,
        is_finished=answer.is_finished,
        is_on_policy=stated is None,
        beam_index=answer.rank,
        beam_score=answer.score,
        is_sample=answer.is_sample,
        asked=dict(answer.asked),
        choice_logprobs=result.option_logprobs,
        given_label=label,
        given_spans=() if stated is None else stated.spans,
        answer_offsets=answer.offsets,
        metadata=metadata,
        **{name: getattr(question, name) for name in _OF_QUESTION},
    )


def prompt_template_name(config: ExtractConfig) -> str:
    """The prompt template that is asked for, or the one that suits the data set."""
    if config.prompt.template != "auto":
        return config.prompt.template
    name = config.dataset.name
    return DATASETS.get(name).card.template if name in DATASETS else DEFAULT_TEMPLATE


def uses_chat(settings: PromptSettings, loaded: LoadedModel) -> bool:
    """Whether the model's chat template goes around the prompt.

    Raises:
        UsageError: If it is asked for and there is none.
    """
    has_template = getattr(loaded.tokenizer, "chat_template", None) is not None
    if settings.chat == "on" and not has_template:
        raise UsageError(
            "the model has no chat template, and --chat on asks for one\n"
            "  Use --chat off, or a chat version of the model"
        )
    return settings.chat == "on" or (settings.chat == "auto" and has_template)


def resolved_config(config: ExtractConfig, loaded: LoadedModel) -> ExtractConfig:
    """The same with what was left to the model and the data set written out."""
    is_chat, stop = uses_chat(config.prompt, loaded), config.generation.stop_at_newline
    model = {"revision": loaded.identity["revision"], "dtype": loaded.identity["dtype"]}
    if model["dtype"] not in _DTYPES:
        del model["dtype"]
    prompt = {"template": prompt_template_name(config), "chat": "on" if is_chat else "off"}
    generation = {"stop_at_newline": not is_chat if stop is None else stop}
    changes = {
        "model": config.model.model_copy(update=model),
        "prompt": config.prompt.model_copy(update=prompt),
        "generation": config.generation.model_copy(update=generation),
    }
    return config.model_copy(update=changes)
