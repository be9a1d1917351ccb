"""A trained detector that is asked about single answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from graphhalu.core.errors import GraphhaluError, NonFiniteError, UsageError
from graphhalu.core.numerics import json_ready
from graphhalu.core.registry import fault_text
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.detectors.base import Detector, Scores, checked_scores
from graphhalu.detectors.identity import Identity
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.prompts import Prompt
from graphhalu.models.check import check_model
from graphhalu.models.load import LoadedModel, load_model
from graphhalu.scoring.explain import Explanation, explain
from graphhalu.scoring.recipe import Answers, ScoringRecipe
from graphhalu.traces.trace import Trace


@dataclass(frozen=True)
class AnswerScore:
    """What a detector says of one answer.

    Attributes:
        question: As it was asked.
        answer: The model's own, or the one that was given; ``None`` if there is none.
        score: The detector's score, higher = more likely hallucinated; ``None`` if it failed.
            Of a detector of tokens that of the highest token.
        probability: Probability that the answer is hallucinated, for answers that are
            hallucinated as often as those of the validation side; ``None`` without calibration,
            and for a detector of tokens.
        is_hallucinated: Whether the score reaches the threshold; ``None`` without one.
        threshold: The score from which on answers are called hallucinated.
        is_given: Whether the answer was given, and not the model's own.
        failure: Why there is no score.
        trace: What the score was made of.
        tokens: Scores of the tokens of the answer, NaN as ``None``; ``None`` for a detector of
            answers.
    """

    question: str
    answer: str | None
    score: float | None
    probability: float | None
    is_hallucinated: bool | None
    threshold: float | None
    is_given: bool
    failure: str | None = None
    trace: Trace | None = field(default=None, repr=False, compare=False)
    tokens: tuple[float | None, ...] | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, without the trace."""
        return {name: value for name, value in vars(self).items() if name != "trace"}


class AnswerScorer:
    """A trained detector together with its language model, which is loaded at the first answer.

    Args:
        run: What ``graphhalu train`` saved.
        model: Fields of the model's settings that differ from the training: ``name``, ``device``,
            ``threads``.
        detector_class: Class of a detector that is not registered, or ``module:Class``.

    Raises:
        UsageError: If ``run`` holds no detector that knows its model.
        DataFileError: If a file of it cannot be read.
    """

    def __init__(
        self, run: Path | str, *, detector_class: type[Detector] | str | None = None, **model: Any
    ) -> None:
        self.recipe = ScoringRecipe.read(Path(run), detector_class)
        self._model_settings = {name: value for name, value in model.items() if value is not None}
        self._loaded: LoadedModel | None = None
        self._extractions: dict[Answers, Extraction] = {}

    @property
    def detector(self) -> Detector:
        """The detector itself, which scores traces."""
        return self.recipe.detector

    def score(
        self, question: str | Question, answer: str | None = None, *, context: str | None = None
    ) -> AnswerScore:
        """Score one answer.

        Args:
            question: The question.
            answer: The answer to judge; by default the model answers.
            context: A passage that the prompt shows before the question.

        Raises:
            DetectorMismatchError: If the model is not the one of the training.
            UsageError: If question and answer are longer than the model's context, or empty.
            NonFiniteError: If the detector has no score for the answer.
        """
        found = self.score_many([asked_question(question, answer, context)])[0]
        if found.failure is not None:
            kind = NonFiniteError if found.trace is not None else UsageError
            raise kind(found.failure)
        return found

    def explain(self, scored: AnswerScore) -> Explanation:
        """What a score is made of; see :func:`graphhalu.scoring.explain.explain`.

        Raises:
            UsageError: If the answer has no score.
        """
        if scored.trace is None or scored.failure is not None:
            message = f"there is no score to explain: {scored.failure}"
            raise UsageError(message)
        return explain(self.detector, scored.trace)

    def score_many(self, questions: Sequence[Question]) -> list[AnswerScore]:
        """Score many answers; one that fails says so and stops no other.

        Args:
            questions: Each with at most one given answer; without one the model answers.

        Raises:
            DetectorMismatchError: If the model is not the one of the training.
        """
        found: dict[int, AnswerScore] = {}
        for answers in ("generated", "given"):
            places = [i for i, q in enumerate(questions) if bool(q.given) == (answers == "given")]
            if places:
                numbered = [_numbered(questions[place], place) for place in places]
                scores = self._scores(self._extraction(answers), numbered)
                found |= dict(zip(places, scores, strict=True))
        return [found[place] for place in range(len(questions))]

    def _extraction(self, answers: Answers) -> Extraction:
        """The model with the settings of the training, checked to be the same model."""
        if answers not in self._extractions:
            config = self.recipe.config(answers, **self._model_settings)
            if self._loaded is None:
                self._loaded = load_model(config.model)
                check_model(self._loaded)
            extraction = Extraction(config, self._loaded)
            self.recipe.identity.check(Identity.of(extraction.identity()))
            self._extractions[answers] = extraction
        return self._extractions[answers]

    def _scores(self, extraction: Extraction, questions: Sequence[Question]) -> list[AnswerScore]:
        prompts = [_prompt(extraction, each) for each in questions]
        traces, failures = extraction.traces(list(extraction.generate(prompts)))
        reasons = {each["question_id"]: each["reason"] for each in failures}
        scores = self._values(traces) if traces else Scores.of(np.zeros(0))
        best: dict[str, _Scored] = {}
        for found in map(_Scored, traces, scores.highest().values.tolist(), scores.by_trace()):
            best.setdefault(found.trace.record.question_id, found)  # beams come best first
        return [self._told(question, best, reasons) for question in questions]

    def _values(self, traces: Sequence[Trace]) -> Scores:
        """Scores, NaN where there is none; what the code of a detector raises is one text."""
        try:
            scores = self.detector.score(traces)
        except (GraphhaluError, MemoryError):
            raise
        except Exception as error:
            message = f"{self.detector.card.name} failed: {fault_text(error, Detector)}"
            raise GraphhaluError(message) from error
        return checked_scores(self.detector, scores, traces)

    def _told(self, question: Question, best: dict[str, "_Scored"], reasons: dict[str, str]) -> AnswerScore:
        given = question.given[0].text if question.given else None
        calibration = self.recipe.calibration
        threshold = None if calibration is None else calibration.threshold
        found = best.get(question.question_id)
        if found is None or not np.isfinite(found.score):
            trace = found.trace if found else None
            reason = reasons.get(question.question_id, "the detector has no score for this answer")
            answer = trace.record.answer if trace else given
            return AnswerScore(
                question.text, answer, None, None, None, threshold, given is not None, reason, trace
            )
        trace, score, parts = found
        is_of_tokens = self.detector.card.level == "token"
        chance = None
        if calibration is not None and not is_of_tokens:
            chance = calibration.probability(np.array([score]))[0]
        return AnswerScore(
            question=question.text,
            answer=trace.record.answer,
            score=score,
            probability=None if chance is None else float(chance),
            is_hallucinated=None if threshold is None else score >= threshold,
            threshold=threshold,
            is_given=given is not None,
            trace=trace,
            tokens=tuple(json_ready(parts.tolist())) if is_of_tokens else None,
        )


class _Scored(NamedTuple):
    """A trace with its score, and those of its tokens."""

    trace: Trace
    score: float
    parts: Float[np.ndarray, "_"]


def load_detector(run: Path | str, **model: Any) -> AnswerScorer:
    """A trained detector that can be asked: ``load_detector(run).score(question, answer=None)``.

    Args:
        run: What ``graphhalu train`` saved.
        model: As of :class:`AnswerScorer`.
    """
    return AnswerScorer(run, **model)


def asked_question(
    question: str | Question, answer: str | None = None, context: str | None = None
) -> Question:
    """A question as the scorer takes it, with the answer to judge if there is one.

    Raises:
        UsageError: If the question or the answer is empty.
    """
    if isinstance(question, Question):
        return question
    for what, text in (("question", question), ("answer", answer)):
        if text is not None and not text.strip():
            message = f"expected a {what}, got an empty text"
            raise UsageError(message)
    given = () if answer is None else (GivenAnswer(answer),)
    return Question("asked", question, (), context=context or None, given=given)


def _numbered(question: Question, place: int) -> Question:
    """Under an id of its own: the same question may be asked twice, with other answers."""
    return replace(question, question_id=str(place), group_id=str(place))


def _prompt(extraction: Extraction, question: Question) -> Prompt:
    try:
        return extraction.prompt(question)
    except GraphhaluError as error:
        return Prompt(question, failures=(str(error),))
