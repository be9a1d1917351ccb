"""A question as every data set yields it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


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
        incorrect_answers: Answers that the data set states to be wrong.
        metadata: What else the data set says (category, relation, source); plain JSON values.
    """

    question_id: str
    text: str
    answers: tuple[str, ...]
    group_id: str = ""
    context: str | None = None
    system: str | None = None
    incorrect_answers: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the question its own group where no other is given."""
        if not self.group_id:
            object.__setattr__(self, "group_id", self.question_id)
