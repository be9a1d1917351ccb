"""Options that spread work over a Ray cluster; the same for every command that can."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from graphhalu.engine.ray_actors import RayExecutor

Ray = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="[ADDRESS]",
        help="Spread the work over Ray: alone for this machine, auto, or HOST:PORT of a cluster "
        "that this machine is a node of (set RAY_AUTH_MODE=token on all nodes).",
    ),
]
Actors = Annotated[int | None, typer.Option("--ray-actors", min=1, help="Workers. [default: as many as fit]")]
Cpus = Annotated[
    int | None, typer.Option("--ray-cpus", min=1, help="CPUs and threads of a worker. [default: 1]")
]
Gpus = Annotated[float | None, typer.Option("--ray-gpus", min=0, help="GPUs of a worker. [default: 0]")]
Wait = Annotated[
    float | None,
    typer.Option("--ray-wait", min=0, help="Seconds to wait while no worker is ready. [default: 300]"),
]


def with_address(arguments: Sequence[str]) -> list[str]:
    """The same with ``--ray local`` for a ``--ray`` without an address."""
    given = list(arguments)
    return [
        "--ray=local"
        if word == "--ray" and (place + 1 == len(given) or given[place + 1].startswith("-"))
        else word
        for place, word in enumerate(given)
    ]


def ray_engine(
    address: str | None, actors: int | None, cpus: int | None, gpus: float | None, wait: float | None
) -> "RayExecutor | None":
    """The engine that is asked for; ``None`` if it is not Ray.

    Raises:
        UsageError: If the address is none, or a setting of workers has no Ray to go to.
    """
    from graphhalu.core.errors import UsageError

    given = {"n_actors": actors, "cpus": cpus, "gpus": gpus, "wait_s": wait}
    settings = {name: value for name, value in given.items() if value is not None}
    if address is None:
        if settings:
            message = "--ray-actors, --ray-cpus, --ray-gpus and --ray-wait go with --ray"
            raise UsageError(message)
        return None
    from graphhalu.engine.cluster import check_address
    from graphhalu.engine.ray_actors import RayExecutor

    check_address(address)
    if gpus is not None and gpus > 1 and gpus != int(gpus):
        message = f"a worker has a share of one GPU or whole ones, got {gpus:g}"
        raise UsageError(message)
    return RayExecutor(address=address, **settings)  # type: ignore[arg-type]


def use_threads(threads: int | None, jobs: int = 1) -> None:
    """Use so many CPU threads in this process; by default its share of the free cores."""
    import torch

    from graphhalu.models.resources import default_threads

    torch.set_num_threads(threads or max(1, default_threads() // jobs))
