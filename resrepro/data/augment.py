"""The order of a run's images and their augmentation, every choice a function of seed and iteration alone.

Images in memory stay on the training device as uint8; each batch is drawn, augmented and normalised there as
a whole (Section 4.2), photographs are scaled and cut one by one (Section 3.4). A resumed run therefore sees
the same batches, whatever the number of processes.
"""

from collections.abc import Sequence
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from resrepro.data import ALONE, Images, ProcessGroup
from resrepro.data.photos import Pixels
from resrepro.spec.catalogue import Protocol
from resrepro.spec.recipe import CifarRecipe, ImageNetRecipe, Recipe, scaled

Floats = npt.NDArray[np.float64]
ORDER, AUGMENTATION, INITIAL_WEIGHTS = range(3)  # independent random streams of one seed

# The components that later implementations use, computed once on ImageNet by fb.resnet.torch; pixels 0..1.
PUBLISHED_VARIANCES = (0.2175, 0.0188, 0.0045)
PUBLISHED_COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def stream_seed(seed: int, stream: int, index: int = 0) -> int:
    """A well-mixed 63-bit seed for one use of a run's seed."""
    mixed = np.random.SeedSequence([seed, stream, index]).generate_state(1, np.uint64)[0]
    return int(mixed >> np.uint64(1))


class EpochSampler:
    """Which of `count` images make up each batch of a run, on a device. Each epoch has its own order, always
    drawn on the CPU; the last batch of one goes on into the next.
    """

    def __init__(self, recipe: Recipe, count: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.recipe, self.count, self.seed, self.device = recipe, count, seed, device
        self._orders: dict[int, Tensor] = {}

    def indices(self, iteration: int) -> Tensor:
        """The images of batch `iteration` (from 0), int64 (batch_size,)."""
        size = self.recipe.batch_size
        if self.recipe.sampling == "replacement":
            return torch.randint(self.count, (size,), generator=self._generator(iteration)).to(self.device)
        epoch, place = divmod(iteration * size, self.count)
        last = (iteration * size + size - 1) // self.count
        orders = [self._order(each) for each in range(epoch, last + 1)]
        return (orders[0] if epoch == last else torch.cat(orders))[place : place + size]

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {old: order for old, order in self._orders.items() if old == epoch - 1}
            order = torch.randperm(self.count, generator=self._generator(epoch))
            self._orders[epoch] = order.to(self.device)
        return self._orders[epoch]

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed(stream_seed(self.seed, ORDER, index))


def memory_format(device: torch.device) -> torch.memory_format:
    """The layout of images and activations: channels last, which is faster (measured) than NCHW. Not on MPS,
    whose BN gradients are then wrong in some PyTorch releases (pytorch issue 175189).
    """
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def laid_out(images: Tensor) -> Tensor:
    """The images in the memory layout that their device is fast with."""
    return images.contiguous(memory_format=memory_format(images.device))


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


def normalisation_by(recipe: Recipe, image: Floats, device: torch.device) -> Normalisation:
    """What a recipe subtracts of the mean image (3, H, W): itself, the mean of each channel, or nothing."""
    if recipe.mean == "per_channel":
        image = image.mean(axis=(1, 2), keepdims=True)
    mean = torch.as_tensor(image if recipe.mean != "none" else np.zeros((3, 1, 1)), dtype=torch.float32)
    return Normalisation(recipe, mean.to(device))


class TrainingBatches:
    """The training set on a device: this process's share of batch after batch, augmented (Section 4.2)."""

    def __init__(
        self, recipe: CifarRecipe, train: Images, device: torch.device, seed: int, group: ProcessGroup = ALONE
    ) -> None:
        self.recipe, self.seed = recipe, seed
        self.normalisation = normalisation_by(recipe, train.pixels.mean(axis=0, dtype=np.float64), device)
        self.pixels, self.labels = on_device(train, device)
        self.generator = torch.Generator(device)
        self.sampler = EpochSampler(recipe, len(self.labels), seed, device)
        self.share = group.share(recipe.batch_size)

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor]:
        """Images (n, 3, H, W) float32 and labels (n,) of this process's share of update `iteration`."""
        return self.made(*self.choices(iteration))

    def choices(self, iteration: int) -> list[Tensor]:
        """What makes up an update: indices of images (n,) int64; where the recipe pads, corners (2, n), all
        equally likely (81 for the paper's 4 pixels); where it flips, coins (n, 1, 1, 1) in [0, 1).
        """
        generator, device = self.generator, self.generator.device
        generator.manual_seed(stream_seed(self.seed, AUGMENTATION, iteration))
        pad, count = self.recipe.pad, self.recipe.batch_size
        drawn = [self.sampler.indices(iteration)[self.share]]
        if pad:
            corners = torch.randint(2 * pad + 1, (2, count), generator=generator, device=device)
            drawn.append(corners[:, self.share])
        if self.recipe.flip:
            drawn.append(torch.rand(count, 1, 1, 1, generator=generator, device=device)[self.share])
        return drawn

    def made(self, indices: Tensor, *drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The batch of some choices; work of the device alone."""
        recipe, rest = self.recipe, list(drawn)
        mean, divisor = self.normalisation.mean, self.normalisation.divisor
        images, mean_first = self.pixels[indices].float(), recipe.pad_order == "mean_first"
        if mean_first:
            images = (images - mean) / divisor
        if recipe.pad:
            (down, right), (height, width) = rest.pop(0), images.shape[2:]
            padded = F.pad(images, (recipe.pad,) * 4, value=recipe.pad_value)
            windows = padded.unfold(2, height, 1).unfold(3, width, 1)
            images = windows[torch.arange(len(images), device=images.device), :, down, right]
        if not mean_first:
            images = (images - mean) / divisor
        if recipe.flip:
            images = torch.where(rest.pop(0) < 0.5, images.flip(3), images)
        return laid_out(images), self.labels[indices]


def on_device(images: Images, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, H, W) uint8 and labels (N,) int64 as tensors on the device."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.pixels))
    return pixels.to(device), torch.from_numpy(np.ascontiguousarray(images.labels)).to(device)


def crop_choices(seed: int, iteration: int, count: int) -> tuple[Floats, Floats]:
    """The random choices for the N photographs of an update (Section 3.4): of views, and of colours. The
    first (N, 4) in [0, 1): shorter side, place across and down, flip; the others (N, 3), standard normal.
    """
    source = np.random.default_rng(stream_seed(seed, AUGMENTATION, iteration))
    return source.random((count, 4)), source.standard_normal((count, 3))


def colour_axes(recipe: ImageNetRecipe, components: npt.ArrayLike, variances: npt.ArrayLike) -> Floats:
    """AlexNet's colour augmentation [21]: (3, 3), which times three standard normal numbers gives the shifts
    of R, G and B on the scale 0 to 255. Its columns are the principal components of the pixels, each times
    its eigenvalue (of pixels in 0 to 1; the scale is assumed) and the recipe's standard deviation.
    """
    if recipe.colour == "pca_published":
        components, variances = PUBLISHED_COMPONENTS, PUBLISHED_VARIANCES
    strength = 0.0 if recipe.colour == "none" else recipe.colour_std
    axes: Floats = 255 * strength * np.array(components) * np.array(variances)
    return axes


# --- photographs scaled and cut ---------------------------------------------------------------------------


def planes(image: Image.Image) -> Pixels:
    """An RGB image as (3, H, W)."""
    return np.asarray(image, np.uint8).transpose(2, 0, 1)


def scaled_to(image: Image.Image, shorter: int) -> Image.Image:
    """Scale an image so that its shorter side has `shorter` pixels (bilinear, antialiased)."""
    width, height = image.size
    if min(width, height) == shorter:
        return image
    longer = int(shorter * max(width, height) / min(width, height))
    size = (shorter, longer) if width <= height else (longer, shorter)
    return image.resize(size, Image.Resampling.BILINEAR)


def cut(image: Image.Image, left: int, top: int, size: int) -> Pixels:
    """The crop of `size` x `size` pixels at a place, (3, size, size)."""
    return planes(image.crop((left, top, left + size, top + size)))


def center_crop(image: Image.Image, size: int) -> Pixels:
    """The crop in the middle, (3, size, size); of two middles the one that rounding to even takes."""
    left, top = (round((side - size) / 2) for side in image.size)
    return cut(image, left, top, size)


def ten_crops(image: Image.Image, size: int) -> Pixels:
    """Four corners and centre of the image, then those of its flip, (10, 3, size, size) [21]."""
    crops = []
    for side in (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)):
        right, bottom = side.width - size, side.height - size
        crops += [cut(side, *place, size) for place in ((0, 0), (right, 0), (0, bottom), (right, bottom))]
        crops.append(center_crop(side, size))
    return np.stack(crops)


def views_of(image: Image.Image, protocol: Protocol, image_size: int) -> list[Pixels]:
    """The views of one image: per scale crops (V, 3, S, S), or the whole image (1, 3, h, w)."""
    large = [scaled_to(image, scaled(side, image_size)) for side in protocol.sides]
    if protocol.crops == "dense":
        return [planes(scale)[None] for scale in large]
    if protocol.crops == "ten":
        return [ten_crops(scale, image_size) for scale in large]
    return [center_crop(scale, image_size)[None] for scale in large]


def training_crop(image: Image.Image, recipe: ImageNetRecipe, choice: Sequence[float]) -> Pixels:
    """A crop (3, S, S) of the scaled image, half of the time flipped, by a row of `crop_choices`: the shorter
    side is uniform on the whole numbers of the recipe's range, the place on all that the crop fits in.
    """
    low, high = recipe.scale
    size = recipe.image_size
    large = scaled_to(image, low + int(choice[0] * (high - low + 1)))
    left, top = (int(u * (side - size + 1)) for u, side in zip(choice[1:3], large.size, strict=True))
    crop = cut(large, left, top, size)
    return crop[:, :, ::-1] if recipe.flip and choice[3] < 0.5 else crop
