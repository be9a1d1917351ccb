"""One form for texts that say the same: case, accents, punctuation, articles, numbers."""

import re
import string
import unicodedata
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from graphhalu.datasets.question import without_accents, without_articles

WORDS: Final[dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("words.yaml").read_text("utf-8"))
"""Word lists and patterns of the normal form and of the rule ``match``."""

_POSSESSIVE = re.compile(r"(?<=\w)'s\b")

_APOSTROPHES: Final = "\u2018\u2019\u201a\u02bc\u0060\u00b4"
_DASHES: Final = "\u2010\u2011\u2012\u2013\u2014\u2212"
_VARIANTS = str.maketrans(dict.fromkeys(_APOSTROPHES, "'") | dict.fromkeys(_DASHES, "-"))

# what Unicode does not decompose; \u0131 is the dotless i, \u2044 the slash of a fraction
_LETTERS: Final = str.maketrans("øđðł\u0131\u2044", "oddli/") | str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "þ": "th"}
)

_SMALL_NUMBERS: Final = WORDS["small_numbers"].split()
_TENS: Final = WORDS["tens"].split()
_NUMBER_WORDS: Final = {word: n for n, word in enumerate(_SMALL_NUMBERS)} | {
    word: 10 * n for n, word in enumerate(_TENS, start=2)
}
_COMPOUND = re.compile(rf"\b({'|'.join(_TENS)})[- ]({'|'.join(_SMALL_NUMBERS[1:10])})\b")
# "one of them" and "no one" do not count anything
_NUMBER_WORD = re.compile(rf"\b(?<!no )(?!one of\b)({'|'.join(_NUMBER_WORDS)})\b")

# each with the largest number of digits that may follow it: "two thousand (and) twelve"
_SCALES: Final = (
    ("hundred", 100, 2),
    ("thousand", 1000, 3),
    ("million", 10**6, 0),
    ("billion", 10**9, 0),
    ("trillion", 10**12, 0),
)
_A_SCALE = re.compile(rf"\b(?:a|an)(?= (?:{'|'.join(name for name, *_ in _SCALES)})\b)")

_THOUSANDS = re.compile(r"(?<![\d,.])\d{1,3}(?:,\d{3})+(?![\d,])")
_DECIMAL_COMMA = re.compile(r"(?<![\d,.])(\d+),(\d{1,2})(?![\d,])")
_DECIMAL = re.compile(r"(?<![\d.])\d+\.\d+(?!\.?\d)")
_MINUS = re.compile(r"(?<!\S)(?:-|minus )(?=\d)")
_BETWEEN_DIGITS = re.compile(r"(?<=\d)[-/:](?=\d)")

# stand for the point and the minus of a number while punctuation is removed
_POINT: Final = "\ue000"
_SIGN: Final = "\ue001"


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
    return _scaled(text) if any(name in text for name, *_ in _SCALES) else text


def _scaled(text: str) -> str:
    """``2 hundred and 5`` as ``205``; the smaller scales first, since larger ones count them."""
    text = _A_SCALE.sub("1", text)
    for name, size, n_digits in _SCALES:
        rest = rf"(?:,?(?: and)? (\d{{1,{n_digits}}})(?![\d\w]|[.,]\d))?" if n_digits else "()"
        for found in reversed(list(re.finditer(rf"(?<![\w.,-])(\d+(?:\.\d+)?) {name}\b{rest}", text))):
            number = _digits(Decimal(found[1]) * size + int(found[2] or 0))
            text = f"{text[: found.start()]}{number}{text[found.end() :]}"
    return text
