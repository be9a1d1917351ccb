"""What was found in one run: H1 to H4 as plain numbers with intervals.

Positive is the class with label 1: hallucinated answers, or inputs that the data set calls bad. A
difference is positive minus negative.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from graphhalu.labels.labels import Meaning

Matrix = tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % bootstrap interval over questions."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of zero."""
        return self.low > 0 or self.high < 0


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
    length_pearson: float | None
    entropy_pearson: float | None
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
    adjusted_q_value: float | None
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
    spearman: float | None
    p_spearman: float | None


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
    profile_positive: tuple[float | None, ...]
    profile_negative: tuple[float | None, ...]
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
    masses_positive: tuple[float, ...]
    masses_negative: tuple[float, ...]

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
    left_out: Mapping[str, str]

    def of(self, meaning: Meaning) -> Findings | None:
        """The findings under a label."""
        return next((each for each in self.findings if each.meaning == meaning), None)
