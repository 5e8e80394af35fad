"""The article's layer and network for Keras 3, on TensorFlow, JAX and PyTorch; the only part that imports keras."""

from mednorm.errors import MissingExtraError

try:
    import keras as _keras  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "keras":  # a backend is missing: Keras's own message says which
        raise
    raise MissingExtraError(
        'mednorm.keras: Keras is not installed. Run: pip install "mednorm[keras]", and a backend: tensorflow, jax or '
        "torch, which the variable KERAS_BACKEND names."
    ) from None

from mednorm.keras.batch import BNLayer as BNLayer
from mednorm.keras.moving import MovingBNLayer as MovingBNLayer
from mednorm.keras.network import article_cnn as article_cnn
from mednorm.keras.range import RangeBNLayer as RangeBNLayer
from mednorm.keras.renorm import BatchRenormLayer as BatchRenormLayer
from mednorm.keras.statistics import BatchStatistics as BatchStatistics
from mednorm.keras.statistics import batch_statistics as batch_statistics

__all__ = [
    "BNLayer",
    "BatchRenormLayer",
    "BatchStatistics",
    "MovingBNLayer",
    "RangeBNLayer",
    "article_cnn",
    "batch_statistics",
]
