"""A network of one's own: a factory of four parameters, asked for as `own_network:small_unet`."""

from functools import partial

from monai.networks.blocks import Convolution
from monai.networks.layers import SkipConnection
from torch import nn

from mednorm.tasks.networks import NORMS, Shape, build_network


def small_unet(spatial_dims, in_channels, out_channels, norm):
    block = partial(Convolution, spatial_dims, act="relu", norm=norm, bias=False)  # the norm brings the shift
    lower = nn.Sequential(block(16, 32, strides=2), block(32, 16, strides=2, is_transposed=True))
    return nn.Sequential(
        block(in_channels, 16),
        SkipConnection(lower),
        block(32, 16),
        Convolution(spatial_dims, 16, out_channels, kernel_size=1, conv_only=True),
    )


if __name__ == "__main__":
    for norm in NORMS:
        shape = Shape(channels=1, size=(64, 64), classes=3, sites=("A", "B"))
        network = build_network("own_network:small_unet", shape, norm, kind="segmentation")
        print(f"{norm}: {sum(parameter.numel() for parameter in network.parameters()):,} parameters")
