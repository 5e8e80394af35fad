"""Every Keras layer passes the suite of tests/keras/harness.py."""

from __future__ import annotations

import pytest

from mednorm.keras import BatchRenormLayer, BNLayer, MovingBNLayer, RangeBNLayer
from tests.keras.harness import *  # noqa: F403
from tests.keras.harness import LayerSpec
from tests.oracle.keras_norm import KerasOracle, MovingOracle, RangeOracle, RenormOracle


@pytest.fixture(
    params=[
        LayerSpec("bn", BNLayer, KerasOracle),
        LayerSpec("bn with other constants", BNLayer, KerasOracle, {"momentum": 0.7, "epsilon": 1e-5}, variant=True),
        LayerSpec("range", RangeBNLayer, RangeOracle, {"momentum": 0.9}, table=5e-6),
        LayerSpec("moving", MovingBNLayer, MovingOracle, {"momentum": 0.8, "refresh_every": 2}),
        LayerSpec("renorm", BatchRenormLayer, RenormOracle, {"momentum": 0.9, "schedule_steps": 6, "dmax": 0.5}),
        LayerSpec(
            "renorm at once", BatchRenormLayer, RenormOracle, {"momentum": 0.99, "schedule_steps": 0}, variant=True
        ),
    ],
    ids=str,
)
def spec(request):
    return request.param
