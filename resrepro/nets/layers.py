"""The layers that PyTorch has not: BN over groups of images, and shortcuts (Sections 3.3 and 3.4)."""

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N = TypeVar("N", bound=nn.Module)


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation over groups of `group` images, as when a batch is spread over several GPUs. With
    `group` 0, or in evaluation, it is ordinary BN. `batch` is the number of images of one update, where
    several passes make one; 0 if every pass is an update. Whatever a batch is spread over (groups, passes,
    processes), the running averages take the plain mean of the groups' statistics.
    """

    def __init__(
        self, channels: int, group: int = 0, batch: int = 0, *, momentum: float = 0.1, eps: float = 1e-5
    ) -> None:
        super().__init__(channels, momentum=momentum, eps=eps)
        self.group, self.batch = group, batch
        self._seen = 0  # images of the update under way

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x of shape (N, C, H, W), N a multiple of `group` in training."""
        if not self.training or self.is_whole(x):
            return super().forward(x)
        assert self.momentum is not None
        parts, total = [], self.batch or len(x)
        for part in torch.split(x, self.group or len(x)):  # after `total` images all together have momentum
            after = total - self._seen - len(part)
            self._seen = (self._seen + len(part)) % total
            share = self.momentum * len(part) / total / (1 - self.momentum * after / total)
            statistics = self.running_mean, self.running_var
            parts.append(F.batch_norm(part, *statistics, self.weight, self.bias, True, share, self.eps))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def is_whole(self, x: Tensor) -> bool:
        """Whether these images are one group, and one update."""
        return self.group in (0, len(x)) and self.batch in (0, len(x))


class ZeroPadShortcut(nn.Module):
    """Option A: every `stride`-th position of x, with zeros for the new channels; no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, zeros: str) -> None:
        super().__init__()
        self.extra, self.stride = out_channels - in_channels, stride
        self.before = self.extra // 2 if zeros == "symmetric" else 0  # of the new channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + extra, ceil(H / stride), ceil(W / stride))."""
        return _ZeroPad.apply(x, self.stride, self.before, self.extra)  # type: ignore[no-any-return]


class _ZeroPad(torch.autograd.Function):
    """PyTorch's own operations change the memory layout on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, stride: int, before: int, extra: int) -> Tensor:
        ctx.stride, ctx.before, ctx.shape = stride, before, x.shape
        return F.pad(x[:, :, ::stride, ::stride], (0, 0, 0, 0, before, extra - before))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        last = gradient.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if last else torch.contiguous_format
        spread = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device, memory_format=layout)
        own = gradient[:, ctx.before : ctx.before + ctx.shape[1]]
        spread.zero_()[:, :, :: ctx.stride, :: ctx.stride] = own
        return spread, None, None, None


def relu(x: Tensor) -> Tensor:
    """ReLU in place: no gradient needs what was there."""
    return F.relu(x, inplace=True)


def norms_of(net: nn.Module) -> list[GroupedBatchNorm2d]:
    """The BN layers of a net, in order."""
    return [module for module in net.modules() if isinstance(module, GroupedBatchNorm2d)]


def pairs_of(net: nn.Module) -> list[tuple[nn.Conv2d, GroupedBatchNorm2d]]:
    """Each convolution of a net, or of a block, with the BN that follows it, in order."""
    convolutions = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    return list(zip(convolutions, norms_of(net), strict=True))


def running_statistics(net: nn.Module) -> list[Tensor]:
    """The running averages of all BN layers: means and variances, (C,) each."""
    both = [(norm.running_mean, norm.running_var) for norm in norms_of(net)]
    return [tensor for pair in both for tensor in pair if tensor is not None]


def folded(net: N) -> N:
    """A copy for evaluation, each BN (a fixed scale and shift) folded into the convolution before it."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for convolution, norm in pairs_of(net):
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        convolution.weight = nn.Parameter(convolution.weight * scale[:, None, None, None], False)
        convolution.bias = nn.Parameter(norm.bias - norm.running_mean * scale, False)
    for name, module in list(net.named_modules()):
        if isinstance(module, GroupedBatchNorm2d):
            net.set_submodule(name, nn.Identity())
    return net


def averaging(net: N) -> N:
    """A copy in training mode whose running averages count each pass alike, and start from nothing. So the
    authors' README has them. The passes must be of one size, and of one BN group each.
    """
    net = copy.deepcopy(net).train()
    for norm in norms_of(net):
        norm.group = norm.batch = 0
        norm.momentum = None  # PyTorch's word for plain averages
        norm.reset_running_stats()
    return net
