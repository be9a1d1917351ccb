"""PyG modules as they come: made from what their signature names, and tried on a batch."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch_geometric.data import Batch

from graphhalu.core.errors import ConfigError, GraphhaluError, UsageError
from graphhalu.labels.labels import Level


def make_network(
    kind: Callable[..., nn.Module], sizes: Mapping[str, Any], given: Mapping[str, Any]
) -> nn.Module:
    """A network from those of ``sizes`` that its signature names, and the given arguments.

    ``sizes`` has ``in_channels`` (node features), ``edge_dim`` (weights of an edge),
    ``n_layers``, ``hidden_channels``, ``n_rounds``, ``dropout`` and ``level``.

    Raises:
        ConfigError: If it does not take a given argument; lists those that it takes.
        UsageError: If it cannot be made.
    """
    arguments = network_arguments(kind, sizes, given)
    try:
        return kind(**arguments)
    except GraphhaluError:
        raise
    except Exception as error:  # whatever a user's network raises
        name = getattr(kind, "__name__", kind)
        raise UsageError(f"{name}({', '.join(arguments)}) raised {type(error).__name__}: {error}") from error


def check_network(network: nn.Module, batch: Batch, level: Level) -> None:
    """Try a network on a batch, which also gives lazy layers their sizes.

    Raises:
        UsageError: If it raises, or gives something else than one logit a graph or answer token.
    """
    name = type(network).__name__
    n_expected = batch.num_graphs if level == "answer" else int(batch.is_answer.sum())
    what = "graph" if level == "answer" else "answer token"
    network.eval()
    try:
        with torch.no_grad():
            logits = network(batch)
    except Exception as error:  # whatever a user's network raises
        raise UsageError(f"{name}.forward(batch) raised {type(error).__name__}: {error}") from error
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    if shape != (n_expected,):
        raise UsageError(
            f"{name}.forward(batch) must give one logit a {what}, shape ({n_expected},) for a "
            f"batch of {batch.num_graphs} graphs, got {shape}"
        )


def network_arguments(
    kind: Callable[..., nn.Module], sizes: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Those of ``sizes`` that the signature names, and the given ones.

    Raises:
        ConfigError: If it does not take a given one; lists those that it takes.
    """
    parameters = inspect.signature(kind).parameters
    takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    unknown = [name for name in given if name not in parameters]
    if unknown and not takes_all:
        name = getattr(kind, "__name__", kind)
        raise ConfigError(f"{name} takes no argument {unknown[0]!r}; it takes {', '.join(parameters)}")
    return {**{n: value for n, value in sizes.items() if n in parameters}, **given}
