"""The beams of a search: which go on, which end, and which question is done.

The search is the standard one of the field: among the ``n_beams`` likeliest continuations those
that end become candidates with a length-normalised score, the likeliest others go on, and a
question is done when no running beam can beat its worst candidate any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_IMPOSSIBLE: Final = -1.0e9
"""Score of a beam that does not exist."""

_WIDEST: Final = 64
"""Continuations up to which one search for the likeliest of all is faster than two for fewer."""

_Top = tuple[Tensor, Tensor]
"""Scores and places, ``question beam`` each."""


@dataclass(frozen=True)
class Answer:
    """An answer as tokens, and as text once it is decoded.

    Attributes:
        token_ids: Its tokens; the end mark is cut off.
        score: Log-probability of all tokens of its beam, end mark included, over their number;
            ``None`` for an answer that the data set states.
        is_finished: Whether it ended by itself and was not cut at the limit.
        text: What is stored and labelled.
        offsets: Half-open range of characters of ``text`` that each token covers.
        rank: Rank among the beams, or place among the given answers; samples come after the beams.
        is_sample: Whether it was sampled.
        asked: What the model says of it; see :mod:`graphhalu.extract.ask`.
    """

    token_ids: tuple[int, ...]
    score: float | None = None
    is_finished: bool = True
    text: str = ""
    offsets: tuple[tuple[int, int], ...] = ()
    rank: int = 0
    is_sample: bool = False
    asked: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Beams:
    """The beams of a batch of questions.

    Attributes:
        running_tokens: Tokens so far of the beams that go on.
        running_scores: Their summed log-probabilities.
        final_tokens: Tokens of the best ended beams, best first.
        final_scores: Their length-normalised scores; an empty place holds a very low one.
        final_lengths: Their numbers of tokens, end mark included.
        is_final_stopped: Whether they ended with an end mark.
        is_open: Which questions can still improve.
    """

    running_tokens: Int[Tensor, "question beam step"]
    running_scores: Float[Tensor, "question beam"]
    final_tokens: Int[Tensor, "question beam step"]
    final_scores: Float[Tensor, "question beam"]
    final_lengths: Int[Tensor, "question beam"]
    is_final_stopped: Bool[Tensor, "question beam"]
    is_open: Bool[Tensor, "question"]

    @classmethod
    def start(cls, n_questions: int, n_beams: int, max_steps: int, device: torch.device) -> "Beams":
        """Beams without any token; only the first beam of a question can be continued."""
        tokens = torch.zeros(n_questions, n_beams, max_steps, dtype=torch.long, device=device)
        scores = torch.full((n_questions, n_beams), _IMPOSSIBLE, device=device)
        running_scores = scores.clone()
        running_scores[:, 0] = 0.0
        flags = torch.zeros(n_questions, n_beams, dtype=torch.bool, device=device)
        is_open = torch.ones(n_questions, dtype=torch.bool, device=device)
        return cls(tokens, running_scores, tokens.clone(), scores, flags.long(), flags, is_open)

    def select(self, questions: Sequence[int]) -> "Beams":
        """The beams of some of the questions."""
        return Beams(*(getattr(self, name)[questions] for name in self.__dataclass_fields__))

    def advance(
        self,
        step: int,
        log_probabilities: Float[Tensor, "question beam vocabulary"],
        stops: Int[Tensor, "stop"],
    ) -> Int[Tensor, "question beam"]:
        """Extend every running beam by one token; close questions that no running beam can improve.

        That is the stop rule: a question ends when its best running beam scores no higher than its worst
        finished one, or at the last step.

        Args:
            step: Tokens that the running beams have so far.
            log_probabilities: Of each token after each running beam.
            stops: The tokens that end an answer.

        Returns:
            For each running beam the beam that it continues.
        """
        n_tokens, is_last = log_probabilities.shape[2], step + 1 == self.running_tokens.shape[2]
        (best, places), (scores, going_on) = _continuations(
            self.running_scores[:, :, None] + log_probabilities, stops
        )
        ends = (places[..., None] % n_tokens == stops).any(-1)
        self._collect(step, best, self._extended(step, places, n_tokens), ends, is_last)
        self.running_tokens, self.running_scores = self._extended(step, going_on, n_tokens), scores
        best_running = self.running_scores[:, 0] / (step + 1)
        self.is_open &= (best_running > self.final_scores.min(1).values) & (not is_last)
        return going_on // n_tokens

    def _extended(
        self, step: int, places: Int[Tensor, "question beam"], n_tokens: int
    ) -> Int[Tensor, "question beam step"]:
        """The tokens of continuations, each a running beam and a token."""
        extended = self.running_tokens.take_along_dim((places // n_tokens)[:, :, None], dim=1)
        extended[:, :, step] = places % n_tokens
        return extended

    def candidates(self, question: int) -> list[Answer]:
        """The final beams of one question, best first, without their end marks."""
        columns = (self.final_tokens, self.final_scores, self.final_lengths, self.is_final_stopped)
        return [
            Answer(tuple(tokens[: length - is_finished]), score, is_finished)
            for tokens, score, length, is_finished in zip(
                *(c[question].tolist() for c in columns), strict=True
            )
            if score > _IMPOSSIBLE / 2
        ]

    def _collect(
        self,
        step: int,
        scores: Float[Tensor, "question beam"],
        tokens: Int[Tensor, "question beam step"],
        ends: Bool[Tensor, "question beam"],
        is_last: bool,
    ) -> None:
        """Merge beams that end now into the final ones of the questions still open."""
        counts = (ends | is_last) & self.is_open[:, None]
        ended_scores = torch.where(counts, scores / (step + 1), _IMPOSSIBLE)
        all_scores = torch.cat([self.final_scores, ended_scores], dim=1)
        best = all_scores.topk(self.final_scores.shape[1], dim=1).indices
        self.final_scores = all_scores.gather(1, best)
        all_tokens = torch.cat([self.final_tokens, tokens], dim=1)
        self.final_tokens = all_tokens.take_along_dim(best[:, :, None], dim=1)
        lengths = torch.full_like(self.final_lengths, step + 1)
        self.final_lengths = torch.cat([self.final_lengths, lengths], dim=1).gather(1, best)
        self.is_final_stopped = torch.cat([self.is_final_stopped, ends], dim=1).gather(1, best)


def _continuations(
    total: Float[Tensor, "question beam vocabulary"], stops: Int[Tensor, "stop"]
) -> tuple[_Top, _Top]:
    """The likeliest continuations, as many as there are beams: of all, and of those that do not end.

    Each has its scores and its places in ``beam x vocabulary``. Nothing waits for the device here.
    """
    n_beams, flat = total.shape[1], total.flatten(1)
    # so many hold enough that do not end, whichever the others are
    n_wanted = n_beams * (1 + len(stops))
    if n_wanted > _WIDEST:
        best = flat.topk(n_beams, dim=1)
        going_on = total.index_fill(2, stops, _IMPOSSIBLE).flatten(1).topk(n_beams, dim=1)
        return (best.values, best.indices), (going_on.values, going_on.indices)
    scores, places = flat.topk(min(n_wanted, flat.shape[1]), dim=1)
    ends = (places[..., None] % total.shape[2] == stops).any(-1)
    going_on = (scores + ends * _IMPOSSIBLE).topk(n_beams, dim=1)
    kept = (going_on.values, places.gather(1, going_on.indices))
    return (scores[:, :n_beams], places[:, :n_beams]), kept
