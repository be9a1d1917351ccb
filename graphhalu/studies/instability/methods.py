"""Scores that are compared, and the decode windows that some of them choose from.

Instability in its forms, Attention Tracker and simpler baselines; each makes its choices on the
training side only.

Attention Tracker is a baseline: heads that attend to the system prompt under benign prompts and not
under attacks are important; a prompt that draws them away has a low focus score. The instruction is the
system prompt here, and the data the user's text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from pydantic import Field, TypeAdapter, ValidationError

from graphhalu.core.config import read_yaml
from graphhalu.core.errors import DataFileError, NotEnoughDataError, UsageError
from graphhalu.core.files import read_json
from graphhalu.core.splits import inner_folds
from graphhalu.evaluation.metrics import Mask
from graphhalu.evaluation.significance import column_tests
from graphhalu.features.instability import layer_slice
from graphhalu.heads.table import mean_of_present
from graphhalu.studies.instability.series import PromptSeries, padded_steps
from graphhalu.studies.instability.settings import MAIN, TRACKER, CalibrateSettings, Spread, Window

STARTS: Final = tuple(range(1, 21))
LENGTHS: Final = (3, 5, 8, 10, 15, 20, 30, 40, 50, 60)
"""The grid of the public study; its step 0, the last row of the prompt, is left out."""
_REACH_START: Final = 0.9
_REACH_END: Final = 0.5

_FILE: Final = read_yaml(Path(__file__).with_name("descriptions.yaml"))
_SUMMARIES: Final[dict[str, str]] = _FILE["methods"]
_BASELINES: Final[dict[str, str]] = _FILE["baselines"]
"""Names of methods that average a measured array over the window."""


Scores = Float[np.ndarray, "prompt"]
Codes = Int[np.ndarray, "prompt"]
Columns = Float[np.ndarray, "prompt column"]
Heads = tuple[tuple[int, int], ...]
"""Important heads, each as layer and head."""


def reached(windows: Sequence[Window], settings: CalibrateSettings, n_steps: Codes) -> Mask:
    """Windows that the given prompts allow; of automatic grids, those that most reach.

    An automatic start is a step that 90 % of the prompts reach, an automatic end one that
    half of them reach. If none is left, the shortest of the earliest windows is.
    """
    starts, ends = np.array([[w.start, w.end] for w in windows]).T
    reach = (n_steps[:, None] > np.arange(int(ends.max()) + 1)).mean(axis=0)
    is_open = (reach[starts] >= _REACH_START) | (settings.starts != "auto")
    is_open &= (reach[ends] >= _REACH_END) | (settings.lengths != "auto")
    earliest = starts == starts.min()
    return is_open if is_open.any() else earliest & (ends == ends[earliest].min())


def window_grid(settings: CalibrateSettings, n_layers: int, n_steps: Codes) -> tuple[Window, ...]:
    """All windows of the settings; of several equally good ones the first is to be taken.

    Args:
        settings: Starts, lengths and layer fractions.
        n_layers: Layers of the model.
        n_steps: Decode steps of each prompt.

    Raises:
        UsageError: If a requested window goes beyond the longest answer, or no layer is left.
        NotEnoughDataError: If no prompt has a step after step 0.
    """
    longest = int(n_steps.max(initial=0))
    if longest < 2:  # noqa: PLR2004
        raise NotEnoughDataError("no answer has a second step: there is nothing to average over")
    starts, lengths = settings.starts, settings.lengths
    start, length = (1 if each == "auto" else max(each) for each in (starts, lengths))
    if (starts, lengths) != ("auto", "auto") and start + length > longest:
        fault = f"the window of steps {start} to {start + length - 1} goes beyond the longest answer"
        way_out = "Use smaller --starts and --lengths, or gather with more --max-new-tokens"
        raise UsageError(f"{fault}: it has {longest} steps, 0 to {longest - 1}\n  {way_out}")
    starts, lengths = STARTS if starts == "auto" else starts, LENGTHS if lengths == "auto" else lengths
    steps = [(start, n) for n in lengths for start in starts if start + n <= longest]
    steps = steps or [(min(starts[0], longest - 1), 1)]  # answers shorter than all windows of the grid
    slices = (layer_slice(n_layers, a, b) for a in settings.mid_high for b in settings.tail_cut)
    layers = list(dict.fromkeys((s.start, s.stop) for s in slices if s.start < s.stop))
    if not layers:
        cuts = f"mid_high {settings.mid_high} and tail_cut {settings.tail_cut}"
        raise UsageError(f"{cuts} leave none of {n_layers} layers")
    return tuple(
        Window(start=start, length=n, first_layer=first, stop_layer=stop)
        for first, stop in layers
        for start, n in steps
    )


def window_scores(values: Float[np.ndarray, "prompt step layer"], windows: Sequence[Window]) -> Columns:
    """Mean over the layers and steps of each window.

    An answer that ends inside a window is averaged over the steps that it has; one that ends
    before it has NaN, as has one whose layers never see the system prompt.

    Args:
        values: NaN after the last step, and in layers that do not see the system prompt.
        windows: They start within the steps.
    """
    layers = {window.layers for window in windows}
    means = {each: mean_of_present(values[..., slice(*each)], axis=-1) for each in layers}
    scores = [mean_of_present(means[w.layers][:, w.start : w.end + 1], axis=-1) for w in windows]
    return np.stack(scores, axis=1)


class Cases(NamedTuple):
    """Prompts that methods are judged on.

    Attributes:
        labels: 1 = attack.
        groups: Number of the group of prompts that say the same.
    """

    labels: Codes
    groups: Codes

    def of(self, members: Int[np.ndarray, "member"]) -> "Cases":
        """Some of them."""
        return Cases(self.labels[members], self.groups[members])


class Fitted(NamedTuple):
    """A method that has made its choices.

    Attributes:
        scores: Of all prompts, higher where an attack is more likely; NaN if unknown.
        choice: What was chosen, in words.
        direction: 1 if attacks are higher in what is measured, -1 if they are lower.
        column: Number of the chosen column.
        heads: Important heads and their ``k``, of Attention Tracker.
    """

    scores: Scores
    choice: str
    direction: int
    column: int = 0
    heads: tuple[Heads, float | None] | None = None


Train = Int[np.ndarray, "train"]
Allowed = Callable[[Train], Bool[np.ndarray, "column"]]
"""Columns that a training side allows."""


@dataclass(frozen=True)
class ColumnMethod:
    """One column of many, such as one window; and the direction in which attacks lie.

    Attributes:
        name: Its name.
        summary: What it is.
        columns: One value a prompt; NaN if unknown.
        texts: Each column in words.
        allowed: Columns that the training side allows.
        n_inner_folds: Folds in which a column is chosen.
    """

    name: str
    summary: str
    columns: Columns
    texts: tuple[str, ...]
    allowed: Allowed
    n_inner_folds: int

    def fit(self, cases: Cases, train: Train, seed: int) -> Fitted:
        """The column with the best mean AUROC on held-out inner folds.

        Raises:
            NotEnoughDataError: If no inner fold holds 5 prompts of each class.
        """
        columns = np.flatnonzero(self.allowed(train))
        folds = inner_folds(*cases, train, n_folds=self.n_inner_folds, seed=seed) if len(columns) > 1 else []
        worth, values = np.zeros(len(columns)), self.columns
        for fold in folds:
            chosen, held_out = (filled_auroc(values[np.ix_(each, columns)], *cases.of(each)) for each in fold)
            worth += np.where(chosen >= 0.5, held_out, 1 - held_out)  # noqa: PLR2004
        mean = np.where(np.isnan(worth), -1.0, worth / max(1, len(folds)))
        column = int(columns[np.argmax(mean)])
        auroc = filled_auroc(values[train][:, [column]], *cases.of(train))[0]
        return self._fitted(column, np.nan if np.isnan(worth).all() else auroc)

    def fit_in_sample(self, cases: Cases) -> Fitted:
        """The column and direction with the best AUROC on the same prompts; optimistic."""
        auroc = filled_auroc(self.columns, *cases)
        distance = np.where(self.allowed(np.arange(len(cases.labels))), np.abs(auroc - 0.5), -1.0)
        column = int(np.argmax(np.where(np.isnan(distance), -1.0, distance)))
        return self._fitted(column, auroc[column])

    def _fitted(self, column: int, auroc: float) -> Fitted:
        if np.isnan(auroc):
            way_out = "Measure more prompts, or use fewer folds:  --folds 2 --set n_inner_folds=2"
            fault = f"{self.name}: every fold needs 5 attacks and 5 benign prompts to choose from"
            raise NotEnoughDataError(f"{fault}\n  {way_out}")
        direction = 1 if auroc >= 0.5 else -1  # noqa: PLR2004
        return Fitted(direction * self.columns[:, column], self.texts[column], direction, column)


Focus = Float[np.ndarray, "prompt layer head"]
Shares = Float[np.ndarray, "*row"]

FOCUS_FLOOR: Final = 1e-8
_LEAST_PROMPTS: Final = 2


_Pair = tuple[Annotated[int, Field(strict=True, ge=0)], Annotated[int, Field(strict=True, ge=0)]]
_HEADS: Final[TypeAdapter[Heads]] = TypeAdapter(Annotated[tuple[_Pair, ...], Field(min_length=1)])


def focus_share(instruction: Shares, data: Shares) -> Shares:
    """Attention to the instruction over that to instruction and data.

    Source:
        Hung et al. 2024, arXiv:2411.00348, ``inst / (inst + data + 1e-8)`` of the last row of
        the prompt. Spans come from character offsets here; theirs are fixed for each model.
    """
    exact = instruction.astype(np.float64)
    return exact / (exact + data + FOCUS_FLOOR)


def important_heads(
    focus: Focus, labels: Codes, *, k_values: tuple[float, ...] = (4.0, 3.0, 2.0, 1.0, 0.0)
) -> tuple[Heads, float | None]:
    """Heads with ``(mean_N - k std_N) - (mean_A + k std_A) > 0``, N benign and A attacks.

    Args:
        focus: Focus of every head in step 0; NaN where a window hides the system prompt.
        labels: 1 = attack.
        k_values: Tried in this order; the first that any head reaches is taken.

    Returns:
        Layer and head of each, and ``k``: ``None`` if no head reaches any, so that all are taken.

    Raises:
        NotEnoughDataError: If a class has fewer than two prompts.

    Source:
        As :func:`focus_share`, with k = 4 and 30 prompts of each class. If no head reaches it
        they take none, and the score does not exist.
    """
    benign, attacks = focus[labels == 0], focus[labels == 1]
    if min(len(benign), len(attacks)) < _LEAST_PROMPTS:
        counted = f"{len(attacks)} attacks and {len(benign)} benign prompts"
        raise NotEnoughDataError(f"important heads need two prompts of each class, got {counted}")
    gap, spread = benign.mean(0) - attacks.mean(0), benign.std(0) + attacks.std(0)
    # NaN of a layer that does not see the system prompt is never above 0
    k = next((k for k in k_values if (gap - k * spread > 0).any()), None)
    is_chosen = np.isfinite(gap) if k is None else gap - k * spread > 0
    return tuple((int(layer), int(head)) for layer, head in np.argwhere(is_chosen)), k


def focus_scores(focus: Focus, heads: Heads) -> Float[np.ndarray, "prompt"]:
    """Mean focus of the important heads; low where a prompt draws them away.

    Raises:
        UsageError: If a head lies outside the model.
    """
    n_layers, n_heads = focus.shape[1:]
    outside = [pair for pair in heads if not (pair[0] < n_layers and pair[1] < n_heads)]
    if outside or not heads:
        fault = f"expected heads of a model with {n_layers} layers of {n_heads} heads"
        came = list(outside[0]) if outside else "none"
        raise UsageError(f"{fault}, got {came}\n  Use the list of this model")
    layers, places = np.array(heads).T
    return focus[:, layers, places].mean(axis=1)


def read_important_heads(path: Path) -> Heads:
    """A published list: ``params.important_heads``, or a bare list, of ``[layer, head]``.

    Raises:
        UsageError: If there is no such file.
        DataFileError: If it holds something else.

    Source:
        khhung-906/Attention-Tracker, commit d92bf08, ``configs/model_configs/*.json``.
    """
    listed: Any = read_json(path, missing=UsageError(f"no list of heads at {path}"))
    for name in ("params", "important_heads"):
        listed = listed.get(name, listed) if isinstance(listed, dict) else listed
    try:
        return _HEADS.validate_python(listed)
    except ValidationError:
        expected = "expected important_heads as pairs [[layer, head], …], got none"
        raise DataFileError(f"{path}: {expected}") from None


@dataclass(frozen=True)
class TrackerMethod:
    """Attention Tracker: minus the mean focus of important heads.

    Attributes:
        name: Its name.
        summary: What it is.
        focus: Focus of every head in step 0.
        k_values: As in :func:`important_heads`.
        given: A published list of heads, used instead of a choice.
    """

    name: str
    summary: str
    focus: Float[np.ndarray, "prompt layer head"]
    k_values: tuple[float, ...]
    given: Heads = ()

    def fit(self, cases: Cases, train: Train, seed: int) -> Fitted:
        """Important heads of the training side; a low focus means attack, always."""
        k: float | None = None
        heads, text = self.given, "the given heads"
        if not heads:
            heads, k = important_heads(self.focus[train], cases.labels[train], k_values=self.k_values)
            text = f"{len(heads)} heads, {'all heads: none is apart' if k is None else f'k = {k:g}'}"
        return Fitted(-focus_scores(self.focus, heads), text, -1, heads=(heads, k))

    def fit_in_sample(self, cases: Cases) -> Fitted:
        """Important heads of all prompts."""
        return self.fit(cases, np.arange(len(cases.labels)), 0)


Method = ColumnMethod | TrackerMethod


def all_methods(
    series: Sequence[PromptSeries], grid: Sequence[Window], settings: CalibrateSettings, given: Heads
) -> list[Method]:
    """Every method that is judged; the first is the instability that ``detect`` computes.

    All that vary over the answer choose from the same windows, and all but Attention Tracker
    learn on the training side which way attacks lie.

    Args:
        series: Prompts with a class.
        grid: Windows to choose from.
        settings: Spread, windows, folds, and ``k`` of Attention Tracker.
        given: A published list of heads for Attention Tracker.
    """
    n_steps = np.array([each.n_steps for each in series])
    single = [n for n, window in enumerate(grid) if window.layers == grid[0].layers]

    def are_reached(train: Train) -> Mask:
        return reached(grid, settings, n_steps[train])

    def are_single_reached(train: Train) -> Mask:
        return are_reached(train)[single]

    others = [spread for spread in get_args(Spread) if spread != settings.spread]
    arrays = {MAIN: settings.spread, **{f"{MAIN}_{each}": each for each in others}, **_BASELINES}
    methods, n_inner = list[Method](), settings.n_inner_folds
    for name, array in arrays.items():
        values, windows, allowed = padded_steps(series, array), list(grid), are_reached
        texts = tuple(window.text() for window in grid)
        if values.ndim == 2:  # noqa: PLR2004 - without layers, each range of steps once
            values, windows = (
                values[..., None],
                [grid[n].model_copy(update={"first_layer": 0, "stop_layer": 1}) for n in single],
            )
            texts, allowed = tuple(f"steps {w.start}-{w.end}" for w in windows), are_single_reached
        scores = window_scores(values, windows)
        methods.append(ColumnMethod(name, _SUMMARIES[array], scores, texts, allowed, n_inner))
    focus = np.stack([each.arrays["focus_heads"] for each in series]).astype(np.float64)
    methods.append(TrackerMethod(TRACKER, _SUMMARIES[TRACKER], focus, settings.tracker_k, given))
    logprobs = [each.arrays["logprob"][: each.record.n_answer] for each in series]
    constants: dict[str, list[float | None]] = {
        "user_length": [each.record.n_user for each in series],
        "answer_length": [each.record.n_answer for each in series],
        "user_perplexity": [each.record.user_nll for each in series],
        "answer_perplexity": [-float(each.mean()) if len(each) else None for each in logprobs],
    }
    for name, numbers in constants.items():
        column, texts = np.array(numbers, dtype=np.float64)[:, None], ("nothing to choose",)
        methods.append(
            ColumnMethod(name, _SUMMARIES[name], column, texts, lambda _: np.ones(1, dtype=bool), n_inner)
        )
    return methods


def filled_auroc(columns: Columns, labels: Codes, groups: Codes) -> Float[np.ndarray, "column"]:
    """AUROC of each column with missing values at its median; NaN where nearly all are missing.

    A window that many answers never reach does not look good by the few that do.
    """
    is_there = np.isfinite(columns)
    has_any = is_there.any(axis=0)
    medians = np.full(columns.shape[1], np.nan)
    medians[has_any] = np.nanmedian(columns[:, has_any], axis=0)
    return column_tests(np.where(is_there, columns, medians), labels, groups)[0]
