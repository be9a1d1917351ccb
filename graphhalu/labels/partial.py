"""Partial matches: answers that say some of an alias, or all its words in another form."""

import re
from collections.abc import Sequence
from typing import Final

from graphhalu.labels.normalise import normalise

_FUNCTION_WORDS: Final = frozenset(
    {
        "a", "about", "also", "am", "an", "and", "answer", "are", "as", "at", "be", "been",
        "being", "but", "by", "called", "can", "could", "did", "do", "does", "for", "from", "had",
        "has", "have", "he", "her", "here", "his", "how", "i", "if", "in", "into", "is", "it",
        "its", "known", "may", "me", "might", "must", "my", "name", "named", "no", "not", "of",
        "on", "or", "our", "question", "shall", "she", "should", "so", "than", "that", "the",
        "their", "them", "then", "there", "these", "they", "this", "those", "to", "up", "us",
        "was", "we", "were", "what", "when", "where", "which", "who", "whom", "whose", "why",
        "will", "with", "would", "yes", "you", "your",
    }
)  # fmt: skip
"""Words that claim nothing by themselves, with those that lead up to an answer."""

_NEGATION = re.compile(r"\b(?:not|never|neither|nor|\w+n't)\b")
_SHORTEST_PLURAL: Final = 5
_NO_PLURAL: Final = ("ss", "is", "us")


def is_partial(answer: str, aliases: Sequence[str], question: str) -> bool:
    """Whether an answer matches an alias in part, so that neither verdict is safe.

    That is so if all content words of an alias stand in the answer, in another order, apart from
    each other or in another number (``bananas`` for ``banana``), and the question does not hold
    them all; or if what the answer adds to the question is a part of an alias (``Obama`` for
    ``Barack Obama``). An answer with a negation is no partial match.
    """
    if _NEGATION.search(answer.casefold().replace("\u2019", "'")):
        return False
    said, asked = content_words(answer), content_words(question)
    new = said - asked
    for words in map(content_words, aliases):
        is_all_there = words <= said and not words <= asked
        is_a_part = bool(new) and new <= words
        if words and (is_all_there or is_a_part):
            return True
    return False


def content_words(text: str) -> frozenset[str]:
    """The words of a text that claim something, normalised and in the singular."""
    words = normalise(text, punctuation="space").split()
    return frozenset(_singular(word) for word in words if word not in _FUNCTION_WORDS)


def _singular(word: str) -> str:
    """The word without a plural ending; the ending of a short word is left alone."""
    if len(word) < _SHORTEST_PLURAL or not word.isalpha() or word.endswith(_NO_PLURAL):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") else word.removesuffix("s")
