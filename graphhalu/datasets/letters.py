"""Options of a multiple choice: the letters that a prompt gives them, and their tokens."""

import string
from collections.abc import Iterator, Sequence
from typing import Final

from transformers import PreTrainedTokenizerBase

from graphhalu.errors import ModelRefusedError, UsageError

LETTERS: Final = string.ascii_uppercase

_LEADS: Final = ("", " ", "\n", ":", ": ")
"""What stands before a letter while its tokens are looked for: some tokenizers put a space before
the first word of a text, so that only a word after something else comes without one."""


def lettered(choices: Sequence[str]) -> str:
    """The options as lines ``A. text``.

    Raises:
        UsageError: If there are more options than letters.
    """
    if len(choices) > len(LETTERS):
        message = f"a question has {len(choices)} choices; at most {len(LETTERS)} have a letter"
        raise UsageError(message)
    return "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, choices, strict=False))


def letter_spellings(
    tokenizer: PreTrainedTokenizerBase, n_choices: int
) -> tuple[tuple[int, ...], ...]:
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
    if n_choices > len(LETTERS):
        message = f"a question has {n_choices} choices; at most {len(LETTERS)} have a letter"
        raise UsageError(message)
    return tuple(_spellings(tokenizer, letter) for letter in LETTERS[:n_choices])


def _spellings(tokenizer: PreTrainedTokenizerBase, letter: str) -> tuple[int, ...]:
    found = {
        index for index in _last_tokens(tokenizer, letter)
        if tokenizer.decode([index]) in {letter, f" {letter}"}
    }  # fmt: skip
    if not found:
        message = (
            f"the tokenizer {type(tokenizer).__name__} has no single token for the letter "
            f"{letter!r}, and the choice among options is read from such tokens\n"
            f"  Use another model, or a data set without choices."
        )
        raise ModelRefusedError(message)
    return tuple(sorted(found))


def _last_tokens(tokenizer: PreTrainedTokenizerBase, letter: str) -> Iterator[int]:
    for lead in _LEADS:
        token_ids = tokenizer(lead + letter, add_special_tokens=False)["input_ids"]
        if token_ids:
            yield int(token_ids[-1])
