"""Beam search as bookkeeping on tensors; it knows scores and tokens, and no model.

The search is the standard one of the field: among the ``n_beams`` likeliest continuations those
that end become candidates with a length-normalised score, the likeliest others go on, and a
question is done when no running beam can beat its worst candidate any more.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_IMPOSSIBLE = -1.0e9


@dataclass(frozen=True)
class Candidate:
    """One final beam of a question.

    Attributes:
        token_ids: Tokens of the answer; the end mark is cut off.
        score: Log-probability of all tokens, end mark included, over their number.
        is_finished: Whether the beam ended by itself and was not cut at the limit.
    """

    token_ids: tuple[int, ...]
    score: float
    is_finished: bool


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

    def select(self, questions: Int[Tensor, "kept"]) -> "Beams":
        """The beams of some of the questions."""
        return Beams(*(getattr(self, name)[questions] for name in self.__dataclass_fields__))

    def advance(
        self,
        step: int,
        log_probabilities: Float[Tensor, "question beam vocabulary"],
        is_stop: Bool[Tensor, "vocabulary"],
    ) -> Int[Tensor, "question beam"]:
        """Extend every running beam by one token.

        Args:
            step: Tokens that the running beams have so far.
            log_probabilities: Of each token after each running beam.
            is_stop: Which tokens end an answer.

        Returns:
            For each running beam the beam that it continues.
        """
        n_beams, n_tokens = log_probabilities.shape[1:]
        total = (self.running_scores[:, :, None] + log_probabilities).flatten(1)
        scores, places = _top_continuations(total, n_beams, is_stop)
        parents, tokens = places // n_tokens, places % n_tokens
        extended = self.running_tokens.gather(
            1, parents[:, :, None].expand(-1, -1, self.running_tokens.shape[2])
        )
        extended[:, :, step] = tokens
        is_last = step + 1 == extended.shape[2]
        ends = is_stop[tokens]
        self._collect(step, scores[:, :n_beams], extended[:, :n_beams], ends[:, :n_beams], is_last)
        kept = (scores + ends * _IMPOSSIBLE).topk(n_beams, dim=1).indices
        self.running_scores = (scores + ends * _IMPOSSIBLE).gather(1, kept)
        self.running_tokens = extended.gather(1, kept[:, :, None].expand(-1, -1, extended.shape[2]))
        best_running = self.running_scores[:, 0] / (step + 1)
        self.is_open &= (best_running > self.final_scores.min(1).values) & (not is_last)
        return parents.gather(1, kept)

    def candidates(self, question: int) -> list[Candidate]:
        """The final beams of one question, best first, without their end marks."""
        found = []
        for beam in range(self.final_scores.shape[1]):
            score = float(self.final_scores[question, beam])
            if score <= _IMPOSSIBLE / 2:
                continue
            is_finished = bool(self.is_final_stopped[question, beam])
            length = int(self.final_lengths[question, beam]) - is_finished
            tokens = tuple(self.final_tokens[question, beam, :length].tolist())
            found.append(Candidate(tokens, score, is_finished))
        return found

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
        self.final_tokens = all_tokens.gather(1, best[:, :, None].expand(-1, -1, tokens.shape[2]))
        lengths = torch.full_like(self.final_lengths, step + 1)
        self.final_lengths = torch.cat([self.final_lengths, lengths], dim=1).gather(1, best)
        self.is_final_stopped = torch.cat([self.is_final_stopped, ends], dim=1).gather(1, best)


def _top_continuations(
    total: Float[Tensor, "question continuation"], n_beams: int, is_stop: Bool[Tensor, "vocabulary"]
) -> tuple[Float[Tensor, "question place"], Int[Tensor, "question place"]]:
    """The likeliest continuations: enough that ``n_beams`` of them do not end the answer."""
    n_wanted = min(2 * n_beams, total.shape[1])
    while True:
        scores, places = total.topk(n_wanted, dim=1)
        n_going_on = (~is_stop[places % len(is_stop)]).sum(1).min()
        if n_going_on >= n_beams or n_wanted == total.shape[1]:
            return scores, places
        n_wanted = min(2 * n_wanted, total.shape[1])
