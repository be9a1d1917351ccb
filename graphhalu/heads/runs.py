"""Runs of a model: answers with their quality, and attention observed in one pass.

Quality is what an ablation is measured by: the model answers prompts with gold answers greedily,
and the log-probability of the first gold answer is read in one teacher-forced pass.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from graphhalu.core.axes import RowRange
from graphhalu.core.config import Config
from graphhalu.core.errors import NonFiniteError, NotEnoughDataError
from graphhalu.datasets.prompts import build_prompt, encode_prompt
from graphhalu.datasets.question import Question
from graphhalu.extract.capture import capturing
from graphhalu.extract.forward import DeferredPass, TokenSequence, body_below_head, read_likelihood
from graphhalu.extract.generate import BeamSearch
from graphhalu.extract.hooks import AttentionObserver
from graphhalu.extract.prompts import generated_answer, uses_chat
from graphhalu.extract.settings import PromptSettings
from graphhalu.heads.table import HeadScores, HeadTable, Trial, mean_of_present
from graphhalu.labels.match import AliasMatch
from graphhalu.labels.rouge import RougeOverlap
from graphhalu.models.load import LoadedModel
from graphhalu.traces.schema import TraceRecord

METRICS: Final = ("match", "rouge1_recall", "gold_logprob")
"""``match``: whether the answer says a gold answer (0 or 1; missing where nobody can tell);
``rouge1_recall``: best share of a gold answer's words, in [0, 1]; ``gold_logprob``: mean
log-probability (nat) of the first gold answer's tokens."""


@dataclass(frozen=True)
class Item:
    """A prompt whose answer is known.

    Attributes:
        token_ids: The prompt.
        gold_ids: The first gold answer as it follows the prompt.
        record: The question with its gold answers, for the rules that judge.
    """

    token_ids: tuple[int, ...]
    gold_ids: tuple[int, ...]
    record: TraceRecord


def prompt_form(
    loaded: LoadedModel, template: str | None, chat: Literal["off", "on", "auto"]
) -> tuple[str, bool]:
    """Prompt template (by default ``concise`` in a chat, else ``bare``), and whether a chat."""
    is_chat = uses_chat(PromptSettings(chat=chat), loaded)
    return template or ("concise" if is_chat else "bare"), is_chat


def question_items(
    loaded: LoadedModel, questions: Sequence[Question], *, template: str, chat: bool
) -> list[Item]:
    """Questions of a data set as items; those without a gold answer are left out.

    Raises:
        NotEnoughDataError: If none is left.
    """
    items = []
    for question in questions:
        if not question.answers:
            continue
        prompt = build_prompt(question, template=template, chat=chat, tokenizer=loaded.tokenizer)
        token_ids = encode_prompt(prompt, loaded.tokenizer).token_ids.tolist()
        items.append(known_item(loaded, question, token_ids, prompt.is_chat))
    if not items:
        raise NotEnoughDataError("none of the questions states a gold answer: there is nothing to measure by")
    return items


def answer_quality(
    loaded: LoadedModel,
    search: BeamSearch,
    items: Sequence[Item],
    *,
    batch_size: int = 8,
    on_progress: Callable[[int], None] = lambda _: None,
) -> Float[np.ndarray, "item metric"]:
    """Every item by every metric of ``METRICS``; NaN where a rule cannot judge."""
    rouge, match = RougeOverlap("rouge1_recall"), AliasMatch()
    found = np.full((len(items), len(METRICS)), np.nan)
    order = sorted(range(len(items)), key=lambda index: len(items[index].token_ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        beams = search.answer([items[index].token_ids for index in batch])
        for index, (best, *_) in zip(batch, beams, strict=True):
            item = items[index]
            text = generated_answer(best.token_ids, loaded.tokenizer).text
            decision = match.label(replace(item.record, answer=text))
            # an empty answer is wrong, where the rule for labels would not say so
            right = (
                float(decision.is_valid and decision.value == 0) if decision.is_valid or not text else np.nan
            )
            recall = rouge.best_score(text, item.record.answers)
            found[index] = (right, recall, gold_logprob(loaded.model, item))
        on_progress(len(batch))
    return found


def gold_logprob(model: Any, item: Item) -> float:
    """Mean log-probability (nat) of the gold answer's tokens after the prompt."""
    token_ids, first = np.array([*item.token_ids, *item.gold_ids]), len(item.token_ids)
    sequence = TokenSequence(token_ids, np.zeros_like(token_ids), first, row_start=first - 1)
    with torch.inference_mode():
        (found,) = read_likelihood(_forward(model, token_ids), [sequence])
    return float(found.arrays["token_logprob"][first:].mean())


def known_item(loaded: LoadedModel, question: Question, token_ids: Sequence[int], is_chat: bool) -> Item:
    """A prompt with the first gold answer of its question."""
    gap = "" if is_chat else " "
    gold = loaded.tokenizer(gap + question.answers[0], add_special_tokens=False)["input_ids"]
    record = TraceRecord(
        trace_id=question.question_id,
        question_id=question.question_id,
        group_id=question.group_id,
        question=question.text,
        answers=question.answers,
        answer="",
        prompt="",
        prompt_length=len(token_ids),
        length=len(token_ids) + len(gold),
    )
    return Item(tuple(token_ids), tuple(gold), record)


class RowsObserver:
    """Reduces the weights of some rows of every layer, chunk by chunk.

    Args:
        rows: The query rows that are wanted.
        reduce: Gets ``weights[head, row, key]`` in float32, and gives an array whose second
            axis is the row.

    Attributes:
        kept: What ``reduce`` gave, by layer, chunk after chunk.
    """

    def __init__(self, rows: RowRange, reduce: Callable[[Tensor], Tensor]) -> None:
        self.wanted = rows
        self.reduce = reduce
        self.kept: dict[int, list[Tensor]] = {}

    def wanted_rows(self, layer: int) -> RowRange | None:
        """The same rows of every layer."""
        return self.wanted

    def rows(self, layer: int, row_start: int, weights: Float[Tensor, "trace head row key"]) -> None:
        """Reduce a chunk of rows.

        Raises:
            NonFiniteError: If a weight is NaN or infinite.
        """
        exact = weights[0].float()
        if not bool(torch.isfinite(exact.sum())):
            raise NonFiniteError(f"the attention of layer {layer} holds NaN or infinity")
        self.kept.setdefault(layer, []).append(self.reduce(exact).cpu())

    def values(self, layer: int, value: Float[Tensor, "trace kv_head key channel"]) -> None:
        """Value vectors play no part."""

    def stacked(self) -> np.ndarray:
        """``[layer, head, row, …]`` of all layers in order."""
        layers = [torch.cat(self.kept[layer], dim=1).numpy() for layer in sorted(self.kept)]
        n_rows = self.wanted.stop - self.wanted.start
        assert all(layer.shape[1] == n_rows for layer in layers), "every row is seen once"
        return np.stack(layers)


def run_observed(
    model: Any, token_ids: Integer[np.ndarray, "token"], observer: AttentionObserver
) -> DeferredPass:
    """One teacher-forced pass over a sequence with its attention shown to ``observer``.

    Returns:
        The pass, whose logits can be asked for.
    """
    # found by a pass of its own, whose attention must not be observed
    body_below_head(model)
    with torch.inference_mode(), capturing(model, observer):
        return _forward(model, token_ids)


def _forward(model: Any, token_ids: Integer[np.ndarray, "token"]) -> DeferredPass:
    tokens = torch.from_numpy(token_ids.astype(np.int64))[None].to(next(model.parameters()).device)
    given = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    given["position_ids"] = torch.arange(tokens.shape[1], device=tokens.device)[None]
    return DeferredPass(model, body_below_head(model), **given, use_cache=False)


def measured_table(
    loaded: LoadedModel,
    role: str,
    trials: Sequence[Trial],
    found: Sequence[HeadScores],
    *,
    settings: Config,
    rejected: Sequence[tuple[str, str]] = (),
) -> HeadTable:
    """The table of scores of all heads of a model, one a trial."""
    shape = (len(trials), loaded.n_layers, loaded.n_heads)
    scores, chance = (np.array([each[part] for each in found]).reshape(shape) for part in (0, 1))
    return HeadTable(
        role,
        tuple(range(loaded.n_layers)),
        tuple(trials),
        scores,
        mean_of_present(chance),
        rejected=tuple(rejected),
        model=dict(loaded.identity),
        settings=settings.model_dump(mode="json"),
    )
