"""From a question to what the model is shown, and what is expected to come of it."""

from dataclasses import dataclass
from typing import Any

from graphhalu.datasets.prompts import EncodedPrompt, Prompt, build_prompt, encode_prompt
from graphhalu.datasets.question import Question
from graphhalu.datasets.registry import DATASETS
from graphhalu.datasets.templates import DEFAULT_TEMPLATE, letter_spellings
from graphhalu.errors import GraphhaluError, UsageError
from graphhalu.extract.answers import Answer, given_answer
from graphhalu.extract.settings import ExtractConfig, PromptSettings
from graphhalu.models.load import LoadedModel


@dataclass(frozen=True)
class AskedPrompt:
    """A question as the model is shown it.

    Attributes:
        rendered: Its text with spans.
        encoded: Its tokens with spans.
        option_ids: For each option of a multiple choice, the tokens that stand for its letter.
    """

    rendered: Prompt
    encoded: EncodedPrompt
    option_ids: tuple[tuple[int, ...], ...]

    @property
    def length(self) -> int:
        """Tokens of the prompt."""
        return len(self.encoded.token_ids)


@dataclass(frozen=True)
class Asked:
    """A question with its prompt, or with the reason why it has none.

    Attributes:
        question: The question.
        prompt: What the model is shown, or ``None``.
        given: Answers of the data set to replay; empty if the model answers itself.
        failures: Why the question, or some of its given answers, cannot be done.
    """

    question: Question
    prompt: AskedPrompt | None
    given: tuple[tuple[int, Answer], ...] = ()
    failures: tuple[str, ...] = ()


class Asker:
    """Turns questions into prompts for one model.

    Args:
        config: What to do.
        loaded: The model.
    """

    def __init__(self, config: ExtractConfig, loaded: LoadedModel) -> None:
        self.config = config
        self.loaded = loaded
        self.is_chat = uses_chat(config.prompt, loaded)
        self.template = prompt_template_name(config)

    def ask(self, question: Question) -> Asked:
        """The prompt of a question, or why it cannot be asked.

        Raises:
            UsageError: If the settings do not fit the data set or the model.
        """
        try:
            prompt = self._prompt(question)
        except UsageError:
            raise
        except GraphhaluError as error:
            return Asked(question, None, failures=(str(error),))
        if self.config.generation.answers == "given":
            return self._with_given(question, prompt)
        reason = self._too_long(prompt.length + self.config.generation.max_new_tokens)
        if reason is not None:
            return Asked(question, None, failures=(reason,))
        return Asked(question, prompt)

    def trace_lengths(self, asked: Asked) -> list[int]:
        """Longest possible length of each trace of a question, in tokens."""
        if asked.prompt is None:
            return []
        if asked.given:
            return [asked.prompt.length + len(answer.token_ids) for _, answer in asked.given]
        generation = self.config.generation
        return [asked.prompt.length + generation.max_new_tokens] * generation.keep_beams

    def row_start(self, asked: Asked) -> int:
        """First query row that is kept of a question's traces."""
        keeps_all = self.config.capture.rows == "all" or asked.prompt is None
        return 0 if keeps_all or asked.prompt is None else asked.prompt.length - 1

    def _prompt(self, question: Question) -> AskedPrompt:
        settings, tokenizer = self.config.prompt, self.loaded.tokenizer
        rendered = build_prompt(
            question, template=self.template, chat=self.is_chat,
            tokenizer=tokenizer, system=settings.system or question.system,
        )  # fmt: skip
        encoded = encode_prompt(rendered, tokenizer)
        n_choices = len(question.choices)
        option_ids = letter_spellings(tokenizer, n_choices) if n_choices else ()
        return AskedPrompt(rendered, encoded, option_ids)

    def _with_given(self, question: Question, prompt: AskedPrompt) -> Asked:
        if not question.given:
            message = (
                f"question {question.question_id!r} of {self.config.dataset.name} states no answer "
                f"to replay\n  Leave --answers given out: the model then answers itself"
            )
            raise UsageError(message)
        found: list[tuple[int, Answer]] = []
        failures: list[str] = []
        for place, stated in enumerate(question.given):
            try:
                answer = given_answer(
                    stated.text, prompt.rendered, prompt.encoded, self.loaded.tokenizer
                )
            except GraphhaluError as error:
                failures.append(str(error))
                continue
            reason = self._too_long(prompt.length + len(answer.token_ids))
            if reason is None:
                found.append((place, answer))
            else:
                failures.append(reason)
        return Asked(question, prompt if found else None, tuple(found), tuple(failures))

    def _too_long(self, length: int) -> str | None:
        limit = self.loaded.max_positions
        if limit is None or length <= limit:
            return None
        return f"prompt and answer need up to {length} tokens, the model's context has {limit}"


def newline_token_ids(tokenizer: Any) -> tuple[int, ...]:
    """Tokens whose text holds a newline."""
    suspects = [
        index
        for token, index in tokenizer.get_vocab().items()
        if "\n" in token or "Ċ" in token or token == "<0x0A>"  # noqa: S105
    ]
    return tuple(sorted(index for index in suspects if "\n" in tokenizer.decode([index])))


def prompt_template_name(config: ExtractConfig) -> str:
    """The prompt template that is asked for, or the one that suits the data set."""
    if config.prompt.template != "auto":
        return config.prompt.template
    name = config.dataset.name
    return DATASETS.get(name).card.template if name in DATASETS else DEFAULT_TEMPLATE


def uses_chat(settings: PromptSettings, loaded: LoadedModel) -> bool:
    """Whether the model's chat template goes around the prompt.

    Raises:
        UsageError: If it is asked for and there is none.
    """
    has_template = getattr(loaded.tokenizer, "chat_template", None) is not None
    if settings.chat == "on" and not has_template:
        message = (
            "the model has no chat template, and --chat on asks for one\n"
            "  Use --chat off, or a chat version of the model"
        )
        raise UsageError(message)
    return settings.chat == "on" or (settings.chat == "auto" and has_template)
