"""Answers that decline to answer, and what such an answer still claims."""

import re
from typing import Final

_PHRASES: Final = (
    r"i (?:do not|don'?t|did not|didn'?t) (?:really )?(?:know|have (?:that|this|enough|any|the)\b)",
    r"i(?: a|')m (?:really )?(?:not (?:sure|certain|aware|able)|unsure|unable)",
    r"i(?:'m| am) sorry",
    r"i (?:cannot|can ?not|can'?t|could not|couldn'?t) (?:answer|say|tell|provide|find|determine)",
    r"(?:cannot|can ?not|can'?t) (?:be )?(?:answer|provide|determine)",
    r"(?:unable|not able) to (?:answer|provide|determine|say|find)",
    r"i have no (?:idea|comment|information|knowledge)",
    r"(?:no|not enough|insufficient) information",
    r"as an ai\b",
    r"^(?:unknown|no idea|no comment|not sure|n/a)[.!]?$",
    "(?:わかり|分かり|知り|答えられ)ません",
)
_REFUSAL = re.compile("|".join(f"(?:{phrase})" for phrase in _PHRASES))
_GUESS = re.compile(
    r"\b(?:but|however|although|though|i (?:think|believe|guess)|my (?:best )?guess|maybe|perhaps|"
    r"probably|possibly|likely)\b|が、"
)


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer and makes no guess after that."""
    plain = _plain(text)
    found = _REFUSAL.search(plain)
    return found is not None and _GUESS.search(plain, found.end()) is None


def claims(text: str) -> list[str]:
    """The parts of a text that claim something.

    Without a refusal that is the whole text. With one, it is what stands before it, and what
    follows the first word that announces a guess after it: in ``I don't know Paris`` nothing
    is claimed, in ``I'm not sure, but I think Paris`` Paris is.
    """
    plain = _plain(text)
    found = _REFUSAL.search(plain)
    if found is None:
        return [text]
    guess = _GUESS.search(plain, found.end())
    return [text[: found.start()], *([text[guess.end() :]] if guess else [])]


def _plain(text: str) -> str:
    """The text in lower case with straight apostrophes, each character in its place."""
    straight = text.replace("\u2019", "'").replace("\u2018", "'")
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in straight)
