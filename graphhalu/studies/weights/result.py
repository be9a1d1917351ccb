"""What a validation found, as JSON and Parquet."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float

from graphhalu.atomic import replace_file
from graphhalu.errors import UsageError
from graphhalu.numerics import json_ready
from graphhalu.parquet import write_parquet
from graphhalu.safe_read import read_json_object, reading, told_format
from graphhalu.studies.weights.agreement import Agreement, counts
from graphhalu.studies.weights.detection import LayerDetection
from graphhalu.studies.weights.measure import MEASURED_MEANINGS, Measured
from graphhalu.weights.risk import RiskCurve

FORMAT: Final = "graphhalu-weights-validation"
FORMAT_VERSION: Final = 1
VALIDATION_FILE: Final = "validation.json"


@dataclass(frozen=True)
class EntropyCheck:
    """The entropy estimate against measurement, both as a share of the log of the keys.

    Attributes:
        n_keys: Keys that the estimate is for: as many as a counted row sees on average.
        shares: Share of heads in each zone of the estimate.
        errors: Mean distance of estimate and measurement in each zone that has an estimate.
        mean_estimate: Over heads with an estimate.
        mean_measured: Over all heads.
    """

    n_keys: int
    shares: Mapping[str, float]
    errors: Mapping[str, float]
    mean_estimate: float
    mean_measured: float


@dataclass(frozen=True)
class Validation:
    """A profile held against the traces of its model.

    Attributes:
        model: Which model.
        store: Which traces.
        settings: How it was measured.
        provenance: Versions, machine, code state.
        rows: Every static quantity with its verdict.
        entropy: The entropy estimate in numbers.
        risk: The risk curve.
        detection: Detection by layer, one entry a kind of input.
        measured: Run-time quantities.
        missing: What could not be measured, with the reason.
        untested: Quantities of the profile without a counterpart in a store.
    """

    model: Mapping[str, Any]
    store: Mapping[str, Any]
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any]
    rows: tuple[Agreement, ...]
    entropy: EntropyCheck
    risk: RiskCurve
    detection: tuple[LayerDetection, ...]
    measured: Measured
    missing: Mapping[str, str]
    untested: Mapping[str, str]

    @property
    def risk_rows(self) -> tuple[Agreement, ...]:
        """The validation of the whole risk curve, one row a kind of input."""
        return tuple(row for row in self.rows if row.static == "risk")

    def values(self) -> dict[str, Any]:
        """Everything as plain values for JSON."""
        return {
            "format": FORMAT, "format_version": FORMAT_VERSION,
            **{name: getattr(self, name) for name in
               ("model", "store", "settings", "provenance", "missing", "untested")},
            "verdicts": counts(self.rows),
            "meanings": MEASURED_MEANINGS,
            "rows": [asdict(row) for row in self.rows],
            "entropy": asdict(self.entropy),
            "risk": asdict(self.risk),
            "detection": [asdict(one) for one in self.detection],
            "measured": asdict(self.measured),
        }  # fmt: skip

    def write(self, folder: Path) -> Path:
        """Write ``validation.json`` and ``validation.parquet``; gives the JSON file."""
        folder.mkdir(parents=True, exist_ok=True)
        rows = json_ready([asdict(row) for row in self.rows])
        write_parquet(pa.Table.from_pylist(rows), folder / "validation.parquet")
        text = json.dumps(json_ready(self.values()), indent=1, ensure_ascii=False, allow_nan=False)
        path = folder / VALIDATION_FILE
        replace_file(path, f"{text}\n".encode())
        return path


def read_validation(folder: Path) -> Validation:
    """What :meth:`Validation.write` wrote.

    Raises:
        UsageError: If there is none.
        DataFileError: If it is damaged or of another version.
    """
    path = folder / VALIDATION_FILE if folder.is_dir() else folder
    try:
        values = read_json_object(path)
    except FileNotFoundError:
        message = (
            f"no validation at {folder}\n  Make one:  graphhalu weights validate TRACES "
            f"--out {folder}"
        )
        raise UsageError(message) from None
    with reading(f"{path} is no readable validation"):
        return _validation(values)


def _validation(values: Mapping[str, Any]) -> Validation:
    if values.get("format") != FORMAT or values.get("format_version") != FORMAT_VERSION:
        raise ValueError(told_format(values))
    named = ("model", "store", "settings", "provenance", "missing", "untested")
    measured, risk = dict(values["measured"]), dict(values["risk"])
    for name in ("heads", "kv_heads", "layers"):
        measured[name] = {key: numbers(value) for key, value in measured[name].items()}
    risk["values"] = numbers(risk["values"])
    risk["components"] = {name: numbers(value) for name, value in risk["components"].items()}
    risk["mixed_types"] = tuple(risk["mixed_types"])
    entropy = dict(values["entropy"])
    means = {name: float(numbers(entropy[name])) for name in ("mean_estimate", "mean_measured")}
    return Validation(
        **{name: values[name] for name in named},
        rows=tuple(_row(row) for row in values["rows"]),
        entropy=EntropyCheck(**{**entropy, **means}),
        risk=RiskCurve(**risk),
        detection=tuple(
            LayerDetection(**{**one, **{n: numbers(one[n]) for n in ("auroc", "low", "high")}})
            for one in values["detection"]
        ),
        measured=Measured(**measured),
    )


def numbers(values: Any) -> Float[np.ndarray, "..."]:
    """Nested lists as numbers; ``null`` becomes NaN."""
    return np.array(values, dtype=np.float64)


def _row(values: Mapping[str, Any]) -> Agreement:
    plain: dict[str, Any] = {
        name: float("nan") if value is None else value for name, value in values.items()
    }
    return Agreement(**plain)
