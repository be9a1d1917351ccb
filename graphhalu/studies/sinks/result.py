"""Everything that an analysis of sink mass found, as one JSON file that the figures are drawn from.

Positive is the class with label 1: hallucinated answers, or inputs that the data set calls bad. A
difference is positive minus negative. Where there is no number there is ``None``, and a reason
beside it.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError

from graphhalu.atomic import replace_file
from graphhalu.errors import DataFileError
from graphhalu.evaluation.files import read_object
from graphhalu.labels.labels import Meaning
from graphhalu.numerics import json_ready
from graphhalu.safe_read import shown
from graphhalu.studies.sinks.findings import Estimate, RunResult

FORMAT: Final = "graphhalu-sinks-analysis"
FORMAT_VERSION: Final = 1
RESULT_FILE: Final = "sinks.json"


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
        spearman: Of size and Cohen's d; ``None`` below four points.
        note: What must be known to read it.
    """

    series: str
    points: tuple[ScalingPoint, ...]
    spearman: float | None
    p_spearman: float | None
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
        cochran_q: Heterogeneity of Cohen's d, weights from the bootstrap; ``None`` for one task.
        p_value: Of no heterogeneity, chi-square.
        i_squared: Share of the variance between tasks that is more than chance, in [0, 1].
        n_positive_d: Tasks with a positive d: a sign that changes is no rule.
    """

    series: str
    rows: tuple[TaskRow, ...]
    cochran_q: float | None
    p_value: float | None
    i_squared: float | None
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
    mass_pearson: float | None
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
    notes: tuple[str, ...] = field(default=())

    def values(self) -> dict[str, Any]:
        """Plain values for JSON."""
        plain = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        ready: dict[str, Any] = json_ready(plain)
        return ready

    def write(self, folder: Path) -> Path:
        """Write ``sinks.json``, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / RESULT_FILE
        text = json.dumps(self.values(), indent=1, ensure_ascii=False, allow_nan=False)
        replace_file(path, f"{text}\n".encode())
        return path


def read_sinks(path: Path) -> SinksResult:
    """What :meth:`SinksResult.write` wrote.

    Args:
        path: The file, or its folder.

    Raises:
        DataFileError: If there is none, or it is of a newer version or does not validate.
    """
    file = path / RESULT_FILE if path.is_dir() else path
    values = read_object(file, way_out="Run:  graphhalu sinks analyze")
    if values.pop("format", None) != FORMAT:
        message = f"{file} is no {FORMAT} file\n  Run:  graphhalu sinks analyze"
        raise DataFileError(message)
    version = values.pop("format_version", None)
    if version != FORMAT_VERSION:
        message = (
            f"{file} has format version {shown(version)}, this graphhalu reads {FORMAT_VERSION}"
        )
        raise DataFileError(message)
    try:
        return TypeAdapter(SinksResult).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{file} does not validate: {where}: {first['msg']}"
        raise DataFileError(message) from None
