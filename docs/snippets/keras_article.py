"""The article's listing as printed, line by line, on a batch of eight 16×16 images with three channels."""

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import numpy as np
from keras import ops

from mednorm.keras import BNLayer


class Printed(keras.layers.Layer):
    def __init__(self, axis=-1, epsilon=1e-3, training=None):
        super().__init__()
        self.channels, self.epsilon, self.fixed = axis, epsilon, training

    def build(self, input_shape):
        size = (input_shape[-self.channels],)
        self.gamma = self.add_weight(shape=size, initializer="ones", trainable=self.fixed)
        self.beta = self.add_weight(shape=size, initializer="ones", trainable=self.fixed)  # printed: zeros

    def normalized(self, x):
        x = ops.convert_to_tensor(x)
        mean = ops.mean(x, axis=self.channels, keepdims=True)
        variance = ops.var(x, axis=self.channels, keepdims=True)  # printed: tf.reduce_variance, which is not there
        return (x - mean) / ops.sqrt(variance + self.epsilon)

    def call(self, x):
        return self.gamma * self.normalized(x) + (self.beta if self.fixed else 0)


def means(values):
    """The mean of each channel, over images and pixels."""
    return np.asarray(ops.convert_to_numpy(ops.mean(values, axis=(0, 1, 2)))).round(2) + 0.0


images = np.random.default_rng(0).normal((0, 5, 20), 2, (8, 16, 16, 3)).astype("float32")
printed, layer = Printed(), BNLayer()
printed.build(images.shape)

print("channel means, printed:", means(printed.normalized(images)), " BNLayer:", means(layer(images, training=True)))
print("length of gamma, printed:", printed.gamma.shape, " BNLayer:", tuple(layer.gamma.shape))
print("trainable, printed:", len(printed.trainable_weights), " BNLayer:", len(layer.trainable_weights))

square = Printed(axis=1)  # of a length that fits, to see what the call does
row = np.random.default_rng(0).normal(3, 2, (5, 4)).astype("float32")
added = ops.convert_to_numpy(square(row) - square.gamma * square.normalized(row))
print(f"what beta = 1 adds in inference, printed: {added.max():.0f}")
print("moving statistics, printed:", len(printed.weights) - 2, " BNLayer:", len(layer.non_trainable_weights))
