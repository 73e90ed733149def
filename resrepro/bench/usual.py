"""The loop that everybody writes, plainly; nothing in it is slowed down on purpose."""

from collections import OrderedDict
from collections.abc import Iterator

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.models.resnet import BasicBlock

from resrepro.data import Images
from resrepro.training.engine import arithmetic

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, as everybody writes them
READ_LOSS_EVERY = 100  # steps


class OptionA(nn.Module):
    """A shortcut into a stage of twice the width and half the side."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2C, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def usual_net(depth: int) -> nn.Module:
    """The residual net of Section 4.2, of torchvision's blocks, with the names of `resrepro.nets`."""
    stages, channels = [], 16
    for width in (16, 32, 64):
        first = BasicBlock(channels, width, width // channels, OptionA() if width > channels else None)
        rest = [BasicBlock(width, width) for _ in range((depth - 2) // 6 - 1)]
        stages.append(nn.Sequential(first, *rest))
        channels = width
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(),
            stages=nn.Sequential(*stages), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
            fc=nn.Linear(64, 10),
        )
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net


class UsualImages(TorchDataset[tuple[Tensor, int]]):
    """Images in memory, turned into PIL images and transformed one at a time, as torchvision's CIFAR10."""

    def __init__(self, images: Images) -> None:
        self.pixels, self.labels = images.pixels.transpose(0, 2, 3, 1).copy(), images.labels.tolist()
        crop, flip = transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()
        tensor, normalise = transforms.ToTensor(), transforms.Normalize(MEAN, STD)
        self.transform = transforms.Compose([crop, flip, tensor, normalise])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def usual_updates(
    net: nn.Module, images: Images, batch_size: int, workers: int, precision: str, device: torch.device
) -> Iterator[None]:
    """One update at each step, eager; cuDNN may try algorithms and take TF32.

    In float32 the maps are NCHW; in bf16 or fp16, under autocast, they are channels-last.
    """
    torch.backends.cudnn.benchmark = True
    layout = torch.contiguous_format if precision == "float32" else torch.channels_last
    net = net.to(device).to(memory_format=layout).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    loader = DataLoader(
        UsualImages(images), batch_size, shuffle=True, num_workers=workers, drop_last=True,
        pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip
    steps = 0
    while True:
        for batch, labels in loader:
            batch = batch.to(device, non_blocking=True, memory_format=layout)
            labels = labels.to(device, non_blocking=True)
            with arithmetic(precision, device):
                loss = criterion(net(batch), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            steps += 1
            if steps % READ_LOSS_EVERY == 0:
                loss.item()
            yield
