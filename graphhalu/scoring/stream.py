"""Scores of answers while they are written: token by token, and of the whole answer at its end."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import StoppingCriteria

from graphhalu.core.axes import N_SPANS, Span
from graphhalu.core.errors import UsageError
from graphhalu.evaluation.novelty import NOVELTY_READS
from graphhalu.extract.capture import capturing
from graphhalu.extract.extraction import Extraction
from graphhalu.extract.forward import token_statistics
from graphhalu.extract.live import LIVE_ARRAYS, LiveAnswer, LiveBatch, RowRecorder, newest_row
from graphhalu.extract.prompts import Prompt, generated_answer
from graphhalu.scoring.asked import AnswerScore
from graphhalu.scoring.scorer import AnswerScorer
from graphhalu.traces.trace import Trace

_SAME: Final = {"hidden": "hidden_rows"}
"""Arrays that live answers keep under another name."""


class ScoredToken(NamedTuple):
    """A token of an answer that is being written.

    Attributes:
        text: What it adds to the answer; empty while a character is not complete.
        token_id: Its number in the vocabulary; ``None`` where the answer only ends.
        score: Of a detector of tokens that of the token, else that of the answer so far; ``None`` if there
            is none.
        probability: The same as a probability, where the detector has a calibration.
        answer: The score of the whole answer, with its last token; ``None`` before.
        attended: Position, text and weight of the tokens that its row attends to most, where the server
            is asked for them.
    """

    text: str
    token_id: int | None
    score: float | None
    probability: float | None
    answer: AnswerScore | None = None
    attended: Sequence[tuple[int, str, float]] = ()


class LiveScores:
    """Scores of growing answers by one detector.

    Args:
        scorer: The detector.
        extraction: The model that writes the answers.

    Attributes:
        arrays: What must be kept of each row.
        is_live: Whether the detector reads nothing but that, so that no answer is replayed.
    """

    def __init__(self, scorer: AnswerScorer, extraction: Extraction) -> None:
        self.scorer, self.extraction = scorer, extraction
        self.detector = scorer.detector
        self.is_of_tokens = self.detector.card.level == "token"
        reads = {_SAME.get(name, name) for name in self.detector.card.reads}
        keeps_answer = scorer.identity.capture.get("rows") == "answer"
        self.is_live = bool(reads) and keeps_answer and reads <= set(LIVE_ARRAYS)
        known = reads if scorer.novelty is None else reads | set(NOVELTY_READS)
        self.arrays = tuple(name for name in LIVE_ARRAYS if self.is_live and name in known)

    def newest(self, answer: LiveAnswer) -> float | None:
        """Score of the newest token; of a detector of answers that of the answer so far."""
        if not self.is_live or not answer.token_ids:
            return None
        reach = self.detector.token_reach if self.is_of_tokens else None
        if reach is None:
            trace = answer.trace(self.extraction.shape, self.extraction.loaded.tokenizer)
        else:
            trace = answer.newest(self.extraction.shape, 1 + 2 * reach)
        score = float(self.scorer.values([trace]).values[-1])
        return score if np.isfinite(score) else None

    def whole(self, answer: LiveAnswer) -> AnswerScore:
        """Score of an answer that has ended; it is replayed if the detector needs more than was kept."""
        prompt = answer.prompt
        if not answer.token_ids:
            return self.scorer.answer_score(prompt.question, None, "the model gave an empty answer")
        return self.scorer.answer_score(prompt.question, self._trace(answer))

    def _trace(self, answer: LiveAnswer) -> Trace:
        if self.is_live:
            return answer.trace(self.extraction.shape, self.extraction.loaded.tokenizer)
        found = generated_answer(answer.token_ids, self.extraction.loaded.tokenizer, score=0.0)
        (trace,), _ = self.extraction.traces([replace(answer.prompt, answers=(found,))])
        return trace


class TextStream:
    """Text of tokens one after another, each character once it is complete.

    Args:
        tokenizer: That of the model.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0
        self._start = 0

    def add(self, token_id: int) -> str:
        """The text that a token adds."""
        self._ids.append(token_id)
        before = self._decode(self._ids[self._start : self._shown])
        after = self._decode(self._ids[self._start :])
        if after.endswith("\ufffd"):
            return ""
        text = after[len(before) :]
        self._start, self._shown = self._shown, len(self._ids)
        return text

    def _decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))


def stream(
    scorer: AnswerScorer, prompt: Prompt, extraction: Extraction, **settings: Any
) -> Iterator[ScoredToken]:
    """Answer one prompt, token by token; the last one carries the score of the answer.

    Args:
        scorer: The detector.
        prompt: Of the question.
        extraction: The model.
        settings: As of :class:`graphhalu.extract.live.LiveAnswer`.
    """
    scores = LiveScores(scorer, extraction)
    answer, batch = LiveAnswer(prompt, **settings), LiveBatch(extraction, scores.arrays)
    texts = TextStream(extraction.loaded.tokenizer)
    # the capture is left between tokens, so that the model is free for its user
    with batch.decoding():
        batch.add([answer])
    while batch.answers:
        n_before = len(answer.token_ids)
        with batch.decoding():
            batch.step()
        is_new = len(answer.token_ids) > n_before
        token_id = answer.token_ids[-1] if is_new else None
        score = scores.newest(answer) if is_new else None
        chance = None if score is None else scorer.probability(score)
        whole = scores.whole(answer) if answer.end is not None else None
        yield ScoredToken("" if token_id is None else texts.add(token_id), token_id, score, chance, whole)


class RiskLimit(StoppingCriteria):  # type: ignore[misc]
    """A stopping criterion of transformers that ends ``generate`` when the risk of a token passes a limit.

    It is a context manager: inside it the model hands out what the detector reads. A token is judged when
    the next one is chosen, once its own row exists.

    Args:
        scorer: The detector.
        prompt: What ``generate`` is given.
        extraction: The bound model.
        limit: Probability above which the answer ends.

    Attributes:
        input_ids: What ``generate`` must be given.
        tokens: The tokens judged so far.
    """

    def __init__(self, scorer: AnswerScorer, prompt: Prompt, extraction: Extraction, limit: float) -> None:
        self.scorer, self.extraction, self.limit = scorer, extraction, limit
        self.scores = LiveScores(scorer, extraction)
        if not self.scores.is_live:
            raise UsageError(
                f"{scorer.detector.card.name} reads more of an answer than exists while it is written\n"
                f"  Use a ready detector, or one trained on a store of --rows answer --hidden-tokens rows"
            )
        if scorer.calibration is None:
            raise UsageError(f"the detector in {scorer.folder} has no calibration, so its risk has no limit")
        if any(window is not None for window in extraction.loaded.layer_windows):
            raise UsageError("a model with sliding windows is streamed by detector.stream, not by generate")
        self.answer = LiveAnswer(prompt)
        self.model: Any = extraction.loaded.model
        self.input_ids = torch.from_numpy(prompt.encoded.token_ids.astype(np.int64))[None].to(
            self.model.device
        )
        self.tokens: list[ScoredToken] = []
        self._recorder = RowRecorder(extraction.shape, self.scores.arrays)
        codes = torch.from_numpy(prompt.encoded.span_code.astype(np.int64))
        self._is_span = self._members(codes)
        self._texts = TextStream(extraction.loaded.tokenizer)
        self._stack = ExitStack()

    def __enter__(self) -> "RiskLimit":  # noqa: PYI034 - beartype refuses Self
        """Let the model hand out what the detector reads."""
        if self._recorder.arrays:
            self._stack.enter_context(capturing(self.model, self._recorder))
        before = self.model.register_forward_pre_hook(self._ask_hidden, with_kwargs=True)
        after = self.model.register_forward_hook(self._keep_row)
        self._stack.callback(before.remove)
        self._stack.callback(after.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the model back as it was."""
        self._stack.close()

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Judge the token before the newest one; true for all sequences once the limit is passed."""
        if len(input_ids) != 1 or input_ids.shape[1] <= self.input_ids.shape[1]:
            raise UsageError("the criterion goes with one sequence: the criterion's input_ids, one beam")
        is_over = False
        if self.answer.token_ids:
            is_over = self._judged()
        token_id = int(input_ids[0, -1])
        statistics = token_statistics(self._logits, input_ids[:, -1])[:, 0].tolist()
        self.answer.add_token(token_id, statistics)
        self._is_span = torch.cat([self._is_span, self._members(torch.tensor([Span.ANSWER]))], dim=1)
        return torch.full((1,), is_over, dtype=torch.bool, device=input_ids.device)

    def _judged(self) -> bool:
        score = self.scores.newest(self.answer)
        chance = None if score is None else self.scorer.probability(score)
        token_id = self.answer.token_ids[-1]
        self.tokens.append(ScoredToken(self._texts.add(token_id), token_id, score, chance))
        return chance is not None and chance > self.limit

    def _members(self, codes: Tensor) -> Tensor:
        return one_hot(codes, N_SPANS).float()[None].to(self.model.device)

    def _ask_hidden(self, _model: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "output_hidden_states": self._recorder.hidden_layers or False}

    def _keep_row(self, _model: Any, _args: Any, output: Any) -> None:
        self._logits = output.logits[:, -1].float()
        first = torch.zeros(1, dtype=torch.long, device=self._logits.device)
        self.answer.add_row(newest_row(self._recorder, output.hidden_states, self._is_span, first), 0)
