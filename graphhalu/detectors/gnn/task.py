"""Training of a graph network: one Lightning task, the best weights kept in memory."""

import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader as PlainLoader
from torch.utils.data import Dataset
from torch_geometric.data import Batch, Data
from torch_geometric.loader import DataLoader
from torch_geometric.utils import scatter
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from graphhalu.core.errors import NonFiniteError, UsageError
from graphhalu.detectors.gnn.config import LOSS, PRECISION, NetworkConfig

_LOGGERS: Final = {"csv": CSVLogger, "tensorboard": TensorBoardLogger, "wandb": WandbLogger}


class GraphTask(pl.LightningModule):
    """Binary cross-entropy a graph, or an answer token.

    Args:
        network: Gives one logit for each value of ``batch.y``.
        positive_weight: Weight of hallucinated ones.
        config: Step size and weight decay of AdamW; at token level the weight of the loss of answers.
    """

    def __init__(self, network: nn.Module, positive_weight: float, config: NetworkConfig) -> None:
        super().__init__()
        self.network = network
        self.learning_rate, self.weight_decay = config.learning_rate, config.weight_decay
        self.answer_loss = getattr(config, "answer_loss", 0.0)
        self.register_buffer("positive_weight", torch.tensor(positive_weight))
        self.metrics = MetricCollection(
            {"validation_auroc": BinaryAUROC(), PRECISION: BinaryAveragePrecision()}
        )
        # a buffer, so that it comes back from other processes too
        self.register_buffer("progress", torch.tensor([torch.inf, -1, 0], dtype=torch.float64))

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Move a batch without a wait for the device."""
        return batch.to(device, non_blocking=True)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        """Loss of some traces."""
        loss = self._loss(self.network(batch), batch)
        if self.logger is not None:
            self.log("training_loss", loss, batch_size=len(batch.y))
        return loss

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        """Loss and metrics of the traces that decide when to stop."""
        logits = self.network(batch)
        self.metrics.update(logits, batch.y.long())
        loss = self._loss(logits, batch)
        self.log(LOSS, loss, batch_size=len(batch.y), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Log the metrics over all of them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # one class has neither; then the first epoch is as good as any
            found = self.metrics.compute()
        self.log_dict({name: value.nan_to_num() for name, value in found.items()})
        self.metrics.reset()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the network."""
        return torch.optim.AdamW(
            self.network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )

    def _loss(self, logits: Tensor, batch: Batch) -> Tensor:
        loss = binary_cross_entropy_with_logits(logits, batch.y, pos_weight=self.positive_weight)
        if not self.answer_loss:
            return loss
        owner = batch.batch[batch.is_answer]
        answers = [scatter(each, owner, reduce="max") for each in (logits, batch.y)]
        return loss + self.answer_loss * binary_cross_entropy_with_logits(*answers)


class BestWeights(EarlyStopping):
    """Stops as Lightning's callback does, and puts the weights of the best epoch back.

    Args:
        patience: Epochs without a better one before training stops.
        monitor: What makes an epoch better: a lower loss, or a higher average precision.
    """

    def __init__(self, patience: int, monitor: str = LOSS) -> None:
        mode = "min" if monitor == LOSS else "max"
        super().__init__(monitor, patience=patience, mode=mode, check_on_train_epoch_end=False)
        self.epoch, self.n_epochs, self.loss = -1, 0, torch.inf
        self.weights: Mapping[str, Tensor] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the weights of an epoch that is better than all before."""
        self.n_epochs += 1
        before = self.best_score.clone()
        super().on_validation_end(trainer, pl_module)
        if self.best_score != before:
            self.epoch, self.loss = trainer.current_epoch, float(trainer.callback_metrics[LOSS])
            weights = pl_module.network.state_dict()
            self.weights = {name: value.clone() for name, value in weights.items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put them back; here, so that a strategy with other processes hands them over."""
        if self.weights:
            pl_module.network.load_state_dict(self.weights)
        progress = [self.loss, self.epoch, self.n_epochs]
        pl_module.progress.copy_(torch.tensor(progress, dtype=torch.float64))


def train(
    network: nn.Module,
    training: Dataset[Data],
    stopping: Dataset[Data],
    positive_weight: float,
    config: NetworkConfig,
    *,
    log_folder: Path | None = None,
) -> dict[str, Any]:
    """Train in place; the network comes back on the CPU with its best weights.

    Args:
        network: Takes batches of the graphs. The order of batches follows from the state
            of torch's generator.
        training: Graphs with labels to learn from.
        stopping: Graphs with labels that decide when to stop; batched once.
        positive_weight: Weight of hallucinated ones.
        config: Loop, optimiser and devices.
        log_folder: Where the logger of the configuration writes; by default nothing is logged.

    Returns:
        Epochs that were run, the best of them from 0, and its validation loss.

    Raises:
        NonFiniteError: If the validation loss was never finite.
        UsageError: If this machine lacks the devices, or the logger's package is missing.
    """
    task = GraphTask(network, positive_weight, config)
    best = BestWeights(config.patience, config.stop_by)
    batches: Any = list(DataLoader(stopping, config.batch_size))  # the same ones after every epoch
    # only from page-locked memory does a copy not wait for the device
    has_pinned = accelerator(config) == "cuda" and torch.backends.cuda.is_built()  # type: ignore[no-untyped-call]
    loaders = [
        DataLoader(training, config.batch_size, shuffle=True, pin_memory=has_pinned),
        PlainLoader(batches, batch_size=None, pin_memory=has_pinned),
    ]
    network.train()  # Lightning leaves the mode as it finds it
    trainer = make_trainer(config, best, log_folder)
    with quiet_lightning():
        trainer.fit(task, *loaders)
    loss, best_epoch, n_epochs = task.progress.tolist()
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"training gave no finite validation loss in {int(n_epochs)} epochs\n"
            f"  Use a smaller learning_rate (now {config.learning_rate:g})"
        )
    network.cpu().eval()
    return {"n_epochs": int(n_epochs), "best_epoch": int(best_epoch), LOSS: loss}


def make_trainer(config: NetworkConfig, best: BestWeights, log_folder: Path | None = None) -> pl.Trainer:
    """A trainer without checkpoints and progress bar; logs only where a folder is given.

    Raises:
        UsageError: If this machine lacks the devices, or the logger's package is missing.
    """
    with quiet_lightning():
        return pl.Trainer(
            max_epochs=config.epochs,
            accelerator=accelerator(config),
            devices=config.devices,
            strategy="auto" if config.devices == 1 else "ddp_spawn",
            # inside a SLURM or torchrun job Lightning would otherwise wait for other ranks
            plugins=[LightningEnvironment()],
            callbacks=[best],
            gradient_clip_val=1.0,
            num_sanity_val_steps=0,
            logger=make_logger(config.logger, log_folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


def accelerator(config: NetworkConfig) -> str:
    """The device that a network is trained on: the GPU if there is one, unless it is named.

    Raises:
        UsageError: If the machine has fewer GPUs, or a process would have nothing to do.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if config.devices > config.batch_size:
        raise UsageError(
            f"{config.devices} devices share the {config.batch_size} traces of a step, so some "
            f"would idle\n  Use fewer devices, or a larger batch_size"
        )
    if config.accelerator == "cpu" or (config.accelerator == "auto" and not n_gpus):
        return "cpu"
    if n_gpus < config.devices:
        raise UsageError(
            f"{config.devices} GPUs are needed (accelerator {config.accelerator}), this machine "
            f"has {n_gpus}\n  Use fewer devices, or accelerator cpu"
        )
    return "cuda"


def make_logger(name: str, folder: Path | None) -> Logger | bool:
    """One of Lightning's loggers; ``False`` without a folder.

    Raises:
        UsageError: If its package is missing.
    """
    if folder is None or name == "none":
        return False
    kind: Any = _LOGGERS[name]
    try:
        logger: Logger = kind(save_dir=str(folder), name="")
    except ModuleNotFoundError as error:
        message = f"the logger {name!r} needs a package: pip install graphhalu[{name}]\n  {error}"
        raise UsageError(message[:300]) from None
    return logger


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Without the announcements that Lightning makes on every fit."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*does not have many workers.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
            warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's generators start from ``seed`` inside, and go on as if nothing was after it."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield
