"""Prompts with named spans: templates, the text of a question as a model reads it, and its tokens.

Spans are found while the text is made: markers stand around each piece when a chat template is
rendered. Token spans come from the tokenizer's offsets. Nothing is ever searched for.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jinja2
import numpy as np
from jaxtyping import Int, Int32, UInt8
from transformers import PreTrainedTokenizerBase

from graphhalu.core.axes import SPAN_NAMES, Span
from graphhalu.core.errors import ModelRefusedError, UsageError
from graphhalu.core.registry import unknown_name
from graphhalu.datasets.question import LETTERS, Question, Turn

CHAT_OPTIONS: Final[Mapping[str, Any]] = {
    # templates that show today's date would make another prompt every day
    "date_string": "26 Jul 2024",
    # an answer of one sentence has no room for a chain of thought before it
    "enable_thinking": False,
}
"""What every chat template is told beside the messages."""
_FIRST_MARK: Final = 0xE000
_LAST_MARK: Final = 0xF8FF


Pieces = list[tuple[Span, str]]
"""The texts of a prompt in order, each with its span."""

_LEADS: Final = ("", " ", "\n", ":", ": ")
"""What stands before a letter while its tokens are looked for: some tokenizers put a space before
the first word of a text, so that only a word after something else comes without one."""


class Piece(NamedTuple):
    """Characters ``start … stop - 1`` of a prompt, which belong to one span."""

    span: Span
    start: int
    stop: int


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        text: What the tokenizer gets.
        pieces: Spans in order; together they hold every character once.
        is_chat: Whether a chat template made it.
    """

    text: str
    pieces: tuple[Piece, ...]
    is_chat: bool

    def has(self, span: Span) -> bool:
        """Whether a piece belongs to this span."""
        return any(piece.span == span for piece in self.pieces)


@dataclass(frozen=True)
class EncodedPrompt:
    """The tokens of a prompt.

    Attributes:
        token_ids: Vocabulary indices, beginning-of-sequence token included if there is one.
        span_code: Named span of each token, as the integer of :class:`graphhalu.core.axes.Span`.
    """

    token_ids: Int32[np.ndarray, "token"]
    span_code: UInt8[np.ndarray, "token"]


def build_prompt(
    question: Question,
    *,
    template: str = "concise",
    chat: bool,
    tokenizer: PreTrainedTokenizerBase,
    system: str | None = None,
    without: Span | None = None,
) -> Prompt:
    """Render the prompt of a question.

    Args:
        question: The question, with its examples, context and choices if it has any.
        template: Name of a prompt template.
        chat: Whether the model's chat template goes around it. Dates in it are fixed to
            26 Jul 2024, and a thinking mode is switched off.
        tokenizer: Tokenizer of the model.
        system: System prompt; ``None`` takes the question's own. A plain prompt begins with it.
        without: A span whose text is left out.

    Raises:
        UsageError: If the question is empty or the template cannot show it, there is no chat
            template, or it takes no system prompt.
        ModelRefusedError: If the chat template changes the texts that are put into it.
    """
    if not question.text.strip():
        raise UsageError(f"question {question.question_id!r} has no text")
    if template not in PROMPT_TEMPLATES:
        raise unknown_name("prompt template", template, PROMPT_TEMPLATES)
    body = [piece for piece in PROMPT_TEMPLATES[template](question) if piece[0] != without]
    system = question.system if system is None else system
    system = system if system and system.strip() else None
    turns = () if without == Span.CONTEXT else question.turns
    if chat:
        return _chat_prompt(body, system, turns, tokenizer)
    front = [] if system is None else [(Span.SYSTEM, system), (Span.TEMPLATE, "\n\n")]
    for role, text in turns:
        front += [(Span.TEMPLATE, f"{role.capitalize()}: "), (Span.CONTEXT, text), (Span.TEMPLATE, "\n\n")]
    marks = Marks([text for _, text in (*front, *body)])
    return marks.prompt("".join(marks.around(span, text) for span, text in (*front, *body)))


def encode_prompt(prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> EncodedPrompt:
    """Tokenize a prompt and give each token the span of its first non-space character.

    The tokenizer is called once, on the whole text. It adds its own special tokens unless the
    text holds the beginning-of-sequence token; an end mark that it appends is taken off.
    Special tokens that it puts in front are ``bos``, others ``template``.

    Raises:
        ModelRefusedError: If the tokenizer gives no offsets, doubles the beginning-of-sequence
            token, or makes no token.
    """
    if not tokenizer.is_fast:
        raise ModelRefusedError(
            f"the tokenizer {type(tokenizer).__name__} gives no character offsets, and named "
            f"spans need them; use a model with a fast tokenizer"
        )
    encoded = tokenizer(prompt.text, add_special_tokens=not prompt.has(Span.BOS), return_offsets_mapping=True)
    token_ids = list(encoded["input_ids"])
    offsets = [(int(start), int(stop)) for start, stop in encoded["offset_mapping"]]
    while token_ids and token_ids[-1] == tokenizer.eos_token_id and offsets[-1] == (0, 0):
        token_ids, offsets = token_ids[:-1], offsets[:-1]
    bos = tokenizer.bos_token_id
    if not token_ids:
        raise ModelRefusedError("the tokenizer makes no token of the prompt")
    if bos is not None and token_ids[:2] == [bos, bos]:
        raise ModelRefusedError(
            f"the prompt begins with two beginning-of-sequence tokens ({tokenizer.bos_token!r}); "
            f"the model never saw that in training"
        )
    spans = list(_token_spans(prompt, token_ids, offsets, set(tokenizer.all_special_ids)))
    return EncodedPrompt(np.array(token_ids, dtype=np.int32), np.array(spans, dtype=np.uint8))


def require_span(
    span_code: UInt8[np.ndarray, "token"], span: Span, *, where: str = "the prompt"
) -> Int[np.ndarray, "member"]:
    """Positions of the tokens of a span.

    Args:
        span_code: Named span of each token.
        span: The span asked for.
        where: What to call the sequence in the error.

    Raises:
        UsageError: If no token belongs to it; names the spans that are there.
    """
    positions = np.flatnonzero(span_code == span)
    if not positions.size:
        present = ", ".join(SPAN_NAMES[code] for code in np.unique(span_code))
        raise UsageError(f"{where} has no {SPAN_NAMES[span]!r} span; it has {present or 'none'}")
    return positions


def _chat_prompt(
    body: Pieces, system: str | None, turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase
) -> Prompt:
    if not tokenizer.chat_template:
        raise UsageError(
            "the model has no chat template: it is not tuned for chat\n"
            "  Use a plain prompt:  --set prompt.chat=off"
        )
    earlier = [text for _, text in turns]
    marks = Marks([system or "", *earlier, *(text for _, text in body), str(tokenizer.chat_template)])
    marked_system = None if system is None else marks.around(Span.SYSTEM, system)
    marked_turns = [(role, marks.around(Span.CONTEXT, text)) for role, text in turns]
    marked_user = "".join(marks.around(span, text) for span, text in body)
    marked = _rendered([*marked_turns, ("user", marked_user)], marked_system, tokenizer)
    plain = _rendered([*turns, ("user", "".join(text for _, text in body))], system, tokenizer)
    if marks.removed(marked) != plain:
        raise rewritten_error("it renders another text when the pieces are marked")
    if marked_system is not None and marked_system.strip()[0] not in marked:
        raise _no_system("leaves it out")
    return marks.prompt(marked, bos=tokenizer.bos_token, is_chat=True)


def _rendered(turns: Sequence[Turn], system: str | None, tokenizer: PreTrainedTokenizerBase) -> str:
    said = [*([] if system is None else [("system", system)]), *turns]
    messages = [{"role": role, "content": text} for role, text in said]
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS
        )
    except jinja2.TemplateError as error:
        if system is not None:
            raise _no_system(f"says: {error}") from None
        raise ModelRefusedError(f"the model's chat template cannot be rendered: {error}") from None
    return str(text)


def _token_spans(
    prompt: Prompt, token_ids: list[int], offsets: list[tuple[int, int]], special: set[int]
) -> Iterator[Span]:
    span_of_character = [piece.span for piece in prompt.pieces for _ in range(*piece[1:])]
    has_begun = False
    for token_id, (start, stop) in zip(token_ids, offsets, strict=True):
        if start == stop and (token_id in special or stop == 0):
            yield Span.BOS if token_id in special and not has_begun else Span.TEMPLATE
        else:
            has_begun = True
            yield span_of_character[_first_visible(prompt.text, start, stop)]


def _first_visible(text: str, start: int, stop: int) -> int:
    """First character of a token that is not a space, or its first character."""
    # tokenizers that trim give a token of spaces an empty range behind them
    start = min(start, stop - 1)
    return next((i for i in range(start, stop) if not text[i].isspace()), start)


def _no_system(how: str) -> UsageError:
    return UsageError(
        f"the model's chat template takes no system prompt; it {how}\n"
        f"  Leave the system prompt out, or use a plain prompt:  --set prompt.chat=off"
    )


class Marks:
    """Pairs of private-use characters that stand around pieces while a text is rendered.

    Args:
        texts: Everything that goes into the rendering; no mark occurs in it.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        taken = set("".join(texts))
        self._free = (chr(c) for c in range(_FIRST_MARK, _LAST_MARK + 1) if chr(c) not in taken)
        self._pairs: list[tuple[Span, str, str, str]] = []

    def around(self, span: Span, text: str) -> str:
        """The text with marks inside its outer space, so that a template may trim it."""
        core = text.strip()
        if span == Span.TEMPLATE or not core:
            return text
        first, last = next(self._free), next(self._free)
        self._pairs.append((span, core, first, last))
        lead, _, trail = text.partition(core)
        return f"{lead}{first}{core}{last}{trail}"

    def removed(self, marked: str) -> str:
        """The text without marks."""
        return marked.translate({ord(c): None for _, _, *pair in self._pairs for c in pair})

    def prompt(self, marked: str, *, bos: str | None = None, is_chat: bool = False) -> Prompt:
        """The prompt of a marked text, partitioned into spans.

        Raises:
            ModelRefusedError: If a piece does not stand in it exactly once, unchanged.
        """
        text = self.removed(marked)
        found = [Piece(Span.BOS, 0, len(bos))] if bos and text.startswith(bos) else []
        for span, core, first, last in self._pairs:
            start = len(self.removed(marked.partition(first)[0]))
            stop = len(self.removed(marked.partition(last)[0]))
            if marked.count(first) != 1 or marked.count(last) != 1 or text[start:stop] != core:
                raise rewritten_error(f"the {SPAN_NAMES[span]} text does not stand in it once, unchanged")
            found.append(Piece(span, start, stop))
        found.sort(key=lambda piece: piece.start)
        return Prompt(text, tuple(_partition(found, len(text))), is_chat)


def rewritten_error(how: str) -> ModelRefusedError:
    """The error for a chat template that changes what is put into it."""
    return ModelRefusedError(
        f"the model's chat template rewrites its content, so spans cannot be placed: {how}\n"
        f"  Use a plain prompt:  --set prompt.chat=off"
    )


def _partition(found: list[Piece], length: int) -> Iterator[Piece]:
    """The pieces with ``template`` in the gaps between them."""
    end = 0
    for piece in found:
        if piece.start < end:
            raise rewritten_error("two pieces overlap in it")
        if piece.start > end:
            yield Piece(Span.TEMPLATE, end, piece.start)
        yield piece
        end = piece.stop
    if end < length:
        yield Piece(Span.TEMPLATE, end, length)


def concise(question: Question) -> Pieces:
    """An instruction that fits what the question holds, and the parts of ``bare``."""
    task = "Answer the question concisely in one sentence."
    if question.choices:
        task = "Answer with the letter of the right option."
    if _context(question):
        task += " Take the answer from the context."
    return [(Span.TEMPLATE, f"{task}\n\n"), *bare(question)]


def bare(question: Question) -> Pieces:
    """Solved examples, context, question with its lettered options, and ``Answer:``."""
    context = _context(question)
    shown = [(Span.TEMPLATE, "Context: "), (Span.CONTEXT, context), (Span.TEMPLATE, "\n")]
    return [
        *((Span.TEMPLATE, f"{_solved(example)}\n\n") for example in question.examples),
        *(shown if context else []),
        (Span.TEMPLATE, "Question: "),
        (Span.QUESTION, _asked(question.text, question.choices)),
        (Span.TEMPLATE, "\nAnswer:"),
    ]


def published(question: Question) -> Pieces:
    """The question's text alone, for a data set whose text is the whole prompt.

    A context that stands in this text once, unchanged, is its context span.

    Raises:
        UsageError: If the question has parts that its text does not show.
    """
    unseen = {"examples": question.examples, "choices": question.choices}
    context = _context(question).strip()
    if context and context not in question.text:
        unseen["context"] = (context,)
    missing = [name for name, parts in unseen.items() if parts]
    if missing:
        raise UsageError(
            f"question {question.question_id!r} has {' and '.join(missing)}, which the prompt "
            f"template 'published' does not show: it is the question's text alone\n"
            f"  Use another template:  --set prompt.template=concise"
        )
    if not context or question.text.count(context) > 1:
        return [(Span.QUESTION, question.text)]
    before, _, after = question.text.partition(context)
    return [(Span.QUESTION, before), (Span.CONTEXT, context), (Span.QUESTION, after)]


def direct(question: Question) -> Pieces:
    """What a user types into a chat: solved examples, the context, the question with its lettered options."""
    context = _context(question)
    return [
        *((Span.TEMPLATE, f"{_solved(example)}\n\n") for example in question.examples),
        *([(Span.CONTEXT, context), (Span.TEMPLATE, "\n\n")] if context else []),
        (Span.QUESTION, _asked(question.text, question.choices)),
    ]


DEFAULT_TEMPLATE: Final = "concise"

PROMPT_TEMPLATES: Final[Mapping[str, Callable[[Question], Pieces]]] = {
    "concise": concise,
    "bare": bare,
    "published": published,
    "direct": direct,
}
"""Prompt templates by name; ``concise`` is the default.

Examples stand in the prompt as text, also inside a chat template, and not as earlier turns: the
prompt is the same with and without chat, and no chat template can drop or rewrite a turn.
"""


def _context(question: Question) -> str:
    """The context, or an empty text if there is none worth a block."""
    return question.context if question.context and question.context.strip() else ""


def _asked(text: str, choices: Sequence[str]) -> str:
    return f"{text}\n{lettered(choices)}" if choices else text


def _solved(example: Question) -> str:
    answer = LETTERS[example.correct_choices[0]] if example.choices else example.answers[0]
    return f"Question: {_asked(example.text, example.choices)}\nAnswer: {answer}"


def lettered(choices: Sequence[str]) -> str:
    """The options as lines ``A. text``.

    Raises:
        UsageError: If there are more options than letters.
    """
    pairs = zip(_letters(len(choices)), choices, strict=True)
    return "\n".join(f"{letter}. {text}" for letter, text in pairs)


def letter_spellings(tokenizer: PreTrainedTokenizerBase, n_choices: int) -> tuple[tuple[int, ...], ...]:
    """The tokens that spell each of the first letters by themselves.

    A spelling is one token that the tokenizer makes and that reads as the capital letter, alone
    or after one space: which of the two a model writes depends on what ends its prompt.

    Args:
        tokenizer: Tokenizer of the model.
        n_choices: How many letters, from A on.

    Returns:
        For each letter its vocabulary indices in ascending order; no index stands twice.

    Raises:
        UsageError: If there are more options than letters.
        ModelRefusedError: If a letter has no spelling of one token.
    """
    return tuple(spellings(tokenizer, letter) for letter in _letters(n_choices))


def _letters(n_choices: int) -> str:
    if n_choices > len(LETTERS):
        raise UsageError(f"a question has {n_choices} choices; at most {len(LETTERS)} have a letter")
    return LETTERS[:n_choices]


def spellings(tokenizer: PreTrainedTokenizerBase, word: str) -> tuple[int, ...]:
    """The single tokens that read as a word, alone or after one space, in ascending order.

    Raises:
        ModelRefusedError: If there is none.
    """
    encoded = [tokenizer(lead + word, add_special_tokens=False)["input_ids"] for lead in _LEADS]
    last = {int(token_ids[-1]) for token_ids in encoded if token_ids}
    found = {index for index in last if tokenizer.decode([index]) in {word, f" {word}"}}
    if not found:
        raise ModelRefusedError(
            f"the tokenizer {type(tokenizer).__name__} has no single token for "
            f"{word!r}, and the choice among options is read from such tokens\n"
            f"  Use another model, or ask nothing that has options."
        )
    return tuple(sorted(found))
