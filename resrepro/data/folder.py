"""Folders of photographs in the usual layout: `train/<class>/*` and `val/<class>/*`, any number of classes.

Only names and sizes are looked at here; the files are opened by `resrepro.data.images`.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resrepro.errors import DataError

IMAGENET = {"train": 1_281_167, "val": 50_000}  # images, Section 4.1 (1.28 million and 50k)


@dataclass(frozen=True)
class Photos:
    """The images of one split, not yet read: paths relative to `root`, their sizes and labels (N,)."""

    root: Path
    split: str
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    sizes: tuple[int, ...]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / self.split / self.paths[index]

    def without(self, bad: Sequence[str]) -> "Photos":
        """The same without some of the paths."""
        left_out = set(bad)
        kept = [index for index, path in enumerate(self.paths) if path not in left_out]
        return replace(
            self,
            paths=tuple(self.paths[index] for index in kept),
            sizes=tuple(self.sizes[index] for index in kept),
            labels=self.labels[kept],
        )

    def labelled_by(self, classes: Sequence[str], whose: str) -> "Photos":
        """The same images with labels that count the given classes.

        Raises:
            DataError: if a class is not among them; it is named.
        """
        number = {name: index for index, name in enumerate(classes)}
        for name in self.classes:
            if name not in number:
                raise DataError(
                    f"{self.split} has the class {name!r}, which {whose} lacks: "
                    "remove its folder, or name the data that belong together."
                )
        own = np.array([number[name] for name in self.classes], np.int64)
        return replace(self, classes=tuple(classes), labels=own[self.labels])


def scan(root: Path, split: str) -> Photos:
    """List the images of one split, classes and files in order of their names.

    Hidden files are passed over; everything else counts as an image until it is opened.

    Raises:
        DataError: if the split is missing, has no classes, or a class is empty.
    """
    top = root / split
    if not top.is_dir():
        raise DataError(
            f"{root} has no folder {split!r}: expected {split}/<class>/<image> there, "
            "with one folder per class."
        )
    try:
        classes = sorted(entry.name for entry in os.scandir(top) if _is_class(entry))
        found = [(name, list(_files(top / name, name))) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename or top} cannot be read: {error.strerror}.") from None
    if not classes:
        raise DataError(f"{top} has no classes: expected one folder per class there.")
    for name, files in found:
        if not files:
            raise DataError(f"the class {name!r} in {top} is empty: put images there or remove its folder.")
    files = [file for _, group in found for file in group]
    labels = np.repeat(np.arange(len(classes)), [len(group) for _, group in found])
    paths, sizes = zip(*files, strict=True)
    return Photos(root, split, tuple(classes), tuple(paths), tuple(sizes), labels.astype(np.int64))


def _is_class(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _files(folder: Path, below: str) -> Iterator[tuple[str, int]]:
    """Relative path and size of each file below a class folder, in order."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        name = f"{below}/{entry.name}"
        if entry.is_dir():
            yield from _files(folder / entry.name, name)
        elif entry.is_file():
            yield name, entry.stat().st_size


@dataclass(frozen=True)
class PhotoSet:
    """Both splits, with labels that count the classes of `train`."""

    train: Photos
    val: Photos

    def fingerprint(self) -> str:
        """SHA-256 (hex) of names, sizes and times of change: it tells whether a cached pass still holds."""
        digest = hashlib.sha256()
        for photos in (self.train, self.val):
            for index, (path, size) in enumerate(zip(photos.paths, photos.sizes, strict=True)):
                changed = photos.path(index).stat().st_mtime_ns
                digest.update(f"{photos.split}/{path} {size} {changed}\n".encode())
        return digest.hexdigest()


def scan_both(root: Path) -> PhotoSet:
    """The training and validation images of a folder.

    Raises:
        DataError: if a split is missing or empty, or `val` has a class that `train` lacks.
    """
    train, val = scan(root, "train"), scan(root, "val")
    if len(train.classes) < 2:
        raise DataError(f"{root / 'train'} has a single class: a classifier needs two or more.")
    return PhotoSet(train, val.labelled_by(train.classes, "train"))


def checksum(photos: Photos, digests: Sequence[str]) -> str:
    """SHA-256 (hex) over the name and content digest of each image, in order."""
    total = hashlib.sha256()
    for path, digest in zip(photos.paths, digests, strict=True):
        total.update(f"{path} {digest}\n".encode())
    return total.hexdigest()


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes in the order of their indices."""
    text = resources.files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="ascii")
    return tuple(text.split())


def notices_of(dataset: str, photos: PhotoSet) -> tuple[str, ...]:
    """What must be said of the images beside every number."""
    sizes = {"train": len(photos.train), "val": len(photos.val)}
    if dataset == "imagenet" and photos.train.classes == imagenet_classes() and sizes == IMAGENET:
        return ()
    told = (
        f"{len(photos.train.classes):,} classes, {sizes['train']:,} training and "
        f"{sizes['val']:,} validation images"
    )
    if dataset == "imagenet":
        return (f"the images are not those of ImageNet: {told} instead of 1,000, 1,281,167 and 50,000",)
    return (f"the folder {photos.train.root.resolve().name} has {told}",)
