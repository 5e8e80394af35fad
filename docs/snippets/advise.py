"""How many images a training step should have."""

import torch
from torch import nn

import mednorm

network = nn.Sequential(
    nn.Conv2d(1, 8, 3, padding=1),
    nn.BatchNorm2d(8),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.BatchNorm1d(8),  # one value an image: it needs the larger batch
    nn.Linear(8, 2),
)
torch.manual_seed(0)
images = torch.randn(64, 1, 32, 32) + torch.randn(64, 1, 1, 1)
labels = torch.randint(2, (64,))
loader = list(zip(images.split(4), labels.split(4), strict=True))

advice = mednorm.advise_batch_size(network, loader, memory="64GB", loss=nn.CrossEntropyLoss(), seconds=5)
print(advice.action, advice.smallest_sufficient, advice.recommended)
name, noise = advice.noise.worst(4)
print(f"noisiest layer: {name}, {noise:.2f} σ with 4 images")
