"""The training side of a token detector: which answers, which of their tokens, in which folds."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import numpy as np
from jaxtyping import Int
from pydantic import Field

from graphhalu.core.errors import NotEnoughDataError
from graphhalu.detectors.probes.search import Fold, folds_of
from graphhalu.detectors.trained import TrainedConfig
from graphhalu.labels.groups import question_groups
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace


class TokenConfig(TrainedConfig):
    """Settings of a token detector that learns from a sample of tokens."""

    n_folds: Annotated[int, Field(ge=2)] = 3
    """Folds within the training side in which all choices are made."""
    max_tokens: Annotated[int, Field(ge=10)] = 12_000
    """Tokens that are learnt from at most, hallucinated ones up to half of them."""


class Sample(NamedTuple):
    """Some answer tokens of some traces.

    Attributes:
        traces: Indices of the traces.
        tokens: Places of the chosen tokens within the answer of each of them.
        labels: Labels of the chosen tokens, trace after trace.
    """

    traces: tuple[int, ...]
    tokens: tuple[Int[np.ndarray, "_"], ...]
    labels: Int[np.ndarray, "token"]

    def owner(self) -> Int[np.ndarray, "token"]:
        """Place of each token's trace in :attr:`traces`."""
        return np.repeat(np.arange(len(self.traces)), [len(each) for each in self.tokens])


def labelled_traces(labels: Labels, indices: Int[np.ndarray, "side"], name: str) -> list[int]:
    """The traces of a side whose tokens are labelled, in the order of the store.

    Args:
        labels: Labels of tokens.
        indices: The side.
        name: Of the detector, for errors.

    Raises:
        UsageError: If only answers are labelled.
        NotEnoughDataError: If the tokens are all of one class.
    """
    tokens = labels.token_labels(name)
    chosen: list[int] = np.sort(indices[labels.is_valid[indices]]).tolist()
    n_positive = sum(int(tokens[index].sum()) for index in chosen)
    n_tokens = sum(len(tokens[index]) for index in chosen)
    if n_positive in {0, n_tokens}:
        message = (
            f"{name} needs tokens of both classes on the training side, got {n_positive} "
            f"hallucinated among {n_tokens} of {len(chosen)} answers\n"
            f"  Extract more answers with marked spans"
        )
        raise NotEnoughDataError(message)
    return chosen


def sample_tokens(
    tokens: Sequence[Int[np.ndarray, "_"]], traces: Sequence[int], *, n_most: int, seed: int
) -> Sample:
    """At most so many tokens, drawn at random class by class.

    Hallucinated tokens are kept up to half of the number, since they are few.

    Args:
        tokens: Labels of the answer tokens of all traces.
        traces: Indices of those to draw from.
        n_most: How many tokens at most.
        seed: Seed of the draw.
    """
    values = np.concatenate([tokens[index] for index in traces])
    kept = np.ones(len(values), dtype=np.bool_)
    if len(values) > n_most:
        generator = np.random.default_rng(seed)
        of_class = [np.flatnonzero(values == label) for label in (0, 1)]
        n_positive = max(min(len(of_class[1]), n_most // 2), n_most - len(of_class[0]))
        kept[:] = False
        for members, n_drawn in zip(of_class, (n_most - n_positive, n_positive), strict=True):
            kept[generator.choice(members, min(n_drawn, len(members)), replace=False)] = True
    ends = np.cumsum([len(tokens[index]) for index in traces])[:-1]
    places = tuple(np.flatnonzero(part) for part in np.split(kept, ends))
    return Sample(tuple(traces), places, values[kept])


def training_sample(
    traces: Sequence[Trace], labels: Labels, indices: Int[np.ndarray, "side"], config: TokenConfig, name: str
) -> tuple[Sample, list[Fold]]:
    """Tokens of a side to learn from, and folds of their traces that part no context.

    There are no folds if there are too few contexts.

    Args:
        traces: All traces.
        labels: Labels of their tokens.
        indices: The side.
        config: How many tokens and folds, and the seed of both.
        name: Of the detector, for errors.

    Raises:
        UsageError: If only answers are labelled.
        NotEnoughDataError: If the tokens are all of one class.
    """
    chosen = labelled_traces(labels, indices, name)
    tokens, seed = labels.token_labels(name), config.seed
    sample = sample_tokens(tokens, chosen, n_most=config.max_tokens, seed=seed)
    groups = question_groups([traces[index] for index in chosen])
    folds = folds_of(labels.values[chosen], groups, n_folds=config.n_folds, seed=seed)
    return sample, folds
