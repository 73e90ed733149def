"""The usual PyTorch loop for CIFAR-10, written plainly, as most reproductions have it.

Float32, NCHW, eager; images one by one through torchvision's transforms in a DataLoader; ordinary batch
normalisation; SGD; the loss is read every 100 steps. On a GPU cuDNN may try algorithms and take TF32,
which is PyTorch's own default. Nothing is slowed down on purpose: this is what ours is measured against.
"""

from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from resrepro.data import Images

READ_LOSS_EVERY = 100  # steps
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, as everybody writes them


class UsualBlock(nn.Module):
    """Two convolutions, each with BN, and a shortcut of option A unless plain."""

    def __init__(self, in_channels: int, channels: int, stride: int, plain: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.plain, self.stride, self.extra = plain, stride, channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if not self.plain:
            if self.extra:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
            out = out + x
        return F.relu(out)


class UsualNet(nn.Module):
    """The net of Section 4.2; its parameters have the names that they have in `resrepro.nets`."""

    def __init__(self, depth: int, plain: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        stages, channels = [], 16
        for width in (16, 32, 64):
            blocks = []
            for _ in range((depth - 2) // 6):
                blocks.append(UsualBlock(channels, width, 1 if channels == width else 2, plain))
                channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) -> logits (N, 10)."""
        out = self.stages(F.relu(self.bn1(self.conv1(x))))
        out = F.adaptive_avg_pool2d(out, 1).flatten(1)
        logits: Tensor = self.fc(out)
        return logits


class UsualImages(Dataset[tuple[Tensor, int]]):
    """Images in memory, turned into PIL images and transformed one at a time, as torchvision's CIFAR10."""

    def __init__(self, images: Images) -> None:
        self.pixels = np.ascontiguousarray(images.pixels.transpose(0, 2, 3, 1))
        self.labels = images.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, 4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


class UsualLoop:
    """Training step after step, epoch after epoch."""

    engine, built_seconds = "eager", 0.0

    def __init__(
        self, depth: int, plain: bool, batch_size: int, workers: int, images: Images, device: torch.device
    ) -> None:
        torch.backends.cudnn.benchmark = True
        self.device = device
        self.net = UsualNet(depth, plain).to(device).train()
        self.criterion = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        self.loader = DataLoader(
            UsualImages(images), batch_size, shuffle=True, num_workers=workers, drop_last=True,
            pin_memory=device.type == "cuda", persistent_workers=workers > 0,
        )  # fmt: skip
        self.batches = self._batches()
        self.steps = 0

    def _batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.loader

    def prepare(self) -> None:
        """A batch without a step: what the data pipeline takes alone."""
        images, labels = next(self.batches)
        images.to(self.device), labels.to(self.device)

    def step(self) -> None:
        """One update."""
        images, labels = next(self.batches)
        images = images.to(self.device, non_blocking=True)
        labels = labels.to(self.device, non_blocking=True)
        loss = self.criterion(self.net(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        if self.steps % READ_LOSS_EVERY == 0:
            loss.item()
