"""Networks for the tests of surgery, with statistics as after training, and every byte of a network."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mednorm.surgery.fold import fold


def seasoned(network, seed=0):
    """Give every batch normalization statistics and parameters of its own, some negative; set evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(0.5 * torch.randn(module.num_features, generator=generator))
                module.running_var.copy_(0.5 + 1.5 * torch.rand(module.num_features, generator=generator))
                if module.weight is not None:
                    module.weight.copy_(1 + 0.3 * torch.randn(module.num_features, generator=generator))
                    module.bias.copy_(0.3 * torch.randn(module.num_features, generator=generator))
    return network.eval()


def snapshot(network):
    """Every module, tensor, mode, hook and attribute: objects by identity, tensors by their bytes too."""
    tensors = {
        name: (id(value), value.data_ptr(), value.requires_grad, bytes_of(value))
        for named in (network.named_parameters, network.named_buffers)
        for name, value in named(remove_duplicate=False)
    }
    modules = {
        name: (id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks), *vars(module))
        for name, module in network.named_modules(remove_duplicate=False)
    }
    return tensors, modules, list(network.state_dict())


def bytes_of(tensor):
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


class Network(nn.Module):
    """A network of given layers whose forward is a given function of it and its inputs."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.run(self, x)


def images(rank, channels=4, dtype=torch.float32, size=7):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, channels, *[size] * rank, generator=generator, dtype=torch.float64).to(dtype)


def reasons(report):
    return {layer.norm: layer.reason for layer in report.left}


def assert_folds(network, x, folded, tolerance=1e-5):
    """Fold without an example, so that nothing but the layers' own comparison is there to help; compare here."""
    before = network(x).detach()
    report = fold(network)
    assert [(layer.norm, layer.into, layer.direction) for layer in report.folded] == folded
    assert float((network(x).detach() - before).abs().max()) <= tolerance * float(before.abs().max())
    return report
