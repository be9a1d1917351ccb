"""Probes of hidden states as published: SAPLMA and HaloScope.

SAPLMA is a small network on one hidden state, trained with early stopping. HaloScope takes
pseudo-labels from a subspace of one hidden layer, and a probe learns them.
"""

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from itertools import pairwise, product
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.utils.class_weight import compute_sample_weight
from torch import nn

from graphhalu.core.numerics import auroc
from graphhalu.core.splits import InnerFold
from graphhalu.detectors.inner_search import Learned, Side
from graphhalu.detectors.linear import Rotation, Scaling, l2_path
from graphhalu.detectors.probes import ProbeDetector, by_layer

WIDTHS: Final = (256, 128, 64, 1)
"""Outputs of each layer."""
EPOCHS: Final = 40
PATIENCE: Final = 6
BATCH: Final = 32
LEARNING_RATE: Final = 1e-3


class NetworkModel(NamedTuple):
    """Standardised columns through linear layers with ReLU between them, in float64.

    Attributes:
        scaling: Of the raw columns; those of other hidden states are not used.
        network: Reads the used columns.
    """

    scaling: Scaling
    network: nn.Sequential

    @property
    def is_used(self) -> Bool[np.ndarray, "column"]:
        """Columns that it reads."""
        return self.scaling.is_used

    @property
    def n_parameters(self) -> int:
        """Weights and biases of all layers."""
        return sum(each.numel() for each in self.network.parameters())

    def logits(self, values: Float[np.ndarray, "trace column"]) -> Float[np.ndarray, "trace"]:
        """One logit a trace; traces go through one by one, so that none depends on the others."""
        is_known = np.isfinite(values[:, self.is_used]).any(axis=1)
        with torch.inference_mode():
            logits = [self.network(row).item() for row in torch.from_numpy(self.scaling.apply(values))]
        return np.where(is_known, np.array(logits, dtype=np.float64), np.nan)

    def arrays(self) -> dict[str, np.ndarray]:
        """All that a saved model holds."""
        found = {name: getattr(self.scaling, name) for name in ("median", "scale", "mean")}
        for place, layer in enumerate(_linear_layers(self.network)):
            found[f"weight{place}"] = layer.weight.detach().numpy()
            found[f"bias{place}"] = layer.bias.detach().numpy()
        return found

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "NetworkModel":
        """Inverse of :meth:`arrays`.

        Raises:
            KeyError: If one is missing.
            RuntimeError: If the weights do not fit the layers.
        """
        scaling = Scaling(arrays["median"], arrays["scale"], arrays["mean"])
        widths = [len(arrays[f"bias{place}"]) for place in range(len(WIDTHS))]
        network = _network(int(scaling.is_used.sum()), widths).double()
        for place, layer in enumerate(_linear_layers(network)):
            state = {name: torch.from_numpy(arrays[f"{name}{place}"].copy()) for name in ("weight", "bias")}
            layer.load_state_dict(state)
        return cls(scaling, network)


def learn_network(side: Side, folds: Sequence[InnerFold]) -> Learned:
    """Train on all of the side for as many epochs as were best on the held-out part of its first fold."""
    views = by_layer(side.columns)
    layer = list(views)[len(views) // 2]
    scaling = Scaling.of(side.values[:, views[layer]]).widened(views[layer], side.values.shape[1])
    inputs, report = scaling.apply(side.values), dict[str, Any]()
    for learnt_from, held_out in folds[:1]:
        tested = inputs[held_out], side.labels[held_out]
        _, report = train((inputs[learnt_from], side.labels[learnt_from]), tested, seed=side.seed)
    network, _ = train((inputs, side.labels), n_epochs=report.get("epoch", EPOCHS), seed=side.seed)
    model = NetworkModel(scaling, network)
    return Learned(model, np.full(len(side.labels), np.nan), {"layer": layer, **report})


Saplma: Final = ProbeDetector.variant("saplma", __name__, learn=learn_network, model_class=NetworkModel)


def train(
    side: tuple[Float[np.ndarray, "trace kept"], Int[np.ndarray, "trace"]],
    held_out: tuple[Float[np.ndarray, "other kept"], Int[np.ndarray, "other"]] | None = None,
    *,
    n_epochs: int = EPOCHS,
    seed: int,
) -> tuple[nn.Sequential, dict[str, Any]]:
    """Train by Adam on balanced cross-entropy; return the network in float64.

    It is that of the epoch with the best AUROC on held-out traces, or of the last epoch without them.
    """
    inputs, labels = torch.from_numpy(side[0]).float(), torch.from_numpy(side[1]).float()
    weights = torch.from_numpy(compute_sample_weight("balanced", side[1])).float()
    tested = None if held_out is None else (torch.from_numpy(held_out[0]).float(), held_out[1])
    order = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(inputs.shape[1])
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    best, best_epoch, kept = -1.0, 0, deepcopy(network)
    for epoch in range(1, n_epochs + 1):
        for batch in torch.split(torch.randperm(len(inputs), generator=order), BATCH):
            optimiser.zero_grad()
            logits = network(inputs[batch])[:, 0]
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels[batch], weights[batch])
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        if tested is None:
            continue
        with torch.inference_mode():
            reached = auroc(network(tested[0])[:, 0].numpy().astype(np.float64), tested[1])
        if reached > best:
            best, best_epoch, kept = reached, epoch, deepcopy(network)
        if epoch - best_epoch >= PATIENCE:
            break
    if held_out is None:
        return network.double(), {}
    return kept.double(), {"epoch": best_epoch, "inner_auroc": best}


def _network(n_inputs: int, widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    steps: list[nn.Module] = []
    for before, after in pairwise((n_inputs, *widths)):
        steps += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def _linear_layers(network: nn.Sequential) -> list[nn.Linear]:
    return [step for step in network if isinstance(step, nn.Linear)]


N_COMPONENTS: Final = (1, 2, 4, 8)
QUANTILES: Final = (0.3, 0.5, 0.7, 0.85)
"""Shares of the training traces below the threshold on the membership score."""
STRENGTHS: Final = (0.1, 0.3, 1.0)
"""As of :func:`l2_path`."""
Subspace = tuple[float, Float[np.ndarray, "trace"], dict[str, Any]]
"""AUROC on the training traces, membership of each trace, and what names the subspace."""
_N_LAYERS: Final = 10


def learn_pseudo_labels(side: Side, _: Sequence[InnerFold]) -> Learned:
    """Learn pseudo-labels; true labels only choose between a few subspaces and quantiles.

    At most ten layers, evenly spread, are looked at.
    """
    layers = by_layer(side.columns)
    names = list(layers)
    picked = np.unique(np.linspace(0, len(names) - 1, _N_LAYERS).round().astype(int))
    separation, membership, about = max(
        (found for place in picked for found in _subspaces(side, names[place], layers[names[place]])),
        key=lambda subspace: subspace[0],
    )
    chosen = layers[about["layer"]]
    scaling = Scaling.of(side.values[:, chosen])
    rotation = Rotation.of(scaling.apply(side.values[:, chosen]))
    pseudo = {q: (membership > np.quantile(membership, q)).astype(np.int64) for q in QUANTILES}
    fitted = [
        (auroc(rotation.scores @ found.weight, side.labels), quantile, found)
        for quantile, labels in pseudo.items()
        for found in l2_path(rotation.scores, labels, STRENGTHS)
    ]
    reached, quantile, solution = max(fitted, key=lambda entry: entry[0])
    wide = scaling.widened(chosen, side.values.shape[1])
    model = wide.linear(rotation.columns(solution.weight), solution.bias)
    report = {**about, "quantile": quantile, "membership_auroc": separation, "train_auroc": reached}
    return Learned(model, np.full(len(side.labels), np.nan), report)


Haloscope: Final = ProbeDetector.variant("haloscope", __name__, learn=learn_pseudo_labels)


def membership_score(
    scores: Float[np.ndarray, "trace component"], n_components: int, *, is_weighted: bool
) -> Float[np.ndarray, "trace"]:
    """``zeta = mean over the first k components j of w_j (h · v_j)^2``.

    Args:
        scores: Centred states in their principal axes, largest variance first.
        n_components: ``k``.
        is_weighted: Whether ``w_j`` is the component's singular value, or 1.
    """
    squares = np.square(scores[:, :n_components])
    weights = np.linalg.norm(scores[:, :n_components], axis=0) if is_weighted else 1.0
    return (squares * weights).mean(axis=1)


def _subspaces(side: Side, layer: str, chosen: Int[np.ndarray, "chosen"]) -> Iterator[Subspace]:
    """Every choice within one layer; higher membership is hallucinated."""
    values = side.values[:, chosen]
    scaling = Scaling.of(values)
    # the method centres and does not scale
    centred = scaling.apply(values) / scaling.scale[scaling.is_used]
    scores = Rotation.of(centred, max(N_COMPONENTS)).scores
    for number, is_weighted in product(N_COMPONENTS, (True, False)):
        membership = membership_score(scores, number, is_weighted=is_weighted)
        reached = auroc(membership, side.labels)
        sign = 1 if reached >= 0.5 else -1  # noqa: PLR2004
        report = {"layer": layer, "n_components": number, "is_weighted": is_weighted, "sign": sign}
        yield max(reached, 1 - reached), sign * membership, report
