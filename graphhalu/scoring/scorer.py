"""A trained detector that is asked about single answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from graphhalu.core.config import validate
from graphhalu.core.errors import GraphhaluError, NonFiniteError, UsageError
from graphhalu.core.numerics import json_ready
from graphhalu.core.registry import fault_text
from graphhalu.datasets.question import Question
from graphhalu.detectors.base import Detector, Scores, checked_scores
from graphhalu.detectors.identity import Identity
from graphhalu.detectors.saved import DETECTOR_FOLDER
from graphhalu.detectors.saved import load_detector as load_saved_detector
from graphhalu.evaluation.calibration import CALIBRATION_FILE, read_calibration
from graphhalu.evaluation.novelty import read_novelty
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.prompts import Prompt
from graphhalu.extract.settings import ExtractConfig
from graphhalu.models.check import check_model, load_checked
from graphhalu.models.load import LoadedModel, bound_model
from graphhalu.scoring.asked import AnswerScore, asked_question
from graphhalu.scoring.explain import Explanation, explain
from graphhalu.scoring.ready import ready_folder, ready_names
from graphhalu.traces.trace import Trace

if TYPE_CHECKING:
    import graphhalu.scoring.stream

Answers = Literal["generated", "given"]

_UNKNOWN: Final = "the detector has no score for this answer"
_LOADABLE: Final = ("none", "int8", "nf4")
_DTYPES: Final = ("float32", "bfloat16", "float16")
_OF_ANOTHER_MACHINE: Final = {"device", "threads", "trust_remote_code"}
"""Settings of a model that are not taken from a file: where it ran, and which code may run."""


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
        novelty: Which answers are unlike those of the training; ``None`` if that was not saved.

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
        self.novelty = read_novelty(self.folder)
        self._least_probability: float | None = None
        self._model_settings = {name: value for name, value in model.items() if value is not None}
        self._loaded: LoadedModel | None = None
        self._extractions: dict[tuple[Any, ...], Extraction] = {}
        self._is_bound = False
        self.bound_note: str | None = None

    def score(
        self,
        question: str | Question | Sequence[Mapping[str, Any]],
        answer: str | None = None,
        *,
        context: str | None = None,
    ) -> AnswerScore:
        """Score one answer.

        Args:
            question: The question, or a conversation that ends with it: messages with ``role`` and
                ``content``.
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

    def stream(
        self,
        question: str | Question,
        *,
        context: str | None = None,
        max_new_tokens: int | None = None,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> "Iterator[graphhalu.scoring.stream.ScoredToken]":
        """Let the model answer, and give each token with its score as soon as both exist.

        Args:
            question: The question.
            context: A passage that the prompt shows before the question.
            max_new_tokens: Longest answer, in tokens; by default that of the training.
            temperature: 0 takes the likeliest token; else tokens are drawn.
            seed: Of the draws.

        Returns:
            An iterator of :class:`graphhalu.scoring.stream.ScoredToken`.

        Raises:
            DetectorMismatchError: If the model is not the one of the training.
            UsageError: If the model cannot be streamed, or the question is empty or too long.
        """
        from graphhalu.scoring.stream import stream

        extraction = self.extraction("generated")
        prompt = asked_prompt(extraction, asked_question(question, None, context))
        n_most = max_new_tokens or extraction.config.generation.max_new_tokens
        return stream(self, prompt, extraction, max_new_tokens=n_most, temperature=temperature, seed=seed)

    def watch(
        self, question: str | Question, *, limit: float, context: str | None = None
    ) -> "graphhalu.scoring.stream.RiskLimit":
        """A stopping criterion for ``generate`` of the bound model, which ends an answer that becomes risky.

        ``with detector.watch(question, limit=0.9) as risk: model.generate(risk.input_ids,
        stopping_criteria=[risk])``

        Args:
            question: What ``generate`` is asked.
            limit: Probability above which the answer ends: of a token, or of the answer so far.
            context: A passage that the prompt shows before the question.

        Raises:
            UsageError: If the detector reads more than exists while an answer is written.
        """
        from graphhalu.scoring.stream import RiskLimit

        extraction = self.extraction("generated")
        prompt = asked_prompt(extraction, asked_question(question, None, context))
        return RiskLimit(self, prompt, extraction, limit)

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
                scores = self._scores(self.extraction(answers), chosen)
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

    def probability(self, score: float) -> float | None:
        """Probability of a score; ``None`` without a calibration, or of a score that is not finite."""
        if self.calibration is None or not np.isfinite(score):
            return None
        return float(self.calibration.probability(np.array([score]))[0])

    @property
    def threshold_probability(self) -> float | None:
        """The probability from which on answers are called hallucinated; ``None`` without a calibration."""
        if self._least_probability is not None or self.calibration is None:
            return self._least_probability
        return self.probability(self.calibration.threshold)

    def decide_at(
        self,
        *,
        probability: float | None = None,
        target_fpr: float | None = None,
        target_precision: float | None = None,
    ) -> None:
        """Choose from which score on answers are called hallucinated; one of the three.

        Args:
            probability: Of being hallucinated.
            target_fpr: Most of the correct validation answers that may be called hallucinated, as a share.
            target_precision: Share of validation answers called hallucinated that must be.

        Raises:
            UsageError: If several are given, there is no calibration, or it cannot reach the target.
        """
        wanted = [each for each in (probability, target_fpr, target_precision) if each is not None]
        if len(wanted) != 1:
            raise UsageError("use one of --threshold, --target-fpr and --target-precision")
        if self.calibration is None:
            raise UsageError(
                f"the detector in {self.folder} has no calibration, so no threshold can be chosen"
            )
        self._least_probability = probability
        if target_fpr is not None:
            changed = self.calibration.threshold_at_fpr(target_fpr)
        elif target_precision is not None:
            changed = self.calibration.threshold_at_precision(target_precision)
        else:
            return
        self.calibration = self.calibration.model_copy(update={"threshold": changed})

    def bind(self, model: Any, tokenizer: Any, *, is_same: bool = False) -> "AnswerScorer":
        """Use a model that is in memory, as transformers loaded it, in place of loading one.

        Args:
            model: A causal language model of transformers; it is put into evaluation mode.
            tokenizer: Its fast tokenizer.
            is_same: Whether you vouch that these are the weights that the detector was trained on; else a
                warning stands with every score, since weights in memory cannot be told apart.

        Returns:
            This scorer.

        Raises:
            DetectorMismatchError: If the model has another architecture or other sizes.
            UsageError: If the tokenizer gives no offsets.
        """
        self._loaded = bound_model(model, tokenizer, self.config("given").model)
        check_model(self._loaded)
        self._is_bound, self._extractions = True, {}
        self.bound_note = (
            None if is_same else "the weights were bound in memory and not compared with the training's"
        )
        return self

    def extraction(self, answers: Answers = "generated", **prompt: Any) -> Extraction:
        """The model with the settings of the training, checked to be the same model.

        Args:
            answers: Whether the model answers, or answers are given to it.
            prompt: Fields of the prompt's settings that differ from the training.

        Raises:
            DetectorMismatchError: If the model is not the one of the training.
        """
        key = (answers, *prompt.items())
        if key not in self._extractions:
            config = self.config(answers, **self._model_settings)
            if self._loaded is None:
                self._loaded = load_checked(config.model)
            config = config.model_copy(update={"prompt": config.prompt.model_copy(update=prompt)})
            extraction = Extraction(config, self._loaded)
            self._check(extraction, is_other_prompt=bool(prompt))
            self._extractions[key] = extraction
        return self._extractions[key]

    def _check(self, extraction: Extraction, *, is_other_prompt: bool) -> None:
        """Refuse another model, or another prompt than one that was asked for."""
        found = Identity.of(extraction.identity(dataset={}))
        changed: dict[str, Any] = {"prompt": self.identity.prompt} if is_other_prompt else {}
        if self._is_bound:
            same = {
                name: getattr(self.identity, name)
                for name in ("source", "revision", "weights", "quantization")
            }
            changed |= same
        self.identity.check(found.model_copy(update=changed))

    def _scores(self, extraction: Extraction, questions: Sequence[Question]) -> list[AnswerScore]:
        prompts = [_prompt(extraction, each) for each in questions]
        traces, failures = extraction.traces(list(extraction.generate(prompts)))
        reasons = {each["question_id"]: each["reason"] for each in failures}
        best: dict[str, tuple[Trace, float, Any]] = {}
        for found in self._found(traces):
            best.setdefault(found[0].record.question_id, found)  # beams come best first
        return [
            self._answer_score(each, reasons.get(each.question_id), *best.get(each.question_id, ()))
            for each in questions
        ]

    def _found(self, traces: Sequence[Trace]) -> list[tuple[Trace, float, Any]]:
        """Each trace with its score, and those of its tokens where tokens are scored."""
        scores = self.values(traces) if traces else Scores.of(np.zeros(0))
        tokens = scores.by_trace() if self.detector.card.level == "token" else [None] * len(traces)
        return list(zip(traces, scores.highest().values.tolist(), tokens, strict=True))

    def answer_score(
        self, question: Question, trace: Trace | None, failure: str | None = None
    ) -> AnswerScore:
        """What the detector says of a trace, or of an answer that failed.

        Args:
            question: What was asked.
            trace: Of its answer; ``None`` if there is none.
            failure: Why there is none.
        """
        found = () if trace is None else self._found([trace])[0]
        return self._answer_score(question, failure, *found)

    def values(self, traces: Sequence[Trace]) -> Scores:
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

    def _answer_score(
        self,
        question: Question,
        failure: str | None,
        trace: Trace | None = None,
        score: float = np.nan,
        tokens: Any = None,
    ) -> AnswerScore:
        is_known, calibration, chance = bool(np.isfinite(score)), self.calibration, None
        threshold = None if calibration is None else calibration.threshold
        is_called = score >= threshold if is_known and threshold is not None else None
        if is_known and calibration is not None and tokens is None:
            chance = self.probability(score)
            if chance is not None and self._least_probability is not None:
                is_called, threshold = chance >= self._least_probability, None
        given = question.given[0].text if question.given else None
        warnings = self.novelty.warnings(trace) if self.novelty and is_known and trace else ()
        if is_known and self.bound_note:
            warnings = (*warnings, self.bound_note)
        return AnswerScore(
            question=question.text,
            answer=trace.record.answer if trace else given,
            score=score if is_known else None,
            probability=chance,
            is_hallucinated=is_called,
            threshold=threshold,
            is_given=given is not None,
            threshold_probability=self.threshold_probability,
            warnings=warnings,
            failure=None if is_known else failure or _UNKNOWN,
            trace=trace,
            tokens=tuple(json_ready(tokens.tolist())) if is_known and tokens is not None else None,
        )


def load_detector(run: Path | str, **model: Any) -> AnswerScorer:
    """A trained detector that can be asked: ``load_detector(run).score(question, answer=None)``.

    Args:
        run: What ``graphhalu train`` saved, the name of a ready detector, or ``hf://OWNER/NAME@REVISION``.
        model: As of :class:`AnswerScorer`.

    Raises:
        GraphhaluError: If it cannot be pulled from the hub.
    """
    if str(run).startswith("hf://"):
        from graphhalu.scoring.hub import pull

        run = pull(str(run))
    elif not Path(run).exists() and str(run) in ready_names():
        run = ready_folder(str(run))
    return AnswerScorer(run, **model)


def asked_prompt(extraction: Extraction, question: Question) -> Prompt:
    """The prompt of a question that the model will answer.

    Raises:
        UsageError: If it cannot be asked.
    """
    prompt = extraction.prompt(question)
    if prompt.failures:
        raise UsageError(prompt.failures[0])
    return prompt


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
