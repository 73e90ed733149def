"""The nets of the paper: plain and residual, with shortcut options A, B and C (Sections 3.1-3.3, 4).

A plain net is the residual net with the shortcuts left out, so both have the same parameters under
option A. The CIFAR nets have 6n+2 weighted layers on maps of size 32, 16, 8 with 16, 32, 64 filters
(Section 4.2); the ImageNet nets are those of Table 1.
"""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.errors import UsageError
from resrepro.spec import Spec, check_shortcut, default_shortcut
from resrepro.spec.architecture import Layout, layout_of
from resrepro.spec.recipe import DATASETS, FAMILIES, ImageNetRecipe, check_setting


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


BatchNorm = functools.partial[GroupedBatchNorm2d]


class Block(nn.Module):
    """Convolutions, each followed by BN: y = relu(F(x) + shortcut(x)), or relu(F(x)) if plain. `layers` are
    their kernels, channels and strides: two of 3x3, or 1x1, 3x3 and 1x1, a bottleneck (Figure 5 right).
    """

    def __init__(
        self, channels: int, layers: Sequence[tuple[int, int, int]], shortcut: nn.Module | None,
        batch_norm: BatchNorm,
    ) -> None:  # fmt: skip
        super().__init__()
        self.depth = len(layers)
        for number, (kernel, width, stride) in enumerate(layers, 1):
            convolution = nn.Conv2d(channels, width, kernel, stride, padding=kernel // 2, bias=False)
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", batch_norm(width))
            channels = width
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        y = x
        for number in range(1, self.depth + 1):
            y = getattr(self, f"conv{number}")(relu(y) if number > 1 else y)
            y = getattr(self, f"bn{number}")(y)
        return relu(y if self.shortcut is None else y + self.shortcut(x))


class Net(nn.Module):
    """A plain or residual net: stem, stages of blocks, classifier."""

    def __init__(
        self, layout: Layout, shortcut: str | None, num_classes: int, zeros: str, batch_norm: BatchNorm,
        stride_3x3: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        kernel, stride = layout.stem
        channels = layout.widths[0]
        self.conv1 = nn.Conv2d(3, channels, kernel, stride, padding=kernel // 2, bias=False)
        self.bn1 = batch_norm(channels)
        self.pool = nn.MaxPool2d(3, 2, padding=1) if layout.pool else nn.Identity()
        stages: list[nn.Module] = []
        for stage, (count, width) in enumerate(zip(layout.blocks, layout.widths, strict=True)):
            blocks: list[nn.Module] = []
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                out = width * layout.expansion
                layers = [(3, width, stride), (3, width, 1)]
                if layout.bottleneck:  # its stride on the first 1x1, or on the 3x3 as later implementations
                    first, second = (1, stride) if stride_3x3 else (stride, 1)
                    layers = [(1, width, first), (3, width, second), (1, out, 1)]
                way = make_shortcut(shortcut, channels, out, stride, zeros, batch_norm)
                blocks.append(Block(channels, layers, way, batch_norm))
                channels = out
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)

    def trunk(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> features of the last stage, 1/4 (CIFAR) or 1/32 (ImageNet) as large."""
        return self.stages(self.pool(relu(self.bn1(self.conv1(images)))))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, num_classes)."""
        pooled = self.trunk(images).mean(dim=(2, 3))  # global average pooling
        return self.fc(pooled)  # type: ignore[no-any-return]

    def dense(self, images: Tensor, window: int) -> Tensor:
        """The fully convolutional net of Section 3.4: logits (N, num_classes, h, w) at each place. They are
        those of `forward` where the average over `window` x `window` features is over all of them.
        """
        pooled = F.avg_pool2d(self.trunk(images), window, stride=1)
        return F.conv2d(pooled, self.fc.weight[:, :, None, None], self.fc.bias)


def make_shortcut(
    option: str | None, in_channels: int, channels: int, stride: int, zeros: str, batch_norm: BatchNorm
) -> nn.Module | None:
    """The shortcut of one block: None if plain, else option A, B or C (Section 3.3)."""
    if option is None:
        return None
    same = stride == 1 and in_channels == channels
    if option == "C" or (option == "B" and not same):
        projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)  # Eq. 2
        return nn.Sequential(projection, batch_norm(channels))
    return nn.Identity() if same else ZeroPadShortcut(in_channels, channels, stride, zeros)


def build_net(
    dataset: str, depth: int, plain: bool = False, shortcut: str | None = None,
    num_classes: int | None = None, *,
    option_a_zeros: str = "trailing", stride_3x3: bool = False, init: str = "fan_in",
    bn_group: int = 0, bn_batch: int = 0, bn_momentum: float = 0.1, bn_eps: float = 1e-5,
    generator: torch.Generator | None = None,
) -> Net:  # fmt: skip
    """Build a net of the paper, He-initialised: images (N, 3, H, W), float -> logits (N, num_classes).
    UsageError (a ValueError) for an unknown or impossible choice.

    Args:
        dataset: "cifar10" or "digits" (the nets of Section 4.2; any image size divisible by 4),
            "imagenet" or "folder" (those of Table 1; any image size of 32 and more).
        depth: weighted layers: 6n+2 (Section 4.2), or 18, 34, 50, 101, 152 (Table 1).
        plain: leave the shortcuts out.
        shortcut: "A" (identity, zero padding), "B" (projection where the size changes) or "C" (projection
            everywhere); by default A, and B for ImageNet nets of 50 and more layers.
        num_classes: outputs; by default 10, for ImageNet 1000.
        option_a_zeros: "trailing" or "symmetric" place of option A's zero channels.
        stride_3x3: a bottleneck's stride on its 3x3 convolution (later practice) instead of its first 1x1.
        init: fan of the He initialisation, "fan_in" or "fan_out".
        bn_group, bn_batch, bn_momentum, bn_eps: see `GroupedBatchNorm2d`.
        generator: source of the random initial weights; PyTorch's global one by default.
    """
    if dataset not in DATASETS:
        raise UsageError(f"no dataset {dataset!r}: there are {', '.join(DATASETS[:-1])} and {DATASETS[-1]}.")
    layout = layout_of(dataset, depth)
    option = check_shortcut(plain, shortcut, default_shortcut(dataset, depth))
    check_setting("init", init)
    check_setting("option_a_zeros", option_a_zeros)
    batch_norm = functools.partial(
        GroupedBatchNorm2d, group=bn_group, batch=bn_batch, momentum=bn_momentum, eps=bn_eps
    )
    classes = num_classes or (1000 if FAMILIES[dataset] == "imagenet" else 10)
    net = Net(layout, option, classes, option_a_zeros, batch_norm, stride_3x3)
    for module in net.modules():  # [13]; biases are zero, BN is the identity
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode=init, nonlinearity="relu", generator=generator)  # type: ignore[arg-type]
    nn.init.zeros_(net.fc.bias)
    return net


def net_of(spec: Spec, num_classes: int, generator: torch.Generator | None = None, bn_batch: int = 0) -> Net:
    """The net of a specification, as its recipe wants it (see `build_net`)."""
    recipe = spec.recipe
    return build_net(
        spec.dataset, spec.depth, spec.plain, spec.shortcut, num_classes,
        option_a_zeros=recipe.option_a_zeros,
        stride_3x3=isinstance(recipe, ImageNetRecipe) and recipe.stride_3x3,
        init=recipe.init, bn_group=recipe.bn_group, bn_batch=bn_batch, bn_momentum=recipe.bn_momentum,
        bn_eps=recipe.bn_eps, generator=generator,
    )  # fmt: skip


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


def folded(net: Net) -> Net:
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


def averaging(net: Net) -> Net:
    """A copy in training mode whose running averages count each pass alike, and start from nothing. So the
    authors' README has them. The passes must be of one size, and of one BN group each.
    """
    net = copy.deepcopy(net).train()
    for norm in norms_of(net):
        norm.group = norm.batch = 0
        norm.momentum = None  # PyTorch's word for plain averages
        norm.reset_running_stats()
    return net
