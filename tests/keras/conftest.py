"""Settings of the Keras tests: one backend a process, and two replicas on TensorFlow."""

from __future__ import annotations

import os

import keras
import pytest
import torch

pytest.register_assert_rewrite("tests.keras.harness", "tests.keras.porting")

if os.environ["KERAS_BACKEND"] == "tensorflow":
    import tensorflow as tf

    # Before TensorFlow starts: two devices on one processor, for the tests of synchronized statistics.
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


@pytest.fixture(autouse=True)
def _same_random_numbers():
    """Seed Keras and torch before each test, so that a test means the same alone and within the suite."""
    keras.utils.set_random_seed(0)
    torch.manual_seed(0)
