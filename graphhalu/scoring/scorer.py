"""A trained detector that is asked about single answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from graphhalu.core.config import validate
from graphhalu.core.errors import GraphhaluError, NonFiniteError, UsageError
from graphhalu.core.numerics import json_ready
from graphhalu.core.registry import fault_text
from graphhalu.datasets.question import GivenAnswer, Question
from graphhalu.detectors.base import Detector, Scores, checked_scores
from graphhalu.detectors.identity import Identity
from graphhalu.detectors.load import load_detector as load_saved_detector
from graphhalu.evaluation.calibration import CALIBRATION_FILE, read_calibration
from graphhalu.evaluation.training import DETECTOR_FOLDER
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.prompts import Prompt
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.check import check_model
from graphhalu.models.load import LoadedModel, load_model
from graphhalu.scoring.explain import Explanation, explain
from graphhalu.traces.trace import Trace

Answers = Literal["generated", "given"]

_Found = tuple[Trace | None, float, Any]
"""A trace, its score, and those of its tokens where tokens are scored."""

_LOADABLE: Final = ("none", "int8", "nf4")
_DTYPES: Final = ("float32", "bfloat16", "float16")
_OF_ANOTHER_MACHINE: Final = {"device", "threads", "trust_remote_code"}
"""Settings of a model that are not taken from a file: where it ran, and which code may run."""


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
        run: What ``graphhalu train`` saved: the folder of the run, or its folder ``detector``.
        detector_class: Class of a detector that is not registered, or ``module:Class``.
        model: Fields of the model's settings that differ from the training: ``name``, ``device``,
            ``threads``.

    Attributes:
        detector: The detector itself, which scores traces.
        calibration: From scores to probabilities; ``None`` if the validation side of its training
            held one class only.

    Raises:
        UsageError: If ``run`` holds no detector that knows its model.
        DataFileError: If a file of it cannot be read.
    """

    def __init__(
        self, run: Path | str, *, detector_class: type[Detector] | str | None = None, **model: Any
    ) -> None:
        self.folder = Path(run)
        if (self.folder / DETECTOR_FOLDER).is_dir():
            self.folder /= DETECTOR_FOLDER
        self.detector = load_saved_detector(self.folder, detector_class=detector_class)
        if self.detector.identity is None:
            raise UsageError(
                f"the detector in {self.folder} does not say which model it belongs to: it was fitted "
                f"on traces in memory\n  Train it on a store:  graphhalu train"
            )
        self.identity = self.detector.identity
        self.calibration = read_calibration(self.folder / CALIBRATION_FILE)
        self._model_settings = {name: value for name, value in model.items() if value is not None}
        self._loaded: LoadedModel | None = None
        self._extractions: dict[Answers, Extraction] = {}

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
            raise (NonFiniteError if found.trace is not None else UsageError)(found.failure)
        return found

    def explain(self, scored: AnswerScore) -> Explanation:
        """What a score is made of; see :func:`graphhalu.scoring.explain.explain`.

        Raises:
            UsageError: If the answer has no score.
        """
        if scored.trace is None or scored.failure is not None:
            raise UsageError(f"there is no score to explain: {scored.failure}")
        return explain(self.detector, scored.trace)

    def score_many(self, questions: Sequence[Question]) -> list[AnswerScore]:
        """Score many answers; one that fails says so and stops no other.

        Args:
            questions: Each with at most one given answer; without one the model answers.

        Raises:
            DetectorMismatchError: If the model is not the one of the training.
        """
        # the same question may be asked twice, with other answers
        asked = [replace(q, question_id=str(i), group_id=str(i)) for i, q in enumerate(questions)]
        found: dict[str, AnswerScore] = {}
        for answers in ("generated", "given"):
            chosen = [each for each in asked if bool(each.given) == (answers == "given")]
            if chosen:
                scores = self._scores(self._extraction(answers), chosen)
                found |= {each.question_id: score for each, score in zip(chosen, scores, strict=True)}
        return [found[each.question_id] for each in asked]

    def config(self, answers: Answers, **model: Any) -> ExtractConfig:
        """How answers are made and captured, as in training.

        Args:
            answers: Whether the model answers, or answers are given to it.
            model: Fields of the model's settings that differ: name, device, threads.

        Raises:
            ConfigError: If the saved settings do not validate.
        """
        source = f"the settings saved in {self.folder}"
        config = validate(ExtractConfig, self.identity.config or _first_edition(self.identity), source=source)
        spec = config.model.model_dump(exclude=_OF_ANOTHER_MACHINE)
        # whole attention only where this detector reads it
        reads, keep = set(self.detector.card.reads), config.capture.keep
        if reads and "attention" not in reads and keep == "full":
            keep = "streams"
        # samples are drawn anew, and the model is asked, only for a detector that reads that
        compares = self.detector.compares if answers == "generated" else None
        left_out = {} if compares in ("answers", "samples", "asked") else {"samples": 0}
        left_out |= {} if compares == "asked" else {"ask": False}
        changed = {
            "model": {**spec, **model},
            "generation": {**config.generation.model_dump(), "answers": answers, **left_out},
            "capture": {**config.capture.model_dump(), "keep": keep},
        }
        return validate(ExtractConfig, {**config.model_dump(), **changed}, source=source)

    def _extraction(self, answers: Answers) -> Extraction:
        """The model with the settings of the training, checked to be the same model."""
        if answers not in self._extractions:
            config = self.config(answers, **self._model_settings)
            if self._loaded is None:
                self._loaded = load_model(config.model)
                check_model(self._loaded)
            extraction = Extraction(config, self._loaded)
            self.identity.check(Identity.of(extraction.identity()))
            self._extractions[answers] = extraction
        return self._extractions[answers]

    def _scores(self, extraction: Extraction, questions: Sequence[Question]) -> list[AnswerScore]:
        prompts = [_prompt(extraction, each) for each in questions]
        traces, failures = extraction.traces(list(extraction.generate(prompts)))
        reasons = {each["question_id"]: each["reason"] for each in failures}
        scores = self._values(traces) if traces else Scores.of(np.zeros(0))
        tokens = scores.by_trace() if self.detector.card.level == "token" else [None] * len(traces)
        best: dict[str, _Found] = {}
        for found in zip(traces, scores.highest().values.tolist(), tokens, strict=True):
            best.setdefault(found[0].record.question_id, found)  # beams come best first
        unknown = "the detector has no score for this answer"
        names = [each.question_id for each in questions]
        pairs = [(best.get(name, (None, np.nan, None)), reasons.get(name, unknown)) for name in names]
        return [self._answer_score(each, *pair) for each, pair in zip(questions, pairs, strict=True)]

    def _values(self, traces: Sequence[Trace]) -> Scores:
        """Scores, NaN where there is none; what the code of a detector raises is one text."""
        try:
            scores = self.detector.score(traces)
        except (GraphhaluError, MemoryError):
            raise
        except Exception as error:
            raise GraphhaluError(
                f"{self.detector.card.name} failed: {fault_text(error, Detector)}"
            ) from error
        return checked_scores(self.detector, scores, traces)

    def _answer_score(self, question: Question, found: _Found, reason: str) -> AnswerScore:
        trace, score, tokens = found
        is_known, calibration, chance = bool(np.isfinite(score)), self.calibration, None
        threshold = None if calibration is None else calibration.threshold
        if is_known and calibration is not None and tokens is None:
            chance = float(calibration.probability(np.array([score]))[0])
        given = question.given[0].text if question.given else None
        return AnswerScore(
            question=question.text,
            answer=trace.record.answer if trace else given,
            score=score if is_known else None,
            probability=chance,
            is_hallucinated=score >= threshold if is_known and threshold is not None else None,
            threshold=threshold,
            is_given=given is not None,
            failure=None if is_known else reason,
            trace=trace,
            tokens=tuple(json_ready(tokens.tolist())) if is_known and tokens is not None else None,
        )


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
    for what, text in (("a question", question), ("an answer", answer)):
        if text is not None and not text.strip():
            raise UsageError(f"expected {what}, got an empty text")
    given = () if answer is None else (GivenAnswer(answer),)
    return Question("asked", question, (), context=context or None, given=given)


def _prompt(extraction: Extraction, question: Question) -> Prompt:
    try:
        return extraction.prompt(question)
    except GraphhaluError as error:
        return Prompt(question, failures=(str(error),))


def _first_edition(identity: Identity) -> dict[str, Any]:
    """The configuration of a detector that was saved without it, from its identity."""
    prompt = identity.prompt
    return {
        "model": {
            "name": identity.model,
            "revision": identity.revision,
            "quantization": identity.quantization if identity.quantization in _LOADABLE else "none",
            "dtype": identity.dtype if identity.dtype in _DTYPES else "auto",
        },
        "prompt": {
            "template": prompt.get("template") or "auto",
            "chat": "on" if prompt.get("chat") else "off",
            "system": prompt.get("system"),
        },
        "generation": {k: value for k, value in identity.generation.items() if k != "answers"},
        "capture": identity.capture,
    }
