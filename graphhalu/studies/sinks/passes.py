"""Passes of sequences through a model, batch by batch, and the journal of what they gave."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import TypeAdapter
from torch.nn.utils.rnn import pad_sequence

from graphhalu.core.config import differing_fields
from graphhalu.core.errors import StoreMismatchError
from graphhalu.core.files import MAX_TABLE_BYTES, parse_json, read_bytes, reading
from graphhalu.core.numerics import json_ready
from graphhalu.extract.capture import capturing
from graphhalu.extract.forward import DeferredPass, body_below_head, read_likelihood
from graphhalu.models.load import LoadedModel
from graphhalu.studies.sinks.observer import SinkMass, SinkObserver
from graphhalu.studies.sinks.prompt_formatting import SinkPrompt
from graphhalu.studies.sinks.settings import SinkMeasureConfig

DIGITS: Final = 7
_MOST_SHOWN: Final = 12


@dataclass(frozen=True)
class Measured:
    """What the model gave of one sequence.

    Attributes:
        entropy: Of the next-token distribution after the last token, in nat.
        option_logprobs: Log-probability of each option's letter; empty without options.
        cells: Sink mass by window and query mode.
    """

    entropy: float
    option_logprobs: tuple[float, ...]
    cells: tuple[SinkMass, ...]

    @property
    def pred(self) -> int | None:
        """The likeliest option; ``None`` without options, in a tie, and where NaN came."""
        values = np.array(self.option_logprobs)
        if not values.size or np.isnan(values).any():
            return None
        best = np.flatnonzero(values == values.max())
        return int(best[0]) if len(best) == 1 else None


_MEASURED: Final = TypeAdapter(Measured)


def measure_batches(
    loaded: LoadedModel, prompts: Sequence[SinkPrompt], config: SinkMeasureConfig
) -> Iterator[tuple[SinkPrompt, Measured]]:
    """Measure sequences, those of about equal length together."""
    batches: list[list[SinkPrompt]] = [[]]
    for prompt in sorted(prompts, key=lambda prompt: prompt.n_tokens):
        if batches[-1] and (len(batches[-1]) + 1) * prompt.sequence.length > config.batch_tokens:
            batches.append([])
        batches[-1].append(prompt)
    for batch in batches:
        if batch:
            yield from zip(batch, run_batch(loaded, batch, config), strict=True)


@torch.inference_mode()
def run_batch(loaded: LoadedModel, batch: Sequence[SinkPrompt], config: SinkMeasureConfig) -> list[Measured]:
    """One pass over a batch that is padded on the right."""
    observer = SinkObserver(
        [prompt.n_tokens - 1 for prompt in batch],
        start=config.query_start,
        ks=config.ks,
        modes=config.modes,
        layer_windows=loaded.layer_windows,
        n_heads=loaded.n_heads,
    )
    device = next(loaded.model.parameters()).device
    sequences = [prompt.sequence for prompt in batch]
    tokens = [torch.from_numpy(each.token_ids.astype(np.int64)) for each in sequences]
    token_ids = pad_sequence(tokens, batch_first=True).to(device)
    position = torch.arange(token_ids.shape[1], device=device)
    lengths = torch.tensor([each.length for each in sequences], device=device)
    # found by a pass of its own, whose attention must not be observed
    body = body_below_head(loaded.model)
    with capturing(loaded.model, observer):
        done = DeferredPass(
            loaded.model,
            body,
            input_ids=token_ids,
            attention_mask=(position < lengths[:, None]).long(),
            position_ids=position.expand(len(batch), -1),
            use_cache=False,
        )
    return [
        Measured(
            float(likely.arrays()["token_entropy"][-1]),
            likely.option_logprobs,
            tuple(observer.mass(index, *cell) for cell in observer.sums),
        )
        for index, likely in enumerate(read_likelihood(done, sequences))
    ]


class Journal:
    """Measurements so far, so that a killed run goes on where it stopped.

    A file of JSON lines: what the run is, then one measurement a line.

    Args:
        path: The file; it is made if it is not there.
        identity: What the run is; plain JSON values.

    Attributes:
        done: Measurements by number of the sequence.

    Raises:
        StoreMismatchError: If the file belongs to another run; names the fields.
        DataFileError: If it is no journal, or cannot be read.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.done: dict[int, Measured] = {}
        if path.exists():
            self._read(identity)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._append([identity])

    def add(self, measured: Iterable[tuple[int, Measured]]) -> None:
        """Append measurements, in one write."""
        found = dict(measured)
        self._append({"idx": idx, **asdict(_rounded(each))} for idx, each in found.items())
        self.done |= found

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(json_ready(line)) + "\n" for line in lines)
        with reading(f"{self.path} cannot be written"), self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def _read(self, identity: Mapping[str, Any]) -> None:
        with reading(f"{self.path} is no journal of a measurement", way_out="Delete it"):
            lines = read_bytes(self.path, MAX_TABLE_BYTES).decode("utf-8").splitlines(keepends=True)
            # a line without an end was being written when the run was killed
            whole = [line for line in lines if line.endswith("\n")]
            head, *rows = (parse_json(line, allows_nan=True) for line in whole)
            self.done = {int(row["idx"]): _MEASURED.validate_python(row) for row in rows}
            require_same(dict(head), identity, self.path)
        if len(whole) < len(lines):
            self.path.write_text("".join(whole), encoding="utf-8")


def require_same(stored: Mapping[str, Any], asked: Mapping[str, Any], path: Path) -> None:
    """Refuse to go on with another run's file.

    Raises:
        StoreMismatchError: Names the fields that differ.
    """
    differences = differing_fields(stored, json.loads(json.dumps(asked)))
    if differences:
        listed = "\n".join(f"  {line}" for line in differences[:_MOST_SHOWN])
        message = (
            f"{path} was measured with other settings:\n{listed}\n"
            f"  Ask for the same ones, or give another folder with --out"
        )
        raise StoreMismatchError(message)


def _rounded(measured: Measured) -> Measured:
    cells = (replace(cell, values=np.round(cell.values, DIGITS)) for cell in measured.cells)
    return replace(measured, cells=tuple(cells))
