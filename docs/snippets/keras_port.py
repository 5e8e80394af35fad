"""The article's network from Keras to PyTorch and back."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np

import mednorm
from mednorm.keras import article_cnn
from mednorm.tasks.networks import Shape, build_network

trained = article_cnn(num_classes=2)
images = np.random.default_rng(0).normal(size=(64, 28, 28, 1)).astype("float32")
trained.fit(images, np.arange(64) % 2, batch_size=16, epochs=2, verbose=0)

network = build_network("article_cnn", Shape(1, (28, 28), 2), "batch", kind="classification")
report = mednorm.port(trained, network)
print("layers:", *(layer.target for layer in report.layers))
print("to PyTorch, same outputs:", report.equivalent)
print(f"momentum {network.norm1.momentum:g}, epsilon {network.norm1.eps:g}")

back = article_cnn(num_classes=2)
print("back to Keras, same outputs:", mednorm.port(network, back).equivalent)
same = [np.array_equal(a, b) for a, b in zip(back.get_weights(), trained.get_weights(), strict=True)]
print(f"bit by bit the same: {sum(same)} of {len(same)} weights")
