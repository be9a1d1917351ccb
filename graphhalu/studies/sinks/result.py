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
from pydantic import ConfigDict, TypeAdapter

from graphhalu.core.documents import FileFormat, numbers, plain_values, read_document, write_document
from graphhalu.core.files import reading
from graphhalu.evaluation.bootstrap import Estimate, OrNan
from graphhalu.labels.labels import Meaning
from graphhalu.studies.rows import Row

RESULT_FILE: Final = "sinks.json"
KIND: Final = FileFormat("graphhalu-sinks-analysis", 1, "Run:  graphhalu sinks analyze")

Matrix = Annotated[Float[np.ndarray, "layer head"], numbers(2)]
"""NaN where there is nothing."""
Values = Annotated[Float[np.ndarray, "_"], numbers(1)]


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
        top: The heads that differ most, by ``z``; see :func:`graphhalu.studies.sinks.effects.localise`.
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
    top: tuple[Row, ...]
    profile_positive: Values
    profile_negative: Values
    profile_difference: tuple[Estimate | None, ...]
    overlaps: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Findings:
    """H1 to H4 of one run under one label.

    Attributes:
        meaning: What a label of 1 says.
        n_positive: Usable records with label 1.
        n_negative: Usable records with label 0.
        n_groups: Their questions.
        shift: H1, see :func:`graphhalu.studies.sinks.effects.shift`.
        prediction: H2, see :func:`graphhalu.studies.sinks.effects.prediction`.
        models: H3, see :func:`graphhalu.studies.sinks.probes.models_of`.
        gains: What one model adds to another, from there too.
        localisation: H4.
        masses_positive: Sink mass of each, rounded, for the figures.
        masses_negative: The same of the others.
    """

    meaning: Meaning
    n_positive: int
    n_negative: int
    n_groups: int
    shift: Row
    prediction: Row
    models: tuple[Row, ...]
    gains: tuple[Row, ...]
    localisation: Localisation
    masses_positive: Values
    masses_negative: Values

    def model(self, name: str) -> Row | None:
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
class Scaling:
    """Does the shift change with the size of the model?

    Attributes:
        series: Task, label, window, query mode and quantisation that the models share.
        points: By rising size: ``run``, ``model``, ``chat``, ``n_parameters``, and ``cohens_d``,
            ``auroc`` of sink mass and ``probe_auroc`` of the model on all heads.
        spearman: Of size and Cohen's d; NaN below four points.
        note: What must be known to read it.
    """

    series: str
    points: tuple[Row, ...]
    spearman: OrNan
    p_spearman: OrNan
    note: str


@dataclass(frozen=True)
class Tasks:
    """Does the shift depend on the task?

    Attributes:
        series: Model, window, query mode, chat and quantisation that the tasks share.
        rows: One a ``task`` and ``meaning`` of the label: ``run``, ``cohens_d``, ``adjusted_d`` (length
            taken away) and ``auroc``.
        cochran_q: Heterogeneity of Cohen's d, weights from the bootstrap; NaN for one task.
        p_value: Of no heterogeneity, chi-square.
        i_squared: Share of the variance between tasks that is more than chance, in [0, 1].
        n_positive_d: Tasks with a positive d: a sign that changes is not a rule.
    """

    series: str
    rows: tuple[Row, ...]
    cochran_q: OrNan
    p_value: OrNan
    i_squared: OrNan
    n_positive_d: int


@dataclass(frozen=True)
class SinksResult:
    """An analysis of one or several runs.

    Attributes:
        runs: The files of records.
        scaling: Comparisons of models.
        tasks: Comparisons of tasks.
        sensitivity: Pairs of runs that differ in one ``setting`` (``chat``, ``sink_tokens``,
            ``query_mode`` or ``quantization``), its value in the ``first`` and the ``second`` run, the
            ``series`` that they belong to, and the comparison of their records.
        settings: Of the analysis.
        provenance: Versions, machine, code state.
        notes: What a reader must know.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    runs: tuple[RunResult, ...]
    scaling: tuple[Scaling, ...]
    tasks: tuple[Tasks, ...]
    sensitivity: tuple[Row, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    notes: tuple[str, ...] = ()

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return plain_values(TypeAdapter(SinksResult).dump_python(self), KIND)

    def write(self, folder: Path) -> Path:
        """Write ``sinks.json``, whole or not at all."""
        return write_document(folder / RESULT_FILE, self.values(), KIND)


def read_sinks(path: Path) -> SinksResult:
    """Read what :meth:`SinksResult.write` wrote.

    Args:
        path: The file, or its folder.

    Raises:
        DataFileError: If there is none, or it is of another version or does not validate.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    # pydantic does not report numbers beyond float64
    with reading(f"{file} cannot be read as an analysis"):
        return read_document(file, SinksResult, KIND)
