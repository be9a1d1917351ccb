"""Promises of a detector, and the data on which they are tried."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from graphhalu.core.errors import ConfigError, NotEnoughDataError, UsageError
from graphhalu.core.splits import Split, grouped_split
from graphhalu.detectors.base import ChosenTraces, Detector, DetectorCard, Input, checked_scores
from graphhalu.detectors.saved import load_detector, save_detector
from graphhalu.evaluation.settings import DetectorSpec
from graphhalu.labels.labels import Labels, question_groups
from graphhalu.labels.planted import planted_token_traces, planted_traces
from graphhalu.labels.stated import label_tokens
from graphhalu.testing.contracts.inputs import require, require_known
from graphhalu.traces.schema import ARRAYS
from graphhalu.traces.trace import Trace

FILE_ENDINGS: Final = (".json", ".safetensors", ".parquet")
"""What a saved detector may consist of: nothing that runs when it is read."""
_SHARES: Final = (0.5, 0.2, 0.3)
_EACH: Final = 5
"""One in so many labels of the training and validation side is made invalid."""


@dataclass(frozen=True)
class PlantedData:
    """Traces with a known answer, on three sides.

    Attributes:
        traces: All of them.
        labels: Theirs, in the same order.
        split: Sides without a shared question.
    """

    traces: Sequence[Trace]
    labels: Labels
    split: Split

    @property
    def test_traces(self) -> ChosenTraces:
        """Traces of the test side."""
        return ChosenTraces(self.traces, tuple(self.split.test.tolist()))

    @property
    def test_labels(self) -> Int[np.ndarray, "test"]:
        """Labels of the answers of the test side."""
        return self.labels.values[self.split.test]


def planted_data(
    n_traces: int = 97, *, shares: tuple[float, float, float] = _SHARES, **settings: Any
) -> PlantedData:
    """Planted traces, split by question.

    Args:
        n_traces: How many.
        shares: Of training, validation and test side.
        settings: Other arguments of :func:`graphhalu.labels.planted.planted_traces`.
    """
    traces, labels = planted_traces(n_traces, **settings)
    groups = np.array([trace.record.group_id for trace in traces])
    return PlantedData(traces, labels, grouped_split(labels.values, groups, fractions=shares, seed=1))


def planted_token_data(n_traces: int = 61, **settings: Any) -> PlantedData:
    """Planted answers with labels of their tokens, split by question.

    Args:
        n_traces: How many.
        settings: Other arguments of :func:`graphhalu.labels.planted.planted_token_traces`.
    """
    traces = planted_token_traces(n_traces, **settings)
    labels = label_tokens([trace.record for trace in traces])
    groups = question_groups(traces)
    return PlantedData(traces, labels, grouped_split(labels.values, groups, fractions=_SHARES, seed=1))


PLANTED: Final = {"answer": planted_data, "token": planted_token_data}
"""Data that a detector is tried on, by the level of its card."""


class DetectorCase:
    """A detector class with the data that it is tried on; fits are shared by the checks.

    Args:
        detector_class: The class under test.
        data: Traces that it can be fitted on; by default planted ones of the level of its card.
        settings: What differs from its defaults, as fewer epochs.
    """

    def __init__(
        self, detector_class: type[Detector], *, data: PlantedData | None = None, **settings: Any
    ) -> None:
        self.detector_class = detector_class
        self.settings = settings
        given = data or PLANTED[detector_class.card.level]()
        self.data = replace(given, labels=_some_invalid(given))

    def make(self) -> Detector:
        """A fresh detector, always with the same seed."""
        name = self.detector_class.card.name
        return DetectorSpec(name, self.settings, factory=self.detector_class).make(0)

    def fit(self, detector: Detector, **changed: Any) -> Detector:
        """Fit a detector on the data, or on changed ``traces``, ``labels`` or ``split``."""
        data = replace(self.data, **changed)
        fitted = detector.fit(data.traces, data.labels, data.split)
        require(isinstance(fitted, Detector), f"fit must return the detector, got {fitted!r}")
        return fitted

    def scores(self, detector: Detector, traces: Sequence[Trace] | None = None) -> Float[np.ndarray, "item"]:
        """Checked scores of the test side or of other traces; NaN where not valid."""
        scored = self.data.test_traces if traces is None else traces
        return checked_scores(detector, detector.score(scored), scored).values

    @cached_property
    def fitted(self) -> Detector:
        """A detector that was fitted once."""
        return self.fit(self.make())

    @cached_property
    def expected(self) -> Float[np.ndarray, "item"]:
        """What it gives for the test side."""
        return self.scores(self.fitted)

    @property
    def rounding(self) -> float:
        """How much the traces beside it may change a score: networks sum a batch in any order."""
        card = self.detector_class.card
        return 1e-5 if card.is_graph or hasattr(self.detector_class, "network_class") else 0.0

    def n_items(self, n_traces: int) -> int:
        """Scores of the first traces of the test side."""
        if self.detector_class.card.level == "answer":
            return n_traces
        return sum(trace.answer_length for trace in self.data.test_traces[:n_traces])


def check_detector(
    detector_class: type[Detector], *, data: PlantedData | None = None, **settings: Any
) -> None:
    """Run every check of a detector; see :class:`DetectorCase` for the arguments.

    Raises:
        AssertionError: Says which promise is broken.
    """
    case = DetectorCase(detector_class, data=data, **settings)
    for check in DETECTOR_CHECKS:
        check(case)


def card_is_complete(case: DetectorCase) -> None:
    """The card says what a user must know."""
    card = case.detector_class.card
    require(isinstance(card, DetectorCard), f"expected a DetectorCard, got {card!r}")
    for name in ("name", "summary", "source"):
        text = getattr(card, name)
        require(isinstance(text, str) and bool(text.strip()), f"the card lacks {name}")
    require(bool(card.inputs), "the card lacks inputs")
    require_known("inputs", card.inputs, get_args(Input))
    require_known("reads", card.reads, ARRAYS)
    require(
        bool(card.reads) or set(card.inputs) <= {"text", "length"},
        "the card must name the arrays that it reads, unless it reads text or length alone",
    )


def every_trace_gets_a_score(case: DetectorCase) -> None:
    """Each trace of the test side has a valid score."""
    n_missing = int(np.isnan(case.expected).sum())
    what = "traces" if case.detector_class.card.level == "answer" else "tokens"
    require(not n_missing, f"{n_missing} of {len(case.expected)} planted {what} got no score")


def no_traces_give_no_scores(case: DetectorCase) -> None:
    """An empty list of traces is not an error."""
    require(case.scores(case.fitted, []).shape == (0,), "expected no scores of no traces")


def scores_do_not_depend_on_other_traces(case: DetectorCase) -> None:
    """A trace has the same score alone, among others, and in any order."""
    traces = case.data.test_traces[:7]
    expected = case.expected[: case.n_items(len(traces))]
    alone = [case.scores(case.fitted, traces[place : place + 1]) for place in range(len(traces))]
    backwards = case.fitted.score(traces[::-1]).by_trace()[::-1]
    for found, what in ((alone, "alone and together"), (backwards, "in another order")):
        require_same(np.concatenate(found), expected, f"of traces {what}", case.rounding)


def hidden_labels_play_no_part(case: DetectorCase) -> None:
    """Labels of the test side and labels that are not valid change no score."""
    what = "after labels of the test side, or labels that are not valid, were changed"
    require_same(case.scores(case.fit(case.make(), labels=_turned(case.data))), case.expected, what)


def fitting_starts_anew(case: DetectorCase) -> None:
    """A second fit forgets the first one, and the seed decides all that is random."""
    again = case.fit(case.fit(case.make(), labels=_turned(case.data)))
    require_same(case.scores(again), case.expected, "of a detector that was fitted twice")


def a_saved_detector_gives_equal_scores(case: DetectorCase) -> None:
    """What was saved and read again gives the same scores bit for bit, from safe files."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_detector(case.fitted, folder)
        loaded = load_detector(folder, detector_class=case.detector_class)
        files = sorted(path.name for path in folder.rglob("*") if path.is_file())
        require(type(loaded) is case.detector_class, f"load gave a {type(loaded).__name__}")
        require_same(case.scores(loaded), case.expected, "after save and load")
    others = [file for file in files if not file.endswith(FILE_ENDINGS)]
    require(not others, f"expected files {', '.join(FILE_ENDINGS)} alone, got {others}")


def a_trace_that_cannot_be_read_has_no_score(case: DetectorCase) -> None:
    """A trace without arrays and text has no valid score, and takes none from the others."""
    card = case.detector_class.card
    if set(card.inputs) <= ({"length", "text"} if card.level == "token" else {"length"}):
        return  # every trace has a length, and the tokens of its answer
    first, *_, last = case.data.split.test.tolist()
    traces = list(case.data.traces)
    traces[last] = bare(traces[last])
    scores = case.scores(case.fitted, ChosenTraces(traces, (first, last)))
    n_first = case.n_items(1)
    told = f"a trace without arrays got the score {scores[-1]}"
    require(bool(np.isnan(scores[n_first:]).all()), told)
    what = "beside a trace without arrays"
    require_same(scores[:n_first], case.expected[:n_first], what, case.rounding)


def a_training_trace_that_cannot_be_read_is_left_out(case: DetectorCase) -> None:
    """One such trace among those of the training side stops nothing."""
    traces, first = list(case.data.traces), case.data.split.train[0]
    traces[first] = bare(traces[first])
    scores = case.scores(case.fit(case.make(), traces=traces))
    require(bool(np.isfinite(scores).all()), "a training trace without arrays took scores away")


def one_class_is_refused(case: DetectorCase) -> None:
    """A supervised detector cannot learn from one class."""
    labels = case.data.labels
    tokens = labels.tokens and tuple(np.ones_like(each) for each in labels.tokens)
    ones = replace(labels, values=np.ones_like(labels.values), tokens=tokens)
    if case.detector_class.card.is_supervised:
        require_raises(
            NotEnoughDataError, "a training side of one class", lambda: case.fit(case.make(), labels=ones)
        )


def a_detector_that_is_not_fitted_says_so(case: DetectorCase) -> None:
    """A supervised detector neither scores nor saves before it is fitted."""
    if not case.detector_class.card.is_supervised:
        return
    with tempfile.TemporaryDirectory() as folder:
        require_raises(UsageError, "score before fit", lambda: case.make().score(case.data.test_traces))
        require_raises(UsageError, "save before fit", lambda: case.make().save(Path(folder)))


def settings_refuse_unknown_fields(case: DetectorCase) -> None:
    """Settings accept a seed, and refuse a field that there is not."""
    settings: Any = getattr(case.detector_class, "settings", None)
    if settings is None:
        return  # such a detector takes no settings
    case.detector_class(**settings(seed=3))
    require_raises(ConfigError, "an unknown setting", lambda: settings(no_such_setting=16))


DETECTOR_CHECKS: Final[tuple[Callable[[DetectorCase], None], ...]] = (
    card_is_complete,
    settings_refuse_unknown_fields,
    a_detector_that_is_not_fitted_says_so,
    every_trace_gets_a_score,
    no_traces_give_no_scores,
    scores_do_not_depend_on_other_traces,
    a_saved_detector_gives_equal_scores,
    hidden_labels_play_no_part,
    fitting_starts_anew,
    a_trace_that_cannot_be_read_has_no_score,
    a_training_trace_that_cannot_be_read_is_left_out,
    one_class_is_refused,
)
"""Every promise of a detector, the cheap ones first."""


def require_same(
    got: Float[np.ndarray, "item"], expected: Float[np.ndarray, "item"], what: str, rounding: float = 0.0
) -> None:
    """Refuse scores that differ in a single bit, or by more than rounding; both may be NaN."""
    np.testing.assert_allclose(
        got, expected, rtol=rounding, atol=rounding, err_msg=f"{len(expected)} scores {what}"
    )


def require_raises(kind: type[Exception], what: str, call: Callable[[], object]) -> None:
    """Refuse a call that raises something else, or nothing."""
    try:
        call()
    except kind:
        return
    except Exception as error:
        raise AssertionError(
            f"{what} must raise {kind.__name__}, got {type(error).__name__}: {error}"
        ) from error
    raise AssertionError(f"{what} must raise {kind.__name__}, and nothing was raised")


def bare(trace: Trace) -> Trace:
    """A trace with neither arrays nor text: nothing that a score could rest on but the lengths."""
    kept = {name: trace.arrays[name] for name in ("token_ids", "span_code")}
    return Trace(replace(trace.record, answer=""), trace.shape, kept)


def _some_invalid(data: PlantedData) -> Labels:
    """Labels of which some on the training and validation side are not valid."""
    is_valid = data.labels.is_valid.copy()
    for side in (data.split.train, data.split.validation):
        is_valid[side[::_EACH]] = False
    return replace(data.labels, is_valid=is_valid, tokens=_changed(data.labels, ~is_valid, np.zeros_like))


def _turned(data: PlantedData) -> Labels:
    """Labels that are turned round where no detector must look at them."""
    is_hidden: Bool[np.ndarray, "trace"] = ~data.labels.is_valid
    is_hidden[data.split.test] = True
    values = np.where(is_hidden, 1 - data.labels.values, data.labels.values)
    return replace(data.labels, values=values, tokens=_changed(data.labels, is_hidden, lambda each: 1 - each))


def _changed(labels: Labels, is_chosen: Bool[np.ndarray, "trace"], change: Callable[[Any], Any]) -> Any:
    """Labels of tokens, changed in some traces; none stay none."""
    return labels.tokens and tuple(
        change(each) if chosen else each
        for each, chosen in zip(labels.tokens, is_chosen.tolist(), strict=True)
    )
