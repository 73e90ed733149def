"""Batches made on the training device: the images stay there as uint8, each batch is drawn, augmented
and normalised as a whole (Section 4.2).

Batch `i` of a run depends only on the seed and on `i`, so a resumed run sees the same batches.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from resrepro.data import Images
from resrepro.processes import rank, world_size
from resrepro.spec.recipe import CifarRecipe, Recipe
from resrepro.training.engine import memory_format

ORDER, AUGMENTATION, INITIAL_WEIGHTS = range(3)  # independent random streams of one seed


def stream_seed(seed: int, stream: int, index: int = 0) -> int:
    """A well-mixed 63-bit seed for one use of a run's seed."""
    mixed = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0]
    return int(mixed >> np.uint64(1))


def draw_order(seed: int, epoch: int, count: int) -> Tensor:
    """The order of `count` images in one epoch, int64 (count,), drawn on the CPU on every device."""
    generator = torch.Generator().manual_seed(stream_seed(seed, ORDER, epoch))
    return torch.randperm(count, generator=generator)


class Order:
    """Which of `count` images make up each batch of a run, on a device.

    Each epoch has its own order; the last batch of one goes on into the next.
    """

    def __init__(self, recipe: Recipe, count: int, seed: int, device: torch.device | None = None) -> None:
        self.recipe, self.count, self.seed = recipe, count, seed
        self.device = device or torch.device("cpu")
        self._orders: dict[int, Tensor] = {}

    def indices(self, iteration: int) -> Tensor:
        """The images of batch `iteration` (from 0), int64 (batch_size,)."""
        size = self.recipe.batch_size
        if self.recipe.sampling == "replacement":
            generator = torch.Generator().manual_seed(stream_seed(self.seed, ORDER, iteration))
            return torch.randint(self.count, (size,), generator=generator).to(self.device)
        parts = []
        start, missing = iteration * size, size
        while missing:
            epoch, place = divmod(start, self.count)
            part = self._order(epoch)[place : place + missing]
            parts.append(part)
            start, missing = start + len(part), missing - len(part)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            self._orders[epoch] = draw_order(self.seed, epoch, self.count).to(self.device)
        return self._orders[epoch]


def own_share(count: int) -> slice:
    """Which of `count` images of a batch are this process's, all processes having equally many."""
    share = count // world_size()
    return slice(rank() * share, (rank() + 1) * share)


class Normalisation:
    """What all nets see: pixels less the mean, divided."""

    def __init__(self, recipe: Recipe, mean: Tensor, std: Tensor | None = None) -> None:
        self.mean = mean  # (3, H, W) or (3, 1, 1), on the scale 0..255
        self.divisor = mean.new_tensor(recipe.pixel_divisor) if std is None else std  # one, or per channel

    def to(self, device: torch.device) -> Self:
        """Move mean and divisor to a device, in place."""
        self.mean, self.divisor = self.mean.to(device), self.divisor.to(device)
        return self

    def test(self, pixels: Tensor) -> Tensor:
        """Pixels 0..255 (N, 3, H, W) -> float32 of the same shape, of the size of the mean."""
        return laid_out((pixels.float() - self.mean) / self.divisor)

    def dense(self, pixels: Tensor) -> Tensor:
        """The same for images of any size, which take the mean of each channel (assumed)."""
        return laid_out((pixels.float() - self.mean.mean((1, 2), keepdim=True)) / self.divisor)


def laid_out(images: Tensor) -> Tensor:
    """The images in the memory layout that their device is fast with."""
    return images.contiguous(memory_format=memory_format(images.device))


def mean_over(mean: str, image: npt.NDArray[np.float64]) -> Tensor:
    """The mean that a recipe subtracts, from the mean image (3, H, W): per pixel, per channel, or none."""
    if mean == "per_channel":
        image = image.mean(axis=(1, 2), keepdims=True)
    return torch.as_tensor(image if mean != "none" else np.zeros((3, 1, 1)), dtype=torch.float32)


@dataclass(frozen=True)
class Draws:
    """The random choices for a batch: corners of the crops (2, N), and coins (N, 1, 1, 1) for the flips."""

    offsets: Tensor | None
    coins: Tensor | None

    def of(self, part: slice) -> "Draws":
        """The choices for some of the images."""
        offsets = None if self.offsets is None else self.offsets[:, part]
        return Draws(offsets, None if self.coins is None else self.coins[part])


class Preparation(Normalisation):
    """From uint8 pixels to what a CIFAR net sees: mean subtraction, padding, crop, flip."""

    def __init__(self, recipe: CifarRecipe, mean: Tensor, std: Tensor | None = None) -> None:
        super().__init__(recipe, mean, std)
        self.recipe = recipe

    @classmethod
    def from_training_images(cls, recipe: CifarRecipe, train: Images, device: torch.device) -> "Preparation":
        """Take the recipe's mean from the images trained on."""
        return cls(recipe, mean_over(recipe.mean, train.pixels.mean(axis=0, dtype=np.float64)).to(device))

    def draw(self, count: int, generator: torch.Generator) -> Draws:
        """Choose crops and flips for `count` images.

        All (2 pad + 1)^2 offsets are equally likely (81 for the paper's 4 pixels).
        """
        offsets = coins = None
        if self.recipe.pad:
            high = 2 * self.recipe.pad + 1
            offsets = torch.randint(high, (2, count), generator=generator, device=self.mean.device)
        if self.recipe.flip:
            coins = torch.rand(count, 1, 1, 1, generator=generator, device=self.mean.device)
        return Draws(offsets, coins)

    def train(self, pixels: Tensor, draws: Draws) -> Tensor:
        """A crop of the padded image or its flip, as drawn: uint8 (N, 3, H, W) -> float32, same shape."""
        mean_first = self.recipe.pad_order == "mean_first"
        images = (pixels.float() - self.mean) / self.divisor if mean_first else pixels.float()
        if draws.offsets is not None:
            images = crop(images, self.recipe.pad, self.recipe.pad_value, draws.offsets)
        if not mean_first:
            images = (images - self.mean) / self.divisor
        if draws.coins is not None:
            images = torch.where(draws.coins < 0.5, images.flip(3), images)
        return laid_out(images)


def crop(images: Tensor, pad: int, value: float, offsets: Tensor) -> Tensor:
    """Pad (N, C, H, W) by `pad` on each side with `value`, then cut the H x W window at (2, N) offsets."""
    count, _, height, width = images.shape
    windows = F.pad(images, (pad,) * 4, value=value).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(count, device=images.device), :, offsets[0], offsets[1]]


class TrainingBatches:
    """The training set on a device, giving this process's share of batch after batch."""

    def __init__(self, recipe: CifarRecipe, train: Images, preparation: Preparation, seed: int) -> None:
        self.recipe = recipe
        self.seed = seed
        self.preparation = preparation
        self.device = preparation.mean.device
        self.pixels = torch.from_numpy(np.ascontiguousarray(train.pixels)).to(self.device)
        self.labels = torch.from_numpy(np.ascontiguousarray(train.labels)).to(self.device)
        self.generator = torch.Generator(self.device)
        self.order = Order(recipe, len(self.labels), seed, self.device)

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W) float32 and labels (n,) of update `iteration` (from 0).

        n is the batch size, or this process's share of it. The choices are drawn for the whole batch, so
        they do not depend on the number of processes.
        """
        size = self.recipe.batch_size
        chosen = self.order.indices(iteration)[own_share(size)]
        self.generator.manual_seed(stream_seed(self.seed, AUGMENTATION, iteration))
        draws = self.preparation.draw(size, self.generator).of(own_share(size))
        return self.preparation.train(self.pixels[chosen], draws), self.labels[chosen]
