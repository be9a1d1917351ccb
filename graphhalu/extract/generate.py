"""Answers by batched beam search: each prompt is run once, and a finished question leaves.

Answers are those of transformers' ``generate`` with the same settings. A model whose attention
cannot be driven through a mask of its own runs through ``generate`` itself, and says so.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from graphhalu.extract.beams import Beams, Candidate
from graphhalu.extract.decode import Decoder

_AGREEMENT = 1e-3
"""Largest relative difference of logits at which shared decoding counts as the model's own."""


class BeamSearch:
    """Beam search over batches of prompts.

    Args:
        model: A causal language model.
        layer_windows: Sliding window of each of its layers, or ``None``.
        stop_ids: Tokens that end an answer.
        n_beams: Beams a question.
        max_new_tokens: Longest answer, in tokens.

    Attributes:
        fallback_reason: Why ``generate`` is used, or ``None`` when decoding is shared.
    """

    def __init__(
        self,
        model: Any,
        *,
        layer_windows: tuple[int | None, ...],
        stop_ids: Sequence[int],
        n_beams: int,
        max_new_tokens: int,
    ) -> None:
        self.model = model
        self.layer_windows = layer_windows
        self.stop_ids = tuple(sorted(set(stop_ids)))
        self.n_beams = n_beams
        self.max_new_tokens = max_new_tokens
        self.fallback_reason = shared_decoding_fault(model, layer_windows)

    @torch.inference_mode()
    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        on_done: Callable[[int], None] | None = None,
    ) -> list[list[Candidate]]:
        """Final beams of every prompt, best first.

        Args:
            prompts: Token ids of each prompt.
            on_done: Called with the number of questions that just finished.
        """
        device = next(self.model.parameters()).device
        token_ids, is_token = left_padded(prompts, device)
        if self.fallback_reason is not None:
            found = _plain_generate(self, token_ids, is_token)
            if on_done is not None:
                on_done(len(prompts))
            return found
        return self._shared(token_ids, is_token, on_done or (lambda _: None))

    def _shared(
        self,
        token_ids: Int[Tensor, "question token"],
        is_token: Bool[Tensor, "question token"],
        on_done: Callable[[int], None],
    ) -> list[list[Candidate]]:
        device = token_ids.device
        decoder = Decoder(self.model, self.layer_windows, self.n_beams)
        logits = decoder.prefill(token_ids, is_token)[:, None].expand(-1, self.n_beams, -1)
        is_stop = torch.zeros(logits.shape[-1], dtype=torch.bool, device=device)
        is_stop[list(self.stop_ids)] = True
        beams = Beams.start(len(token_ids), self.n_beams, self.max_new_tokens, device)
        questions = list(range(len(token_ids)))
        found: list[list[Candidate]] = [[] for _ in questions]
        for step in range(self.max_new_tokens):
            parents = beams.advance(step, torch.log_softmax(logits.float(), dim=-1), is_stop)
            still_open = beams.is_open.nonzero()[:, 0]
            if len(still_open) < len(questions):
                for place in (~beams.is_open).nonzero()[:, 0].tolist():
                    found[questions[place]] = beams.candidates(place)
                on_done(len(questions) - len(still_open))
                questions = [questions[place] for place in still_open.tolist()]
                if not questions:
                    break
                decoder.keep(still_open)
                beams, parents = beams.select(still_open), parents[still_open]
            logits = decoder.step(parents, beams.running_tokens[:, :, step])
        return found


def left_padded(
    prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Int[Tensor, "question token"], Bool[Tensor, "question token"]]:
    """Prompts as one tensor, padded on the left, and which positions are tokens."""
    width = max(map(len, prompts))
    token_ids = torch.zeros(len(prompts), width, dtype=torch.long)
    is_token = torch.zeros(len(prompts), width, dtype=torch.bool)
    for index, prompt in enumerate(prompts):
        token_ids[index, width - len(prompt) :] = torch.as_tensor(prompt, dtype=torch.long)
        is_token[index, width - len(prompt) :] = True
    return token_ids.to(device), is_token.to(device)


@torch.inference_mode()
def shared_decoding_fault(model: Any, layer_windows: tuple[int | None, ...]) -> str | None:
    """Try shared decoding on a few tokens against one plain pass.

    Returns:
        Why the model cannot decode this way, or ``None`` when both give the same logits.
    """
    if len({window for window in layer_windows if window is not None}) > 1:
        return "its layers have sliding windows of different widths"
    device = next(model.parameters()).device
    tokens = torch.arange(1, 8, device=device)[None] % model.config.get_text_config().vocab_size
    try:
        shared = _shared_logits(model, layer_windows, tokens)
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        return f"its forward pass does not take a mask for each beam ({type(error).__name__})"
    plain = model(input_ids=tokens, use_cache=False).logits[0, -1].float()
    difference = float((shared - plain).abs().max() / plain.abs().max().clamp(min=1e-6))
    dtype_slack = torch.finfo(model.dtype).eps / torch.finfo(torch.float32).eps
    if not difference <= _AGREEMENT * max(1.0, dtype_slack**0.5):
        return f"its logits with shared prompts differ by {difference:.1e}"
    return None


def _shared_logits(
    model: Any, layer_windows: tuple[int | None, ...], tokens: Int[Tensor, "1 token"]
) -> Float[Tensor, "vocabulary"]:
    """Logits of the last token when the last two are fed as steps of the second beam."""
    decoder = Decoder(model, layer_windows, n_beams=2)
    decoder.prefill(tokens[:, :-2], torch.ones_like(tokens[:, :-2], dtype=torch.bool))
    first = torch.stack([tokens[:, 0], tokens[:, -2]], dim=1)
    decoder.step(torch.zeros_like(first), first)
    second = torch.stack([tokens[:, -1], tokens[:, 0]], dim=1)
    return decoder.step(torch.tensor([[1, 0]], device=tokens.device), second)[0, 0].float()


def _plain_generate(
    search: BeamSearch,
    token_ids: Int[Tensor, "question token"],
    is_token: Bool[Tensor, "question token"],
) -> list[list[Candidate]]:
    output: Any = search.model.generate(
        input_ids=token_ids,
        attention_mask=is_token.long(),
        num_beams=search.n_beams,
        num_return_sequences=search.n_beams,
        max_new_tokens=search.max_new_tokens,
        do_sample=False,
        eos_token_id=list(search.stop_ids),
        pad_token_id=search.stop_ids[0],
        return_dict_in_generate=True,
        output_scores=search.n_beams > 1,
    )
    answers = output.sequences[:, token_ids.shape[1] :].tolist()
    scores = (
        output.sequences_scores.tolist() if search.n_beams > 1 else [float("nan")] * len(answers)
    )
    cut = [
        _without_end(answer, search.stop_ids, score)
        for answer, score in zip(answers, scores, strict=True)
    ]
    return [cut[i : i + search.n_beams] for i in range(0, len(cut), search.n_beams)]


def _without_end(tokens: list[int], stop_ids: Sequence[int], score: float) -> Candidate:
    for place, token in enumerate(tokens):
        if token in stop_ids:
            return Candidate(tuple(tokens[:place]), score, is_finished=True)
    return Candidate(tuple(tokens), score, is_finished=False)
