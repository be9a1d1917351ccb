"""How a graph network is trained: one Lightning task, best weights kept in memory."""

import copy
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple, final

import lightning.pytorch as pl
import numpy as np
import torch
from jaxtyping import Float
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from graphhalu.detectors.graph_pack import GraphPack
from graphhalu.detectors.lightning_manners import deterministic_flags_kept, quiet
from graphhalu.detectors.networks.base import GraphNetwork
from graphhalu.detectors.ranks import joined_by, training_device
from graphhalu.detectors.sides import auroc
from graphhalu.errors import NonFiniteError

_LOSS: Final = "validation_loss"
_AUROC: Final = "validation_auroc"
_TRAIN: Final = "train.safetensors"
_VALIDATION: Final = "validation.safetensors"
_PEER_TIMEOUT: Final = timedelta(minutes=10)
"""A rank that is silent for so long is lost; a step takes seconds."""


class TrainingSettings(NamedTuple):
    """What the loop needs to know.

    ``batch_size`` counts the traces of a step over all processes.
    """

    epochs: int
    patience: int
    learning_rate: float
    weight_decay: float
    batch_size: int
    seed: int
    devices: int = 1
    accelerator: str = "auto"


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

    Every process sees the numbers of all traces of a step and takes its share of them. The loss
    of a share counts by its size, so that the mean gradient over processes, which they all step
    by, is that of the whole batch. Validation is put together before it is judged, so that all
    processes keep and stop at the same epoch, which one alone would.

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
        self._logits = torch.zeros(0)

    def training_step(self, traces: Tensor, batch_index: int) -> Tensor:
        """Loss over the graphs of this process's share of some traces."""
        share = self._share(traces)
        weight = len(share) * self.trainer.world_size / len(traces)
        # without a share, one trace at no weight: every process takes part in every step
        batch = self.train_graphs.batch(share if len(share) else traces[:1])
        logits = self.network(batch) + batch.start
        return weight * self._loss(logits, batch.y.expand_as(logits))

    def on_validation_epoch_start(self) -> None:
        """Forget the last epoch."""
        self._logits = torch.zeros_like(self.validation_graphs.start)

    def validation_step(self, traces: Tensor, batch_index: int) -> None:
        """Keep the mean logit of each trace of the share."""
        share = self._share(traces)
        if len(share):
            batch = self.validation_graphs.batch(share)
            self._logits[share] = self.network(batch).mean(0) + batch.start

    def on_validation_epoch_end(self) -> None:
        """Log loss and AUROC over the traces of all processes."""
        # each trace is one process's, and 0 elsewhere
        logits = self.trainer.strategy.reduce(self._logits, reduce_op="sum")
        loss, found = self._figures(logits, self.validation_graphs.y)
        self.log(_LOSS, loss, sync_dist=True)
        self.log(_AUROC, found, sync_dist=True)

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

    def _share(self, traces: Tensor) -> Tensor:
        return traces[self.global_rank :: self.trainer.world_size]

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

    The graphs go to the GPU once, if there is one; batches are made there. With several devices
    the batches are those of one, spread over processes: without dropout the result is the same
    but for rounding; with it, each process drops by a generator of its own.

    Args:
        network: Its standardisation is set already.
        train: Graphs to learn from; each epoch draws its own batches.
        validation: Graphs that decide when to stop.
        positive_weight: Weight of hallucinated graphs.
        settings: Loop, optimiser and devices.

    Raises:
        NonFiniteError: If the validation loss was never finite.
        ProcessLostError: If a process that trains along is lost.
        UsageError: If this machine lacks the devices.
    """
    task = GraphTask(network, train, validation, positive_weight, settings)
    best, n_epochs = _fit(task) if settings.devices == 1 else _fit_together(task)
    if not best.weights:
        message = (
            f"training gave no finite validation loss in {n_epochs} epochs\n"
            f"  Use a smaller learning_rate (now {settings.learning_rate:g})"
        )
        raise NonFiniteError(message)
    network.load_state_dict(best.weights)
    network.cpu().eval()
    known = None if np.isnan(best.auroc) else best.auroc
    return TrainingReport(n_epochs, best.epoch, best.loss, known)


def _fit_together(task: GraphTask) -> tuple[BestWeights, int]:
    """As :func:`_fit`, with other processes."""
    settings = task.settings
    with TemporaryDirectory(prefix="graphhalu-") as folder:
        task.train_graphs.write(Path(folder, _TRAIN))
        task.validation_graphs.write(Path(folder, _VALIDATION))
        # a copy, since tensors that are sent are shared from then on
        sent = (copy.deepcopy(task.network), float(task.positive_weight), settings)
        with joined_by(settings.devices, _other_fit, Path(folder), *sent):
            return _fit(task)


def _other_fit(
    folder: Path, network: GraphNetwork, positive_weight: float, settings: TrainingSettings
) -> Callable[[], object]:
    """The part of a process that was started to train along; what it keeps is thrown away."""
    train, validation = (GraphPack.read(folder / name) for name in (_TRAIN, _VALIDATION))
    # all that were started hold the same memory
    task = GraphTask(copy.deepcopy(network), train, validation, positive_weight, settings)
    torch.manual_seed(settings.seed + int(os.environ["LOCAL_RANK"]))
    return partial(_fit, task)


def _fit(task: GraphTask) -> tuple[BestWeights, int]:
    """One process's part: the best weights and the epochs that were run."""
    settings, network = task.settings, task.network
    kind = training_device(settings.devices, settings.accelerator, settings.batch_size)
    rank = int(os.environ["LOCAL_RANK"]) if settings.devices > 1 else 0
    device = torch.device(kind.type, rank) if kind.type == "cuda" else kind
    task.train_graphs, task.validation_graphs = (
        side.to(device) for side in (task.train_graphs, task.validation_graphs)
    )
    best, generator = BestWeights(settings.patience), torch.Generator().manual_seed(settings.seed)
    if network.starts_as_is:
        loss, found = task.to(device).at_start()
        best.see(-1, loss, found, network.state_dict())
    with quiet(), deterministic_flags_kept():
        trainer = _trainer(settings, best, kind)
        trainer.fit(
            task,
            TraceBatches(len(task.train_graphs), settings.batch_size, generator),
            TraceBatches(len(task.validation_graphs), settings.batch_size),
        )
    return best, trainer.current_epoch


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
        devices=settings.devices,
        strategy="auto" if settings.devices == 1 else _together(),
        use_distributed_sampler=False,  # the task shares traces out
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


def _together() -> DDPStrategy:
    """Gradients are averaged over processes; they meet by gloo on CPUs and NCCL on GPUs.

    A network that leaves some of its weights without a gradient is refused by torch here.
    """
    return DDPStrategy(timeout=_PEER_TIMEOUT)
