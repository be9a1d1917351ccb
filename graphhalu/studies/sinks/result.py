"""Results of the study of sink mass, as one JSON file that the figures are drawn from.

Positive is the class with label 1: hallucinated answers, or inputs that the data set calls bad. A
difference is positive minus negative. A number that there is not is NaN, ``null`` in the file.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final

import numpy as np
from jaxtyping import Float
from pydantic import ConfigDict

from graphhalu.core.documents import FileFormat, numbers, plain_values, read_document, write_document
from graphhalu.evaluation.bootstrap import Estimate, OrNan
from graphhalu.labels.labels import Meaning

RESULT_FILE: Final = "sinks.json"
KIND: Final = FileFormat("graphhalu-sinks-analysis", 1, "Run:  graphhalu sinks analyze")

Matrix = Annotated[Float[np.ndarray, "layer head"], numbers(2)]
"""NaN where there is nothing."""
Values = Annotated[Float[np.ndarray, "_"], numbers(1)]


@dataclass(frozen=True)
class Shift:
    """H1: is the sink mass of positive records another than that of negative ones?

    Attributes:
        mean_positive: Mean sink mass of the positive class.
        mean_negative: Mean of the negative class.
        mean_difference: Positive minus negative.
        median_difference: The same of medians.
        cohens_d: Difference of means over the pooled standard deviation (n - 1).
        p_permutation: Two-sided, of the difference of means.
        permutation: ``free``, or ``within questions`` where most questions have both classes.
        adjusted_d: Cohen's d of what a fit on the length leaves.
        adjusted_p: Its permutation test.
        length_d: Cohen's d of the length itself: what the adjustment has to take away.
        length_pearson: Correlation of sink mass and length.
        entropy_pearson: Correlation of sink mass and entropy.
        partial_correlation: Of sink mass and label, length held fixed.
    """

    mean_positive: float
    mean_negative: float
    mean_difference: Estimate
    median_difference: Estimate
    cohens_d: Estimate
    p_permutation: float
    permutation: str
    adjusted_d: Estimate
    adjusted_p: float
    length_d: Estimate
    length_pearson: OrNan
    entropy_pearson: OrNan
    partial_correlation: Estimate | None


@dataclass(frozen=True)
class QuantileBin:
    """Records between two quantiles of sink mass.

    Attributes:
        mean_mass: Their mean sink mass.
        n: How many.
        share_negative: Share with label 0: the accuracy where the label is the model's own output.
    """

    mean_mass: float
    n: int
    share_negative: Estimate


@dataclass(frozen=True)
class Prediction:
    """H2: what sink mass as it is predicts; no sign is learnt and none is flipped.

    Attributes:
        auroc: Higher sink mass as the score of the positive class.
        auprc: Average precision.
        auprc_trapezoid: The published area under the same curve.
        prevalence: Share of positive records: the average precision of chance.
        adjusted_auroc: AUROC of what a fit on the length leaves.
        bins: Records by quantile of sink mass.
        ece: Calibration error of the cross-fitted probability.
        brier: Brier score of the same.
        brier_of_prevalence: That of always saying the prevalence.
        reliability: Mean probability, share positive and number of each bin of the same.
    """

    auroc: Estimate
    auprc: Estimate
    auprc_trapezoid: float
    prevalence: float
    adjusted_auroc: Estimate
    bins: tuple[QuantileBin, ...]
    ece: float
    brier: float
    brier_of_prevalence: float
    reliability: tuple[tuple[float, float, int], ...]


@dataclass(frozen=True)
class Model:
    """A cross-fitted model; every choice was made in grouped folds within the training side.

    Attributes:
        name: What it reads, joined by ``+``.
        n_columns: How many columns that is.
        auroc: Mean over seeds.
        log_loss: Mean over seeds, in nat.
        seed_sd: Standard deviation of the AUROC over seeds.
    """

    name: str
    n_columns: int
    auroc: Estimate
    log_loss: Estimate
    seed_sd: float


@dataclass(frozen=True)
class Gain:
    """What one model adds to another, on the same resamples.

    Attributes:
        model: The larger one.
        baseline: The smaller one.
        auroc: AUROC of the first minus that of the second.
        p_auroc: Two-sided, by the bootstrap.
        log_loss: Log-loss of the second minus that of the first: positive is a gain.
        p_log_loss: Two-sided, by the bootstrap.
    """

    model: str
    baseline: str
    auroc: Estimate
    p_auroc: float
    log_loss: Estimate
    p_log_loss: float


@dataclass(frozen=True)
class TopHead:
    """One of the heads that differ most.

    Attributes:
        z: Difference over its bootstrap standard error.
        stability: Share of resamples in which it is among as many that differ most.
    """

    layer: int
    head: int
    difference: Estimate
    z: float
    q_value: float
    adjusted_q_value: OrNan
    stability: float


@dataclass(frozen=True)
class RoleOverlap:
    """Whether the heads that differ are those of a role, such as induction heads.

    Attributes:
        role: The role.
        k: Heads of each kind that are compared.
        n_shared: How many are both.
        n_expected: How many chance would share.
        p_value: Of so many or more, hypergeometric.
        spearman: Correlation of the size of a head's difference with its score in the role.
        p_spearman: Two-sided.
    """

    role: str
    k: int
    n_shared: int
    n_expected: float
    p_value: float
    spearman: OrNan
    p_spearman: OrNan


@dataclass(frozen=True)
class Localisation:
    """H4: which heads differ.

    Attributes:
        difference: Mean of the positive minus that of the negative, by layer and head.
        q_value: After Benjamini and Hochberg over all heads.
        adjusted_q_value: The same for what a fit on the length leaves.
        n_heads: Heads with a test.
        n_significant: Those with q below 0.05.
        n_significant_adjusted: Those that stay after length adjustment.
        top: The heads that differ most, by ``z``.
        profile_positive: Mean sink mass of each layer, positive class.
        profile_negative: The same of the negative class.
        profile_difference: Their difference with its interval; ``None`` where a layer cannot see.
        overlaps: With the roles of a table of heads; empty without one.
    """

    difference: Matrix
    q_value: Matrix
    adjusted_q_value: Matrix
    n_heads: int
    n_significant: int
    n_significant_adjusted: int
    top: tuple[TopHead, ...]
    profile_positive: Values
    profile_negative: Values
    profile_difference: tuple[Estimate | None, ...]
    overlaps: tuple[RoleOverlap, ...] = ()


@dataclass(frozen=True)
class Findings:
    """H1 to H4 of one run under one label.

    Attributes:
        meaning: What a label of 1 says.
        n_positive: Usable records with label 1.
        n_negative: Usable records with label 0.
        n_groups: Their questions.
        masses_positive: Sink mass of each, rounded, for the figures.
        masses_negative: The same of the others.
    """

    meaning: Meaning
    n_positive: int
    n_negative: int
    n_groups: int
    shift: Shift
    prediction: Prediction
    models: tuple[Model, ...]
    gains: tuple[Gain, ...]
    localisation: Localisation
    masses_positive: Values
    masses_negative: Values

    def model(self, name: str) -> Model | None:
        """The model of this name."""
        return next((model for model in self.models if model.name == name), None)


@dataclass(frozen=True)
class RunResult:
    """One file of records.

    Attributes:
        name: Name of the file.
        n_records: All records.
        n_usable: Those without NaN; all others are left out of everything but the accuracy.
        accuracy: Share of right answers among all records with an answer.
        commonest_answer: What the model answered most often, where it chose among letters.
        commonest_share: Share of these answers; near 1 the label says more of the input than of
            the model.
        n_parameters: Of the model; ``None`` where neither description nor name say it.
        findings: One for each label that can be analysed.
        left_out: Meaning of a label to the reason why it could not.
    """

    name: str
    task: str
    model: str
    sink_tokens: int
    query_mode: str
    chat: str
    quantization: str
    n_layers: int
    n_heads: int
    n_records: int
    n_usable: int
    accuracy: float | None
    commonest_answer: str | None
    commonest_share: float | None
    n_parameters: float | None
    findings: tuple[Findings, ...]
    left_out: Mapping[Meaning, str]

    def of(self, meaning: Meaning) -> Findings | None:
        """The findings under a label."""
        return next((each for each in self.findings if each.meaning == meaning), None)


@dataclass(frozen=True)
class ScalingPoint:
    """One model in the question of size."""

    run: str
    model: str
    chat: str
    n_parameters: float
    cohens_d: Estimate
    auroc: Estimate
    probe_auroc: Estimate


@dataclass(frozen=True)
class Scaling:
    """Does the shift change with the size of the model?

    Attributes:
        series: Task, label, window, query mode and quantisation that the models share.
        points: By rising size.
        spearman: Of size and Cohen's d; NaN below four points.
        note: What must be known to read it.
    """

    series: str
    points: tuple[ScalingPoint, ...]
    spearman: OrNan
    p_spearman: OrNan
    note: str


@dataclass(frozen=True)
class TaskRow:
    """One task of a model."""

    run: str
    task: str
    meaning: Meaning
    cohens_d: Estimate
    adjusted_d: Estimate
    auroc: Estimate


@dataclass(frozen=True)
class Tasks:
    """Does the shift depend on the task?

    Attributes:
        series: Model, window, query mode, chat and quantisation that the tasks share.
        rows: One a task and label.
        cochran_q: Heterogeneity of Cohen's d, weights from the bootstrap; NaN for one task.
        p_value: Of no heterogeneity, chi-square.
        i_squared: Share of the variance between tasks that is more than chance, in [0, 1].
        n_positive_d: Tasks with a positive d: a sign that changes is no rule.
    """

    series: str
    rows: tuple[TaskRow, ...]
    cochran_q: OrNan
    p_value: OrNan
    i_squared: OrNan
    n_positive_d: int


@dataclass(frozen=True)
class Sensitivity:
    """Two runs that differ in one setting only, on the questions that both have.

    Attributes:
        setting: ``chat``, ``sink_tokens``, ``query_mode`` or ``quantization``.
        first: Value of the first run.
        second: Value of the second.
        series: What the runs share.
        n_both: Records of both.
        mass_difference: Mean sink mass of the second minus that of the first.
        mass_pearson: Correlation of the sink masses of a record in both.
        accuracy_difference: Accuracy of the second minus that of the first.
        share_changed: Share of records whose answer differs.
        d_first: Cohen's d of the first.
        d_second: Cohen's d of the second.
        d_difference: Second minus first, on the same resamples.
    """

    setting: str
    first: str
    second: str
    series: str
    meaning: Meaning
    n_both: int
    mass_difference: Estimate
    mass_pearson: OrNan
    accuracy_difference: Estimate | None
    share_changed: float | None
    d_first: float
    d_second: float
    d_difference: Estimate


@dataclass(frozen=True)
class SinksResult:
    """An analysis of one or several runs."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    runs: tuple[RunResult, ...]
    scaling: tuple[Scaling, ...]
    tasks: tuple[Tasks, ...]
    sensitivity: tuple[Sensitivity, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return plain_values(self, KIND)

    def write(self, folder: Path) -> Path:
        """Write ``sinks.json``, whole or not at all."""
        return write_document(folder / RESULT_FILE, self, KIND)


def read_sinks(path: Path) -> SinksResult:
    """Read what :meth:`SinksResult.write` wrote.

    Args:
        path: The file, or its folder.

    Raises:
        DataFileError: If there is none, or it is of another version or does not validate.
    """
    return read_document(path / RESULT_FILE if path.is_dir() else path, SinksResult, KIND)
