"""Test views of photographs: each image read once, cut or scaled as a protocol says (Section 3.4)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from resrepro.data.folder import Photos
from resrepro.data.images import (
    BadImage,
    Pixels,
    center_crop,
    planes,
    read_image,
    scaled_to,
    ten_crops,
)
from resrepro.data.loading import BadImages, Loading, read_ahead
from resrepro.processes import rank, world_size
from resrepro.spec.catalogue import Protocol
from resrepro.spec.specs import scaled

# Images that a worker reads at a time: those of a chunk are held in shared memory, about 15 MB at crops of
# 224 (photographs at five scales are some 3.5 MB each, ten crops 1.5 MB).
CHUNKS = {"center": 32, "ten": 10, "dense": 4}


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


@dataclass
class _Chunk:
    """Some images, grouped by size, all pixels in one tensor: many cost a worker a file descriptor each.

    Attributes:
        shapes: of each group, those of its scales.
        labels: of each group.
        pixels: of all scales of all groups, one after the other.
        digests: content digest of each readable file by its index.
        bad: the other files and why.
    """

    shapes: list[list[tuple[int, ...]]]
    labels: list[list[int]]
    pixels: Tensor
    digests: dict[int, str]
    bad: dict[str, str]

    def pin_memory(self) -> "_Chunk":
        """The same in pinned memory, from which a GPU copies without waiting."""
        return replace(self, pixels=self.pixels.pin_memory())

    def views(self) -> Iterator[Views]:
        """The groups."""
        sizes = [math.prod(shape) for group in self.shapes for shape in group]
        parts = iter(torch.split(self.pixels, sizes))
        for shapes, labels in zip(self.shapes, self.labels, strict=True):
            yield Views([next(parts).view(shape) for shape in shapes], torch.tensor(labels))


def views_of(image: Image.Image, protocol: Protocol, image_size: int) -> list[Pixels]:
    """The views of one image: per scale crops (V, 3, S, S), or the whole image (1, 3, h, w)."""
    large = [scaled_to(image, scaled(side, image_size)) for side in protocol.sides]
    if protocol.crops == "dense":
        return [planes(each)[None] for each in large]
    if protocol.crops == "ten":
        return [ten_crops(each, image_size) for each in large]
    return [center_crop(each, image_size)[None] for each in large]


class ViewReader(Dataset[_Chunk]):
    """Reads `chunk` images for item k and groups those of equal size."""

    def __init__(self, photos: Photos, protocol: Protocol, image_size: int) -> None:
        self.photos, self.protocol, self.image_size = photos, protocol, image_size
        self.chunk = CHUNKS[protocol.crops]

    def __getitem__(self, number: int) -> _Chunk:
        digests: dict[int, str] = {}
        bad: dict[str, str] = {}
        groups: dict[tuple[tuple[int, ...], ...], list[tuple[list[Pixels], int]]] = {}
        for index in range(number * self.chunk, min((number + 1) * self.chunk, len(self.photos))):
            try:
                read = read_image(self.photos.path(index))
            except BadImage as reason:
                bad[f"{self.photos.split}/{self.photos.paths[index]}"] = str(reason)
                continue
            digests[index] = read.digest
            views = views_of(read.image, self.protocol, self.image_size)
            groups.setdefault(tuple(view.shape for view in views), []).append(
                (views, int(self.photos.labels[index]))
            )
        shapes = [[(len(group), *shape) for shape in key] for key, group in groups.items()]
        labels = [[label for _, label in group] for group in groups.values()]
        return _Chunk(shapes, labels, _in_one(groups.values()), digests, bad)


def _in_one(groups: Iterable[list[tuple[list[Pixels], int]]]) -> Tensor:
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

    def __init__(self, photos: Photos, protocol: Protocol, image_size: int, loading: Loading) -> None:
        self.reader, self.loading = ViewReader(photos, protocol, image_size), loading
        self.count = len(photos)
        self.digests: dict[int, str] = {}
        self.bad = BadImages(loading.max_bad_images)

    def read(self, device: torch.device) -> Iterator[Views]:
        """Groups of images of equal size.

        Raises:
            DataError: if too many files are no readable images, or a worker dies.
        """
        chunks = range(rank(), -(-self.count // self.reader.chunk), world_size())
        for chunk in read_ahead(self.reader, chunks, self.loading, device):
            self.digests |= chunk.digests
            self.bad.add(chunk.bad)
            yield from chunk.views()
