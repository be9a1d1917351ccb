"""What every test shares: one thread, no network, a cache that is not the user's."""

import os
from pathlib import Path

import pytest

# threads that wait for each other on shared cores make small models ten times slower
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data():
    """Published data sets beside the checkout; they are not part of the project."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the published data sets are not at {SHARED_DATA}")
    return SHARED_DATA


# a package of its own, which tests/test_plugin_template.py installs and runs
collect_ignore = ["plugin_template"]
