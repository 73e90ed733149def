"""One pass over the photographs: which can be read, their checksums, their mean and their colours.

The mean image is that of the centre crops of the training images (the paper says per pixel, not of which
crops); the colour components are the principal components of their RGB values (Section 3.4, [21]). The
result is kept in the user's cache under the fingerprint of the files.
"""

import contextlib
import io
import os
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from resrepro.data.folder import Photos, PhotoSet, checksum
from resrepro.data.images import UNREADABLE, BadImage, center_crop, read_image, scaled_to
from resrepro.data.loading import BadImages, Loading, read_ahead
from resrepro.processes import rank, world_size
from resrepro.records.storage import read_plain
from resrepro.records.write import cache_folder
from resrepro.spec.recipe import scaled
from resrepro.training.parallel import collected, on_first

CHUNK = 64  # files that a worker reads at a time
FORMAT = 1
LARGEST_CACHE = 256 * 2**20  # bytes; a mean image has 1.2 MB, the rest are the names of bad images
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


class _ChunkReader(Dataset[_Chunk]):
    """Reads `CHUNK` files for item k, those from k CHUNK on."""

    def __init__(self, photos: Photos, image_size: int, with_pixels: bool) -> None:
        self.photos, self.image_size, self.with_pixels = photos, image_size, with_pixels

    def __getitem__(self, chunk: int) -> _Chunk:
        size = self.image_size
        sums = _Chunk(np.zeros((3, size, size)), np.zeros((3, 3)), 0, {}, {})
        for index in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.photos))):
            try:
                read = read_image(self.photos.path(index))
            except BadImage as reason:
                sums.bad[index] = str(reason)
                continue
            sums.digests[index] = read.digest
            if self.with_pixels:
                crop = center_crop(scaled_to(read.image, scaled(TEST_SIDE, size)), size)
                pixels = crop.reshape(3, -1).astype(np.float64)
                sums.total += crop
                sums.products += pixels @ pixels.T
                sums.count += 1
        return sums


def statistics_of(
    photos: PhotoSet, image_size: int, loading: Loading, say: Callable[[str], None] = lambda text: None
) -> Statistics:
    """The statistics of a folder, from the cache or by a pass over it that all processes share."""
    path = on_first(lambda: _cache_path(photos, image_size))
    found = on_first(lambda: _read(path))
    if found is None or found.mean.shape[-1] != image_size:
        say(
            f"Reading {len(photos.train) + len(photos.val):,} images once, for their mean and checksums; "
            "the result is kept for later runs."
        )
        found = _pass(photos, image_size, loading)
        if not any(UNREADABLE in reason for group in found.bad.values() for reason in group.values()):
            on_first(lambda: _write(path, found))  # else the disk may be well again the next time
    return found


def _pass(photos: PhotoSet, image_size: int, loading: Loading) -> Statistics:
    train = _sums(photos.train, image_size, loading, with_pixels=True)
    val = _sums(photos.val, image_size, loading, with_pixels=False)
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


def _sums(photos: Photos, image_size: int, loading: Loading, *, with_pixels: bool) -> _Chunk:
    """The sums over a split: each process reads every so many chunks, then all are added up."""
    chunks = range(rank(), -(-len(photos) // CHUNK), world_size())
    whole = _Chunk(np.zeros((3, image_size, image_size)), np.zeros((3, 3)), 0, {}, {})
    reader = _ChunkReader(photos, image_size, with_pixels)
    for part in read_ahead(reader, chunks, loading):
        _add(whole, part)
    first, *others = collected(whole)
    for part in others:
        _add(first, part)
    return first


def _add(whole: _Chunk, part: _Chunk) -> None:
    whole.total += part.total
    whole.products += part.products
    whole.count += part.count
    whole.digests |= part.digests
    whole.bad |= part.bad


def _cache_path(photos: PhotoSet, image_size: int) -> Path:
    return cache_folder() / f"{photos.fingerprint()[:32]}-{image_size}.npz"


def _read(path: Path) -> Statistics | None:
    """The statistics in a cache file; None if there is none, or it is damaged."""
    try:
        content = read_plain(path, LARGEST_CACHE)
        _check_stored(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            if int(file["format"]) != FORMAT:
                return None
            bad = {
                split: dict(zip(*file[f"bad_{split}"].tolist(), strict=True)) for split in ("train", "val")
            }
            checksums = dict(zip(("train", "val"), file["checksums"].tolist(), strict=True))
            found = Statistics(file["mean"], file["components"], file["variances"], bad, checksums)
    except Exception:  # damage can look like anything, an unknown compression for one
        return None
    return found if _is_sound(found) else None


def _check_stored(content: bytes) -> None:
    """We write plainly, so what takes more memory unpacked than packed is not ours (ValueError)."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(info.file_size for info in archive.infolist()) > len(content):
            raise ValueError("larger inside than outside")


def _is_sound(found: Statistics) -> bool:
    """Whether the numbers are some that a pass over images can have found."""
    side = found.mean.shape[-1]
    shapes = ((found.mean, (3, side, side)), (found.components, (3, 3)), (found.variances, (3,)))
    whole = all(a.shape == shape and a.dtype == np.float64 and np.isfinite(a).all() for a, shape in shapes)
    told = all(re.fullmatch("[0-9a-f]{64}", str(text)) for text in found.checksums.values())
    return whole and told and 0 <= found.mean.min() <= found.mean.max() <= 255


def _write(path: Path, found: Statistics) -> None:
    """Keep the statistics; where the cache cannot be written, the next run makes the pass again."""
    content: dict[str, Any] = {
        "format": FORMAT, "mean": found.mean, "components": found.components,
        "variances": found.variances, "checksums": np.array(list(found.checksums.values())),
    }  # fmt: skip
    for split, group in found.bad.items():
        content[f"bad_{split}"] = np.array([list(group), list(group.values())], dtype=str)
    beside = path.with_name(f".{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            np.savez(file, **content)
        beside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
