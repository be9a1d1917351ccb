"""Settings of the server."""

from typing import Final

from pydantic import Field

from graphhalu.core.config import Config

API_KEY: Final = "GRAPHHALU_API_KEY"
"""Environment variable of the key that requests must bring; without it none is asked for."""
LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""Addresses of this machine."""


class ServeConfig(Config):
    """Settings of a server."""

    host: str = "127.0.0.1"
    """Address to listen on; others than loopback need an API key in GRAPHHALU_API_KEY."""
    port: int = Field(default=8000, ge=0, le=65535)
    """Port; 0 takes a free one."""
    max_batch: int = Field(default=8, ge=1)
    """Answers that are written together."""
    queue_size: int = Field(default=64, ge=1)
    """Requests that wait; further ones are refused with 429."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds from a request's arrival to its last token."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Longest answer of a request that states none, in tokens."""
    max_total_tokens: int = Field(default=2048, ge=2)
    """Most tokens of prompt and answer of a request."""
    max_body_bytes: int = Field(default=2**20, ge=1)
    """Largest body of a request."""
    log_prompts: bool = False
    """Whether prompts and answers are written to the log."""
