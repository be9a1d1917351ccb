"""The rule ``match``: an answer is right if it says one of the gold aliases.

Partial matches and refusals are told apart here for the other rules too.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Final, Literal

from graphhalu.labels.normalise import Punctuation, normalise
from graphhalu.labels.registry import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.traces.schema import TraceRecord

UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Scripts written without spaces between words, as a range of a regular expression:
Thai, Lao, Burmese, Khmer, Japanese, Chinese; and Korean, which joins particles to words."""

_UNSPACED = re.compile(f"[{UNSPACED}]")
_NEGATION = re.compile(
    r"\b(?:not|never|non|isnt|wasnt|arent|werent|neither|nor|without|except|rather than|"
    r"other than|instead of|apart from)(?: (?:in|at|on|by|from))?$"
)
# "It is not. Paris is." denies what stands before
_CLOSED_NEGATION = re.compile(r"(?:(?<=\s)not|(?<=\s)never|n't)\s*[.,;:!?]", re.IGNORECASE)
_FUNCTION_WORDS: Final = frozenset(
    {
        "am",
        "as",
        "at",
        "be",
        "by",
        "do",
        "he",
        "i",
        "if",
        "in",
        "is",
        "it",
        "me",
        "my",
        "no",
        "not",
        "of",
        "on",
        "or",
        "she",
        "so",
        "that",
        "this",
        "to",
        "up",
        "us",
        "was",
        "we",
        "were",
        "what",
        "who",
        "yes",
        "you",
    }
)
# "Paris is not large" leaves open what it denies; "Paris is not only large" does not
_DENIED = re.compile(r" (?:(?:is|was|are|were|does|did) not|(?:is|was|are|were|does|did)nt)\b(?! only)")
_FORMS: Final[tuple[Punctuation, ...]] = ("delete", "space")

_EMPTY_WORDS: Final = _FUNCTION_WORDS | {
    "a",
    "about",
    "also",
    "an",
    "and",
    "answer",
    "are",
    "been",
    "being",
    "but",
    "called",
    "can",
    "could",
    "did",
    "does",
    "for",
    "from",
    "had",
    "has",
    "have",
    "her",
    "here",
    "his",
    "how",
    "into",
    "its",
    "known",
    "may",
    "might",
    "must",
    "name",
    "named",
    "our",
    "question",
    "shall",
    "should",
    "than",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "those",
    "when",
    "where",
    "which",
    "whom",
    "whose",
    "why",
    "will",
    "with",
    "would",
    "your",
}
"""Words that claim nothing by themselves, with those that lead up to an answer."""

_ANY_NEGATION = re.compile(r"\b(?:not|never|neither|nor|\w+n't)\b")
_SHORTEST_PLURAL: Final = 5
_NO_PLURAL: Final = ("ss", "is", "us")

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

_Place = Literal["said", "negated", "denied"]


@dataclass(frozen=True)
class Alias:
    """A gold answer in the forms in which it is looked for."""

    text: str

    @cached_property
    def forms(self) -> dict[Punctuation, str]:
        """Normalised forms by treatment of punctuation."""
        return {form: normalise(self.text, punctuation=form) for form in _FORMS}


class AliasMatch(Labeller):
    """Compares an answer with every alias, in SQuAD's normal form with numbers as numbers.

    The rule, in this order:

    1. An answer without a letter or digit is not valid.
    2. An answer equal to an alias is correct.
    3. An answer that holds an alias on word boundaries is correct. In scripts without spaces
       any place will do. Punctuation is deleted (``U.S.`` = ``US``) or read as a space
       (``New York-based``); one of the two must fit. An alias that is a function word
       (``it``, ``us``) must stand in the answer in capitals; an article counts only as the
       whole answer.
    4. An alias does not count right after a negation (``not Paris``, ``rather than Paris``); an
       answer whose every alias is negated is hallucinated.
    5. Not valid, since nobody can tell by the words: an answer that holds no alias but one that
       the question holds too, with something else beside it (``Saturn is larger than Jupiter``
       to *Which is larger, Saturn or Jupiter?*), and an alias right before a negation
       (``Paris is not …``).
    6. A refusal (``I don't know``) without an alias before it, or in a guess after it
       (``but I think …``), is not valid; with a wrong guess it is hallucinated. Where the data
       set expects a refusal (``metadata["expected"] == "refusal"``), it is correct.
    7. A partial match (:func:`is_partial`) is not valid.
    8. Everything else is hallucinated.

    Source:
        Rajpurkar et al. 2016, arXiv:1606.05250 (normal form); Joshi et al. 2017,
        arXiv:1705.03551 (all aliases). Both score equality; holding an alias is enough here,
        since the answers are sentences.
    """

    name: ClassVar[str] = "match"

    def settings(self) -> dict[str, Any]:
        """The rule has no choices; the version changes with its text."""
        return {"rule": "alias equal or inside on word boundaries", "version": 3}

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; see the class."""
        aliases = [Alias(text) for text in record.answers]
        if not aliases:
            return undecided("no gold answer")
        if _is_equal(record.answer, aliases):
            return correct("alias")
        if not any(character.isalnum() for character in record.answer):
            return undecided("empty answer")
        return _inside(record, aliases)


def unjudgeable(record: TraceRecord, *, is_empty: bool) -> str | None:
    """Why no rule that compares with gold answers can judge an answer, or ``None``."""
    if not record.answers:
        return "no gold answer"
    if is_empty:
        return "empty answer"
    if is_refusal(record.answer) and not equals_alias(record.answer, record.answers):
        return "refusal"
    return None


def equals_alias(answer: str, aliases: Sequence[str]) -> bool:
    """Whether an answer is one of the aliases, in one of the normal forms."""
    return _is_equal(answer, [Alias(text) for text in aliases])


def _inside(record: TraceRecord, aliases: Sequence[Alias]) -> LabelDecision:
    """Decide an answer that is no alias by what it holds."""
    claimed = claims(record.answer)
    places = {alias: {p for text in claimed for p in _places(text, alias)} for alias in aliases}
    said = [alias for alias in aliases if "said" in places[alias]]
    if any(_is_own(record, alias) for alias in said):
        return correct("alias inside")
    if said:
        return undecided("alias of the question")
    if any("denied" in found for found in places.values()):
        return undecided("negation after the alias")
    if any(places.values()):
        return hallucinated("negated alias")
    return _without_alias(record, claimed)


def _without_alias(record: TraceRecord, claimed: Sequence[str]) -> LabelDecision:
    """Decide an answer that holds no alias."""
    if is_refusal(record.answer):
        is_expected = record.metadata.get("expected") == "refusal"
        return correct("refusal as expected") if is_expected else undecided("refusal")
    if is_partial(" ".join(claimed), record.answers, record.question):
        return undecided("partial match")
    return hallucinated("no alias")


def _is_own(record: TraceRecord, alias: Alias) -> bool:
    """Whether an alias in an answer is no mere echo of the question.

    It is none where the question lacks it, and where the answer says nothing beside it, as
    ``The answer is Jupiter`` does.
    """
    if not any(_places(record.question, alias)):
        return True
    words = content_words(record.answer)
    return bool(words) and words <= content_words(alias.text)


def _is_equal(answer: str, aliases: Sequence[Alias]) -> bool:
    stripped = answer.strip().casefold()
    if any(stripped == alias.text.strip().casefold() for alias in aliases if stripped):
        return True
    forms = Alias(answer).forms
    return any(forms[f] and forms[f] == alias.forms[f] for alias in aliases for f in _FORMS)


def _places(text: str, alias: Alias) -> Iterator[_Place]:
    """What a text does with an alias at every place where it stands."""
    if alias.forms["delete"] in _FUNCTION_WORDS and not _in_capitals(text, alias.text):
        return
    forms = _text_forms(_CLOSED_NEGATION.sub(".", text))
    for form in _FORMS:
        yield from _places_of(forms[form], alias.forms[form])


@lru_cache(maxsize=64)
def _text_forms(text: str) -> dict[Punctuation, str]:
    """Normalised forms of a text that hundreds of aliases are looked for in."""
    return Alias(text).forms


def _places_of(text: str, alias: str) -> Iterator[_Place]:
    start = text.find(alias) if alias else -1
    while start >= 0:
        stop = start + len(alias)
        if _is_boundary(text, start) and _is_boundary(text, stop):
            is_negated = _NEGATION.search(text[:start].rstrip()) is not None
            is_denied = _DENIED.match(text[stop:]) is not None
            yield "negated" if is_negated else "denied" if is_denied else "said"
        start = text.find(alias, start + 1)


def _is_boundary(text: str, place: int) -> bool:
    if place in {0, len(text)}:
        return True
    return not (_joins(text[place - 1]) and _joins(text[place]))


def _joins(character: str) -> bool:
    """Whether a character belongs together with a neighbour that does so too."""
    return not character.isspace() and not _UNSPACED.match(character)


def _in_capitals(text: str, alias: str) -> bool:
    word = alias.strip()
    return word.isupper() and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def is_partial(answer: str, aliases: Sequence[str], question: str) -> bool:
    """Whether an answer matches an alias in part, so that neither verdict is safe.

    That is so if all content words of an alias stand in the answer, in another order, apart from
    each other or in another number (``bananas`` for ``banana``), and the question does not hold
    them all; or if what the answer adds to the question is a part of an alias (``Obama`` for
    ``Barack Obama``). An answer with a negation is no partial match.
    """
    if _ANY_NEGATION.search(answer.casefold().replace("\u2019", "'")):
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
    return frozenset(_singular(word) for word in words if word not in _EMPTY_WORDS)


def _singular(word: str) -> str:
    """The word without a plural ending; the ending of a short word is left alone."""
    if len(word) < _SHORTEST_PLURAL or not word.isalpha() or word.endswith(_NO_PLURAL):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") else word.removesuffix("s")


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer and makes no guess after that."""
    found, guess = _refusal_and_guess(text)
    return found is not None and guess is None


def claims(text: str) -> list[str]:
    """The parts of a text that claim something.

    Without a refusal that is the whole text. With one, it is what stands before it, and what
    follows the first word that announces a guess after it: in ``I don't know Paris`` nothing
    is claimed, in ``I'm not sure, but I think Paris`` Paris is.
    """
    found, guess = _refusal_and_guess(text)
    if found is None:
        return [text]
    return [text[: found.start()], *([text[guess.end() :]] if guess else [])]


def _refusal_and_guess(text: str) -> tuple[re.Match[str] | None, re.Match[str] | None]:
    plain = _straight(text)
    found = _REFUSAL.search(plain)
    return found, found and _GUESS.search(plain, found.end())


def _straight(text: str) -> str:
    """The text in lower case with straight apostrophes, each character in its place."""
    straight = text.replace("\u2019", "'").replace("\u2018", "'")
    return "".join(c.lower() if len(c.lower()) == 1 else c for c in straight)
