"""Measurement of prompts: greedy or drawn answers, then one pass that shows every step."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from graphhalu.core.axes import N_SPANS, RowRange, Span
from graphhalu.core.errors import GraphhaluError, NonFiniteError, UsageError
from graphhalu.datasets.prompts import EncodedPrompt, build_prompt, encode_prompt, require_span
from graphhalu.datasets.question import Question
from graphhalu.extract.decode import Decoder
from graphhalu.extract.forward import TokenSequence, read_likelihood
from graphhalu.extract.generate import BeamSearch, Candidate, left_padded
from graphhalu.extract.prompts import uses_chat
from graphhalu.extract.settings import PromptSettings
from graphhalu.heads.observers import RowsObserver, run_observed
from graphhalu.models.load import LoadedModel
from graphhalu.studies.instability.measure import sight_of, step_measures
from graphhalu.studies.instability.prompts import StudyPrompt
from graphhalu.studies.instability.series import PromptRecord, PromptSeries
from graphhalu.studies.instability.settings import GatherSettings

_TEMPLATE: Final = "published"
"""The user's text alone: nothing of ours stands beside a prompt."""


@dataclass(frozen=True)
class _Asked:
    prompt: StudyPrompt
    iteration: int
    encoded: EncodedPrompt

    @property
    def length(self) -> int:
        return len(self.encoded.token_ids)


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
            message = (
                f"greedy decoding gives the same answer {settings.iterations} times\n"
                f"  Use --temperature 1, or --iterations 1"
            )
            raise UsageError(message)
        self.loaded = loaded
        self.settings = settings
        self.is_chat = uses_chat(PromptSettings(chat=settings.chat), loaded)
        self.search = BeamSearch(
            loaded.model,
            layer_windows=loaded.layer_windows,
            stop_ids=loaded.eos_token_ids,
            n_beams=1,
            max_new_tokens=settings.max_new_tokens,
        )
        if settings.temperature and self.search.fallback_reason is not None:
            message = (
                f"tokens cannot be drawn on this model: {self.search.fallback_reason}\n  Use --temperature 0"
            )
            raise UsageError(message)

    def measure(self, prompts: Sequence[tuple[StudyPrompt, int]]) -> list[PromptSeries]:
        """Measure a batch of prompts, each with the number of its answer.

        Returns:
            One series a prompt, in order. A prompt that does not fit the model, or on which it
            gives NaN, has a failure and no arrays.

        Raises:
            UsageError: If a prompt has no system span, or the template takes none.
        """
        asked = [_Asked(prompt, iteration, self.encode(prompt)) for prompt, iteration in prompts]
        failures = [self._too_long(one) for one in asked]
        fitting = [one for one, failure in zip(asked, failures, strict=True) if failure is None]
        answers = iter(self._answers(fitting) if fitting else ())
        found = []
        for one, failure in zip(asked, failures, strict=True):
            reason = failure
            if reason is None:
                try:
                    found.append(self._series(one, next(answers)))
                except NonFiniteError as error:
                    reason = str(error)
            if reason is not None:
                found.append(PromptSeries(_record(one, failure=reason), {}))
        return found

    def encode(self, prompt: StudyPrompt) -> EncodedPrompt:
        """The tokens of a prompt under the system prompt, with spans.

        Raises:
            UsageError: If there is no system span or no user span in it.
        """
        tokenizer = self.loaded.tokenizer
        try:
            rendered = build_prompt(
                Question(prompt.prompt_id, prompt.text, ()),
                template=_TEMPLATE,
                chat=self.is_chat,
                tokenizer=tokenizer,
                system=self.settings.system,
            )
            encoded = encode_prompt(rendered, tokenizer)
            for span in (Span.SYSTEM, Span.QUESTION):
                require_span(encoded.span_code, span, where=f"prompt {prompt.prompt_id!r}")
        except GraphhaluError as error:
            error.add_note(f"in prompt {prompt.prompt_id!r}")
            raise
        return encoded

    def _too_long(self, asked: _Asked) -> str | None:
        limit, n_new = self.loaded.max_positions, self.settings.max_new_tokens
        if limit is None or asked.length + n_new <= limit:
            return None
        needed = asked.length + n_new
        return f"prompt and answer need up to {needed} tokens, the model's context has {limit}"

    def _answers(self, asked: Sequence[_Asked]) -> list[Candidate]:
        prompts = [one.encoded.token_ids.tolist() for one in asked]
        if not self.settings.temperature:
            return [beams[0] for beams in self.search.answer(prompts)]
        generators = [self._generator(one) for one in asked]
        return drawn_answers(self.search, prompts, self.settings.temperature, generators)

    def _generator(self, asked: _Asked) -> torch.Generator:
        # the same prompt draws the same tokens whatever batch it stands in
        text = f"{self.settings.seed} {asked.iteration} {asked.prompt.prompt_id}"
        # a hash, since torch's generator looks at the lowest 32 bits only
        seed = int(sha256(text.encode()).hexdigest()[:8], 16)
        return torch.Generator().manual_seed(seed)

    @torch.inference_mode()
    def _series(self, asked: _Asked, answer: Candidate) -> PromptSeries:
        # the end mark is fed too: the row before it is a decode step like the others
        end = self.loaded.eos_token_ids[:1] if answer.is_finished else ()
        new = np.array([*answer.token_ids, *end], dtype=np.int32)
        token_ids = np.concatenate([asked.encoded.token_ids, new])
        span_code = np.concatenate([asked.encoded.span_code, np.full(len(new), Span.ANSWER, dtype=np.uint8)])
        rows = np.arange(asked.length - 1, len(token_ids) - 1)
        observer = RowsObserver(
            RowRange(int(rows[0]), int(rows[-1]) + 1), _span_sums(span_code, self.loaded.model)
        )
        done = run_observed(self.loaded.model, token_ids, observer)
        user = np.flatnonzero(span_code == Span.QUESTION)
        sequence = TokenSequence(token_ids, span_code, asked.length, row_start=int(user[0]) - 1)
        likely = read_likelihood(done, [sequence])[0]
        if (failure := likely.failure()) is not None:
            raise NonFiniteError(failure)
        streams = likely.arrays()
        system = np.flatnonzero(span_code == Span.SYSTEM)
        measures = step_measures(
            observer.stacked(), sight_of(rows, system, self.loaded.layer_windows), self.settings.denominator
        )
        names = {"entropy": "token_entropy", "margin": "top1_margin", "logprob": "token_logprob"}
        arrays: dict[str, np.ndarray] = {
            **{name: value.astype(np.float32) for name, value in measures._asdict().items()},
            **{name: streams[stream][rows + 1] for name, stream in names.items()},
        }
        share = arrays.pop("share")
        if self.settings.keeps_heads:
            arrays["share"] = share.astype(np.float16)
        record = _record(
            asked,
            answer=self.loaded.tokenizer.decode(list(answer.token_ids)).strip(),
            n_answer=len(answer.token_ids),
            is_finished=answer.is_finished,
            user_nll=-float(streams["token_logprob"][user].mean()),
        )
        return PromptSeries(record, arrays)


def require_system(system: str) -> None:
    """Refuse a study without a system prompt.

    Raises:
        UsageError: If the text is empty.
    """
    if not system.strip():
        message = (
            "the system prompt is empty: there is no system span to measure attention on\n"
            "  Give one:  --system FILE  or  --system-text TEXT"
        )
        raise UsageError(message)


@torch.inference_mode()
def drawn_answers(
    search: BeamSearch,
    prompts: Sequence[Sequence[int]],
    temperature: float,
    generators: Sequence[torch.Generator],
) -> list[Candidate]:
    """Answers whose tokens are drawn from the distribution at a temperature.

    Args:
        search: Model, stop tokens and longest answer.
        prompts: Token ids of each prompt.
        temperature: Logits are divided by it; above 0.
        generators: One a prompt, so that its answer does not depend on its batch.
    """
    device = next(search.model.parameters()).device
    token_ids, is_token = left_padded(prompts, device)
    decoder = Decoder(search.model, search.layer_windows, 1)
    logits = decoder.prefill(token_ids, is_token)
    parents = torch.zeros(len(prompts), 1, dtype=torch.long, device=device)
    drawn: list[list[int]] = [[] for _ in prompts]
    is_over = [False] * len(prompts)
    for step in range(search.max_new_tokens):
        shares = torch.softmax(logits.float() / temperature, dim=-1).cpu()
        new = [int(torch.multinomial(p, 1, generator=g)) for p, g in zip(shares, generators, strict=True)]
        for place, token in enumerate(new):
            is_over[place] |= token in search.stop_ids
            drawn[place] += [] if is_over[place] else [token]
        if all(is_over) or step + 1 == search.max_new_tokens:
            break
        logits = decoder.step(parents, torch.tensor(new, device=device)[:, None])[:, 0]
    return [
        Candidate(tuple(tokens), float("nan"), is_finished=over)
        for tokens, over in zip(drawn, is_over, strict=True)
    ]


def _span_sums(span_code: np.ndarray, model: Any) -> Any:
    """What reduces ``weights[head, row, key]`` to ``[head, row, span]``."""
    device = next(model.parameters()).device
    codes = torch.from_numpy(span_code.astype(np.int64)).to(device)
    is_span = nn.functional.one_hot(codes, N_SPANS).float()

    def reduce(weights: Float[Tensor, "head row key"]) -> Float[Tensor, "head row span"]:
        return weights @ is_span[: weights.shape[-1]]

    return reduce


def _record(asked: _Asked, **more: Any) -> PromptRecord:
    code = asked.encoded.span_code
    prompt = asked.prompt
    return PromptRecord(
        **asdict(prompt),
        iteration=asked.iteration,
        n_prompt=asked.length,
        n_system=int((code == Span.SYSTEM).sum()),
        n_user=int((code == Span.QUESTION).sum()),
        **more,
    )
