"""The rule ``judge``: a language model compares an answer with the gold answers, by a rubric."""

import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from string import Template
from typing import Any, ClassVar, Final

import torch

from graphhalu.core.config import validate
from graphhalu.core.errors import UsageError
from graphhalu.core.provenance import file_sha256
from graphhalu.datasets.prompts import CHAT_OPTIONS
from graphhalu.labels.match import unjudgeable
from graphhalu.labels.registry import LabelDecision, Labeller, correct, hallucinated, undecided
from graphhalu.models.cards import ModelSpec
from graphhalu.models.load import LoadedModel, left_padded, load_model
from graphhalu.traces.schema import TraceRecord

RUBRIC_FILE: Final = Path(__file__).with_name("judge_rubric.txt")
"""What the judge is told, with places for passage, question, references and answer."""

N_REFERENCES: Final = 12
"""Gold answers that the judge is shown, the first ones; some data sets list hundreds."""

_VERDICT = re.compile(
    r"[\W_]*(?:(?:final )?verdict[\W_]*)?(correct|wrong|incorrect|unsure)[\W_]*", re.IGNORECASE
)


class ModelJudge(Labeller):
    """Asks a model for a verdict and reads it; the answer itself is never looked at by a rule.

    The model is asked with its chat template where it has one, and decodes greedily. A reply
    that is not exactly a verdict is not valid, and neither is an empty answer, a refusal, or a
    prompt that is longer than the model's window. Another model, another rubric and another
    number format give other labels: all three stand in the settings.

    A judge is worth what its model is: measure its agreement with ``match`` or with answers read
    by hand before trusting it (``graphhalu show labels``).

    Args:
        model: Alias, hub id, folder or GGUF file of the judge.
        revision: Revision of a hub model.
        dtype: Number format; see :class:`graphhalu.models.cards.ModelSpec`.
        device: ``auto``, ``cpu``, ``cuda`` …
        max_new_tokens: Longest reply, in tokens.
        batch_size: Answers judged at a time.
    """

    name: ClassVar[str] = "judge"

    def __init__(
        self,
        model: str = "smollm2",
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        max_new_tokens: int = 16,
        batch_size: int = 8,
    ) -> None:
        values = {"name": model, "revision": revision, "dtype": dtype, "device": device}
        self.spec = validate(ModelSpec, values, source="the settings of labeller 'judge'")
        if min(max_new_tokens, batch_size) < 1:
            raise UsageError(
                f"max_new_tokens and batch_size must be at least 1, got {max_new_tokens} and {batch_size}"
            )
        self.max_new_tokens = int(max_new_tokens)
        self.batch_size = int(batch_size)

    def settings(self) -> dict[str, Any]:
        """The model, the rubric and the length of a reply.

        ``identity`` says which weights in which number format judged; before the model is
        loaded it is ``None``.
        """
        loaded = self.__dict__.get("_loaded")
        return {
            "model": self.spec.name,
            **{name: getattr(self.spec, name) for name in ("revision", "dtype")},
            "identity": None if loaded is None else loaded.identity,
            "rubric_sha256": file_sha256(RUBRIC_FILE),
            "n_references": N_REFERENCES,
            "max_new_tokens": self.max_new_tokens,
            "version": 1,
        }

    def label(self, record: TraceRecord) -> LabelDecision:
        """Decide one answer; many at a time are decided faster."""
        return self.label_all([record])[0]

    def label_all(self, records: Sequence[TraceRecord]) -> list[LabelDecision]:
        """Decide many answers, a batch at a time; the model is loaded when it is first needed."""
        decisions, prompts = [], {}
        for place, record in enumerate(records):
            fault = unjudgeable(record, is_empty=not any(map(str.isalnum, record.answer)))
            decisions.append(undecided(fault or "too long for the judge"))
            if fault is None:
                prompts[place] = self._token_ids(judge_prompt(record))
        limit = (self._loaded.max_positions or math.inf) - self.max_new_tokens if prompts else 0
        fitting = [place for place, tokens in prompts.items() if len(tokens) <= limit]
        for start in range(0, len(fitting), self.batch_size):
            batch = fitting[start : start + self.batch_size]
            replies = self._replies([prompts[place] for place in batch])
            for place, reply in zip(batch, replies, strict=True):
                decisions[place] = parse_verdict(reply)
        return decisions

    @cached_property
    def _loaded(self) -> LoadedModel:
        return load_model(self.spec)

    def _token_ids(self, prompt: str) -> list[int]:
        tokenizer = self._loaded.tokenizer
        if not tokenizer.chat_template:
            return list(tokenizer(f"{prompt}\nVerdict:").input_ids)
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, **CHAT_OPTIONS
        )
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    @torch.inference_mode()
    def _replies(self, prompts: Sequence[Sequence[int]]) -> list[str]:
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        token_ids, is_token = left_padded(prompts, next(model.parameters()).device)
        output = model.generate(
            input_ids=token_ids,
            attention_mask=is_token.long(),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
            eos_token_id=list(self._loaded.eos_token_ids),
            pad_token_id=self._loaded.eos_token_ids[0],
        )
        replies = output[:, token_ids.shape[1] :].tolist()
        return [tokenizer.decode(reply, skip_special_tokens=True) for reply in replies]


def judge_prompt(record: TraceRecord) -> str:
    """The rubric filled with the question, the gold answers and the answer, each on one line."""
    passage = f"\nPassage: {_line(record.context)}" if record.context else ""
    return Template(RUBRIC_FILE.read_text(encoding="utf-8")).substitute(
        passage=passage,
        question=_line(record.question),
        references="; ".join(_line(text) for text in record.answers[:N_REFERENCES]),
        answer=_line(record.answer),
    )


def parse_verdict(reply: str) -> LabelDecision:
    """The verdict that the first line of a reply is; anything else is not valid, never false."""
    lines = reply.strip().splitlines()
    found = _VERDICT.fullmatch(lines[0]) if lines else None
    if found is None:
        return undecided("unreadable verdict")
    verdict = found[1].lower()
    if verdict == "unsure":
        return undecided("judge is unsure")
    return correct("judged correct") if verdict == "correct" else hallucinated("judged wrong")


def _line(text: str) -> str:
    """Text on one line: an answer cannot pretend to be another part of the rubric."""
    return " ".join(text.split())
