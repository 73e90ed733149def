"""The nets of the paper: plain and residual, with shortcut options A, B and C (Sections 3.1-3.3, 4.2).

A plain net is the residual net with the shortcuts left out, so both have the same parameters under
option A. The CIFAR nets have 6n+2 weighted layers on maps of size 32, 16, 8 with 16, 32, 64 filters.
"""

import functools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.catalogue import DATASETS, check_setting
from resrepro.errors import UsageError
from resrepro.specs import Recipe, check_depth, check_shortcut

CIFAR_WIDTHS = (16, 32, 64)  # filters of the three stages, Section 4.2


class GroupedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation whose statistics are those of groups of `group` images.

    This is what BN computes when a batch is spread over several GPUs. The running averages take the
    groups in order, each with such a share that a whole batch counts as `momentum` says. With `group`
    0, or in evaluation, it is ordinary batch normalisation.
    """

    def __init__(self, channels: int, group: int = 0, *, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__(channels, momentum=momentum, eps=eps)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x of shape (N, C, H, W), N a multiple of `group` in training."""
        if not self.training or not self.group or len(x) == self.group:
            return super().forward(x)
        assert self.momentum is not None
        share = 1 - (1 - self.momentum) ** (self.group / len(x))
        running = self.running_mean, self.running_var
        return torch.cat(
            [
                F.batch_norm(part, *running, self.weight, self.bias, True, share, self.eps)
                for part in torch.split(x, self.group)
            ]
        )

    def extra_repr(self) -> str:
        """Show the group beside PyTorch's own fields."""
        return f"{self.num_features}, group={self.group}, momentum={self.momentum}, eps={self.eps}"


class ZeroPadShortcut(nn.Module):
    """Option A: every `stride`-th position of x, with zeros for the new channels; no parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, zeros: str) -> None:
        super().__init__()
        extra = out_channels - in_channels
        before = extra // 2 if zeros == "symmetric" else 0
        self.stride = stride
        self.channel_padding = (0, 0, 0, 0, before, extra - before)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + extra, ceil(H / stride), ceil(W / stride))."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], self.channel_padding)


class ProjectionShortcut(nn.Sequential):
    """Options B and C: a 1x1 convolution of the block's stride, then BN (Eq. 2)."""


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by BN; y = relu(F(x) + shortcut(x)), or relu(F(x)) if plain."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        shortcut: nn.Module | None,
        batch_norm: "BatchNorm",
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = batch_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = batch_norm(channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shortcut is not None:
            y = y + self.shortcut(x)
        return F.relu(y)


BatchNorm = functools.partial[GroupedBatchNorm2d]


class CifarNet(nn.Module):
    """A plain or residual CIFAR net of 6n+2 layers: trunk of three stages, then the classifier.

    `trunk` maps images (N, 3, H, W) to features (N, 64, H/4, W/4); `forward` gives logits
    (N, num_classes).
    """

    def __init__(
        self, blocks_per_stage: int, shortcut: str | None, num_classes: int, zeros: str, batch_norm: BatchNorm
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, CIFAR_WIDTHS[0], 3, padding=1, bias=False)
        self.bn1 = batch_norm(CIFAR_WIDTHS[0])
        stages: list[nn.Module] = []
        in_channels = CIFAR_WIDTHS[0]
        for stage, channels in enumerate(CIFAR_WIDTHS):
            blocks: list[nn.Module] = []
            for block in range(blocks_per_stage):
                stride = 2 if stage > 0 and block == 0 else 1
                way = make_shortcut(shortcut, in_channels, channels, stride, zeros, batch_norm)
                blocks.append(Block(in_channels, channels, stride, way, batch_norm))
                in_channels = channels
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(in_channels, num_classes)

    def trunk(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> features (N, 64, H/4, W/4)."""
        features: Tensor = self.stages(F.relu(self.bn1(self.conv1(images))))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, num_classes)."""
        logits: Tensor = self.fc(self.trunk(images).mean(dim=(2, 3)))  # global average pooling
        return logits


def make_shortcut(
    option: str | None, in_channels: int, channels: int, stride: int, zeros: str, batch_norm: BatchNorm
) -> nn.Module | None:
    """The shortcut of one block: None if plain, else option A, B or C (Section 3.3)."""
    if option is None:
        return None
    same = stride == 1 and in_channels == channels
    if option == "C" or (option == "B" and not same):
        projection = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
        return ProjectionShortcut(projection, batch_norm(channels))
    return nn.Identity() if same else ZeroPadShortcut(in_channels, channels, stride, zeros)


def initialise(net: nn.Module, fan_mode: str, generator: torch.Generator | None = None) -> None:
    """He initialisation [13] of every convolution and fully connected layer; biases zero, BN identity."""
    mode: Literal["fan_in", "fan_out"] = "fan_in" if fan_mode == "fan_in" else "fan_out"
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_net(
    dataset: str,
    depth: int,
    plain: bool = False,
    shortcut: str | None = None,
    num_classes: int | None = None,
    *,
    option_a_zeros: str = "trailing",
    init: str = "fan_in",
    bn_group: int = 0,
    bn_momentum: float = 0.1,
    bn_eps: float = 1e-5,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Build a net of the paper, He-initialised.

    Args:
        dataset: "cifar10" or "digits" (the same nets; any image size divisible by 4).
        depth: weighted layers, 6n+2 (Section 4.2).
        plain: leave the shortcuts out.
        shortcut: "A" (identity, zero padding; the default), "B" (projection where the size changes)
            or "C" (projection everywhere); None and `plain` go together.
        num_classes: outputs; by default those of the dataset.
        option_a_zeros: "trailing" or "symmetric" place of option A's zero channels.
        init: fan of the He initialisation, "fan_in" or "fan_out".
        bn_group: images that share BN statistics in training; 0 for the whole batch.
        bn_momentum: weight of the newest batch in BN's running averages.
        bn_eps: BN's epsilon.
        generator: source of the random initial weights; PyTorch's global one by default.

    Returns:
        A module from images (N, 3, H, W), float, to logits (N, num_classes).

    Raises:
        UsageError: (a ValueError) for an unknown dataset, initialisation or place of zeros, an
            impossible depth or shortcut.
    """
    if dataset not in DATASETS:
        raise UsageError(f"no dataset {dataset!r}: there are {' and '.join(DATASETS)}.")
    n = check_depth(depth)
    option = check_shortcut(plain, shortcut)
    check_setting("init", init)
    check_setting("option_a_zeros", option_a_zeros)
    batch_norm = functools.partial(GroupedBatchNorm2d, group=bn_group, momentum=bn_momentum, eps=bn_eps)
    net = CifarNet(n, option, 10 if num_classes is None else num_classes, option_a_zeros, batch_norm)
    initialise(net, init, generator)
    return net


def net_of(
    recipe: Recipe,
    dataset: str,
    depth: int,
    plain: bool,
    shortcut: str | None,
    num_classes: int,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """The net as a recipe wants it (see `build_net`)."""
    return build_net(
        dataset,
        depth,
        plain,
        shortcut,
        num_classes,
        option_a_zeros=recipe.option_a_zeros,
        init=recipe.init,
        bn_group=recipe.bn_group,
        bn_momentum=recipe.bn_momentum,
        bn_eps=recipe.bn_eps,
        generator=generator,
    )
