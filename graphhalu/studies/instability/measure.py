"""Measurement of prompts and detection: greedy or drawn answers, then one pass that shows every step.

Step ``t`` is the row that yields token ``t`` of the answer, its end mark included; step 0 is the
last row of the prompt. A layer whose sliding window no longer covers the system prompt has NaN. With a
calibration a measured prompt gets a score, a verdict, and the step at which it crossed.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from graphhalu.core.axes import N_SPANS, RowRange, Span
from graphhalu.core.config import config_hash
from graphhalu.core.errors import DetectorMismatchError, GraphhaluError, NonFiniteError, UsageError
from graphhalu.datasets.prompts import EncodedPrompt, build_prompt, encode_prompt, require_span
from graphhalu.datasets.question import Question
from graphhalu.detectors.identity import Identity
from graphhalu.engine.executors import Progress, no_progress
from graphhalu.extract.beams import Answer
from graphhalu.extract.forward import Replayed, TokenSequence, read_likelihood
from graphhalu.extract.generate import beam_search, sample_draws
from graphhalu.extract.prompts import uses_chat
from graphhalu.extract.settings import PromptSettings
from graphhalu.features.instability import (
    PROMPT_FLOOR,
    bounded_std,
    head_std,
    layer_correlation,
    layer_slice,
    logit_std,
)
from graphhalu.heads.runs import RowsObserver, run_observed
from graphhalu.heads.table import mean_of_present
from graphhalu.models.load import LoadedModel
from graphhalu.studies.instability.methods import focus_scores, focus_share
from graphhalu.studies.instability.series import PromptRecord, PromptSeries, SeriesFolder
from graphhalu.studies.instability.settings import (
    TEMPLATE,
    TRACKER,
    Calibration,
    Denominator,
    DetectSettings,
    GatherSettings,
    WindowChoice,
)
from graphhalu.studies.rows import Row

SpanMass = Float[np.ndarray, "layer head step span"]

_PROMPT_SPANS: Final = [span for span in Span if span is not Span.ANSWER]
_LIKELIHOODS: Final = {"entropy": "token_entropy", "margin": "top1_margin", "logprob": "token_logprob"}

Visible = Bool[np.ndarray, "layer step"]


def gather(
    loaded: LoadedModel,
    settings: GatherSettings,
    prompts: Sequence[PromptRecord],
    folder: Path,
    on_progress: Progress = no_progress,
) -> SeriesFolder:
    """Measure prompts step by step into a folder; a killed run resumes.

    Args:
        loaded: The model.
        settings: System prompt, denominator, decoding.
        prompts: Attacks and benign prompts, with different ids.
        folder: Created, or resumed if it was made with the same model, settings and prompts.
        on_progress: Called with the number of answers done, and of all.

    Raises:
        UsageError: If there is no prompt, two have one id, or there is no system prompt.
        StoreMismatchError: If the folder was made with something else; names the fields.
    """
    if not prompts:
        raise UsageError("there is no prompt to measure")
    name, count = Counter(prompt.prompt_id for prompt in prompts).most_common(1)[0]
    if count > 1:
        raise UsageError(f"two prompts have the id {name!r}")
    measurer = Measurer(loaded, settings)
    measurer.encode(prompts[0])  # a missing span is found before the folder is made
    jobs = [replace(prompt, iteration=i) for i in range(settings.iterations) for prompt in prompts]
    size = settings.batch_size
    batches = [jobs[start : start + size] for start in range(0, len(jobs), size)]
    fields = ("prompt_id", "text", "label", "group")
    asked = [{name: getattr(prompt, name) for name in fields} for prompt in prompts]
    configuration = {
        "model": dict(loaded.identity),
        "prompt": settings.prompt_recipe(is_chat=measurer.is_chat),
        "gather": settings.model_dump(mode="json"),
        "prompts": config_hash({"prompts": asked}),
        "n_prompts": len(prompts),
        "n_parts": len(batches),
        **{name: getattr(loaded, name) for name in ("n_layers", "n_heads")},
    }
    store = SeriesFolder.create(folder, configuration)
    missing = store.missing_parts()
    n_done = len(jobs) - sum(len(batches[number]) for number in missing)
    on_progress(n_done, len(jobs))
    for number in missing:
        store.write_part(number, measurer.measure(batches[number]))
        n_done += len(batches[number])
        on_progress(n_done, len(jobs))
    return store


class Measurer:
    """Measures prompts on one model under one system prompt.

    Args:
        loaded: The model.
        settings: System prompt, denominator, decoding.

    Raises:
        UsageError: If there is no system prompt, or several answers would all be the same.
    """

    def __init__(self, loaded: LoadedModel, settings: GatherSettings) -> None:
        require_system(settings.system)
        if settings.iterations > 1 and not settings.temperature:
            fault = f"greedy decoding gives the same answer {settings.iterations} times"
            raise UsageError(f"{fault}\n  Use --temperature 1, or --iterations 1")
        self.loaded, self.settings = loaded, settings
        self.is_chat = uses_chat(PromptSettings(chat=settings.chat), loaded)
        longest = settings.max_new_tokens
        self.search = beam_search(loaded, max_new_tokens=longest, stops_at_newline=False)
        if settings.temperature and self.search.fallback_reason is not None:
            fault = f"tokens cannot be drawn on this model: {self.search.fallback_reason}"
            raise UsageError(f"{fault}\n  Use --temperature 0")

    def measure(self, prompts: Sequence[PromptRecord]) -> list[PromptSeries]:
        """Measure a batch of prompts, each for the iteration that it names.

        Returns:
            One series a prompt, in order. A prompt that does not fit the model, or on which it
            gives NaN, has a failure and no arrays.

        Raises:
            UsageError: If a prompt has no system span, or the template takes none.
        """
        encoded = [self.encode(prompt) for prompt in prompts]
        sized = [(self._sized(*each), each[1]) for each in zip(prompts, encoded, strict=True)]
        answers = iter(self._answers([each for each in sized if each[0].failure is None]))
        return [
            self._series(*each, next(answers)) if each[0].failure is None else PromptSeries(each[0], {})
            for each in sized
        ]

    def _sized(self, prompt: PromptRecord, encoded: EncodedPrompt) -> PromptRecord:
        """A prompt with its numbers of tokens, and a failure where it does not fit the model."""
        codes, limit = encoded.span_code, self.loaded.max_positions
        needed = len(codes) + self.settings.max_new_tokens
        failure = f"prompt and answer need up to {needed} tokens, the model's context has {limit}"
        n_system, n_user = (int((codes == span).sum()) for span in (Span.SYSTEM, Span.QUESTION))
        sizes: dict[str, Any] = {"n_prompt": len(codes), "n_system": n_system, "n_user": n_user}
        return replace(prompt, **sizes, failure=failure if limit is not None and needed > limit else None)

    def encode(self, prompt: PromptRecord) -> EncodedPrompt:
        """The tokens of a prompt under the system prompt, with spans.

        Raises:
            UsageError: If there is no system span or no user span in it.
        """
        question, tokenizer = Question(prompt.prompt_id, prompt.text, ()), self.loaded.tokenizer
        form: dict[str, Any] = {"chat": self.is_chat, "system": self.settings.system}
        try:
            rendered = build_prompt(question, template=TEMPLATE, tokenizer=tokenizer, **form)
            encoded = encode_prompt(rendered, tokenizer)
            for span in (Span.SYSTEM, Span.QUESTION):
                require_span(encoded.span_code, span, where=f"prompt {prompt.prompt_id!r}")
        except GraphhaluError as error:
            error.add_note(f"in prompt {prompt.prompt_id!r}")
            raise
        return encoded

    def _answers(self, asked: Sequence[tuple[PromptRecord, EncodedPrompt]]) -> Sequence[Answer]:
        prompts = [encoded.token_ids.tolist() for _, encoded in asked]
        if not prompts:
            return ()
        if not self.settings.temperature:
            return [beams[0] for beams in self.search.answer(prompts)]
        # the same prompt draws the same tokens in every batch
        names = [f"{each.iteration} {each.prompt_id}" for each, _ in asked]
        draws = sample_draws(names, (1, self.settings.max_new_tokens), seed=self.settings.seed)
        drawn = self.search.sample(prompts, draws, temperature=self.settings.temperature)
        return [samples[0] for samples in drawn]

    @torch.inference_mode()
    def _series(self, record: PromptRecord, encoded: EncodedPrompt, answer: Answer) -> PromptSeries:
        # the end mark is fed too: the row before it is a decode step like the others
        end = self.loaded.eos_token_ids[:1] if answer.is_finished else ()
        new = np.array([*answer.token_ids, *end], dtype=np.int32)
        token_ids = np.concatenate([encoded.token_ids, new])
        span_code = np.concatenate([encoded.span_code, np.full(len(new), Span.ANSWER, dtype=np.uint8)])
        rows = np.arange(record.n_prompt - 1, len(token_ids) - 1)
        codes = torch.from_numpy(span_code.astype(np.int64)).to(next(self.loaded.model.parameters()).device)
        is_span = nn.functional.one_hot(codes, N_SPANS).float()

        def span_mass(weights: Float[Tensor, "head row key"]) -> Float[Tensor, "head row span"]:
            return weights @ is_span[: weights.shape[-1]]

        observer = RowsObserver(RowRange(int(rows[0]), int(rows[-1]) + 1), span_mass)
        system, user = (np.flatnonzero(span_code == span) for span in (Span.SYSTEM, Span.QUESTION))
        sequence = TokenSequence(token_ids, span_code, record.n_prompt, row_start=int(user[0]) - 1)
        try:
            likely = read_likelihood(run_observed(self.loaded.model, token_ids, observer), [sequence])[0]
        except NonFiniteError as error:
            likely = Replayed({}, str(error))
        if likely.failure is not None:
            return PromptSeries(replace(record, failure=likely.failure), {})
        seen = visible_layers(rows, system, self.loaded.layer_windows)
        measures = dict(step_measures(observer.stacked(), *seen, self.settings.denominator))
        share, arrays = measures.pop("share"), {n: v.astype(np.float32) for n, v in measures.items()}
        arrays |= {name: likely.arrays[stream][rows + 1] for name, stream in _LIKELIHOODS.items()}
        if self.settings.keeps_heads:
            arrays["share"] = share.astype(np.float16)
        text = self.loaded.tokenizer.decode(list(answer.token_ids)).strip()
        sizes: dict[str, Any] = {"n_answer": len(answer.token_ids), "is_finished": answer.is_finished}
        user_nll = -float(likely.arrays["token_logprob"][user].mean())
        return PromptSeries(replace(record, answer=text, **sizes, user_nll=user_nll), arrays)


def require_system(system: str) -> None:
    """Refuse a study without a system prompt.

    Raises:
        UsageError: If the text is empty.
    """
    if not system.strip():
        fault = "the system prompt is empty: there is no system span to measure attention on"
        raise UsageError(f"{fault}\n  Give one:  --system FILE  or  --system-text TEXT")


def step_measures(
    mass: SpanMass, sees_system: Visible, sees_all: Visible, denominator: Denominator
) -> Mapping[str, Float[np.ndarray, "..."]]:
    """Measures of the steps of one prompt, from the attention to the named spans.

    Args:
        mass: Attention of each step's row summed over each named span.
        sees_system: Whether a row sees a token of the system prompt.
        sees_all: Whether a row sees the whole sequence before it.
        denominator: What the share of the system prompt is taken of.

    Returns:
        Arrays by name, as :data:`graphhalu.studies.instability.series.DESCRIPTIONS` has them;
        ``focus_heads[layer, head]`` without its prompt axis.
    """
    share = system_share(mass, denominator)
    middle = layer_slice(len(share))
    correlation, is_defined = layer_correlation(share[middle], sees_all[middle])
    focus = focus_share(mass[..., Span.SYSTEM], mass[..., Span.QUESTION])
    by_layer = {"share_mean": share.mean(axis=1), "std": head_std(share), "logit": logit_std(share)}
    by_layer |= {"bounded": bounded_std(share), "focus": focus.mean(axis=1)}
    found = {name: np.where(sees_system, values, np.nan).T for name, values in by_layer.items()}
    found["share"] = np.moveaxis(np.where(sees_system[:, None], share, np.nan), 2, 0)
    found["agreement"] = np.where(is_defined, correlation, np.nan)
    return found | {"focus_heads": np.where(sees_system[:, :1], focus[:, :, 0], np.nan)}


def system_share(mass: SpanMass, denominator: Denominator) -> Float[np.ndarray, "layer head step"]:
    """Share of a row's attention that goes to the system prompt, in [0, 1].

    ``prompt`` divides by the attention to all tokens before the answer, ``everything`` by the
    whole row, a learned sink included.

    Source:
        The public study ``llm-attention-head-instability`` divides by the prompt, floored at 1e-9.
    """
    system = mass[..., Span.SYSTEM].astype(np.float64)
    if denominator == "prompt":
        prompt = mass[..., _PROMPT_SPANS].astype(np.float64).sum(axis=-1)
        system = system / np.maximum(prompt, PROMPT_FLOOR)
    return np.clip(system, 0.0, 1.0)


def visible_layers(
    rows: Int[np.ndarray, "step"], system: Int[np.ndarray, "member"], layer_windows: Sequence[int | None]
) -> tuple[Visible, Visible]:
    """Whether rows see a token of the system prompt, and everything, through each layer's window.

    Args:
        rows: Positions of the rows.
        system: Positions of the system prompt's tokens.
        layer_windows: How many keys a row sees, itself included; ``None`` = all.
    """
    firsts = np.stack([rows * 0 if w is None else rows - w + 1 for w in layer_windows])
    return firsts <= system.max(), firsts <= 0


class PromptDetector:
    """A calibration with its model, ready to score prompts.

    Args:
        loaded: The model that the calibration belongs to.
        calibration: What was calibrated.
        settings: Method, threshold and answers.

    Raises:
        DetectorMismatchError: If model, quantisation, chat template or system prompt differ.
        UsageError: If there is no threshold for the aim, or the window goes beyond the answer.
    """

    def __init__(self, loaded: LoadedModel, calibration: Calibration, settings: DetectSettings) -> None:
        self.calibration, self.method = calibration, settings.method
        end = 0 if self.method == TRACKER else calibration.window.end
        n_tokens = settings.max_new_tokens or end + 1
        if n_tokens <= end:
            beyond = f"the window goes to step {end}, beyond an answer of {n_tokens} tokens"
            raise UsageError(f"{beyond}\n  Use --max-new-tokens {end + 1} or more")
        changes: dict[str, Any] = {} if settings.system is None else {"system": settings.system}
        changes |= {"iterations": 1, "keeps_heads": False, "max_new_tokens": n_tokens}
        self.threshold = calibration.threshold(self.method, settings.fpr)
        self.measurer = Measurer(loaded, calibration.gather.model_copy(update=changes))
        recipe = self.measurer.settings.prompt_recipe(is_chat=self.measurer.is_chat)
        asked = Identity.of({"model": dict(loaded.identity), "prompt": recipe})
        try:
            calibration.identity.check(asked)
        except DetectorMismatchError as error:
            told, _, _ = str(error).rpartition("\n")
            way_out = "Calibrate on prompts like these:  graphhalu instability gather"
            raise DetectorMismatchError(f"{told}\n  {way_out}") from None

    def score(self, prompts: Sequence[PromptRecord], on_progress: Progress = no_progress) -> list[Row]:
        """A verdict on each prompt.

        Raises:
            UsageError: If there is no prompt, or one has no system span.
        """
        if not prompts:
            raise UsageError("there is no prompt to score")
        found, size = list[Row](), self.measurer.settings.batch_size
        for start in range(0, len(prompts), size):
            found += map(self.verdict, self.measurer.measure(prompts[start : start + size]))
            on_progress(len(found), len(prompts))
        return found

    def verdict(self, series: PromptSeries) -> Row:
        """The verdict on a measured prompt.

        Returns:
            ``prompt_id`` and ``text``; the ``score``, higher where an attack is more likely, ``None`` if
            there is none, and the ``reason``; the ``threshold``: scores at or above it are called
            attacks; ``is_attack``, ``None`` without a score; ``crossed_at``, the first decode step
            from which on the running mean stays at or above the threshold, ``None`` unless the
            verdict is attack; ``n_steps`` that were measured, and the ``answer`` so far.
        """
        record, choice = series.record, self.calibration.window
        score, first, reason = None, 0, record.failure
        if reason is None and self.method == TRACKER:
            focus = series.arrays["focus_heads"][None].astype(np.float64)
            score = -float(focus_scores(focus, self.calibration.tracker.heads)[0])
        elif reason is None:
            means = running_score(series.arrays[choice.spread].astype(np.float64), choice)
            steps = f"{series.n_steps} steps, and the window begins at step {choice.start}"
            reason = None if np.isfinite(means).any() else f"the answer has {steps}"
            if reason is None:
                score, below = float(means[-1]), np.flatnonzero(~(means >= self.threshold))
                first = choice.start + (int(below[-1]) + 1 if len(below) else 0)
        is_attack = None if score is None else score >= self.threshold
        more = {"crossed_at": first if is_attack else None, "n_steps": series.n_steps, "reason": reason}
        named = {"prompt_id": record.prompt_id, "text": record.text, "score": score}
        decided = {"threshold": self.threshold, "is_attack": is_attack}
        return Row(**named, **decided, **more, answer=record.answer)


def running_score(spread: Float[np.ndarray, "step layer"], choice: WindowChoice) -> Float[np.ndarray, "part"]:
    """Score after each step of the window: direction times the mean of its steps so far.

    The last value is the score. Steps without a value are skipped; NaN before the first value.
    Empty if the answer ends before the window.
    """
    steps = slice(choice.start, choice.start + choice.length)
    values = mean_of_present(spread[steps, choice.first_layer : choice.stop_layer], axis=-1)
    is_there = np.isfinite(values)
    count, total = np.cumsum(is_there), np.cumsum(np.where(is_there, values, 0.0))
    return choice.direction * np.where(count > 0, total / np.maximum(count, 1), np.nan)
