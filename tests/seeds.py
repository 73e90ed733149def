"""Nets whose every number shows when it is misplaced, for the tests of nets and of BN."""

import torch
from torch import nn


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def disturb(net: nn.Module) -> None:
    """Give BN scales, shifts and running averages values that show when they are misplaced."""
    generator = seeded(99)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean, module.running_var):
                tensor.add_(torch.rand(tensor.shape, generator=generator))
