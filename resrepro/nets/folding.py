"""BN folded into the convolutions before it while a net is only evaluated: one pass over each map less.

In evaluation BN is a fixed scale and shift of each channel, so that w' = w s and b' = shift give what
convolution and BN give, to rounding.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from resrepro.nets import ProjectionShortcut
from resrepro.nets.convolution import Convolution
from resrepro.nets.normalisation import GroupedBatchNorm2d


@contextmanager
def folded(net: nn.Module) -> Iterator[None]:
    """While active, the net computes in evaluation with BN folded; its parameters stay as they are."""
    pairs = list(pairs_of(net))
    try:
        with torch.no_grad():
            for convolution, norm in pairs:
                convolution.folded = _fold(convolution, norm)
                norm.folded = True
        yield
    finally:
        for convolution, norm in pairs:
            convolution.folded, norm.folded = None, False


def pairs_of(net: nn.Module) -> Iterator[tuple[Convolution, GroupedBatchNorm2d]]:
    """Each convolution with the BN layer that follows it: `conv1` and `bn1`, or both of a projection."""
    for module in net.modules():
        children = dict(module.named_children())
        names = [("0", "1")] if isinstance(module, ProjectionShortcut) else []
        names += [(name, name.replace("conv", "bn")) for name in children if name.startswith("conv")]
        for first, second in names:
            convolution, norm = children[first], children[second]
            assert isinstance(convolution, Convolution)
            assert isinstance(norm, GroupedBatchNorm2d)
            yield convolution, norm


def _fold(convolution: Convolution, norm: GroupedBatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale
