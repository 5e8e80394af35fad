"""Convert, freeze and fold the normalization of a network that is there."""

import torch
from monai.networks.nets import BasicUNet

import mednorm

torch.manual_seed(0)
network = BasicUNet(spatial_dims=3, features=(8, 8, 16, 16, 32, 8), norm="batch")

report = mednorm.convert(network, "renorm", where="conv_0", r_max=2.0)
print(report)

frozen = mednorm.freeze(network, where="down_1")
print(f"\n{len(frozen.names)} layers frozen; in training still: {network.train().down_1.training}")
network(torch.randn(2, 1, 16, 16, 16))
print("a frozen layer has seen", network.down_1.convs.conv_0.adn.N.num_batches_tracked.item(), "batches")
mednorm.unfreeze(network)

folded = mednorm.fold(network.eval(), example=torch.randn(1, 1, 16, 16, 16))
print(f"\n{len(folded.folded)} of {len(folded.folded) + len(folded.left)} folded; outputs equal: {folded.equivalent}")
