"""Datasets as uint8 arrays in memory, with a checksum and everything a reader must be told about them.

Photographs, which do not fit in memory, are in the modules `folder`, `images`, `crops` and `views`.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
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

    def part(self, start: int, stop: int | None = None) -> "Images":
        """Images start..stop as views, not copies."""
        return Images(self.pixels[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Dataset:
    """A dataset split as a run uses it.

    `held_out` maps the name of each set that is evaluated ("val", "test") to its images, the one
    that gives the headline error first. `notices` are sentences that must stand under every number.
    """

    name: str
    num_classes: int
    train: Images
    held_out: Mapping[str, Images]
    checksums: Mapping[str, str]
    notices: tuple[str, ...] = ()

    def describe(self) -> dict[str, Any]:
        """What the run record keeps: sizes, checksums, notices; no paths."""
        return {
            "name": self.name,
            "images": {"train": len(self.train)} | {name: len(part) for name, part in self.held_out.items()},
            "sha256": dict(self.checksums),
            "notices": list(self.notices),
        }


def load_dataset(name: str, split: str = "all", folder: str | Path | None = None) -> Dataset:
    """Load a dataset by name.

    Args:
        name: "cifar10" or "digits".
        split: "all" training images, or "45k5k" (CIFAR-10: train on 45,000, validate on the last
            5,000 in official order; Section 4.2).
        folder: where CIFAR-10 lies, in the official python or binary layout. By default the folder
            named by RESREPRO_DATA, else `./data`, to which it is downloaded if missing.

    Raises:
        DataError: if files are missing, damaged or truncated; the file is named.
        UsageError: for an unknown dataset or split.
    """
    if split not in SPLITS:
        raise UsageError(f"no split {split!r}: there are {' and '.join(SPLITS)}.")
    if split == "45k5k" and name != "cifar10":
        raise UsageError(f"the 45k/5k split is one of CIFAR-10, not of {name}: leave --split out.")
    if name == "digits":
        from resrepro.data.digits import load_digits

        return load_digits()
    if name != "cifar10":
        raise UsageError(f"no dataset {name!r} that fits in memory: there are cifar10 and digits.")
    from resrepro.data.cifar10 import load_cifar10

    given = folder or os.environ.get(DATA_VARIABLE)
    what = "cifar-10-batches-py or cifar-10-batches-bin, or leave it out to download CIFAR-10"
    top = _existing(given, folder, what) if given else DEFAULT_FOLDER
    return load_cifar10(top, split, may_download=not given)


def data_folder(folder: str | Path | None) -> Path:
    """The folder of photographs: the one given, else that named by RESREPRO_DATA.

    Raises:
        DataError: if there is none.
        UsageError: if none is named.
    """
    given = folder or os.environ.get(DATA_VARIABLE)
    what = "train/<class>/<image> and val/<class>/<image>"
    if not given:
        raise UsageError(f"which photographs? Name the folder that holds {what} with --data.")
    return _existing(given, folder, what)


def _existing(given: str | Path, folder: str | Path | None, what: str) -> Path:
    if not Path(given).is_dir():
        source = "--data" if folder else DATA_VARIABLE
        raise DataError(
            f"the data folder {given} ({source}) does not exist: name the folder that holds {what}."
        )
    return Path(given)
