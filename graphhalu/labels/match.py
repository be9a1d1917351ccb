"""The rule ``match``: an answer is right if it says one of the gold aliases.

Partial matches and refusals are told apart here for the other rules too, and texts that say the
same get one form: case, accents, punctuation, articles and numbers.
"""

import re
import string
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from graphhalu.core.files import packaged_table
from graphhalu.core.registry import unknown_name
from graphhalu.datasets.question import without_accents, without_articles
from graphhalu.labels.registry import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.traces.schema import TraceRecord

WORDS: Final[dict[str, Any]] = packaged_table(Path(__file__).with_name("words.yaml"))
"""Word lists and patterns of the normal form and of the rule ``match``."""

_PATTERNS: Final = {name: re.compile(pattern) for name, pattern in WORDS["patterns"].items()}
_REFUSAL: Final = re.compile("|".join(f"(?:{phrase})" for phrase in WORDS["refusals"]))
_POSSESSIVE = re.compile(r"(?<=\w)'s\b")
_VARIANTS = str.maketrans({other: plain for plain, others in WORDS["variants"].items() for other in others})
_LETTERS: Final = str.maketrans(WORDS["letters"])

UNSPACED: Final[str] = WORDS["unspaced"]
"""Scripts written without spaces between words, as a range of a regular expression."""
_UNSPACED = re.compile(f"[{UNSPACED}]")

_FUNCTION_WORDS: Final = frozenset(WORDS["function_words"].split())
_EMPTY_WORDS: Final = _FUNCTION_WORDS | frozenset(WORDS["empty_words"].split())
_SHORTEST_PLURAL: Final = 5
_NO_PLURAL: Final = ("ss", "is", "us")

_SMALL_NUMBERS: Final = WORDS["small_numbers"].split()
_TENS: Final = WORDS["tens"].split()
_NUMBER_WORDS: Final = {word: n for n, word in enumerate(_SMALL_NUMBERS)} | {
    word: 10 * n for n, word in enumerate(_TENS, start=2)
}
_COMPOUND = re.compile(rf"\b({'|'.join(_TENS)})[- ]({'|'.join(_SMALL_NUMBERS[1:10])})\b")
# "one of them" and "no one" do not count anything
_NUMBER_WORD = re.compile(rf"\b(?<!no )(?!one of\b)({'|'.join(_NUMBER_WORDS)})\b")

_A_SCALE = re.compile(rf"\b(?:a|an)(?= (?:{'|'.join(WORDS['scales'])})\b)")

_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d{1,2})(?![\d,])")
_DECIMAL = re.compile(r"(?<![\d.])\d+\.\d+(?!\.?\d)")
_MINUS = re.compile(r"(?<!\S)(?:-|minus )(?=\d)")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[-/:](?=\d)")

# stand for the point and the minus of a number while punctuation is removed
_POINT: Final = "\ue000"
_SIGN: Final = "\ue001"


KINDS: Final[Mapping[str, tuple[str, ...]]] = WORDS["kinds"]
"""Kinds of answers, and the reasons of ``match`` that each has."""
_LEFT_OUT: Final = tuple(kind for kind in KINDS if kind not in {"right", "wrong"})


def kind_of(reason: str) -> str:
    """The kind of an answer, by the reason of its label; the reason itself for other rules."""
    return next((kind for kind, reasons in KINDS.items() if reason in reasons), reason)


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
    6. An alias right behind a word that makes another name of it (``North``, ``New``,
       ``Democratic People's``) does not count; an answer without another alias is hallucinated.
    7. A refusal (``I don't know``, ``… is unknown``, ``not mentioned in the passage``) without an
       alias before it, or in a guess after it (``but I think …``), is not valid; with a wrong guess
       it is hallucinated. Where the data set expects a refusal
       (``metadata["expected"] == "refusal"``), it is correct.
    8. Not valid: an answer that the token limit cut before it said an alias; a partial match
       (:func:`is_partial`); an echo, all of whose content words the question holds
       (:func:`is_echo`).
    9. Everything else is hallucinated.

    Each answer is thus of one kind (:data:`KINDS`), and only right and wrong ones carry a label.

    Args:
        as_wrong: Other kinds that count as hallucinated too, as ``("refusal", "echo")``.

    Source:
        Rajpurkar et al. 2016, arXiv:1606.05250 (normal form); Joshi et al. 2017,
        arXiv:1705.03551 (all aliases). Both score equality; holding an alias is enough here,
        since the answers are sentences.
    """

    name: ClassVar[str] = "match"

    def __init__(self, as_wrong: str | Sequence[str] = ()) -> None:
        listed = as_wrong.split(",") if isinstance(as_wrong, str) else as_wrong
        self.as_wrong = tuple(sorted({kind.strip() for kind in listed} - {""}))
        for kind in self.as_wrong:
            if kind not in _LEFT_OUT:
                raise unknown_name("other kind of answer", kind, _LEFT_OUT)

    def settings(self) -> dict[str, Any]:
        """Kinds of answers that count as wrong beside wrong ones; the version changes with the rule."""
        rule = {"rule": "alias equal or inside on word boundaries", "version": 4}
        return rule | ({"as_wrong": list(self.as_wrong)} if self.as_wrong else {})

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; see the class."""
        found = self._decide(record)
        return hallucinated(found.reason) if kind_of(found.reason) in self.as_wrong else found

    def _decide(self, record: TraceRecord) -> LabelDecision:
        if not record.answers:
            return undecided("no gold answer")
        if equals_alias(record.answer, record.answers):
            return correct("alias")
        if not any(character.isalnum() for character in record.answer):
            return undecided("empty answer")
        return _by_content(record)


def _by_content(record: TraceRecord) -> LabelDecision:
    """Decide an answer that is not an alias itself."""
    claimed = claims(record.answer)
    uses = {alias: {use for text in claimed for use in _uses(text, alias)} for alias in record.answers}
    said = [alias for alias, found in uses.items() if "said" in found]
    if said:
        is_claimed = any(_adds_to_question(record, alias) for alias in said)
        return correct("alias inside") if is_claimed else undecided("alias of the question")
    if any("inside" in found for found in uses.values()):
        return hallucinated("alias inside another name")
    if any(uses.values()):
        is_denied = any("denied" in found for found in uses.values())
        return undecided("negation after the alias") if is_denied else hallucinated("negated alias")
    if is_refusal(record.answer):
        is_expected = record.metadata.get("expected") == "refusal"
        return correct("refusal as expected") if is_expected else undecided("refusal")
    return _without_alias(record, " ".join(claimed))


def _without_alias(record: TraceRecord, claim: str) -> LabelDecision:
    """Decide an answer that says no alias and does not refuse."""
    if not record.is_finished:
        return undecided("cut by the token limit")
    if is_partial(claim, record.answers, record.question):
        return undecided("partial match")
    if is_echo(claim, record.answers, record.question):
        return undecided("echo of the question")
    return hallucinated("no alias")


def unjudgeable(record: TraceRecord, *, is_empty: bool) -> str | None:
    """Why no rule that compares with gold answers can judge an answer, or ``None``."""
    if not record.answers:
        return "no gold answer"
    if is_empty:
        return "empty answer"
    if equals_alias(record.answer, record.answers):
        return None
    if is_refusal(record.answer):
        return "refusal"
    return None if record.is_finished else "cut by the token limit"


def equals_alias(answer: str, aliases: Sequence[str]) -> bool:
    """Whether an answer is one of the aliases, in one of the normal forms."""
    stripped = answer.strip().casefold()
    return any(
        (stripped and stripped == alias.strip().casefold())
        or any(form and form == other for form, other in zip(_forms(answer), _forms(alias), strict=True))
        for alias in aliases
    )


@lru_cache(maxsize=4096)
def _forms(text: str) -> tuple[str, str]:
    """Normal forms of a text: punctuation deleted, and punctuation as a space."""
    return normalise(text), normalise(text, punctuation="space")


def _adds_to_question(record: TraceRecord, alias: str) -> bool:
    """Whether an alias in an answer is more than an echo of the question.

    It is where the question lacks the alias, and where the answer says nothing beside it, as in
    ``The answer is Jupiter``.
    """
    if not any(_uses(record.question, alias)):
        return True
    words = content_words(record.answer)
    return bool(words) and words <= content_words(alias)


Use = Literal["said", "negated", "denied", "inside"]
"""What a text does with an alias: says it, denies it before or after it, or names something else by it."""


def _uses(text: str, alias: str) -> Iterator[Use]:
    """What a text does with an alias each time it holds it."""
    if _forms(alias)[0] in _FUNCTION_WORDS and not _in_capitals(text, alias):
        return
    forms = _forms(_PATTERNS["closed_negation"].sub(".", text))
    for form, wanted in zip(forms, _forms(alias), strict=True):
        start = form.find(wanted) if wanted else -1
        while start >= 0:
            stop = start + len(wanted)
            if _is_boundary(form, start) and _is_boundary(form, stop):
                yield _use(form[:start].rstrip(), form[stop:])
            start = form.find(wanted, start + 1)


def _use(before: str, after: str) -> Use:
    """What a text does with the alias between two of its parts, in a normal form."""
    if _PATTERNS["negation_before"].search(before):
        return "negated"
    if _PATTERNS["negation_after"].match(after):
        return "denied"
    return "inside" if _PATTERNS["other_name_before"].search(before) else "said"


def _is_boundary(text: str, place: int) -> bool:
    """Whether a word may end or begin here; scripts without spaces allow it anywhere."""
    around = text[place - 1 : place + 1] if 0 < place < len(text) else " "
    return any(character.isspace() or _UNSPACED.match(character) for character in around)


def _in_capitals(text: str, alias: str) -> bool:
    word = alias.strip()
    return word.isupper() and re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def is_partial(answer: str, aliases: Sequence[str], question: str) -> bool:
    """Whether an answer matches an alias in part, so that neither verdict is safe.

    That is so if all content words of an alias stand in the answer, in another order, apart from
    each other or in another number (``bananas`` for ``banana``), and the question does not hold
    them all; or if what the answer adds to the question is a part of an alias (``Obama`` for
    ``Barack Obama``). An answer with a negation is not a partial match.
    """
    if _PATTERNS["any_negation"].search(answer.casefold().replace("\u2019", "'")):
        return False
    said, asked = content_words(answer), content_words(question)
    new = said - asked
    for words in map(content_words, aliases):
        is_all_there = words <= said and not words <= asked
        is_a_part = bool(new) and new <= words
        if words and (is_all_there or is_a_part):
            return True
    return False


def is_echo(answer: str, aliases: Sequence[str], question: str) -> bool:
    """Whether an answer says nothing but words of the question, at least half of its content words.

    Where the question names an alias, as in *Which is larger, Saturn or Jupiter?*, its words are a choice.
    Where a number is asked for, one that the question holds is an answer too.
    """
    said, asked = _claiming_words(answer), _claiming_words(question)
    is_choice = any(words and words <= asked for words in map(_claiming_words, aliases))
    is_number = _has_digit(answer) and any(map(_has_digit, aliases))
    is_repeated = bool(said) and said <= asked and len(asked) <= 2 * len(said)
    return is_repeated and not is_choice and not is_number


def _has_digit(text: str) -> bool:
    return any(map(str.isdigit, text))


def content_words(text: str) -> frozenset[str]:
    """The words of a text that claim something, normalised and in the singular."""
    return frozenset(map(_singular, _claiming_words(text)))


def _claiming_words(text: str) -> frozenset[str]:
    return frozenset(normalise(text, punctuation="space").split()) - _EMPTY_WORDS


def _singular(word: str) -> str:
    """The word without a plural ending; the ending of a short word is left alone."""
    if len(word) < _SHORTEST_PLURAL or not word.isalpha() or word.endswith(_NO_PLURAL):
        return word
    return f"{word[:-3]}y" if word.endswith("ies") else word.removesuffix("s")


def is_refusal(text: str) -> bool:
    """Whether a text declines to answer and makes no guess after that."""
    refusal, guess = _refusal_and_guess(text)
    return refusal is not None and guess is None


def claims(text: str) -> list[str]:
    """The parts of a text that claim something.

    Without a refusal that is the whole text. With one, it is what stands before it, and what
    follows the first word that announces a guess after it: in ``I don't know Paris`` nothing
    is claimed, in ``I'm not sure, but I think Paris`` Paris is.
    """
    refusal, guess = _refusal_and_guess(text)
    if refusal is None:
        return [text]
    return [text[: refusal.start()], *([text[guess.end() :]] if guess else [])]


def _refusal_and_guess(text: str) -> tuple[re.Match[str] | None, re.Match[str] | None]:
    # lower case with straight apostrophes, each character in its place
    straight = text.replace("\u2019", "'").replace("\u2018", "'")
    plain = "".join(c.lower() if len(c.lower()) == 1 else c for c in straight)
    refusal = _REFUSAL.search(plain)
    return refusal, refusal and _PATTERNS["guess"].search(plain, refusal.end())


def normalise(text: str, *, punctuation: Literal["delete", "space"] = "delete") -> str:
    """The normal form of SQuAD: lower case, no punctuation, no articles; with numbers as numbers.

    ``1,000`` and ``1000`` are the same, ``3.50`` is ``3.5`` and not ``350``, ``-5`` is not
    ``5``, number words are digits (``twenty-one``, ``two hundred and five``, ``1.5 million``),
    and a range is two numbers. Accents are folded, and Unicode punctuation is removed too.

    Args:
        text: Any text; letters of scripts without case stay as they are.
        punctuation: ``"delete"`` as SQuAD does (``U.S.`` is ``us``), or ``"space"`` as TriviaQA
            does (``New York-based`` is ``new york based``); then a possessive 's goes as well.

    Source:
        Rajpurkar et al. 2016, arXiv:1606.05250, evaluation script. Equal to it on ASCII without
        numbers.
    """
    folded = _numbers(_number_words(fold(text)))
    if punctuation == "space":
        folded = _POSSESSIVE.sub("", folded).replace("'", "")
    fill = "" if punctuation == "delete" else " "
    bare = "".join(fill if _is_punctuation(character) else character for character in folded)
    return without_articles(bare).replace(_POINT, ".").replace(_SIGN, "-")


def fold(text: str) -> str:
    """Lower case without accents; full-width and other variants of a letter become one.

    Only European accents go: the marks that tell Japanese ga from ka stay.
    """
    lowered = unicodedata.normalize("NFKD", text.translate(_VARIANTS)).lower()
    return without_accents(lowered).translate(_LETTERS)


def _is_punctuation(character: str) -> bool:
    if character.isascii():
        return character in string.punctuation
    category = unicodedata.category(character)
    return category[0] == "P" or category in {"Sc", "Sk", "Sm"}


def _numbers(text: str) -> str:
    text = text.replace(_POINT, "").replace(_SIGN, "")
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = _DECIMAL_COMMA.sub(r"\1.\2", text)
    text = _DECIMAL.sub(lambda found: _digits(Decimal(found[0])).replace(".", _POINT), text)
    return _BETWEEN_DIGITS.sub(" ", _MINUS.sub(_SIGN, text))


def _digits(number: Decimal) -> str:
    return format(number.normalize(), "f")


def _number_words(text: str) -> str:
    text = _COMPOUND.sub(lambda m: str(_NUMBER_WORDS[m[1]] + _NUMBER_WORDS[m[2]]), text)
    text = _NUMBER_WORD.sub(lambda m: str(_NUMBER_WORDS[m[1]]), text)
    return _scaled(text) if any(name in text for name in WORDS["scales"]) else text


def _scaled(text: str) -> str:
    """``2 hundred and 5`` as ``205``; the smaller scales first, since larger ones count them."""
    text = _A_SCALE.sub("1", text)
    for name, (size, n_digits) in WORDS["scales"].items():
        rest = rf"(?:,?(?: and)? (\d{{1,{n_digits}}})(?![\d\w]|[.,]\d))?" if n_digits else "()"
        for found in reversed(list(re.finditer(rf"(?<![\w.,-])(\d+(?:\.\d+)?) {name}\b{rest}", text))):
            number = _digits(Decimal(found[1]) * size + int(found[2] or 0))
            text = f"{text[: found.start()]}{number}{text[found.end() :]}"
    return text
