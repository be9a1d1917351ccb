"""A small network on one hidden state, trained with early stopping."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from graphhalu.detectors.base import DetectorCard
from graphhalu.detectors.probes.base import Model, ProbeDetector
from graphhalu.detectors.probes.hidden import layer_views
from graphhalu.detectors.probes.logistic import Scaling, balanced_weights
from graphhalu.detectors.probes.search import Fold, Learned, Side
from graphhalu.detectors.sides import auroc
from graphhalu.features.spec import FeatureSpec

WIDTHS: Final = (256, 128, 64, 1)
"""Outputs of each layer."""
EPOCHS: Final = 40
PATIENCE: Final = 6
BATCH: Final = 32
LEARNING_RATE: Final = 1e-3


@dataclass(frozen=True)
class NetworkModel:
    """Standardised columns through linear layers with ReLU between them.

    Attributes:
        scaling: Of the raw columns; those of other hidden states are not used.
        layers: Weight ``[output, input]`` and bias of each layer.
    """

    scaling: Scaling
    layers: tuple[tuple[Float[np.ndarray, "_ _"], Float[np.ndarray, "_"]], ...]

    @property
    def is_used(self) -> Bool[np.ndarray, "column"]:
        """Columns that it reads."""
        return self.scaling.is_used

    @property
    def n_parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(weight.size + bias.size for weight, bias in self.layers)

    def logits(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace"]:
        """One logit a trace; traces go through one by one, so that none depends on the others."""
        is_known = np.isfinite(values[:, self.scaling.is_used]).any(axis=1)
        scaled = self.scaling.apply(values)
        logits = [self._logit(np.ascontiguousarray(row)) for row in scaled]
        return np.where(is_known, np.array(logits, dtype=np.float64), np.nan)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that a saved model holds."""
        found = {name: getattr(self.scaling, name) for name in ("median", "scale", "mean")}
        for place, (weight, bias) in enumerate(self.layers):
            found |= {f"weight{place}": weight, f"bias{place}": bias}
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Model:
        """Inverse of :meth:`arrays`.

        Raises:
            KeyError: If one is missing.
            ValueError: If they do not fit each other.
        """
        scaling = Scaling(arrays["median"], arrays["scale"], arrays["mean"])
        layers = [(arrays[f"weight{p}"], arrays[f"bias{p}"]) for p in range(len(WIDTHS))]
        sizes = [int(scaling.is_used.sum()), *(len(bias) for _, bias in layers)]
        expected = list(zip(sizes[1:], sizes, strict=False))
        if [weight.shape for weight, _ in layers] != expected:
            message = f"layers of {[weight.shape for weight, _ in layers]}, expected {expected}"
            raise ValueError(message)
        return cls(scaling, tuple(layers))

    def _logit(self, state: Float[np.ndarray, "kept"]) -> float:
        for weight, bias in self.layers[:-1]:
            state = np.maximum(weight @ state + bias, 0.0)
        weight, bias = self.layers[-1]
        return float((weight @ state + bias)[0])


@final
class Saplma(ProbeDetector):
    """A feed-forward network on the hidden state of the last token.

    Summary:
        three-layer network on the last answer token's state in the middle layer

    Source:
        SAPLMA (Azaria & Mitchell 2023, arXiv:2304.13734): 256, 128 and 64 units, last token. Here
        the middle kept layer, balanced classes, at most 40 epochs and not 5, stopped by the AUROC
        of the validation side (of the training side where that has one class); the paper's layer is
        one of a list.
    """

    model_class: ClassVar[type[Model]] = NetworkModel
    stops_by_validation: ClassVar[bool] = True
    card: ClassVar[DetectorCard] = DetectorCard.of(__doc__, "saplma", "hidden", reads=("hidden",))

    def specs(self) -> tuple[FeatureSpec, ...]:
        """The last answer token in every kept layer."""
        return (FeatureSpec("state_last_answer"),)

    def learn(self, side: Side, folds: Sequence[Fold], validation: Side | None) -> Learned:
        """Train on the side; the epoch is that of the best validation AUROC."""
        views = layer_views(side.columns)
        layer = list(views)[len(views) // 2]
        scaling = Scaling.of(side.values[:, views[layer]]).widened(views[layer], side.values.shape[1])
        is_usable = validation is not None and len(np.unique(validation.labels)) > 1
        held_out = validation if validation is not None and is_usable else side
        layers, report = train(
            (scaling.apply(side.values), side.labels),
            (scaling.apply(held_out.values), held_out.labels),
            seed=self.config.seed,
        )
        model = NetworkModel(scaling, layers)
        return Learned(model, np.full(len(side.labels), np.nan), {"layer": layer, **report})


Data = tuple[Float[np.ndarray, "trace kept"], Int[np.ndarray, "trace"]]
OtherData = tuple[Float[np.ndarray, "other kept"], Int[np.ndarray, "other"]]


def train(
    side: Data, held_out: OtherData, *, seed: int
) -> tuple[tuple[tuple[np.ndarray, np.ndarray], ...], dict[str, Any]]:
    """Train by Adam on balanced cross-entropy; give the layers of the best epoch as float64."""
    inputs, labels = torch.from_numpy(side[0]).float(), torch.from_numpy(side[1]).float()
    weights = torch.from_numpy(balanced_weights(side[1])).float()
    tested = torch.from_numpy(held_out[0]).float()
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(inputs.shape[1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    best, best_epoch, kept = -1.0, 0, _layers(network)
    for epoch in range(1, EPOCHS + 1):
        shuffled = torch.randperm(len(inputs), generator=order)
        for start in range(0, len(inputs), BATCH):
            batch = shuffled[start : start + BATCH]
            optimiser.zero_grad()
            loss = _loss(network, inputs[batch], labels[batch], weights[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        with torch.inference_mode():
            reached = auroc(network(tested)[:, 0].numpy().astype(np.float64), held_out[1])
        if reached > best:
            best, best_epoch, kept = reached, epoch, _layers(network)
        if epoch - best_epoch >= PATIENCE:
            break
    return kept, {"epoch": best_epoch, "validation_auroc": best}


def _network(n_inputs: int) -> nn.Sequential:
    sizes = (n_inputs, *WIDTHS)
    steps: list[nn.Module] = []
    for before, after in zip(sizes, WIDTHS, strict=False):
        steps += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def _loss(network: nn.Module, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    return nn.functional.binary_cross_entropy_with_logits(network(inputs)[:, 0], labels, weights)


def _layers(network: nn.Sequential) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    return tuple(
        (step.weight.detach().double().numpy().copy(), step.bias.detach().double().numpy().copy())
        for step in network
        if isinstance(step, nn.Linear)
    )
