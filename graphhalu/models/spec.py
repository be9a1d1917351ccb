"""Settings of a model: its name, and how it is loaded."""

from typing import Literal

from pydantic import Field, model_validator

from graphhalu.core.config import Config


class ModelSpec(Config):
    """A language model and how to load it."""

    name: str = "smollm2"
    """Alias, hub id, local folder, or GGUF file."""
    revision: str | None = None
    """Revision of a hub model."""
    quantization: Literal["none", "int8", "nf4"] = "none"
    """Quantisation at load; a model stored quantised loads as it is."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Number format; auto is float32 on a CPU and bfloat16 on a GPU that has it."""
    device: str = "auto"
    """``auto`` takes a GPU where there is one."""
    threads: int | None = Field(default=None, ge=1)
    """CPU threads; by default the cores that no other work uses."""
    trust_remote_code: str | None = None
    """``NAME@REVISION`` of this model, whose own code may run; no code of a model runs else."""

    @model_validator(mode="after")
    def _remote_code_is_pinned(self) -> "ModelSpec":
        if self.trust_remote_code is None:
            return self
        name, _, revision = self.trust_remote_code.rpartition("@")
        if name != self.name or not revision:
            raise ValueError(
                f"code from a repository may run only by name and revision: expected "
                f"{self.name}@REVISION, got {self.trust_remote_code!r}"
            )
        if self.revision not in (None, revision):
            raise ValueError(f"the revisions differ: {self.revision!r} of the model, {revision!r} of code")
        return self
