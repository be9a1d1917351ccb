"""Questions to the model about its own answers: whether one is true, and whether a sample supports it."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import torch

from graphhalu.datasets.prompts import build_prompt, encode_prompt, spellings
from graphhalu.datasets.question import Question
from graphhalu.extract.beams import Answer
from graphhalu.extract.forward import DeferredPass, body_below_head, option_logprobs
from graphhalu.extract.prompts import Prompt
from graphhalu.models.load import LoadedModel, left_padded, token_positions

IS_TRUE: Final = (
    "Question: {question}\n{ideas}Possible answer: {answer}\n"
    "Is the possible answer:\n(A) True\n(B) False\nThe possible answer is: ("
)
IDEAS: Final = "Here are some brainstormed ideas:\n{ideas}\n"
IS_SUPPORTED: Final = (
    "Context: {sample}\n\nSentence: {answer}\n\n"
    "Is the sentence supported by the context above? Answer Yes or No.\n\nAnswer:"
)


class SelfQuestions:
    """Asks a model about its answers, many questions in one pass.

    Args:
        loaded: The model.
        chat: Whether its chat template goes around each question.
        batch_size: Questions of a pass.

    Raises:
        ModelRefusedError: If its tokenizer has no single token for one of the words to choose from.
    """

    def __init__(self, loaded: LoadedModel, *, chat: bool, batch_size: int) -> None:
        self.loaded, self.chat, self.batch_size = loaded, chat, batch_size
        self.options = {
            IS_TRUE: tuple(spellings(loaded.tokenizer, word) for word in ("A", "B")),
            IS_SUPPORTED: tuple(spellings(loaded.tokenizer, word) for word in ("Yes", "No")),
        }

    def asked(self, prompt: Prompt) -> Prompt:
        """The prompt, with what the model says of each answer that is no sample in ``Answer.asked``.

        ``p_true`` is the probability of A against B, ``supported`` that of Yes against No for each sample.

        Source:
            P(True) with brainstormed ideas: Kadavath et al. 2022, arXiv:2207.05221. SelfCheckGPT with a
            prompt: Manakul et al. 2023, arXiv:2303.08896, whose sentences are whole answers here.
        """
        samples = [each.text for each in prompt.answers if each.is_sample]
        own = [place for place, each in enumerate(prompt.answers) if not each.is_sample]
        texts: list[tuple[str, str]] = []
        ideas = IDEAS.format(ideas="\n".join(samples)) if samples else ""
        for place in own:
            answer = prompt.answers[place].text
            texts.append((IS_TRUE, IS_TRUE.format(question=prompt.question.text, ideas=ideas, answer=answer)))
            texts += [(IS_SUPPORTED, IS_SUPPORTED.format(sample=each, answer=answer)) for each in samples]
        shares = list(self._shares(texts))
        answers: list[Answer] = list(prompt.answers)
        for number, place in enumerate(own):
            p_true, *supported = shares[number * (1 + len(samples)) : (number + 1) * (1 + len(samples))]
            found = {"p_true": p_true, **({"supported": supported} if samples else {})}
            answers[place] = replace(answers[place], asked=found)
        return replace(prompt, answers=tuple(answers))

    def _shares(self, texts: Sequence[tuple[str, str]]) -> Iterator[float]:
        """Probability of the first of the two words, of both together."""
        tokenizer = self.loaded.tokenizer
        for first in range(0, len(texts), self.batch_size):
            batch = texts[first : first + self.batch_size]
            rendered = [
                build_prompt(
                    Question("q", text, ()), template="published", chat=self.chat, tokenizer=tokenizer
                )
                for _, text in batch
            ]
            token_ids = [encode_prompt(each, tokenizer).token_ids.tolist() for each in rendered]
            for (kind, _), logits in zip(batch, self._last_logits(token_ids), strict=True):
                yes, no = option_logprobs(logits, self.options[kind])
                yield 1 / (1 + float(torch.tensor(no - yes).double().exp()))

    @torch.inference_mode()
    def _last_logits(self, token_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        model: Any = self.loaded.model
        ids, is_token = left_padded(token_ids, next(model.parameters()).device)
        positions = token_positions(is_token)
        inputs = {"input_ids": ids, "attention_mask": is_token.long(), "position_ids": positions}
        done = DeferredPass(model, body_below_head(model), **inputs, use_cache=False)
        return done.logits(ids.shape[1] - 1, ids.shape[1])[:, 0]
