"""Sequences through a model, batch by batch, to one measurement a sequence."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float

from graphhalu.extract.capture import capturing
from graphhalu.extract.forward import DeferredPass, body_below_head, read_likelihood
from graphhalu.models.load import LoadedModel
from graphhalu.studies.sinks.observer import Queries, SinkMass, SinkObserver
from graphhalu.studies.sinks.posing import Posed
from graphhalu.studies.sinks.records import QueryMode
from graphhalu.studies.sinks.settings import SinkMeasureConfig


class Measured(NamedTuple):
    """What the model gave of one sequence.

    Attributes:
        mass: Sink mass by window and query mode.
        entropy: Of the next-token distribution after the last token, in nat.
        option_logprobs: Log-probability of each option's letter; empty without options.
    """

    mass: dict[tuple[int, QueryMode], SinkMass]
    entropy: float
    option_logprobs: tuple[float, ...]

    @property
    def pred(self) -> int | None:
        """The likeliest option; ``None`` without options, in a tie, and where NaN came."""
        values = np.array(self.option_logprobs)
        if not values.size or np.isnan(values).any():
            return None
        best = np.flatnonzero(values == values.max())
        return int(best[0]) if len(best) == 1 else None


def measure_batches(
    loaded: LoadedModel, items: Sequence[Posed], config: SinkMeasureConfig
) -> Iterator[tuple[Posed, Measured]]:
    """Measure sequences, those of about equal length together."""
    ordered = sorted(items, key=lambda item: item.n_tokens)
    batch: list[Posed] = []
    for item in ordered:
        if batch and (len(batch) + 1) * item.sequence.length > config.batch_tokens:
            yield from zip(batch, run_batch(loaded, batch, config), strict=True)
            batch = []
        batch.append(item)
    if batch:
        yield from zip(batch, run_batch(loaded, batch, config), strict=True)


@torch.inference_mode()
def run_batch(
    loaded: LoadedModel, batch: Sequence[Posed], config: SinkMeasureConfig
) -> list[Measured]:
    """One pass over a batch that is padded on the right."""
    sequences = [item.sequence for item in batch]
    observer = SinkObserver(
        [Queries(item.n_tokens - 1, config.query_start) for item in batch],
        ks=config.ks, modes=config.modes,
        layer_windows=loaded.layer_windows, n_heads=loaded.n_heads,
    )  # fmt: skip
    token_ids, is_token = _padded(batch)
    device = next(loaded.model.parameters()).device
    # found by a pass of its own, whose attention must not be observed
    body = body_below_head(loaded.model)
    with capturing(loaded.model, observer):
        done = DeferredPass(
            loaded.model, body,
            input_ids=token_ids.to(device), attention_mask=is_token.long().to(device),
            position_ids=torch.arange(token_ids.shape[1], device=device).expand(len(batch), -1),
            use_cache=False,
        )  # fmt: skip
    likelihood = read_likelihood(done, sequences)
    return [
        Measured(
            {cell: observer.mass(index, *cell) for cell in observer.cells},
            float(likely.arrays()["token_entropy"][-1]),
            likely.option_logprobs,
        )
        for index, likely in enumerate(likelihood)
    ]


def span_shares(items: Sequence[Posed], k: int) -> dict[int, Float[np.ndarray, "token"]]:
    """Share of each named span among the tokens of the sink, by place."""
    codes = np.stack([item.sequence.span_code[:k] for item in items if item.n_tokens > k])
    return {int(code): (codes == code).mean(axis=0) for code in np.unique(codes)}


def _padded(batch: Sequence[Posed]) -> tuple[Any, Any]:
    width = max(item.sequence.length for item in batch)
    token_ids = torch.zeros(len(batch), width, dtype=torch.long)
    is_token: Bool[torch.Tensor, "trace token"] = torch.zeros(len(batch), width, dtype=torch.bool)
    for index, item in enumerate(batch):
        length = item.sequence.length
        token_ids[index, :length] = torch.from_numpy(item.sequence.token_ids.astype(np.int64))
        is_token[index, :length] = True
    return token_ids, is_token
