"""Datasets as uint8 arrays in memory, with a checksum and everything a reader must be told about them.

Photographs, which do not fit in memory, are in `photos`; `feeds` gives a run either kind.
"""

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resrepro.errors import DataError, UsageError

DATA_VARIABLE = "RESREPRO_DATA"
DEFAULT_FOLDER = Path("data")
SPLITS = ("all", "45k5k")


@dataclass(frozen=True)
class Images:
    """Images (N, 3, H, W) uint8 with their labels (N,) int64."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def sha256(self) -> str:
        """Checksum (hex) of all pixels, then all labels as bytes, in order."""
        digest = hashlib.sha256(np.ascontiguousarray(self.pixels).data)
        digest.update(self.labels.astype(np.uint8).tobytes())
        return digest.hexdigest()

    def part(self, start: int, stop: int) -> "Images":
        """Images start..stop-1 as views, not copies."""
        return Images(self.pixels[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class DatasetInfo:
    """What is known of a run's data before the first batch. `held_out` names the sets that are evaluated
    ("val", "test"), that of the headline error first; `classes` are those of a folder of photographs.
    `notices` are sentences that must stand under every number.
    """

    name: str
    classes: tuple[str, ...] | None
    num_classes: int
    sizes: Mapping[str, int]
    checksums: Mapping[str, str]
    notices: tuple[str, ...]
    held_out: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """What the run record keeps: sizes, checksums, notices; no paths."""
        return {
            "name": self.name, "images": dict(self.sizes),
            **({} if self.classes is None else {"classes": self.num_classes, "class_names": self.classes}),
            "sha256": dict(self.checksums), "notices": list(self.notices),
        }  # fmt: skip


@dataclass(frozen=True)
class Dataset:
    """A dataset split as a run uses it; `held_out` has the set of the headline error first."""

    name: str
    num_classes: int
    train: Images
    held_out: Mapping[str, Images]
    checksums: Mapping[str, str]
    notices: tuple[str, ...] = ()

    @property
    def info(self) -> DatasetInfo:
        """What is known of it."""
        sizes = {name: len(part) for name, part in {"train": self.train, **self.held_out}.items()}
        told = self.checksums, self.notices, tuple(self.held_out)
        return DatasetInfo(self.name, None, self.num_classes, sizes, *told)


@dataclass(frozen=True)
class ProcessGroup:
    """Which of the `size` processes of a run this is, `local_size` on this machine; by default one alone.
    `all_gather` gives an object of each process, in the order of ranks; `on_first` calls a function in the
    first process alone, and all get its result or its error.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1
    all_gather: Callable[[Any], list[Any]] = lambda part: [part]
    on_first: Callable[[Callable[[], Any]], Any] = lambda work: work()

    def share(self, count: int) -> slice:
        """Which of `count` images of a batch are this process's, all processes having equally many."""
        own = count // self.size
        return slice(self.rank * own, (self.rank + 1) * own)


ALONE = ProcessGroup()


def load_dataset(name: str, split: str = "all", folder: str | Path | None = None) -> Dataset:
    """Load a dataset by name. DataError if files are missing, damaged or truncated (the file is named),
    UsageError for an unknown dataset or split.

    Args:
        name: "cifar10" or "digits".
        split: "all" training images, or "45k5k" (CIFAR-10: the last 5,000 validate; Section 4.2).
        folder: where CIFAR-10 lies, in the official python or binary layout, as an official archive or as
            `train/<class>/*.png` and `test/<class>/*.png`. By default the folder named by RESREPRO_DATA, else
            `./data`, to which it is downloaded if missing.
    """
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}: there are {' and '.join(SPLITS)}.")
    if split == "45k5k" and name != "cifar10":
        raise UsageError(f"the 45k/5k split is one of CIFAR-10, not of {name}: leave --split out.")
    if name == "digits":
        return load_digits()
    if name != "cifar10":
        raise UsageError(f"no dataset {name!r} that fits in memory: there are cifar10 and digits.")
    from resrepro.data.cifar10 import load_cifar10

    top = _named(folder, "cifar-10-batches-py or cifar-10-batches-bin, or leave it out to download CIFAR-10")
    return load_cifar10(top or DEFAULT_FOLDER, split, may_download=top is None)


def load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, which need no download; every fifth is held out, 1,438 / 359.
    Upsampled from 8x8 to 16x16 (each pixel of 0..16 becomes a 2x2 square of 0..255), grey in 3 channels.
    """
    package = distribution("scikit-learn")  # not imported, since that takes longer than some updates do
    digits = np.loadtxt(str(package.locate_file("sklearn/datasets/data/digits.csv.gz")), delimiter=",")
    grey = np.rint(digits[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    pixels = grey.repeat(3, axis=1).repeat(2, axis=2).repeat(2, axis=3)  # (1797, 3, 16, 16)
    labels = digits[:, -1].astype(np.int64)
    held_out = np.arange(len(labels)) % 5 == 4
    train, test = (Images(pixels[chosen], labels[chosen]) for chosen in (~held_out, held_out))
    return Dataset("digits", 10, train, {"test": test}, {"train": train.sha256(), "test": test.sha256()})


def data_folder(folder: str | Path | None) -> Path:
    """The folder of photographs: the one given, else that named by RESREPRO_DATA (UsageError if none is)."""
    layout = "train/<class>/<image> and val/<class>/<image>"
    if (found := _named(folder, layout)) is None:
        raise UsageError(f"which photographs? Name the folder that holds {layout} with --data.")
    return found


def _named(folder: str | Path | None, layout: str) -> Path | None:
    named = folder or os.environ.get(DATA_VARIABLE)
    place = Path(os.path.expanduser(named)) if named else None  # noqa: PTH111 (a name that is no user's stays)
    if place and not place.exists():
        source = "--data" if folder else DATA_VARIABLE
        raise DataError(f"the data folder {named} ({source}) does not exist: name one that holds {layout}.")
    return place
