"""How a graph network is trained: one Lightning task, best weights kept in memory."""

import logging
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, final

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from graphhalu.detectors.graph_pack import GraphPack
from graphhalu.detectors.networks.base import GraphNetwork
from graphhalu.detectors.sides import auroc
from graphhalu.errors import NonFiniteError

_LOSS: Final = "validation_loss"
_AUROC: Final = "validation_auroc"
_WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
_QUIET_WARNINGS: Final = (
    # Lightning's own use of torch's tree utilities
    ".*LeafSpec.*is deprecated.*",
)
_QUIET_LOGGERS: Final = ("lightning.pytorch", "lightning.fabric", "lightning_utilities")
"""They announce devices and reasons to stop, which nobody asked for, on every fit."""


class TrainingSettings(NamedTuple):
    """What the loop needs to know."""

    epochs: int
    patience: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int


class TrainingReport(NamedTuple):
    """What came of it.

    Attributes:
        n_epochs: Epochs that were run.
        best_epoch: Epoch whose weights were kept, from 0; -1 = those before the first step.
        validation_loss: Its loss over the mean logits of the validation traces.
        validation_auroc: Its AUROC over them; ``None`` if they are all of one class.
    """

    n_epochs: int
    best_epoch: int
    validation_loss: float
    validation_auroc: float | None


class GraphTask(pl.LightningModule):
    """Binary cross-entropy a graph in training, a trace in validation.

    Args:
        network: Trained in place.
        train: Graphs to learn from.
        validation: Graphs that decide when to stop.
        positive_weight: Weight of hallucinated graphs: correct over hallucinated in training.
        settings: Optimiser settings.
    """

    def __init__(
        self,
        network: GraphNetwork,
        train: GraphPack,
        validation: GraphPack,
        positive_weight: float,
        settings: TrainingSettings,
    ) -> None:
        super().__init__()
        self.network, self.train_graphs, self.validation_graphs = network, train, validation
        self.settings = settings
        self.register_buffer("positive_weight", torch.tensor(positive_weight))
        self._seen: list[tuple[Tensor, Tensor]] = []

    def training_step(self, traces: Tensor, batch_index: int) -> Tensor:
        """Loss over the graphs of some traces."""
        batch = self.train_graphs.batch(traces)
        logits = self.network(batch) + batch.start
        return self._loss(logits, batch.y.expand_as(logits))

    def validation_step(self, traces: Tensor, batch_index: int) -> None:
        """Collect the mean logit of each trace."""
        batch = self.validation_graphs.batch(traces)
        self._seen.append((self.network(batch).mean(0) + batch.start, batch.y))

    def on_validation_epoch_end(self) -> None:
        """Log loss and AUROC over the traces."""
        logits, labels = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        loss, found = self._figures(logits, labels)
        self.log(_LOSS, loss)
        self.log(_AUROC, found)

    def at_start(self) -> tuple[float, float]:
        """Loss and AUROC over the validation traces where the network still says 0."""
        logits, labels = self.validation_graphs.start, self.validation_graphs.y
        loss, found = self._figures(logits, labels)
        return float(loss), found

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the network."""
        return torch.optim.AdamW(
            self.network.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            fused=True,
        )

    def _figures(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, float]:
        known = auroc_or_nan(logits.double().cpu().numpy(), labels.double().cpu().numpy())
        return self._loss(logits, labels), known

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, labels, pos_weight=self.positive_weight)


class BestWeights(pl.Callback):
    """Keeps the weights of the best epoch in memory, and stops when none comes any more.

    The best epoch has the highest AUROC on the validation side; of equals, or where that side has
    one class only, the one with the lowest loss.

    Args:
        patience: Epochs without a better one before training stops.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.loss, self.auroc = float("inf"), float("nan")
        self.epoch = -1  # before the first
        self.weights: Mapping[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at an epoch."""
        loss, found = (float(trainer.callback_metrics[name]) for name in (_LOSS, _AUROC))
        weights = pl_module.network.state_dict()
        if not self.see(trainer.current_epoch, loss, found, weights):
            trainer.should_stop = True

    def see(self, epoch: int, loss: float, auroc: float, weights: Mapping[str, Tensor]) -> bool:
        """Copy the weights of an epoch that is better than all before; false = stop here."""
        if np.isfinite(loss) and self._is_better(loss, auroc):
            self.loss, self.auroc, self.epoch = loss, auroc, epoch
            self.weights = {name: value.clone() for name, value in weights.items()}
        return epoch - max(self.epoch, 0) < self.patience

    def _is_better(self, loss: float, found: float) -> bool:
        if not self.weights:
            return True
        if np.isnan(found):
            return loss < self.loss
        return (found, -loss) > (self.auroc, -self.loss)


@final
class TraceBatches(Iterable[Tensor]):
    """Numbers of the traces of each step; Lightning walks over every field of richer batches.

    Args:
        n_traces: Traces of the side.
        batch_size: Traces a step.
        generator: Shuffles them anew each epoch; without, they stay in order.
    """

    def __init__(
        self, n_traces: int, batch_size: int, generator: torch.Generator | None = None
    ) -> None:
        self.n_traces, self.batch_size, self.generator = n_traces, batch_size, generator

    def __len__(self) -> int:
        """Steps of an epoch."""
        return math.ceil(self.n_traces / self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        """One epoch."""
        order = torch.arange(self.n_traces)
        if self.generator is not None:
            order = torch.randperm(self.n_traces, generator=self.generator)
        return iter(torch.split(order, self.batch_size))


def train_network(
    network: GraphNetwork,
    train: GraphPack,
    validation: GraphPack,
    positive_weight: float,
    settings: TrainingSettings,
) -> TrainingReport:
    """Train in place and put the best weights back; the network comes back on the CPU.

    The graphs go to the GPU once, if there is one; batches are made there.

    Args:
        network: Its standardisation is set already.
        train: Graphs to learn from; each epoch draws its own batches.
        validation: Graphs that decide when to stop.
        positive_weight: Weight of hallucinated graphs.
        settings: Loop and optimiser.

    Raises:
        NonFiniteError: If the validation loss was never finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    task = GraphTask(network, train.to(device), validation.to(device), positive_weight, settings)
    best, generator = BestWeights(settings.patience), torch.Generator().manual_seed(settings.seed)
    if network.starts_as_is:
        loss, found = task.to(device).at_start()
        best.see(-1, loss, found, network.state_dict())
    with _quiet(), _deterministic_flags_kept():
        trainer = _trainer(settings, best, device)
        trainer.fit(
            task,
            TraceBatches(len(train), settings.batch_size, generator),
            TraceBatches(len(validation), settings.batch_size),
        )
    if not best.weights:
        message = (
            f"training gave no finite validation loss in {trainer.current_epoch} epochs\n"
            f"  Use a smaller learning_rate (now {settings.learning_rate:g})"
        )
        raise NonFiniteError(message)
    network.load_state_dict(best.weights)
    network.cpu().eval()
    known = None if np.isnan(best.auroc) else best.auroc
    return TrainingReport(trainer.current_epoch, best.epoch, best.loss, known)


def auroc_or_nan(scores: Float[np.ndarray, "trace"], labels: Float[np.ndarray, "trace"]) -> float:
    """As :func:`graphhalu.detectors.sides.auroc`; NaN with one class or an unknown score."""
    is_defined = 0 < labels.sum() < len(labels) and np.isfinite(scores).all()
    return auroc(scores, labels) if is_defined else float("nan")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators start from ``seed`` inside, and go on as if nothing was after it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _trainer(settings: TrainingSettings, best: BestWeights, device: torch.device) -> Any:
    """A trainer that writes nothing: no checkpoint, no log, no progress bar."""
    return pl.Trainer(
        max_epochs=settings.epochs,
        accelerator=device.type,
        devices=1,
        # inside a SLURM or torchrun job Lightning would otherwise wait for other ranks
        plugins=[LightningEnvironment()],
        callbacks=[best],
        # deterministic kernels wherever there are any; True would make a GPU training fail where
        # a kernel has none. On the CPU all have one: scores are exactly reproducible.
        deterministic="warn",
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in _QUIET_LOGGERS]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            for pattern in _QUIET_WARNINGS:
                warnings.filterwarnings("ignore", message=pattern)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _deterministic_flags_kept() -> Iterator[None]:
    """Lightning's ``deterministic`` sets flags of the whole process; put them back."""
    is_on = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark, workspace = torch.backends.cudnn.benchmark, os.environ.get(_WORKSPACE)
    try:
        yield
    finally:
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace
        torch.use_deterministic_algorithms(is_on, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
