"""Photographs from files: decoded, scaled by the shorter side, cut into crops and test views (Section 3.4).

All pixels here are uint8; crops are (3, S, S), as a net wants them. A training batch depends only on the seed
and its number: not on the number of workers or processes, nor on where an interrupted run was resumed.
"""

import hashlib
import io
import math
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset

from resrepro.data import ALONE, ProcessGroup
from resrepro.data.augment import CropParams, EpochSampler, Lighting, Normalisation, laid_out
from resrepro.data.folder import Photos, checksum
from resrepro.data.loader import BadImages, Loading, read_ahead
from resrepro.errors import DataError
from resrepro.spec.catalogue import Protocol
from resrepro.spec.recipe import ImageNetRecipe, scaled

# What Pillow decodes itself; of others, EPS would start Ghostscript. An MPO is a JPEG of several views.
FORMATS = ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")
UNREADABLE = "cannot be read"  # the disk's fault, not the file's
LONGEST = 40  # times the shorter side; a longer strip is no photograph, and costs memory without bound
# Images that a worker reads at a time: those of a chunk are held in shared memory, about 15 MB at crops of
# 224 (photographs at five scales are some 3.5 MB each, ten crops 1.5 MB).
CHUNKS = {"center": 32, "ten": 10, "dense": 4}
Pixels = npt.NDArray[np.uint8]


class BadImage(Exception):
    """A file that is no readable image; says why."""


class Photo(NamedTuple):
    """An image in RGB and the SHA-256 (hex) of its file."""

    image: Image.Image
    digest: str


def read_image(path: Path) -> Photo:
    """Open an image file and make it RGB; EXIF rotation is ignored, as ImageNet's usual loaders do.

    Raises:
        BadImage: if it cannot be read, is no image, cut short, or too large or long to be one.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise BadImage("missing") from None
    except OSError as error:
        raise BadImage(f"{UNREADABLE}: {error.strerror}") from None
    return Photo(_decoded(content), hashlib.sha256(content).hexdigest())


def _decoded(content: bytes) -> Image.Image:
    """The RGB image of a file's content; BadImage if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF entries, of which ImageNet has some
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                image.load()
                rgb = to_rgb(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage("too many pixels") from None
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise BadImage("not an image") from None
    except Exception as error:  # decoders of damaged files raise almost anything
        cut_short = "truncated" in str(error).lower() or isinstance(error, EOFError)
        raise BadImage("truncated" if cut_short else "damaged") from None
    if max(rgb.size) > LONGEST * min(rgb.size):
        raise BadImage(f"{rgb.width}x{rgb.height} pixels, too long a strip")
    return rgb


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: grey repeated, palettes looked up, alpha dropped, 16-bit grey scaled down."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, np.int64)
        image = Image.fromarray((grey.clip(0, 65535) // 257).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


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


def planes(image: Image.Image) -> Pixels:
    """An RGB image as (3, H, W)."""
    return np.asarray(image, np.uint8).transpose(2, 0, 1)


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


def training_crop(image: Image.Image, recipe: ImageNetRecipe, choice: Sequence[float]) -> Pixels:
    """A crop of the scaled image or its flip, (3, S, S), by a row of `CropParams.views`.

    The shorter side is uniform on the whole numbers of the recipe's range, the place on all that the crop
    fits in; half of the crops are flipped.
    """
    low, high = recipe.scale
    size = recipe.image_size
    large = scaled_to(image, low + int(choice[0] * (high - low + 1)))
    left, top = (int(u * (side - size + 1)) for u, side in zip(choice[1:3], large.size, strict=True))
    crop = cut(large, left, top, size)
    return crop[:, :, ::-1] if recipe.flip and choice[3] < 0.5 else crop


class CropBatch(NamedTuple):
    """This process's share of a batch: crops (n, 3, S, S) uint8, labels (n,), shifts (n, 3, 1, 1).

    `bad` tells of a file that could not be read.
    """

    crops: Tensor
    labels: Tensor
    shifts: Tensor
    bad: str = ""


class CropReader(Dataset[CropBatch]):
    """Reads and cuts this process's share of batch `i`."""

    def __init__(
        self,
        photos: Photos,
        recipe: ImageNetRecipe,
        lighting: Lighting,
        seed: int,
        group: ProcessGroup = ALONE,
    ) -> None:
        self.photos, self.recipe, self.lighting, self.seed = photos, recipe, lighting, seed
        self.sampler = EpochSampler(recipe, len(photos), seed)
        self.share = group.share(recipe.batch_size)

    def __getitem__(self, iteration: int) -> CropBatch:
        indices = self.sampler.indices(iteration)[self.share].tolist()
        params = CropParams.draw(self.seed, iteration, self.recipe.batch_size)
        size, bad = self.recipe.image_size, ""
        crops = torch.empty(len(indices), 3, size, size, dtype=torch.uint8)
        for place, (index, choice) in enumerate(zip(indices, params.views[self.share], strict=True)):
            try:
                image = read_image(self.photos.path(index)).image
            except BadImage as reason:
                bad = f"{self.photos.split}/{self.photos.paths[index]} ({reason})"
                break
            crops[place] = torch.from_numpy(np.ascontiguousarray(training_crop(image, self.recipe, choice)))
        labels = torch.from_numpy(self.photos.labels[indices])
        return CropBatch(crops, labels, self.lighting.shifts(params.colours[self.share]), bad)


def photo_batches(
    reader: CropReader,
    iterations: range,
    normalisation: Normalisation,
    loading: Loading,
    group: ProcessGroup = ALONE,
) -> Generator[tuple[Tensor, Tensor]]:
    """Images (n, 3, S, S) float32 and labels (n,) of some updates, on the normalisation's device, read ahead.

    Raises:
        DataError: if a file that could be read before can be no longer, or a worker dies.
    """
    device = normalisation.mean.device
    for batch in read_ahead(reader, iterations, loading, device, group):
        if batch.bad:
            raise DataError(f"an image has changed since the run read them all: {batch.bad}.")
        crops, labels, shifts = (part.to(device, non_blocking=True) for part in batch[:3])
        yield laid_out((crops.float() + shifts - normalisation.mean) / normalisation.divisor), labels


@dataclass
class Views:
    """Some images of a split as a protocol shows them.

    Attributes:
        scales: one tensor per scale: (n, V, 3, S, S) crops, or (n, 1, 3, h, w) whole images, uint8; all
            images here have the same sizes.
        labels: (n,) int64.
    """

    scales: list[Tensor]
    labels: Tensor


class ViewChunk(NamedTuple):
    """Some images, grouped by size, all pixels in one tensor: many cost a worker a file descriptor each.

    Attributes:
        shapes: of each group, those of its scales.
        labels: of each group.
        pixels: of all scales of all groups, in order.
        digests: content digest of each readable file by its index.
        bad: the other files and why.
    """

    shapes: list[list[tuple[int, ...]]]
    labels: list[list[int]]
    pixels: Tensor
    digests: dict[int, str]
    bad: dict[str, str]

    def views(self) -> Iterator[Views]:
        """The groups."""
        sizes = [math.prod(shape) for group in self.shapes for shape in group]
        parts = iter(torch.split(self.pixels, sizes))
        for shapes, labels in zip(self.shapes, self.labels, strict=True):
            yield Views([next(parts).view(*shape) for shape in shapes], torch.tensor(labels))


def views_of(image: Image.Image, protocol: Protocol, image_size: int) -> list[Pixels]:
    """The views of one image: per scale crops (V, 3, S, S), or the whole image (1, 3, h, w)."""
    large = [scaled_to(image, scaled(side, image_size)) for side in protocol.sides]
    if protocol.crops == "dense":
        return [planes(scale)[None] for scale in large]
    if protocol.crops == "ten":
        return [ten_crops(scale, image_size) for scale in large]
    return [center_crop(scale, image_size)[None] for scale in large]


class ViewReader(Dataset[ViewChunk]):
    """Reads `chunk` images for item k and groups those of equal size."""

    def __init__(self, photos: Photos, protocol: Protocol, image_size: int) -> None:
        self.photos, self.protocol, self.image_size = photos, protocol, image_size
        self.chunk = CHUNKS[protocol.crops]

    def __getitem__(self, number: int) -> ViewChunk:
        digests: dict[int, str] = {}
        bad: dict[str, str] = {}
        groups: dict[tuple[tuple[int, ...], ...], list[tuple[list[Pixels], int]]] = {}
        for index in range(number * self.chunk, min((number + 1) * self.chunk, len(self.photos))):
            try:
                image, digests[index] = read_image(self.photos.path(index))
            except BadImage as reason:
                bad[f"{self.photos.split}/{self.photos.paths[index]}"] = str(reason)
                continue
            views = views_of(image, self.protocol, self.image_size)
            group = groups.setdefault(tuple(view.shape for view in views), [])
            group.append((views, int(self.photos.labels[index])))
        shapes = [[(len(group), *shape) for shape in key] for key, group in groups.items()]
        labels = [[label for _, label in group] for group in groups.values()]
        return ViewChunk(shapes, labels, _joined(groups.values()), digests, bad)


def _joined(groups: Iterable[list[tuple[list[Pixels], int]]]) -> Tensor:
    """The pixels of all images, scale by scale in each group, (total,) uint8."""
    parts = [
        view.reshape(-1)
        for group in groups
        for scale in zip(*(views for views, _ in group), strict=True)
        for view in scale
    ]
    return torch.from_numpy(np.concatenate(parts)) if parts else torch.empty(0, dtype=torch.uint8)


class PhotoViews:
    """This process's share of a split under a protocol; remembers what was read.

    Attributes:
        digests: content digest of each readable file by its index.
        bad: the files that are no readable images.
    """

    def __init__(
        self,
        photos: Photos,
        protocol: Protocol,
        image_size: int,
        loading: Loading,
        group: ProcessGroup = ALONE,
    ) -> None:
        self.reader, self.loading, self.group = ViewReader(photos, protocol, image_size), loading, group
        self.photos = photos
        self.digests: dict[int, str] = {}
        self.bad = BadImages(loading.max_bad_images)

    def read(self, device: torch.device) -> Iterator[Views]:
        """Groups of images of equal size.

        Raises:
            DataError: if too many files are no readable images, or a worker dies.
        """
        chunks = self.group.strided(-(-len(self.photos) // self.reader.chunk))
        for chunk in read_ahead(self.reader, chunks, self.loading, device, self.group):
            self.digests |= chunk.digests
            self.bad.add(chunk.bad)
            yield from chunk.views()

    def gather(self) -> tuple[Photos, str]:
        """The readable images of the split and their checksum, once all processes have read their shares.

        Raises:
            DataError: if too many files of all shares together are no readable images.
        """
        bad: dict[str, str] = {}
        for digests, names in self.group.all_gather((self.digests, self.bad.reasons)):
            self.digests |= digests
            bad |= names
        self.bad.reasons = {}
        self.bad.add(dict(sorted(bad.items())))
        readable = self.photos.without([path.partition("/")[2] for path in bad])
        return readable, checksum(readable, [self.digests[index] for index in sorted(self.digests)])
