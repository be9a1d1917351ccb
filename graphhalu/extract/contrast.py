"""What changes when an answer is replayed without its context, and when its tokens are decided.

Both are read from hidden states as they are stored, so that anybody can compute them again.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int, UInt16
from torch import Tensor, nn

from graphhalu.core.errors import UsageError
from graphhalu.extract.forward import LOGIT_BYTES, Replayed, TokenSequence, body_below_head
from graphhalu.models.attention import replaced
from graphhalu.traces.schema import TraceShape, from_bfloat16_bits, to_bfloat16_bits

REPLAYED: Final = ("token_logprob", "token_entropy", "hidden_rows")
"""Arrays of the replay without context."""
LIKELIEST: Final = 100
"""Tokens that stand for an output distribution."""


class OutputHead:
    """The output head of a model: logits of hidden states.

    Args:
        model: A causal language model.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.body = model, body_below_head(model)
        self.norm: nn.Module | None = None
        if self.body is not None:
            self.norm, self.output = last_norm(model, self.body)
        weight = model.get_output_embeddings().weight.detach().float()
        self.embeddings: Tensor = nn.functional.normalize(weight, dim=1)

    @torch.inference_mode()
    def logits(
        self, states: Float[np.ndarray, "row feature"], *, is_last: bool
    ) -> Iterator[Float[Tensor, "row vocabulary"]]:
        """Logits of some rows at a time.

        Args:
            states: Hidden states.
            is_last: Whether they are those after the final norm; it is applied to others.
        """
        weight = self.embeddings
        n_rows = max(1, LOGIT_BYTES // (4 * len(weight)))
        every = torch.from_numpy(states).to(weight.device, self.model.dtype)
        for rows in torch.split(every, n_rows):
            yield self._of_rows(rows if is_last or self.norm is None else self.norm(rows)).float()

    def _of_rows(self, states: Float[Tensor, "row feature"]) -> Float[Tensor, "row vocabulary"]:
        if self.body is None:
            return self.model.get_output_embeddings()(states)
        output = copy.copy(self.output)
        output.last_hidden_state = states[None]
        token = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        # the model's own code, with whatever it does to logits
        with replaced(self.body, "forward", lambda *_, **__: output):
            return self.model(input_ids=token).logits[0]


@torch.inference_mode()
def last_norm(model: Any, body: nn.Module) -> tuple[nn.Module | None, Any]:
    """The norm that makes the last hidden states, and what the body gives of one token.

    The norm is found by trying; ``None`` if there is none.
    """
    noted: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            noted.append((module, output))

    candidates = [each for each in body.modules() if each is not body and not [*each.children()]]
    hooks = [module.register_forward_hook(note) for module in candidates]
    try:
        token = torch.ones(1, 1, dtype=torch.long, device=next(model.parameters()).device)
        output = body(input_ids=token, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    last = output.last_hidden_state
    found = [module for module, made in noted if made.shape == last.shape and torch.equal(made, last)]
    is_norm = bool(found) and all(parameter.dim() == 1 for parameter in found[-1].parameters())
    return (found[-1] if is_norm else None), output


class Contrast:
    """Compares the replays of an answer with and without its context.

    Args:
        model: A causal language model.
        shape: Which hidden states are kept.

    Raises:
        UsageError: If the last hidden states are not among them.
    """

    def __init__(self, model: Any, shape: TraceShape) -> None:
        if shape.n_layers not in shape.hidden_layers:
            raise UsageError(
                f"--contrast compares output distributions, which come from hidden states {shape.n_layers}\n"
                f"  Keep them too:  --hidden-layers …,{shape.n_layers}"
            )
        self.head, self.layers = OutputHead(model), shape.hidden_layers
        self.last = shape.hidden_layers.index(shape.n_layers)

    def compared(self, replays: Sequence[tuple[TokenSequence, Replayed, Replayed | None]]) -> list[Replayed]:
        """Replays of some answers with the arrays of :data:`~graphhalu.traces.schema.CONTRAST`.

        The rows of all answers meet the output matrix together: a product takes as long for a few.

        Args:
            replays: Prompt and answer, whose rows are those of the answer; its replay; and that of the
                same answer behind a prompt without context, or ``None`` if there is no context.
        """
        failed = [next((each for each in pair if each and each.failure), None) for _, *pair in replays]
        fine = [each for each, failure in zip(replays, failed, strict=True) if failure is None]
        made = iter(self._compared(fine)) if fine else iter(())
        return [failure or next(made) for failure in failed]

    def _compared(
        self, replays: Sequence[tuple[TokenSequence, Replayed, Replayed | None]]
    ) -> Iterator[Replayed]:
        """The same for replays that did not fail."""
        bits = [_answer_rows(sequence, kept) for sequence, kept, _ in replays]
        answers = [sequence.token_ids[sequence.prompt_length :] for sequence, _, _ in replays]
        ends = np.cumsum([*map(len, answers)])
        ranks = np.split(self._ranks(bits, np.concatenate(answers)), ends[:-1], axis=1)
        both = [
            (own, each.arrays["hidden_rows"]) for own, (*_, each) in zip(bits, replays, strict=True) if each
        ]
        means = [self._mean_embedding([pair[side][self.last] for pair in both]) for side in (0, 1) if both]
        shift = ((means[0] - means[1]) ** 2).sum(1).cpu().numpy() if both else np.zeros(0)
        for (sequence, kept, without), own, of_answer in zip(replays, bits, ranks, strict=True):
            n_prompt, n_tokens = sequence.prompt_length, sequence.length
            n_answer = n_tokens - n_prompt
            lens_rank = np.full((len(self.layers), n_tokens), -1, dtype=np.int32)
            lens_rank[:, n_prompt:] = of_answer
            found = {name: np.full(n_tokens, np.nan, dtype=np.float32) for name in _OF_TOKENS}
            other = np.full_like(own, _NO_VALUE)
            if without is not None:
                other = without.arrays["hidden_rows"]
                found["contrast_logprob"][n_prompt:] = without.arrays["token_logprob"][-n_answer:]
                found["contrast_entropy"][n_prompt:] = without.arrays["token_entropy"][-n_answer:]
                found["output_shift"][n_prompt:], shift = shift[:n_answer], shift[n_answer:]
            arrays = {**kept.arrays, **found, "lens_rank": lens_rank, "contrast_hidden": other}
            yield kept._replace(arrays=arrays)

    def _ranks(
        self, bits: Sequence[UInt16[np.ndarray, "hidden_layer _ feature"]], token_ids: Int[np.ndarray, "row"]
    ) -> Int[np.ndarray, "hidden_layer row"]:
        """How many tokens each layer ranks above the one that comes, for the rows of all answers."""
        return np.stack(
            [
                _places(self.head.logits(_before_tokens(of_layer), is_last=place == self.last), token_ids)
                for place, of_layer in enumerate(zip(*bits, strict=True))
            ]
        )

    def _mean_embedding(
        self, bits: Sequence[UInt16[np.ndarray, "_ feature"]]
    ) -> Float[Tensor, "row feature"]:
        """Embedding of the token that comes, in the mean over the likeliest ones; rows of all answers."""
        means = []
        for logits in self.head.logits(_before_tokens(bits), is_last=True):
            top = logits.topk(min(LIKELIEST, logits.shape[1]), dim=1)
            weights = torch.softmax(top.values, dim=1)
            means.append(
                nn.functional.embedding_bag(
                    top.indices, self.head.embeddings, per_sample_weights=weights, mode="sum"
                )
            )
        return torch.cat(means)


def _answer_rows(sequence: TokenSequence, kept: Replayed) -> UInt16[np.ndarray, "hidden_layer row feature"]:
    """Stored hidden states of the rows of an answer, as bits of bfloat16."""
    hidden = kept.arrays.get("hidden_rows")
    return kept.arrays["hidden"][:, sequence.row_start :] if hidden is None else hidden


def _before_tokens(bits: Sequence[UInt16[np.ndarray, "_ feature"]]) -> Float[np.ndarray, "row feature"]:
    """Hidden states from which the tokens of some answers come: all rows of each but its last."""
    return from_bfloat16_bits(np.concatenate([each[:-1] for each in bits]))


_NO_VALUE: Final = to_bfloat16_bits(np.full(1, np.nan, dtype=np.float32))[0]
_OF_TOKENS: Final = ("contrast_logprob", "contrast_entropy", "output_shift")


def _places(
    chunks: Iterator[Float[Tensor, "row vocabulary"]], token_ids: Int[np.ndarray, "row"]
) -> Int[np.ndarray, "row"]:
    """How many logits of each row are above that of a token."""
    ids, found = torch.from_numpy(token_ids.astype(np.int64)), []
    for logits in chunks:
        own, ids = ids[: len(logits)].to(logits.device), ids[len(logits) :]
        found.append((logits > logits.gather(1, own[:, None])).sum(1))
    return torch.cat(found).cpu().numpy().astype(np.int32)
