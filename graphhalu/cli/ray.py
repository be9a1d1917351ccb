"""Options that spread work over a Ray cluster; the same for every command that can."""

from typing import Any

from pydantic import Field

from graphhalu.cli import library
from graphhalu.core.config import Config
from graphhalu.core.errors import UsageError


class RayOptions(Config):
    """The cluster, and the workers on it."""

    ray: str | None = Field(default=None, serialization_alias="address")
    """Spread the work over Ray: alone for this machine, auto, or HOST:PORT of a cluster that this
    machine is a node of (set RAY_AUTH_MODE=token on all nodes)."""
    ray_actors: int | None = Field(default=None, ge=1, serialization_alias="n_actors")
    """Workers; by default as many as fit."""
    ray_cpus: int | None = Field(default=None, ge=1, serialization_alias="cpus")
    """CPUs and threads of a worker; by default 1."""
    ray_gpus: float | None = Field(default=None, ge=0, serialization_alias="gpus")
    """GPUs of a worker; by default 0."""
    ray_wait: float | None = Field(default=None, ge=0, serialization_alias="wait_s")
    """Seconds to wait while no worker is ready; by default 300."""

    def engine(self) -> Any:
        """The Ray executor that is asked for, or ``None``.

        Raises:
            UsageError: If the address is none, or a setting of workers has no Ray to go to.
        """
        given: dict[str, Any] = self.model_dump(by_alias=True, exclude_none=True)
        if self.ray is None:
            if given:
                raise UsageError("--ray-actors, --ray-cpus, --ray-gpus and --ray-wait go with --ray")
            return None
        library.check_address(self.ray)
        if self.ray_gpus is not None and self.ray_gpus > 1 and self.ray_gpus != int(self.ray_gpus):
            raise UsageError(f"a worker has a share of one GPU or whole ones, got {self.ray_gpus:g}")
        return library.RayExecutor(**given)
