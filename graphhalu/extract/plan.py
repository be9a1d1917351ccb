"""What a run does in which order: waves of questions, the same for every process that shares it.

A wave is what one process does without a stop: its questions are answered together and committed
part by part. Waves are cut by their place in the list of questions and by nothing else, so that
one process, many of them, and one that was killed and goes on all make the same parts.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from graphhalu.datasets.question import Question
from graphhalu.errors import UsageError
from graphhalu.extract.settings import ExtractConfig
from graphhalu.traces.storage import MAIN


@dataclass(frozen=True)
class Shard:
    """One of several equal shares of a plan.

    Attributes:
        number: Which one, from 1.
        count: How many there are.
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """A share written as ``3/10``.

        Raises:
            UsageError: If it is none.
        """
        match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            message = f"a shard is written as i/N with i from 1 to N, as 3/10; got {text!r}"
            raise UsageError(message)
        return cls(int(match[1]), int(match[2]))

    @property
    def writer(self) -> str:
        """Name under which its process writes to the store."""
        return f"shard-{self.number}-of-{self.count}"


@dataclass(frozen=True)
class Wave:
    """Questions that are answered together.

    Attributes:
        first: Place of its first question among all questions of the run.
        questions: Its questions, done or not.
    """

    first: int
    questions: tuple[Question, ...]

    @property
    def question_ids(self) -> tuple[str, ...]:
        """Its questions by name."""
        return tuple(question.question_id for question in self.questions)


@dataclass(frozen=True)
class Plan:
    """The waves of a run, or of a shard of it.

    Attributes:
        waves: In the order of the questions.
        writer: Name under which the run writes to the store.
    """

    waves: tuple[Wave, ...]
    writer: str = MAIN

    @property
    def questions(self) -> list[Question]:
        """All questions of all waves."""
        return [question for wave in self.waves for question in wave.questions]

    def left(self, done: Collection[str]) -> list[Wave]:
        """Waves with a question that is not done; they stay whole.

        The answers of a wave are searched for together, and with other questions beside it an
        answer's numbers round differently. So questions that are done are answered again with
        the rest of their wave; what is committed of them is not made again.
        """
        return [wave for wave in self.waves if not set(done).issuperset(wave.question_ids)]


def make_plan(
    questions: Sequence[Question], config: ExtractConfig, shard: Shard | None = None
) -> Plan:
    """Cut the questions of a run into waves.

    Args:
        questions: All of them, in the order of the run.
        config: Batches and parts; a wave fills both.
        shard: Which waves are taken: every N-th, from the i-th on. By default all.
    """
    size = max(config.batch_size, config.part_size)
    waves = [
        Wave(first, tuple(questions[first : first + size]))
        for first in range(0, len(questions), size)
    ]
    if shard is None:
        return Plan(tuple(waves))
    return Plan(tuple(waves[shard.number - 1 :: shard.count]), shard.writer)
