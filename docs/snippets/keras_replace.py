"""BNLayer in the place of Keras's layer, in a network that is trained already."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")  # or "tensorflow", "jax"

import keras
import numpy as np

from mednorm.keras import BNLayer, article_cnn

trained = article_cnn(num_classes=2, normalization="keras")  # any network with keras.layers.BatchNormalization
images = np.random.default_rng(0).random((64, 28, 28, 1), "float32")
trained.fit(images, np.arange(64) % 2, batch_size=16, epochs=2, verbose=0)


def replaced(layer):
    kind = BNLayer if isinstance(layer, keras.layers.BatchNormalization) else type(layer)
    return kind.from_config(layer.get_config())


network = keras.models.clone_model(trained, clone_function=replaced)
network.set_weights(trained.get_weights())  # the same four weights in the same order
apart = abs(network.predict(images, verbose=0) - trained.predict(images, verbose=0)).max()
print([type(layer).__name__ for layer in network.layers[:4]])
print("outputs are the same to 1e-5:", bool(apart < 1e-5))
