"""Folders of photographs in the usual layout: `train/<class>/*` and `val/<class>/*`, any number of classes.

Only names and sizes are looked at here; the files are opened by `resrepro.data.photos`. Links are followed,
out of the folder too: data sets are often put together of links, and what one leads to must be an image.
"""

import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from resrepro.errors import DataError
from resrepro.spec import IMAGENET_IMAGES


class Names:
    """Many file names in one buffer: worker processes share it, where each would copy a list of strings."""

    def __init__(self, names: Iterable[str]) -> None:
        encoded = [_bytes(name) for name in names]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        place = range(len(self))[index]
        return self._text[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for start, end in itertools.pairwise(self._ends.tolist()):
            yield self._text[start:end].decode("utf-8", "surrogateescape")


def _bytes(name: str) -> bytes:
    """A file name as it is on disk, also one that is no UTF-8."""
    return name.encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class Photos:
    """The images of one split, not yet read.

    Attributes:
        root: the folder of the splits.
        split: the folder in it that holds the classes.
        classes: what the labels count.
        paths: below the split, `<class>/<file>`.
        sizes: of the files in bytes, (N,).
        labels: (N,).
        changed: when the files were last changed, in nanoseconds, (N,).
    """

    root: Path
    split: str
    classes: tuple[str, ...]
    paths: Names
    sizes: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    changed: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, index: int) -> Path:
        """Where image `index` lies."""
        return self.root / self.split / self.paths[index]

    def without(self, bad: Sequence[str]) -> "Photos":
        """The same without some of the paths."""
        if not bad:
            return self
        left_out = set(bad)
        kept = [index for index, path in enumerate(self.paths) if path not in left_out]
        return replace(
            self,
            paths=Names(self.paths[index] for index in kept),
            sizes=self.sizes[kept],
            labels=self.labels[kept],
            changed=self.changed[kept],
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

    Hidden files are passed over, and links to a folder that they lie in; everything else counts as an
    image until it is opened, a link to nothing too.

    Raises:
        DataError: if the split is missing, has no classes, or a class is empty.
    """
    top = root / split
    try:
        if not top.is_dir():
            raise DataError(
                f"{root} has no folder {split!r}: expected {split}/<class>/<image> there, "
                "with one folder per class."
            )
        classes = sorted(entry.name for entry in os.scandir(top) if _is_class(entry))
        listed = [(name, list(_files(top / name, name, (_identity(top),)))) for name in classes]
    except OSError as error:
        raise DataError(f"{error.filename or top} cannot be read: {error.strerror}.") from None
    if not classes:
        raise DataError(f"{top} has no classes: expected one folder per class there.")
    for name, files in listed:
        if not files:
            raise DataError(f"the class {name!r} in {top} is empty: put images there or remove its folder.")
    files = [file for _, group in listed for file in group]
    labels = np.repeat(np.arange(len(classes)), [len(group) for _, group in listed])
    paths, sizes, changed = zip(*files, strict=True)
    numbers = (np.array(column, np.int64) for column in (sizes, labels, changed))
    return Photos(root, split, tuple(classes), Names(paths), *numbers)


def _is_class(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir() and not entry.name.startswith(".")


def _identity(folder: Path) -> tuple[int, int]:
    about = folder.stat()
    return about.st_dev, about.st_ino


def _files(folder: Path, below: str, above: tuple[tuple[int, int], ...]) -> Iterator[tuple[str, int, int]]:
    """Relative path, size and time of change of each file below a class folder, in order."""
    here = _identity(folder)
    if here in above:  # come back to by a link
        return
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        name = f"{below}/{entry.name}"
        if entry.is_dir():
            yield from _files(folder / entry.name, name, (*above, here))
        elif entry.is_file():
            about = entry.stat()
            yield name, about.st_size, about.st_mtime_ns
        elif entry.is_symlink() and not Path(entry.path).exists():
            yield name, 0, 0


@dataclass(frozen=True)
class PhotoSet:
    """Both splits, with labels that count the classes of `train`."""

    train: Photos
    val: Photos

    def fingerprint(self) -> str:
        """SHA-256 (hex) of names, sizes and times of change: it tells whether a cached pass still holds."""
        digest = hashlib.sha256()
        for photos in (self.train, self.val):
            numbers = photos.sizes.tolist(), photos.changed.tolist()
            for path, size, changed in zip(photos.paths, *numbers, strict=True):
                digest.update(_bytes(f"{photos.split}/{path} {size} {changed}\n"))
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
        total.update(_bytes(f"{path} {digest}\n"))
    return total.hexdigest()


@cache
def imagenet_classes() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's 1,000 classes in the order of their indices."""
    text = resources.files(__package__).joinpath("imagenet_classes.txt").read_text(encoding="ascii")
    return tuple(text.split())


def notices_of(dataset: str, photos: PhotoSet) -> tuple[str, ...]:
    """What must be said of the images beside every number."""
    sizes = {"train": len(photos.train), "val": len(photos.val)}
    if dataset == "imagenet" and photos.train.classes == imagenet_classes() and sizes == IMAGENET_IMAGES:
        return ()
    unseen = len(photos.train.classes) - len(set(photos.val.labels.tolist()))
    lacking = () if not unseen else (f"val has no images of {unseen} of the classes",)
    sizes_text = (
        f"{len(photos.train.classes):,} classes, {sizes['train']:,} training and "
        f"{sizes['val']:,} validation images"
    )
    if dataset == "imagenet":
        return (
            f"the images are not those of ImageNet: {sizes_text} instead of 1,000, 1,281,167 and 50,000",
            *lacking,
        )
    return (f"the folder {photos.train.root.resolve().name} has {sizes_text}", *lacking)
