"""What is kept of photographs in the user's cache: the result of a pass over them, and their pixels.

The pass tells which can be read, their checksums, the mean image of the centre crops of the training images
(the paper says per pixel, not of which crops), and the principal components of their colours (Section 3.4).
"""

import hashlib
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from resrepro.data import ALONE, ProcessGroup
from resrepro.data.augment import Floats
from resrepro.data.loader import Loading, PhotoViews, read_ahead
from resrepro.data.photos import UNREADABLE, BadImage, Decoded, Photos, PhotoSet
from resrepro.errors import RecordError
from resrepro.machine import cache_folder, free_memory
from resrepro.records.reading import json_bytes, read_json
from resrepro.records.storage import make_folder, write_out, write_whole
from resrepro.spec.catalogue import protocol_for

ARRAYS = ("mean", "components", "variances")
MOST_KEPT = 4 * 10**9  # bytes


@dataclass(frozen=True)
class Statistics:
    """What one pass over both splits tells."""

    mean: Floats  # training image, (3, S, S), pixels 0 to 255
    components: Floats  # principal axes of RGB as columns, (3, 3)
    variances: Floats  # their eigenvalues for pixels in 0 to 1, (3,)
    bad: dict[str, str]  # the files that are no readable images, `<split>/<class>/<file>`, and why
    checksums: dict[str, str]  # by split, SHA-256 over names and contents of the readable ones
    size: int  # bytes of the decoded pixels of the readable ones


def statistics_of(
    photos: PhotoSet, image_size: int, loading: Loading, say: Callable[[str], None] = lambda text: None,
    group: ProcessGroup = ALONE,
) -> Statistics:  # fmt: skip
    """The statistics of a folder: those kept under its files' fingerprint, or by a pass that all share."""
    stamp = hashlib.sha256(f"{photos.train.stamp} {photos.val.stamp}".encode()).hexdigest()
    path = cache_folder() / f"{stamp[:32]}.{image_size}.json"
    statistics: Statistics | None = group.on_first(lambda: _read(path))
    if statistics is None:
        count = len(photos.train) + len(photos.val)
        say(f"Reading {count:,} images once, for their mean and checksums; what is found is kept.")
        statistics = measured = _pass(photos, image_size, loading, group)
        if not any(UNREADABLE in reason for reason in measured.bad.values()):
            group.on_first(lambda: _write(path, measured))
    return statistics


def _pass(photos: PhotoSet, image_size: int, loading: Loading, group: ProcessGroup) -> Statistics:
    center, any_number = protocol_for("center", "imagenet"), replace(loading, max_bad_images=sys.maxsize)
    train, val = (PhotoViews(part, center, image_size, any_number, group) for part in photos)
    # Whole numbers, exact in float64 for over two million crops of 224: their order does not matter.
    total, products, count = np.zeros((3, image_size, image_size)), np.zeros((3, 3)), 0
    for views in train.read(None):
        crops = views.scales[0][:, 0]
        colours = crops.transpose(0, 1).reshape(3, -1).double()
        total += crops.sum(0).numpy()
        products += (colours @ colours.T).numpy()
        count += len(crops)
    for _ in val.read(None):
        pass  # for the digests and bad files
    gathered = group.all_gather((total, products, count, train.size + val.size))
    total, products, count, size = (sum(parts) for parts in zip(*gathered, strict=True))
    count = max(count, 1)
    mean = total / count
    channel = mean.mean(axis=(1, 2)) / 255
    covariance = products / (count * image_size**2) / 255**2 - np.outer(channel, channel)
    variances, components = principal_axes(covariance)
    checksums = {views.photos.split: views.gather()[1] for views in (train, val)}
    return Statistics(mean, components, variances, train.bad | val.bad, checksums, size)


def principal_axes(covariance: Floats) -> tuple[Floats, Floats]:
    """Eigenvalues, largest first, and unit eigenvectors as columns, the largest entry of each positive."""
    variances, axes = np.linalg.eigh(covariance)
    variances, axes = variances[::-1], axes[:, ::-1]
    largest = axes[np.abs(axes).argmax(axis=0), range(len(axes))]
    return variances, axes * np.sign(largest)


def _read(path: Path) -> Statistics | None:
    """The statistics in a cache file; None if there is none, or it is not as it was written."""
    try:
        stored = read_json(path)
    except RecordError:
        return None
    return Statistics(**stored | {name: np.array(stored[name]) for name in ARRAYS})


def _write(path: Path, statistics: Statistics) -> None:
    lists = {name: getattr(statistics, name).tolist() for name in ARRAYS}
    with suppress(RecordError):  # the next run makes the pass anew
        write_out(path, json_bytes(vars(statistics) | lists))


def decoded_once(
    photos: PhotoSet, size: int, loading: Loading, say: Callable[[str], None], group: ProcessGroup = ALONE
) -> PhotoSet:
    """The images, all readable, with their pixels of `size` bytes kept: they are decoded once. As they are if
    that is over 4 GB, a tenth of the free disk or a quarter of the free memory, or the disk refuses.
    """
    folder = cache_folder()

    def kept(part: Photos) -> Decoded | None:
        with suppress(OSError, ValueError):
            return Decoded(folder / f"{part.stamp[:32]}.pixels", len(part))
        return None

    def decoded(part: Photos) -> Iterator[bytes]:
        """The content of such a file: the pixels of all images, then their heights and widths."""
        sizes: list[tuple[int, ...]] = []
        for pixels in read_ahead(part.pixels, range(len(part)), loading, None, group):
            yield pixels.tobytes()
            sizes.append(pixels.shape[:2])
        yield np.array(sizes, np.uint32).tobytes()

    def write_missing() -> None:
        missing = [part for part in photos if kept(part) is None]
        if not missing or size > MOST_KEPT:
            return
        try:
            make_folder(folder)
            if size <= min(shutil.disk_usage(folder).free / 10, free_memory() / 4):
                say(f"Keeping the decoded images, {size / 1e6:,.0f} MB, in {folder} for all epochs and runs.")
                for part in missing:
                    write_whole(folder / f"{part.stamp[:32]}.pixels", decoded(part))
        except (OSError, RecordError):
            say(f"The decoded images cannot be written to {folder}: each is decoded whenever it is needed.")
        except BadImage:
            pass  # it has changed since the pass, and the run will tell of it

    group.on_first(write_missing)
    return PhotoSet(*(replace(part, decoded=kept(part)) for part in photos))
