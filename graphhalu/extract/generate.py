"""Answers by batched beam search: each prompt is run once, and a finished question leaves.

Answers are those of transformers' ``generate`` with the same settings. A model whose attention
cannot be driven through a mask of its own runs through ``generate`` itself, and says so.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor, nn

from graphhalu.extract.beams import Answer, Beams
from graphhalu.extract.decode import Decoder, PromptPass, decoding, joined_cache
from graphhalu.models.load import LoadedModel, left_padded

SAMPLE_ROWS: Final = 256
"""Samples of all questions from which on more of them cost more time than they save steps."""
FEWEST_SLOTS: Final = 4
"""Samples of a question that always run beside each other."""
_AGREEMENT: Final = 1e-3
"""Largest relative difference of logits at which shared decoding counts as the model's own."""


@dataclass
class BeamSearch:
    """Beam search over batches of prompts.

    Attributes:
        model: A causal language model.
        layer_windows: Sliding window of each of its layers, or ``None``.
        stop_ids: Tokens that end an answer.
        n_beams: Beams a question.
        max_new_tokens: Longest answer, in tokens.
        fallback_reason: Why ``generate`` is used, or ``None`` when decoding is shared.
    """

    model: Any
    _: KW_ONLY
    layer_windows: tuple[int | None, ...]
    stop_ids: Sequence[int]
    n_beams: int
    max_new_tokens: int
    fallback_reason: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.stop_ids = tuple(sorted(set(self.stop_ids)))
        self.fallback_reason = shared_decoding_fault(self.model, self.layer_windows)

    def answer(self, prompts: Sequence[Sequence[int]]) -> list[list[Answer]]:
        """Final beams of every prompt (token ids), best first."""
        found = dict(self.as_finished(prompts))
        return [found[index] for index in range(len(prompts))]

    @torch.inference_mode()
    def as_finished(
        self, prompts: Sequence[Sequence[int]], passes: Sequence[PromptPass] = ()
    ) -> Iterator[tuple[int, list[Answer]]]:
        """Index and final beams, best first, of each prompt as soon as its search ends.

        Args:
            prompts: Token ids of each prompt.
            passes: The prompts where they have run already; all or none.
        """
        if self.fallback_reason is not None:
            device = next(self.model.parameters()).device
            yield from enumerate(_plain_generate(self, *left_padded(prompts, device)))
            return
        decoder, logits = self._started(prompts, passes, self.n_beams)
        stops = torch.tensor(self.stop_ids, dtype=torch.long, device=logits.device)
        beams = Beams.start(len(prompts), self.n_beams, self.max_new_tokens, logits.device)
        questions = list(range(len(prompts)))
        with ExitStack() as steps:
            for step in range(self.max_new_tokens):
                parents = beams.advance(step, torch.log_softmax(logits.float(), dim=-1), stops)
                is_open = beams.is_open.tolist()  # the one wait for the device in a step
                if not all(is_open):
                    steps.close()  # whoever takes an answer may use the model
                    for place in np.flatnonzero(~np.array(is_open)).tolist():
                        yield questions[place], beams.candidates(place)
                    kept = _closed_up(is_open)
                    questions = [questions[place] for place in kept]
                    if not questions:
                        return
                    decoder.keep(kept)
                    beams, parents = beams.select(kept), parents[kept]
                if not step or not all(is_open):
                    steps.enter_context(decoding(self.model))
                logits = decoder.step(parents, beams.running_tokens[:, :, step])

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        draws: Float64[Tensor, "question sample step"],
        *,
        temperature: float = 1.0,
        passes: Sequence[PromptPass] = (),
    ) -> list[list[Answer]]:
        """Sampled answers of every prompt.

        Where many questions are asked, a few samples of each run beside each other, and where one ends
        the next begins: if all of them ran, most would wait for the longest.

        Args:
            prompts: Token ids of each prompt.
            draws: A number in [0, 1) for each token: it takes the first whose cumulated probability is
                above it, so that an answer depends on its own draws alone.
            temperature: Divides the logits.
            passes: The prompts where they have run already; all or none.

        Returns:
            Answers by prompt and sample, without tokens where the end mark came first. Their score is the
            mean log-probability (nat) of their tokens, end mark included, at temperature 1.
        """
        n_questions, n_samples, n_steps = draws.shape
        n_slots = sample_slots(n_questions, n_samples)
        decoder, first = self._started(prompts, passes, n_slots)
        device = first.device
        own = torch.arange(n_slots, device=device).expand(n_questions, -1)
        stops = torch.tensor(self.stop_ids, device=device)
        # one place more, for slots without a sample
        draws = nn.functional.pad(draws.to(device), (0, 0, 0, 1))
        tokens = torch.zeros(draws.shape, dtype=torch.long, device=device)
        lengths, scores = torch.zeros_like(tokens[..., 0]), torch.zeros_like(draws[..., 0])
        question = torch.arange(n_questions, device=device)[:, None].expand(-1, n_slots)
        sample, at = own, torch.zeros_like(own)
        n_begun = torch.full_like(own[:, :1], n_slots)
        logits = first
        with decoding(self.model):
            while True:
                cumulated = torch.softmax(logits.double() / temperature, dim=-1).cumsum(dim=-1)
                chosen = (cumulated <= draws[question, sample, at][..., None]).sum(dim=-1)
                chosen = chosen.clamp(max=logits.shape[-1] - 1)
                log_p = torch.log_softmax(logits.double(), dim=-1).gather(-1, chosen[..., None])[..., 0]
                tokens[question, sample, at] = chosen
                scores[question, sample] += log_p
                lengths[question, sample] += 1
                is_over = torch.isin(chosen, stops) | (at + 1 == n_steps) | (sample == n_samples)
                following = (n_begun + is_over.cumsum(dim=1) - 1).clamp(max=n_samples)
                sample, at = torch.where(is_over, following, sample), torch.where(is_over, 0, at + 1)
                n_begun = n_begun + is_over.sum(dim=1, keepdim=True)
                kept = _closed_up((sample < n_samples).any(dim=1).tolist())
                if not kept:
                    break
                if len(kept) < len(sample):  # questions whose samples have all ended leave
                    decoder.keep(kept)
                    question, sample, at, n_begun, first, chosen, is_over = (
                        each[kept] for each in (question, sample, at, n_begun, first, chosen, is_over)
                    )
                logits = decoder.step(own[: len(kept)], chosen)
                decoder.restart(is_over)
                logits = torch.where(is_over[..., None], first, logits)
        tokens, lengths, scores = (each[:, :n_samples] for each in (tokens, lengths, scores))
        return [
            [
                replace(_until_stop(row[:length], self.stop_ids, score / length), is_sample=True)
                for row, length, score in zip(*of_question, strict=True)
            ]
            for of_question in zip(tokens.tolist(), lengths.tolist(), scores.tolist(), strict=True)
        ]

    def _started(
        self, prompts: Sequence[Sequence[int]], passes: Sequence[PromptPass], n_beams: int
    ) -> tuple[Decoder, Float[Tensor, "question beam vocabulary"]]:
        """A decoder behind the prompts, and the logits after each of them."""
        token_ids, is_token = left_padded(prompts, next(self.model.parameters()).device)
        decoder = Decoder(self.model, self.layer_windows, n_beams)
        if passes:
            decoder.begin(joined_cache(passes), is_token)
            logits = torch.stack([each.logits for each in passes])
        else:
            logits = decoder.prefill(token_ids, is_token)
        return decoder, logits[:, None].expand(-1, n_beams, -1)


def _closed_up(is_kept: Sequence[bool]) -> list[int]:
    """The places that stay; the last ones fill the gaps, so that little of a cache is moved."""
    n_kept = sum(is_kept)
    behind = iter([place for place, kept in enumerate(is_kept) if kept and place >= n_kept])
    return [place if is_kept[place] else next(behind) for place in range(n_kept)]


def sample_slots(n_questions: int, n_samples: int) -> int:
    """Samples of each question that run beside each other."""
    return min(n_samples, max(FEWEST_SLOTS, SAMPLE_ROWS // n_questions))


def most_positions(n_questions: int, n_samples: int) -> int:
    """Positions of a question's samples in the cache at most, in units of the longest answer."""
    n_slots = sample_slots(n_questions, n_samples)
    return n_samples + (n_slots if n_slots < n_samples else 0)  # the last ones may be the longest


def sample_draws(
    question_ids: Sequence[str], shape: tuple[int, int], *, seed: int
) -> Float64[Tensor, "question sample step"]:
    """Uniform draws of each question, whatever the others are.

    Args:
        question_ids: The questions.
        shape: Samples and steps.
        seed: Seed of all of them.
    """
    found = []
    for question_id in question_ids:
        digest = hashlib.sha256(f"{seed}\n{question_id}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        found.append(torch.rand(shape, dtype=torch.float64, generator=generator))
    return torch.stack(found)


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
    dtype_slack = torch.finfo(compute_dtype(model)).eps / torch.finfo(torch.float32).eps
    if not difference <= _AGREEMENT * max(1.0, dtype_slack**0.5):
        return f"its logits with shared prompts differ by {difference:.1e}"
    return None


def compute_dtype(model: Any) -> torch.dtype:
    """What the model multiplies in, which for a quantised one is not the format of its other weights."""
    quantized: Any = getattr(model.config, "quantization_config", None)
    if quantized is not None and getattr(quantized, "load_in_4bit", False):
        return quantized.bnb_4bit_compute_dtype
    if quantized is not None and getattr(quantized, "load_in_8bit", False):
        return torch.float16
    return model.dtype


def _shared_logits(
    model: Any, layer_windows: tuple[int | None, ...], tokens: Int[Tensor, "1 token"]
) -> Float[Tensor, "vocabulary"]:
    """Logits of the last token when the last two are fed as steps of the second beam."""
    decoder = Decoder(model, layer_windows, n_beams=2)
    decoder.prefill(tokens[:, :-2], torch.ones_like(tokens[:, :-2], dtype=torch.bool))
    first = torch.stack([tokens[:, 0], tokens[:, -2]], dim=1)
    second = torch.stack([tokens[:, -1], tokens[:, 0]], dim=1)
    with decoding(model):
        decoder.step(torch.zeros_like(first), first)
        return decoder.step(torch.tensor([[1, 0]], device=tokens.device), second)[0, 0].float()


def _plain_generate(
    search: BeamSearch, token_ids: Int[Tensor, "question token"], is_token: Bool[Tensor, "question token"]
) -> list[list[Answer]]:
    n_beams = search.n_beams
    output: Any = search.model.generate(
        input_ids=token_ids,
        attention_mask=is_token.long(),
        num_beams=n_beams,
        num_return_sequences=n_beams,
        max_new_tokens=search.max_new_tokens,
        do_sample=False,
        eos_token_id=list(search.stop_ids),
        pad_token_id=search.stop_ids[0],
        return_dict_in_generate=True,
        output_scores=n_beams > 1,
    )
    answers = output.sequences[:, token_ids.shape[1] :].tolist()
    scores = output.sequences_scores.tolist() if n_beams > 1 else [float("nan")] * len(answers)
    cut = [_until_stop(answer, search.stop_ids, score) for answer, score in zip(answers, scores, strict=True)]
    return [cut[i : i + n_beams] for i in range(0, len(cut), n_beams)]


def _until_stop(tokens: Sequence[int], stop_ids: Sequence[int], score: float) -> Answer:
    """The answer up to the first token that ends it."""
    end = next((place for place, token in enumerate(tokens) if token in stop_ids), None)
    return Answer(tuple(tokens[:end]), score, is_finished=end is not None)


def beam_search(
    loaded: LoadedModel, *, n_beams: int = 1, max_new_tokens: int, stops_at_newline: bool
) -> BeamSearch:
    """Search that stops at the end mark and, as asked for, at a newline; greedy with one beam."""
    newlines = newline_token_ids(loaded.tokenizer) if stops_at_newline else ()
    return BeamSearch(
        loaded.model,
        layer_windows=loaded.layer_windows,
        stop_ids=[*loaded.eos_token_ids, *newlines],
        n_beams=n_beams,
        max_new_tokens=max_new_tokens,
    )


def newline_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens whose text holds a newline."""
    suspects = [
        index
        for token, index in tokenizer.get_vocab().items()
        if "\n" in token or "Ċ" in token or token == "<0x0A>"  # noqa: S105
    ]
    return tuple(sorted(index for index in suspects if "\n" in tokenizer.decode([index])))
