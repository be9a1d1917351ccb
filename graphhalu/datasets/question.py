"""Questions as every data set yields them, and the text that near-duplicates share."""

import re
import string
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

LETTERS: Final = string.ascii_uppercase
"""Letters of the options of a multiple choice, in the order in which a prompt shows them."""

CATEGORY_FIELDS: Final = ("category", "relation", "subject", "title", "source")
"""Fields of the metadata that name the category of a question; the first that is there counts."""

_ACCENT: Final = re.compile("[\u0300-\u036f]")
_ARTICLE: Final = re.compile(r"\b(?:a|an|the)\b")


Turn = tuple[str, str]
"""Role (user or assistant) and text of one turn of a conversation."""


@dataclass(frozen=True)
class GivenAnswer:
    """An answer that the data set states, for a replay without generation.

    Attributes:
        text: The answer.
        is_hallucinated: What the data set says of it, or ``None`` if it says nothing.
        spans: Hallucinated parts as half-open ranges of characters of ``text``.
        source: Who wrote it, as the data set names it.
        metadata: What else the data set says of it; plain JSON values.
    """

    text: str
    is_hallucinated: bool | None = None
    spans: tuple[tuple[int, int], ...] = ()
    source: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """One question with everything that its prompt and its label need.

    Attributes:
        question_id: Unique within the data set and stable between runs.
        text: The question as it is asked.
        answers: Gold answers with their aliases; the first one is the canonical form.
        group_id: Questions of one group never part in a split; by default the question itself.
        context: Passage that the prompt shows before the question, if any.
        system: System prompt of this question, if any.
        turns: Earlier turns of the conversation; their texts are context.
        incorrect_answers: Answers that the data set states to be wrong.
        choices: Options in the order in which the prompt shows them, lettered A, B, C …
        correct_choices: Places of the right ones among them.
        given: Answers that the data set states, in its order.
        examples: Solved questions that the prompt shows first (few-shot).
        input_label: What the data set says of the question itself: 1 = it misleads (a false
            premise), 0 = it does not, ``None`` = nothing is said.
        metadata: What else the data set says (category, relation, source); plain JSON values.
    """

    question_id: str
    text: str
    answers: tuple[str, ...]
    group_id: str = ""
    context: str | None = None
    system: str | None = None
    turns: tuple[Turn, ...] = ()
    incorrect_answers: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    correct_choices: tuple[int, ...] = ()
    given: tuple[GivenAnswer, ...] = ()
    examples: "tuple[Question, ...]" = ()
    input_label: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the question its own group where no other is given."""
        if not self.group_id:
            object.__setattr__(self, "group_id", self.question_id)

    @property
    def category(self) -> str | None:
        """What the data set says the question is about; ``None`` where it says nothing."""
        return category_of(self.metadata)


def category_of(metadata: Mapping[str, Any]) -> str | None:
    """The first of :data:`CATEGORY_FIELDS` in the metadata of a question or of its trace."""
    return next((str(metadata[name]) for name in CATEGORY_FIELDS if name in metadata), None)


def question_key(text: str, context: str | None = None) -> str:
    """Question and context without case, accents, punctuation and articles."""
    return f"{_bare(text)}\n{_bare(context or '')}"


def without_accents(decomposed: str) -> str:
    """A text in normal form NFKD without European accents, composed again.

    Other marks stay: without those of Japanese, ga would turn into ka.
    """
    return unicodedata.normalize("NFC", _ACCENT.sub("", decomposed))


def without_articles(text: str) -> str:
    """A text in lower case without English articles, with single spaces."""
    return " ".join(_ARTICLE.sub(" ", text).split())


def _bare(text: str) -> str:
    folded = unicodedata.normalize("NFKD", text).casefold()
    kept = "".join(" " if unicodedata.category(c)[0] in "PZC" else c for c in folded)
    return without_articles(without_accents(kept)) or text
