"""The nets of the paper: plain and residual, with shortcut options A, B and C (Sections 3.1-3.3, 4).

A plain net is the residual net with the shortcuts left out, so both have the same parameters under
option A. The CIFAR nets have 6n+2 weighted layers on maps of size 32, 16, 8 with 16, 32, 64 filters
(Section 4.2); the ImageNet nets are those of Table 1.
"""

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resrepro.errors import UsageError
from resrepro.nets.layers import GroupedBatchNorm2d, ZeroPadShortcut, relu
from resrepro.spec import Spec, check_shortcut, default_shortcut
from resrepro.spec.architecture import Layout, layout_of
from resrepro.spec.recipe import DATASETS, FAMILIES, ImageNetRecipe, check_setting

BatchNorm = functools.partial[GroupedBatchNorm2d]


class Block(nn.Module):
    """Two 3x3 convolutions, each followed by BN; y = relu(F(x) + shortcut(x)), or relu(F(x)) if plain."""

    def __init__(
        self, in_channels: int, channels: int, stride: int, shortcut: nn.Module | None, batch_norm: BatchNorm
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = batch_norm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = batch_norm(channels)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        y = relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return relu(y if self.shortcut is None else y + self.shortcut(x))


class Bottleneck(nn.Module):
    """Convolutions of 1x1, 3x3 and 1x1, each followed by BN, the last four times as wide (Figure 5 right).
    The stride is on the first 1x1, or with `stride_3x3` on the 3x3, as later implementations have it.
    """

    def __init__(
        self, in_channels: int, width: int, stride: int, shortcut: nn.Module | None, batch_norm: BatchNorm,
        stride_3x3: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        first, second = (1, stride) if stride_3x3 else (stride, 1)
        self.conv1 = nn.Conv2d(in_channels, width, 1, first, bias=False)
        self.bn1 = batch_norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, second, padding=1, bias=False)
        self.bn2 = batch_norm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = batch_norm(4 * width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, 4 width, H / stride, W / stride)."""
        y = relu(self.bn1(self.conv1(x)))
        y = relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
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
                way = make_shortcut(shortcut, channels, out, stride, zeros, batch_norm)
                if layout.bottleneck:
                    blocks.append(Bottleneck(channels, width, stride, way, batch_norm, stride_3x3))
                else:
                    blocks.append(Block(channels, width, stride, way, batch_norm))
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
