"""How a graph network is trained: one Lightning task, best weights kept in memory."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Final, NamedTuple, final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset
from torch_geometric.data import Data

from graphhalu.detectors.graph_batches import mean_by_trace
from graphhalu.detectors.networks.base import GraphNetwork
from graphhalu.errors import NonFiniteError

_MONITOR: Final = "validation_loss"
_WORKSPACE: Final = "CUBLAS_WORKSPACE_CONFIG"
_QUIET_WARNINGS: Final = (
    # batches lie in memory: a worker process would only copy them
    ".*does not have many workers.*",
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
    seed: int


class TrainingReport(NamedTuple):
    """What came of it.

    Attributes:
        n_epochs: Epochs that were run.
        best_epoch: Epoch whose weights were kept, from 0.
        validation_loss: Its loss over the mean logits of the validation traces.
    """

    n_epochs: int
    best_epoch: int
    validation_loss: float


class GraphTask(pl.LightningModule):
    """Binary cross-entropy a graph in training, a trace in validation.

    Args:
        network: Trained in place.
        positive_weight: Weight of hallucinated graphs: correct over hallucinated in training.
        settings: Optimiser settings.
    """

    def __init__(
        self, network: GraphNetwork, positive_weight: float, settings: TrainingSettings
    ) -> None:
        super().__init__()
        self.network = network
        self.settings = settings
        self.register_buffer("positive_weight", torch.tensor(positive_weight))
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def training_step(self, batch: Data, batch_index: int) -> Tensor:
        """Loss over the graphs of a batch."""
        return self._loss(self.network(batch), batch.y)

    def validation_step(self, batch: Data, batch_index: int) -> None:
        """Collect logits: the graphs of a trace may lie in two batches."""
        self._seen.append((self.network(batch), batch.trace, batch.y))

    def on_validation_epoch_end(self) -> None:
        """Log the loss over the mean logit of each trace."""
        logits, trace, label = (torch.cat(parts) for parts in zip(*self._seen, strict=True))
        self._seen.clear()
        n_traces = int(trace.max()) + 1
        loss = self._loss(
            mean_by_trace(logits, trace, n_traces), mean_by_trace(label, trace, n_traces)
        )
        self.log(_MONITOR, loss)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the network."""
        return torch.optim.AdamW(
            self.network.parameters(),
            lr=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
        )

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(logits, labels, pos_weight=self.positive_weight)


class BestWeights(pl.Callback):
    """Keeps the weights of the epoch with the lowest validation loss, in memory."""

    def __init__(self) -> None:
        self.loss = float("inf")
        self.epoch = -1
        self.weights: Mapping[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Copy the weights where they are better than all before."""
        loss = float(trainer.callback_metrics[_MONITOR])
        if loss < self.loss:
            self.loss, self.epoch = loss, trainer.current_epoch
            self.weights = deepcopy(pl_module.network.state_dict())


@final
class _Batches(Dataset[Data]):
    """Batches that are collated already."""

    def __init__(self, batches: Sequence[Data]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Data:
        return self.batches[index]


def train_network(
    network: GraphNetwork,
    train: Sequence[Data],
    validation: Sequence[Data],
    positive_weight: float,
    settings: TrainingSettings,
) -> TrainingReport:
    """Train in place and put the best weights back; the network comes back on the CPU.

    Args:
        network: Its standardisation is set already.
        train: Collated batches; their order is shuffled every epoch.
        validation: Collated batches.
        positive_weight: Weight of hallucinated graphs.
        settings: Loop and optimiser.

    Raises:
        NonFiniteError: If the validation loss was never finite.
    """
    task, best = GraphTask(network, positive_weight, settings), BestWeights()
    generator = torch.Generator().manual_seed(settings.seed)
    with _quiet(), _deterministic_flags_kept():
        trainer = _trainer(settings, best)
        trainer.fit(
            task,
            DataLoader(_Batches(train), batch_size=None, shuffle=True, generator=generator),
            DataLoader(_Batches(validation), batch_size=None, generator=generator),
        )
    if best.epoch < 0:
        message = (
            f"training gave no finite validation loss in {trainer.current_epoch} epochs\n"
            f"  Use a smaller learning_rate (now {settings.learning_rate:g})"
        )
        raise NonFiniteError(message)
    network.load_state_dict(best.weights)
    network.cpu().eval()
    return TrainingReport(trainer.current_epoch, best.epoch, best.loss)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators start from ``seed`` inside, and go on as if nothing was after it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def _trainer(settings: TrainingSettings, best: BestWeights) -> Any:
    """A trainer that writes nothing: no checkpoint, no log, no progress bar."""
    return pl.Trainer(
        max_epochs=settings.epochs,
        accelerator="auto",
        devices=1,
        # inside a SLURM or torchrun job Lightning would otherwise wait for other ranks
        plugins=[LightningEnvironment()],
        callbacks=[best, EarlyStopping(_MONITOR, patience=settings.patience, mode="min")],
        # deterministic kernels wherever there are any; True would make a GPU training fail where
        # PyG uses one without. On the CPU all have one: scores are exactly reproducible.
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
