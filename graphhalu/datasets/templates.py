"""Prompt templates: texts around a question with the span of each, and letters of options."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from transformers import PreTrainedTokenizerBase

from graphhalu.core.axes import Span
from graphhalu.core.errors import ModelRefusedError, UsageError
from graphhalu.core.registry import unknown_name
from graphhalu.datasets.question import LETTERS, Example, Question

Pieces = list[tuple[Span, str]]
"""The texts of a prompt in order, each with its span."""

_LEADS: Final = ("", " ", "\n", ":", ": ")
"""What stands before a letter while its tokens are looked for: some tokenizers put a space before
the first word of a text, so that only a word after something else comes without one."""


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


DEFAULT_TEMPLATE: Final = "concise"

PROMPT_TEMPLATES: Final[Mapping[str, Callable[[Question], Pieces]]] = {
    "concise": concise,
    "bare": bare,
    "published": published,
}
"""Prompt templates by name; ``concise`` is the default.

Examples stand in the prompt as text, also inside a chat template, and not as earlier turns: the
prompt is the same with and without chat, and no chat template can drop or rewrite a turn.
"""


def prompt_template(name: str) -> Callable[[Question], Pieces]:
    """The template of this name: the pieces of a question's prompt.

    Raises:
        UnknownNameError: If there is none; lists the nearest names.
    """
    if name not in PROMPT_TEMPLATES:
        raise unknown_name("prompt template", name, PROMPT_TEMPLATES)
    return PROMPT_TEMPLATES[name]


def _context(question: Question) -> str:
    """The context, or an empty text if there is none worth a block."""
    return question.context if question.context and question.context.strip() else ""


def _asked(text: str, choices: Sequence[str]) -> str:
    return f"{text}\n{lettered(choices)}" if choices else text


def _solved(example: Example) -> str:
    return f"Question: {_asked(example.question, example.choices)}\nAnswer: {example.answer}"


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
    return tuple(_spellings(tokenizer, letter) for letter in _letters(n_choices))


def _letters(n_choices: int) -> str:
    if n_choices > len(LETTERS):
        raise UsageError(f"a question has {n_choices} choices; at most {len(LETTERS)} have a letter")
    return LETTERS[:n_choices]


def _spellings(tokenizer: PreTrainedTokenizerBase, letter: str) -> tuple[int, ...]:
    encoded = [tokenizer(lead + letter, add_special_tokens=False)["input_ids"] for lead in _LEADS]
    last = {int(token_ids[-1]) for token_ids in encoded if token_ids}
    found = {index for index in last if tokenizer.decode([index]) in {letter, f" {letter}"}}
    if not found:
        raise ModelRefusedError(
            f"the tokenizer {type(tokenizer).__name__} has no single token for the letter "
            f"{letter!r}, and the choice among options is read from such tokens\n"
            f"  Use another model, or a data set without choices."
        )
    return tuple(sorted(found))
