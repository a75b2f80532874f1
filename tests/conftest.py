"""What all tests share: one thread a process, and selectors whose predictions are known."""

import os

# Set before torch is imported: tests run in parallel, and threads would only get in each other's way.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from synthetic_selector import synthetic_predictor

from autoopt.meta import artifact


@pytest.fixture
def predictor():
    """A selector that expects each role group to gain 26 % from four times the default's rate."""
    return synthetic_predictor()


@pytest.fixture
def artifact_path(tmp_path, predictor):
    """The same selector as an artifact file."""
    path = tmp_path / "selector.npz"
    artifact.save(predictor, path)
    return path
