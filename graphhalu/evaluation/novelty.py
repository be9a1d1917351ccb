"""Novelty of an answer: whether it looks like those that a detector was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
from jaxtyping import Float
from scipy.spatial.distance import cdist

from graphhalu.core.axes import SPAN_NAMES
from graphhalu.core.config import Config, validate
from graphhalu.core.errors import NotEnoughDataError, TraceNotFoundError
from graphhalu.core.files import read_json_object, replace_file
from graphhalu.core.splits import Split
from graphhalu.detectors.base import ChosenTraces
from graphhalu.labels.labels import Labels
from graphhalu.traces.trace import Trace

Kind = Literal["generated", "given"]

NOVELTY_FILE: Final = "novelty.json"
"""Beside a saved detector."""
FALSE_ALARMS: Final = 0.02
"""Share of answers like those of the training that are called unlike them."""
LEAST: Final = 30
"""Answers below which nothing is said."""
MOST: Final = 1_000
"""Answers that are looked at, of either side."""

NUMBERS: Final = (
    *("logprob_mean", "logprob_min", "entropy_mean", "margin_mean", "log_answer_length", "log_prompt_length"),
    *(f"attention_to_{name}" for name in SPAN_NAMES),
    *("own_attention", "sink_attention", "row_entropy"),
)
"""What is compared: likelihood, lengths, and means of attention over layers, heads and answer tokens."""
NOVELTY_READS: Final = (
    *("token_logprob", "token_entropy", "top1_margin"),
    *("span_mass", "self_attention", "sink_keys", "row_entropy"),
)
"""Arrays of a trace that the numbers are made of."""


def numbers_of(trace: Trace) -> Float[np.ndarray, "number"]:
    """The numbers of one answer, in the order of :data:`NUMBERS`."""
    answer, rows = slice(trace.prompt_length, None), trace.answer_rows
    logprob, entropy, margin = (trace.stream(name)[answer] for name in NOVELTY_READS[:3])
    mass = trace.stream("span_mass")[:, :, rows].mean(axis=(0, 1, 2))
    heads = [trace.stream(name)[:, :, rows] for name in ("self_attention", "sink_keys", "row_entropy")]
    own, sink, spread = heads[0].mean(), heads[1].sum(-1).mean(), heads[2].mean()
    lengths = np.log([trace.answer_length, trace.prompt_length])
    likelihood = [logprob.mean(), logprob.min(), entropy.mean(), margin.mean()]
    return np.array([*likelihood, *lengths, *mass, own, sink, spread], dtype=np.float64)


class Novelty(Config):
    """Distance of an answer from the training answers, and from which distance on it is unlike them."""

    centre: tuple[float, ...]
    """Mean of each number over the training answers."""
    precision: tuple[tuple[float, ...], ...]
    """Inverse of their covariance."""
    limit: float
    """Distance above which an answer is called unlike the training answers."""
    false_alarm_rate: float
    """Share of answers from the training sets, none of which the distance was fitted on, above the limit."""
    n_answers: int
    """Answers that it was fitted on."""
    answers: tuple[Kind, ...]
    """Whether the model wrote the training answers, or they were given to it."""

    @classmethod
    def fit(cls, train: Sequence[Trace], held_out: Sequence[Trace]) -> "Novelty":
        """Fit on training answers, and choose the limit on others.

        Args:
            train: Answers that the detector was trained on.
            held_out: Answers of the same sets to which the distance was not fitted.

        Raises:
            NotEnoughDataError: If there are too few of either.

        Source:
            Mahalanobis distance (Lee et al. 2018, arXiv:1807.03888) of a few numbers and not of hidden
            states, with the covariance of Ledoit and Wolf 2004. The limit is a quantile of held-out answers.
        """
        if min(len(train), len(held_out)) < LEAST:
            raise NotEnoughDataError(
                f"novelty needs {LEAST} answers to fit on, and as many to choose its limit"
            )
        from sklearn.covariance import LedoitWolf

        values = np.array([numbers_of(trace) for trace in train])
        others = np.array([numbers_of(trace) for trace in held_out])
        values, others = (each[np.isfinite(each).all(axis=1)] for each in (values, others))
        scale = _scale(values)
        fitted = LedoitWolf().fit(values / scale)
        precision = fitted.precision_ / np.outer(scale, scale)
        distance = cdist(others, values.mean(axis=0)[None], "mahalanobis", VI=precision)[:, 0]
        limit = float(np.quantile(distance, 1 - FALSE_ALARMS))
        kinds = {_kind(trace) for trace in train}
        return cls(
            centre=tuple(values.mean(axis=0).tolist()),
            precision=tuple(map(tuple, precision.tolist())),
            limit=limit,
            false_alarm_rate=float((distance > limit).mean()),
            n_answers=len(values),
            answers=tuple(sorted(kinds)),
        )

    def distance(self, trace: Trace) -> float:
        """How far an answer is from the training answers, in standard deviations; NaN if that is unknown."""
        found = cdist(numbers_of(trace)[None], [self.centre], "mahalanobis", VI=np.array(self.precision))
        return float(found[0, 0])

    def warnings(self, trace: Trace) -> tuple[str, ...]:
        """What speaks against trusting the score of an answer, each in one sentence."""
        found, distance = [], self.distance(trace)
        if distance > self.limit:
            found.append(
                f"the answer is unlike the training answers (distance {distance:.1f}, limit "
                f"{self.limit:.1f}, which {self.false_alarm_rate:.0%} of answers like them exceed)"
            )
        kind = _kind(trace)
        if kind not in self.answers:
            other = "written by the model itself" if kind == "given" else "given to the model"
            found.append(
                f"the detector was trained on answers {other} and this one is not: its score may be off"
            )
        return tuple(found)


def _kind(trace: Trace) -> Kind:
    return "generated" if trace.record.is_on_policy else "given"


def training_novelty(traces: Sequence[Trace], labels: Labels, split: Split) -> Novelty | None:
    """Of the labelled answers of a split; ``None`` where there are too few, or traces lack the numbers."""
    generator = np.random.default_rng(0)
    sides = []
    for side in (split.train, split.validation):
        known = side[labels.is_valid[side]]
        chosen = np.sort(generator.choice(known, MOST, replace=False)) if len(known) > MOST else known
        sides.append(ChosenTraces(traces, tuple(chosen.tolist())))
    try:
        return Novelty.fit(*sides)
    except (NotEnoughDataError, TraceNotFoundError):
        return None


def write_novelty(folder: Path, novelty: Novelty) -> None:
    """Write it beside a saved detector."""
    replace_file(folder / NOVELTY_FILE, novelty.model_dump_json().encode())


def read_novelty(folder: Path) -> Novelty | None:
    """What lies beside a saved detector, or ``None`` if there is nothing.

    Raises:
        DataFileError: If the file cannot be read.
        ConfigError: If a field is missing, unknown or of another type.
    """
    path = folder / NOVELTY_FILE
    if not path.exists():
        return None
    return validate(
        Novelty, read_json_object(path, way_out="Train the detector again"), source="a saved novelty"
    )


def _scale(values: Float[np.ndarray, "answer number"]) -> Float[np.ndarray, "number"]:
    """Standard deviations; 1 for a number that is the same in every answer."""
    found = values.std(axis=0)
    return np.where(found > 1e-9 * (1 + np.abs(values).max(axis=0)), found, 1.0)
