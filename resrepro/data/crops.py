"""Training crops of photographs: scale, crop, flip and colour, drawn for each batch (Section 3.4).

Batch `i` of a run depends only on the seed and on `i`: not on the number of workers or processes, nor on
where an interrupted run was resumed.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from resrepro.data.batches import AUGMENTATION, Normalisation, Order, laid_out, own_share, stream_seed
from resrepro.data.folder import Photos
from resrepro.data.images import BadImage, Pixels, cut, read_image, scaled_to
from resrepro.data.loading import Loading, read_ahead
from resrepro.data.statistics import Statistics
from resrepro.errors import DataError
from resrepro.records.storage import printable
from resrepro.spec.recipe import ImageNetRecipe

# The components that later implementations use, computed once on ImageNet by fb.resnet.torch; pixels 0..1.
PUBLISHED_VARIANCES = (0.2175, 0.0188, 0.0045)
PUBLISHED_COMPONENTS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


@dataclass(frozen=True)
class CropDraws:
    """The random choices for a batch of N images.

    `views` (N, 4) in [0, 1): shorter side, place across and down, flip; `colours` (N, 3): standard normal.
    """

    views: npt.NDArray[np.float64]
    colours: npt.NDArray[np.float64]


def draw(seed: int, iteration: int, count: int) -> CropDraws:
    """The choices for the images of one update."""
    source = np.random.default_rng(stream_seed(seed, AUGMENTATION, iteration))
    return CropDraws(source.random((count, 4)), source.standard_normal((count, 3)))


def training_crop(image: Image.Image, recipe: ImageNetRecipe, choice: Sequence[float]) -> Pixels:
    """A crop of the scaled image or its flip, (3, S, S).

    The shorter side is uniform on the whole numbers of the recipe's range, the place on all that the crop
    fits in; half of the crops are flipped.
    """
    low, high = recipe.scale
    size = recipe.image_size
    large = scaled_to(image, low + int(choice[0] * (high - low + 1)))
    left, top = (int(u * (side - size + 1)) for u, side in zip(choice[1:3], large.size, strict=True))
    crop = cut(large, left, top, size)
    return crop[:, :, ::-1] if recipe.flip and choice[3] < 0.5 else crop


class Lighting:
    """AlexNet's colour augmentation [21]: RGB shifts along the principal components of the pixels.

    Each shift is the sum of the components, each times its eigenvalue (of pixels in 0 to 1; the scale is
    assumed) and a normal number of the recipe's standard deviation.
    """

    def __init__(self, recipe: ImageNetRecipe, statistics: Statistics) -> None:
        if recipe.colour == "pca_published":
            components, variances = np.array(PUBLISHED_COMPONENTS), np.array(PUBLISHED_VARIANCES)
        else:
            components, variances = statistics.components, statistics.variances
        strength = 0.0 if recipe.colour == "none" else recipe.colour_std
        self.axes = 255 * strength * components * variances

    def shifts(self, colours: npt.NDArray[np.float64]) -> Tensor:
        """Standard normal numbers (N, 3) -> shifts of R, G and B on the scale 0 to 255, (N, 3, 1, 1)."""
        return torch.as_tensor(colours @ self.axes.T, dtype=torch.float32)[:, :, None, None]


@dataclass(frozen=True)
class CropBatch:
    """This process's share of a batch: crops (n, 3, S, S) uint8, labels (n,), shifts (n, 3, 1, 1).

    `bad` tells of a file that could not be read.
    """

    crops: Tensor
    labels: Tensor
    shifts: Tensor
    bad: str = ""

    def pin_memory(self) -> "CropBatch":
        """The same in pinned memory, from which a GPU copies without waiting."""
        crops, labels, shifts = (each.pin_memory() for each in (self.crops, self.labels, self.shifts))
        return CropBatch(crops, labels, shifts, self.bad)


class CropReader(Dataset[CropBatch]):
    """Reads and cuts this process's share of batch `i`."""

    def __init__(self, photos: Photos, recipe: ImageNetRecipe, lighting: Lighting, seed: int) -> None:
        self.photos, self.recipe, self.lighting, self.seed = photos, recipe, lighting, seed
        self.order = Order(recipe, len(photos), seed)
        self.share = own_share(recipe.batch_size)  # a worker process may not know of the others

    def __getitem__(self, iteration: int) -> CropBatch:
        share = self.share
        chosen = self.order.indices(iteration)[share].tolist()
        choices = draw(self.seed, iteration, self.recipe.batch_size)
        size, bad = self.recipe.image_size, ""
        crops = torch.empty(len(chosen), 3, size, size, dtype=torch.uint8)
        for place, (index, choice) in enumerate(zip(chosen, choices.views[share], strict=True)):
            try:
                image = read_image(self.photos.path(index)).image
            except BadImage as reason:
                bad = f"{printable(f'{self.photos.split}/{self.photos.paths[index]}')} ({reason})"
                break
            crops[place] = torch.from_numpy(np.ascontiguousarray(training_crop(image, self.recipe, choice)))
        labels = torch.from_numpy(self.photos.labels[chosen])
        return CropBatch(crops, labels, self.lighting.shifts(choices.colours[share]), bad)


class PhotoBatches:
    """Batches of training crops on a device, read ahead by workers."""

    def __init__(
        self, reader: CropReader, normalisation: Normalisation, loading: Loading, device: torch.device
    ) -> None:
        self.reader, self.normalisation, self.loading, self.device = reader, normalisation, loading, device

    def between(self, start: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
        """Images (n, 3, S, S) float32 and labels (n,) of updates start..stop-1.

        Raises:
            DataError: if a file that could be read before can be no longer, or a worker dies.
        """
        size = self.reader.recipe.image_size
        item_bytes = (self.reader.share.stop - self.reader.share.start) * 3 * size**2
        items = range(start, stop)
        for batch in read_ahead(self.reader, items, self.loading, self.device, item_bytes):
            if batch.bad:
                raise DataError(f"an image has changed since the run read them all: {batch.bad}.")
            crops, labels, shifts = (
                part.to(self.device, non_blocking=True) for part in (batch.crops, batch.labels, batch.shifts)
            )
            images = crops.float() + shifts - self.normalisation.mean
            yield laid_out(images / self.normalisation.divisor), labels
