"""Settings that hold for every test."""

from __future__ import annotations

import os

# Before torch is loaded: threads that wait for the next small operator sleep instead of spinning, which on a shared
# machine takes the cores from each other and doubles the time of the suite.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("tests.harness", "tests.integration.browser", "tests.unit.examine.treated")

# Derandomized: the same examples on every run and machine. No deadline: the first call of an operator is slow.
settings.register_profile(
    "mednorm",
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("mednorm")


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Seed torch before each test, so that a test means the same alone and within the suite."""
    torch.manual_seed(0)
