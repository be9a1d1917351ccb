"""Questions as prompts whose outcome is known without generating an answer.

Three kinds need no generation. With *options* the model's own choice is the likeliest letter. An
*answer that the data set gives* is read by the model after the question; its label speaks of the
input. A question of which the data set says whether its *premise* is false is put as a choice
between yes and no: the model's choice and the data set's word give one label each.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np
from jaxtyping import Integer

from graphhalu.core.axes import Span
from graphhalu.core.errors import UsageError
from graphhalu.datasets.question import LETTERS, Question
from graphhalu.extract.forward import TokenSequence
from graphhalu.extract.prompts import question_prompt, resolved_config
from graphhalu.labels.labels import Meaning
from graphhalu.models.load import LoadedModel
from graphhalu.studies.sinks.settings import SinkMeasureConfig

Kind = Literal["choice", "given", "premise", "generated"]
PREMISE_QUESTION: Final = "Does this question rest on a false premise?"
KIND_DESCRIPTIONS: Final[dict[Kind, str]] = {
    "choice": "options; the likeliest letter is the model's answer",
    "given": "an answer of the data set follows the question; the label speaks of it",
    "premise": "yes or no to a false premise; both labels",
    "generated": "the model answers in words",
}


@dataclass(frozen=True)
class SinkPrompt:
    """One sequence to measure.

    Attributes:
        idx: Its number.
        question: As it is put to the model.
        place: Which of the given answers; 0 for all other kinds.
        kind: Kind of the question.
        sequence: Its tokens, and one token after them in place of the answer: the row before it
            is the last that is measured, and no row sees later tokens.
    """

    idx: int
    question: Question
    place: int
    kind: Kind
    sequence: TokenSequence

    @property
    def n_tokens(self) -> int:
        """Tokens that are measured."""
        return self.sequence.prompt_length

    def labels(self, pred: int | None) -> dict[Meaning, int | None]:
        """Both labels, given the option that the model chose."""
        if self.kind == "given":
            stated = self.question.given[self.place].is_hallucinated
            return {"hallucinated": None, "input": None if stated is None else int(stated)}
        wrong = None if pred is None else int(pred not in self.question.correct_choices)
        return {"hallucinated": wrong, "input": self.question.input_label}

    @property
    def target(self) -> str | None:
        """Letters of the right options."""
        if self.kind == "given":
            return None
        return ",".join(LETTERS[place] for place in self.question.correct_choices)


def kind_of(questions: Sequence[Question], name: str) -> Kind:
    """Kind of the questions of a data set.

    Raises:
        UsageError: If they are of several kinds.
    """
    kinds = {_kind(question) for question in questions}
    if len(kinds) > 1:
        message = (
            f"the questions of {name} are of several kinds ({', '.join(sorted(kinds))}), and one "
            f"run asks them all alike\n  Split the file by kind"
        )
        raise UsageError(message)
    return kinds.pop()


def _kind(question: Question) -> Kind:
    if question.choices:
        return "choice"
    if question.given:
        return "given"
    return "generated" if question.input_label is None else "premise"


def sink_prompts(
    questions: Sequence[Question], kind: Kind, config: SinkMeasureConfig, loaded: LoadedModel
) -> tuple[list[SinkPrompt], list[str]]:
    """Every sequence to measure, and why a question, or a given answer of it, has none.

    Raises:
        UsageError: If the settings do not fit the data set or the model.
    """
    settings = config.model_copy(update={"max_new_tokens": 1})
    extraction = settings.extraction("given" if kind == "given" else "generated")
    extraction = resolved_config(extraction, loaded)
    prompts: list[SinkPrompt] = []
    failures: list[str] = []
    for question in questions:
        shown = replace(question, examples=question.examples[: config.n_examples])
        prompt = question_prompt(as_choice(shown) if kind == "premise" else shown, extraction, loaded)
        failures += prompt.failures
        ids, spans = prompt.encoded.token_ids, prompt.encoded.span_code
        if prompt.length and not prompt.answers:
            sequence = _sequence(ids, spans, prompt.option_ids)
            prompts.append(SinkPrompt(len(prompts), prompt.question, 0, kind, sequence))
        for answer in prompt.answers:
            whole = np.append(ids, np.array(answer.token_ids, dtype=np.int32))
            answer_spans = np.full(len(answer.token_ids), Span.ANSWER)
            sequence = _sequence(whole, np.append(spans, answer_spans), ())
            prompts.append(SinkPrompt(len(prompts), prompt.question, answer.rank, kind, sequence))
    return prompts, failures


def as_choice(question: Question) -> Question:
    """Yes or no to a false premise, in an order that depends on the question's id alone."""
    digest = hashlib.sha256(f"{question.question_id}\npremise".encode()).digest()
    choices = ("Yes", "No") if digest[0] % 2 else ("No", "Yes")
    right = "Yes" if question.input_label else "No"
    return replace(
        question,
        text=f"{question.text}\n{PREMISE_QUESTION}",
        choices=choices,
        correct_choices=(choices.index(right),),
    )


def _sequence(
    token_ids: Integer[np.ndarray, "token"],
    span_code: Integer[np.ndarray, "token"],
    option_ids: tuple[tuple[int, ...], ...],
) -> TokenSequence:
    return TokenSequence(
        token_ids=np.append(token_ids, token_ids[-1]).astype(np.int32),
        span_code=np.append(span_code, Span.ANSWER).astype(np.uint8),
        prompt_length=len(token_ids),
        row_start=len(token_ids) - 1,
        option_ids=option_ids,
    )
