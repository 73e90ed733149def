"""Batches made on the training device: the images stay there as uint8, each batch is drawn, augmented
and normalised as a whole (Section 4.2).

Batch `i` of a run depends only on the seed and on `i`, so a resumed run sees the same batches.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from resrepro.data import Images
from resrepro.device import memory_format
from resrepro.specs import Recipe

ORDER, AUGMENTATION, INITIAL_WEIGHTS = range(3)  # independent random streams of one seed


def stream_seed(seed: int, stream: int, index: int = 0) -> int:
    """A well-mixed 63-bit seed for one use of a run's seed."""
    mixed = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0]
    return int(mixed >> np.uint64(1))


def draw_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of `count` images in one epoch, int64 (count,), drawn on the CPU on every device."""
    generator = torch.Generator().manual_seed(stream_seed(seed, ORDER, epoch))
    return torch.randperm(count, generator=generator)


class Preparation:
    """From uint8 pixels to what a net sees: mean subtraction, padding, crop, flip."""

    def __init__(self, recipe: Recipe, mean: Tensor, std: Tensor | None = None) -> None:
        self.recipe = recipe
        self.mean = mean  # (3, H, W) or (3, 1, 1), on the scale 0..255
        self.divisor = mean.new_tensor(recipe.pixel_divisor) if std is None else std  # one, or per channel

    def to(self, device: torch.device) -> "Preparation":
        """Move mean and divisor to a device, in place."""
        self.mean, self.divisor = self.mean.to(device), self.divisor.to(device)
        return self

    @classmethod
    def from_training_images(cls, recipe: Recipe, train: Images, device: torch.device) -> "Preparation":
        """Take the recipe's mean from the images trained on."""
        axes = {"per_pixel": (0,), "per_channel": (0, 2, 3)}.get(recipe.mean)
        mean = np.zeros(3) if axes is None else train.pixels.mean(axis=axes, dtype=np.float64)
        shaped = mean.reshape(3, 1, 1) if mean.ndim == 1 else mean
        return cls(recipe, torch.as_tensor(shaped, dtype=torch.float32, device=device))

    def test(self, pixels: Tensor) -> Tensor:
        """The single view: uint8 (N, 3, H, W) -> float32 of the same shape."""
        images = (pixels.float() - self.mean) / self.divisor
        return images.contiguous(memory_format=memory_format(images.device))

    def train(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """A random crop of the padded image or its flip: uint8 (N, 3, H, W) -> float32, same shape.

        All (2 pad + 1)^2 offsets are equally likely (81 for the paper's 4 pixels).
        """
        mean_first = self.recipe.pad_order == "mean_first"
        images = (pixels.float() - self.mean) / self.divisor if mean_first else pixels.float()
        if self.recipe.pad:
            images = random_crop(images, self.recipe.pad, self.recipe.pad_value, generator)
        if not mean_first:
            images = (images - self.mean) / self.divisor
        if self.recipe.flip:
            coin = torch.rand(len(images), 1, 1, 1, generator=generator, device=images.device)
            images = torch.where(coin < 0.5, images.flip(3), images)
        return images.contiguous(memory_format=memory_format(images.device))


def random_crop(images: Tensor, pad: int, value: float, generator: torch.Generator) -> Tensor:
    """Pad (N, C, H, W) by `pad` on each side with `value`, then cut one H x W window out of each."""
    count, _, height, width = images.shape
    windows = F.pad(images, (pad,) * 4, value=value).unfold(2, height, 1).unfold(3, width, 1)
    offsets = torch.randint(2 * pad + 1, (2, count), generator=generator, device=images.device)
    return windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]


class TrainingBatches:
    """The training set on a device, giving batch after batch of exactly `batch_size` images.

    Each epoch has its own order; the last batch of one goes on into the next.
    """

    def __init__(self, recipe: Recipe, train: Images, preparation: Preparation, seed: int) -> None:
        self.recipe = recipe
        self.seed = seed
        self.preparation = preparation
        self.device = preparation.mean.device
        self.pixels = torch.from_numpy(np.ascontiguousarray(train.pixels)).to(self.device)
        self.labels = torch.from_numpy(np.ascontiguousarray(train.labels)).to(self.device)
        self.generator = torch.Generator(self.device)
        self._orders: dict[int, Tensor] = {}

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images (batch_size, 3, H, W) float32 and labels (batch_size,) of update `iteration` (from 0)."""
        chosen = self.indices(iteration)
        self.generator.manual_seed(stream_seed(self.seed, AUGMENTATION, iteration))
        return self.preparation.train(self.pixels[chosen], self.generator), self.labels[chosen]

    def indices(self, iteration: int) -> Tensor:
        """Which images make up batch `iteration`, int64 (batch_size,) on the device."""
        size, count = self.recipe.batch_size, len(self.labels)
        if self.recipe.sampling == "replacement":
            generator = torch.Generator().manual_seed(stream_seed(self.seed, ORDER, iteration))
            return torch.randint(count, (size,), generator=generator).to(self.device)
        parts = []
        start, missing = iteration * size, size
        while missing:
            epoch, place = divmod(start, count)
            part = self._order(epoch)[place : place + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = draw_order(self.seed, epoch, len(self.labels)).to(self.device)
        return self._orders[epoch]
