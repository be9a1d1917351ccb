"""A folder in which pages and notebooks run: with a small store of the embedded model."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import docs  # noqa: E402


@pytest.fixture(scope="session")
def workplace(tmp_path_factory):
    """Where the second notebook has run, which makes the store that others read."""
    folder = tmp_path_factory.mktemp("docs")
    os.environ["GRAPHHALU_THREADS"] = "1"
    docs.execute(ROOT / "docs" / "notebooks" / "2_comparison.md", folder)
    return folder
