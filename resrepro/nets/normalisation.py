"""Batch normalisation over groups of images, as on several GPUs (Section 3.4).

Whatever a batch is spread over (groups on one device, passes of one update, processes), the running
averages take the plain mean of the groups' statistics, so the spread does not change them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.nets.cpu.normalising import Normaliser


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of groups of `group` images.

    This is what BN computes when a batch is spread over several GPUs. With `group` 0, or in evaluation,
    it is ordinary batch normalisation.

    Attributes:
        images: images of one update on this process; 0 if every forward pass is an update of its own.
        folded: the convolution before does this layer's work, in evaluation.
        kernels: what computes BN, shortcut and ReLU together, in training and where it can.
    """

    def __init__(self, channels: int, group: int = 0, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(channels, momentum=momentum, eps=eps)
        self.group = group
        self.images = 0
        self.kernels: Normaliser | None = None
        self.folded = False
        self._seen = 0  # images of the update under way

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x of shape (N, C, H, W), N a multiple of `group` in training."""
        if not self.training:
            return x if self.folded else super().forward(x)
        if self._whole(x):
            return super().forward(x)
        parts = [
            F.batch_norm(
                part, self.running_mean, self.running_var, self.weight, self.bias, True,
                self._share(len(part), self.images or len(x)), self.eps,
            )
            for part in torch.split(x, self.group or len(x))
        ]  # fmt: skip
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def relu(self, x: Tensor, shortcut: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """`relu(BN(x) + shortcut)`, shapes (N, C, H, W), for the two uses that a map may have.

        Both are the same numbers; with `kernels` they are two tensors (see there). What BN gave is
        overwritten: no gradient needs it.
        """
        kernels = self.kernels
        if kernels and self.training and self._whole(x) and kernels.takes(x):
            return self._fused(kernels, x, shortcut)
        y = self(x)
        if shortcut is not None:
            y = y.add_(shortcut)
        y = F.relu(y, inplace=True)
        return y, y

    def _fused(self, kernels: Normaliser, x: Tensor, shortcut: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        running = self.running_mean, self.running_var
        return kernels.relu(x, shortcut, (self.weight, self.bias), running, self.momentum, self.eps)

    def _whole(self, x: Tensor) -> bool:
        """Whether these images are one group, and one update."""
        return self.group in (0, len(x)) and self.images in (0, len(x))

    def _share(self, count: int, total: int) -> float:
        """The weight of the next `count` images against the averages so far.

        Chosen such that after `total` images each group has the same weight, and all together momentum.
        """
        assert self.momentum is not None
        after = total - self._seen - count
        self._seen = (self._seen + count) % total
        return self.momentum * count / total / (1 - self.momentum * after / total)

    def extra_repr(self) -> str:
        """Show the group beside PyTorch's own fields."""
        return f"{self.num_features}, group={self.group}, momentum={self.momentum}, eps={self.eps}"


def norms_of(net: nn.Module) -> list[GroupedBatchNorm2d]:
    """The BN layers of a net, in order."""
    return [module for module in net.modules() if isinstance(module, GroupedBatchNorm2d)]


def running_statistics(net: nn.Module) -> list[Tensor]:
    """The running averages of all BN layers: means and variances, (C,) each."""
    found = [(norm.running_mean, norm.running_var) for norm in norms_of(net)]
    return [tensor for pair in found for tensor in pair if tensor is not None]


@contextmanager
def plain_averages(net: nn.Module) -> Iterator[None]:
    """While active, each training pass counts alike in the running averages, which start from nothing.

    These are the statistics that the authors' README describes: plain averages over training batches
    instead of moving ones. The passes must be of one size.
    """
    norms = norms_of(net)
    before = [(norm.momentum, norm.images, norm.training) for norm in norms]
    passes = 0

    def count(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        nonlocal passes
        passes += 1
        for norm in norms:
            norm.momentum, norm.images = 1 / passes, 0

    handle = net.register_forward_pre_hook(count)
    for norm in norms:
        norm.train()
    try:
        yield
    finally:
        handle.remove()
        for norm, (momentum, images, training) in zip(norms, before, strict=True):
            norm.momentum, norm.images = momentum, images
            norm.train(training)
