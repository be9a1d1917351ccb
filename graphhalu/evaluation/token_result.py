"""What a comparison of token detectors found, and its files: ``tokens.json``, ``tokens.parquet``.

``tokens.json`` is written last and holds the checksum of the other one.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from graphhalu.atomic import replace_file
from graphhalu.errors import CorruptStoreError, DataFileError
from graphhalu.evaluation.files import read_object
from graphhalu.evaluation.token_metrics import TokenMetric
from graphhalu.numerics import json_ready
from graphhalu.parquet import read_parquet, write_parquet
from graphhalu.provenance import file_sha256
from graphhalu.safe_read import reading, shown

FORMAT: Final = "graphhalu-token-result"
FORMAT_VERSION: Final = 1
RESULT_FILE: Final = "tokens.json"
SCORES_FILE: Final = "tokens.parquet"

TOKEN_SCHEMA: Final = pa.schema(
    [
        ("detector", pa.string()),
        ("seed", pa.int64()),
        ("fold", pa.int64()),
        ("trace_id", pa.string()),
        ("token", pa.int64()),
        ("label", pa.int8()),
        ("score", pa.float64()),
        ("raw_score", pa.float64()),
        ("is_valid", pa.bool_()),
        ("is_called", pa.bool_()),
    ]
)
"""One row a detector, seed and tested answer token.

``token`` is the place in the answer, from 0. ``score`` is pooled over folds and null where it is
not valid; ``is_called`` is decided by the threshold of the fold.
"""


@dataclass(frozen=True)
class TokenRow:
    """One token detector in a comparison.

    Attributes:
        metrics: By name; those that are not defined are left out.
        differences: The same minus those of the position control; empty for itself.
        p_holm: Two-sided p-value of the difference in token AUROC after Holm's correction over
            all detectors; ``None`` where there is none.
        failure: Why there are no metrics, or ``None``.
        coverage: Share of tested tokens with a valid score, mean over seeds.
        fit_s: Seconds of one fit, mean over folds and seeds.
        score_ms: Milliseconds to score one answer, mean.
        choices: What each fit chose, by seed and fold.
    """

    detector: str
    summary: str
    source: str
    inputs: tuple[str, ...]
    is_control: bool
    failure: str | None = None
    metrics: Mapping[str, TokenMetric] = field(default_factory=dict)
    differences: Mapping[str, TokenMetric] = field(default_factory=dict)
    p_holm: float | None = None
    coverage: float | None = None
    fit_s: float | None = None
    score_ms: float | None = None
    choices: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class TokenCounts:
    """What was compared.

    Attributes:
        n_traces: Answers with labelled tokens.
        n_left_out: Answers without, and why, by reason.
        n_groups: Contexts.
        n_hallucinated: Answers with a hallucinated token.
        n_tokens: Tokens.
        n_hallucinated_tokens: Those in a span.
        n_spans: Marked spans.
        n_lost_spans: Those that no token covers.
        character_share: Share of the characters that are marked, white space aside.
        n_on_policy: Answers that the replaying model wrote itself.
        writers: Answers by who wrote them, with the share that is hallucinated.
    """

    n_traces: int
    n_left_out: Mapping[str, int]
    n_groups: int
    n_hallucinated: int
    n_tokens: int
    n_hallucinated_tokens: int
    n_spans: int
    n_lost_spans: int
    character_share: float
    n_on_policy: int
    writers: Mapping[str, tuple[int, float]]

    @property
    def prevalence(self) -> float:
        """Share of hallucinated tokens."""
        return self.n_hallucinated_tokens / self.n_tokens

    @property
    def all_called_f1(self) -> float:
        """F1 of characters if every token is called."""
        return 2 * self.character_share / (1 + self.character_share)


@dataclass(frozen=True)
class TokenResult:
    """A comparison of token detectors on one store.

    Attributes:
        config: Settings of the comparison.
        provenance: Package versions, machine, code state and time.
        store: Identity of the traces.
        counts: What was compared.
        notes: What a reader must know before trusting a number.
        rows: One a detector, in the order asked for.
        samples: Scores of the tokens; see :data:`TOKEN_SCHEMA`.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid"
    )

    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    store: Mapping[str, Any]
    counts: TokenCounts
    notes: tuple[str, ...]
    rows: tuple[TokenRow, ...]
    samples: pa.Table
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def row(self, detector: str) -> TokenRow | None:
        """The row of a detector, if there is one."""
        return next((row for row in self.rows if row.detector == detector), None)

    def plain(self) -> dict[str, Any]:
        """Everything but the scores, as plain values."""
        values = {name: value for name, value in vars(self).items() if name != "samples"}
        values["rows"] = [asdict(row) for row in self.rows]
        values["counts"] = asdict(self.counts)
        ready: dict[str, Any] = json_ready(values)
        return ready

    def write(self, folder: Path) -> None:
        """Write both files, each complete or not at all; other files stay."""
        folder.mkdir(parents=True, exist_ok=True)
        parquet = io.BytesIO()
        write_parquet(self.samples, parquet)
        replace_file(folder / SCORES_FILE, parquet.getvalue())
        values = {**self.plain(), "files": {SCORES_FILE: file_sha256(folder / SCORES_FILE)}}
        text = json.dumps(values, indent=1, allow_nan=False, ensure_ascii=False)
        replace_file(folder / RESULT_FILE, text.encode())


def read_token_result(folder: Path) -> TokenResult:
    """Read what :meth:`TokenResult.write` wrote.

    Raises:
        DataFileError: If there is no result, or it is of a newer version or does not validate.
        CorruptStoreError: If the scores are not those that the result was written with.
    """
    path = folder / RESULT_FILE
    values = read_object(path, way_out="Run:  graphhalu tokens")
    version = values.get("format_version")
    if values.get("format") != FORMAT:
        message = f"{path} is no {FORMAT} file: its format is {shown(values.get('format'))}"
        raise DataFileError(message)
    if not isinstance(version, int) or version > FORMAT_VERSION:
        message = (
            f"{path} has format version {shown(version)}, this graphhalu reads up to "
            f"{FORMAT_VERSION}\n"
            f"  Update it:  pip install --upgrade graphhalu"
        )
        raise DataFileError(message)
    files = values.pop("files", None)
    samples = _read_scores(folder, files if isinstance(files, dict) else {})
    try:
        return TypeAdapter(TokenResult).validate_python({**values, "samples": samples})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{path} does not validate: {where}: {first['msg']}"
        raise DataFileError(message) from None


def _read_scores(folder: Path, checksums: Mapping[str, str]) -> pa.Table:
    path = folder / SCORES_FILE
    if not path.is_file():
        message = f"{folder} holds {RESULT_FILE} but no {SCORES_FILE}: copy the whole folder"
        raise DataFileError(message)
    if file_sha256(path) != checksums.get(SCORES_FILE):
        message = f"{path} is not the file that {RESULT_FILE} was written with; run it again"
        raise CorruptStoreError(message)
    with reading(f"{path} is no table of scores"):
        return read_parquet(path)
