"""One pass over the photographs: which can be read, their checksums, their mean and their colours.

The mean image is that of the centre crops of the training images (the paper says per pixel, not of which
crops); the colour components are the principal components of their RGB values (Section 3.4, [21]). The
result is kept in the user's cache under the fingerprint of the files.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from resrepro.data import ALONE, ProcessGroup, write_cache
from resrepro.data.folder import Photos, PhotoSet, checksum
from resrepro.data.loader import BadImages, Loading, read_ahead
from resrepro.data.photos import UNREADABLE, BadImage, center_crop, read_image, scaled_to
from resrepro.records.write import cache_folder
from resrepro.spec.recipe import scaled

CHUNK = 64  # files that a worker reads at a time
TEST_SIDE = 256  # shorter side of the centre crop, at crops of 224
Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Statistics:
    """What one pass over both splits tells.

    Attributes:
        mean: mean training image, (3, S, S), pixels 0 to 255.
        components: principal axes of RGB as columns, (3, 3).
        variances: their eigenvalues for pixels in 0 to 1, (3,).
        bad: by split, the files that are no readable images and why.
        checksums: by split, SHA-256 over names and contents of the readable ones.
    """

    mean: Array
    components: Array
    variances: Array
    bad: dict[str, dict[str, str]]
    checksums: dict[str, str]

    def bad_images(self, most: int) -> BadImages:
        """The unreadable files of both splits.

        Raises:
            DataError: if there are more than `most`.
        """
        bad = BadImages(most)
        bad.add({f"{split}/{name}": why for split, group in self.bad.items() for name, why in group.items()})
        return bad


@dataclass
class _Chunk:
    """Sums over the centre crops of some files: their `total`, and the `products` of the colours of a pixel.

    All are whole numbers, exact in float64 for over two million crops of 224: their order does not matter.
    """

    total: Array
    products: Array
    count: int
    digests: dict[int, str]
    bad: dict[int, str]

    @classmethod
    def empty(cls, size: int) -> "_Chunk":
        return cls(np.zeros((3, size, size)), np.zeros((3, 3)), 0, {}, {})

    def add(self, part: "_Chunk") -> None:
        self.total += part.total
        self.products += part.products
        self.count += part.count
        self.digests |= part.digests
        self.bad |= part.bad


class _ChunkReader(Dataset[_Chunk]):
    """Reads `CHUNK` files for item k, those from k CHUNK on."""

    def __init__(self, photos: Photos, image_size: int, with_pixels: bool) -> None:
        self.photos, self.image_size, self.with_pixels = photos, image_size, with_pixels

    def __getitem__(self, chunk: int) -> _Chunk:
        size = self.image_size
        sums = _Chunk.empty(size)
        for index in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.photos))):
            try:
                image, sums.digests[index] = read_image(self.photos.path(index))
            except BadImage as reason:
                sums.bad[index] = str(reason)
                continue
            if self.with_pixels:
                crop = center_crop(scaled_to(image, scaled(TEST_SIDE, size)), size)
                pixels = crop.reshape(3, -1).astype(np.float64)
                sums.total += crop
                sums.products += pixels @ pixels.T
                sums.count += 1
        return sums


def statistics_of(
    photos: PhotoSet,
    image_size: int,
    loading: Loading,
    say: Callable[[str], None] = lambda text: None,
    group: ProcessGroup = ALONE,
) -> Statistics:
    """The statistics of a folder, from the cache or by a pass over it that all processes share."""
    name: str = group.on_first(lambda: f"{photos.fingerprint()[:32]}-{image_size}.json")
    path = cache_folder() / name
    statistics: Statistics | None = group.on_first(lambda: _read(path))
    if statistics is None:
        say(
            f"Reading {len(photos.train) + len(photos.val):,} images once, for their mean and checksums; "
            "the result is kept for later runs."
        )
        statistics = measured = _pass(photos, image_size, loading, group)
        if not any(UNREADABLE in reason for files in measured.bad.values() for reason in files.values()):
            group.on_first(lambda: _write(path, measured))  # else the disk may be well again the next time
    return statistics


def _pass(photos: PhotoSet, image_size: int, loading: Loading, group: ProcessGroup = ALONE) -> Statistics:
    train = _sums(photos.train, image_size, loading, group, with_pixels=True)
    val = _sums(photos.val, image_size, loading, group, with_pixels=False)
    count = max(train.count, 1)
    mean = train.total / count
    channel = mean.mean(axis=(1, 2)) / 255
    covariance = train.products / (count * image_size**2) / 255**2 - np.outer(channel, channel)
    variances, components = principal_axes(covariance)
    bad, checksums = {}, {}
    for part, sums in ((photos.train, train), (photos.val, val)):
        bad[part.split] = {part.paths[index]: sums.bad[index] for index in sorted(sums.bad)}
        readable = part.without(tuple(bad[part.split]))
        checksums[part.split] = checksum(readable, [sums.digests[index] for index in sorted(sums.digests)])
    return Statistics(mean, components, variances, bad, checksums)


def principal_axes(covariance: Array) -> tuple[Array, Array]:
    """Eigenvalues, largest first, and unit eigenvectors as columns, the largest entry of each positive."""
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    largest = axes[np.abs(axes).argmax(axis=0), range(len(axes))]
    return variances, axes * np.sign(largest)


def _sums(
    photos: Photos, image_size: int, loading: Loading, group: ProcessGroup, *, with_pixels: bool
) -> _Chunk:
    """The sums over a split: each process reads every so many chunks, then all are added up."""
    reader = _ChunkReader(photos, image_size, with_pixels)
    own, whole = (_Chunk.empty(image_size) for _ in range(2))
    for part in read_ahead(reader, group.strided(-(-len(photos) // CHUNK)), loading, group=group):
        own.add(part)
    for part in group.all_gather(own):
        whole.add(part)
    return whole


def _read(path: Path) -> Statistics | None:
    """The statistics in a cache file; None if there is none, or it is not as it was written."""
    try:
        seal, _, text = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    if seal != hashlib.sha256(text).hexdigest().encode():
        return None
    stored: dict[str, Any] = json.loads(text)
    mean, components, variances = (np.array(stored[name]) for name in ("mean", "components", "variances"))
    return Statistics(mean, components, variances, stored["bad"], stored["checksums"])


def _write(path: Path, statistics: Statistics) -> None:
    values = vars(statistics).items()
    stored = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values}
    text = json.dumps(stored).encode()
    seal = hashlib.sha256(text).hexdigest().encode()
    write_cache(path, lambda file: file.write(seal + b"\n" + text))
