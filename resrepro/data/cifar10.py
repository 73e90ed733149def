"""CIFAR-10 in its official python and binary layouts, verified before it is believed.

Pickled batches are unpickled only after their official MD5 matched. The training images are compared with
the SHA-256 of the official ones, a binary test file with its official SHA-1.
"""

import hashlib
import pickle
from pathlib import Path

import numpy as np

from resrepro.data import Dataset, Images
from resrepro.errors import DataError

# Pixels then labels of the 50,000 official training images, in order.
OFFICIAL_TRAIN_SHA256 = "1e91790dbaf241617ca1f29a9aba08eb9a62df84cc90676b47edd05ad2ab3c94"
# Of the files of the python layout. torchvision has the same, but takes PyTorch with it.
OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
OFFICIAL_TEST_SHA1 = "67eb016db431130d61cd03c7ad570b013799c88c"  # of the binary layout's test file
RECORD = 1 + 3 * 32 * 32  # bytes per image of the binary layout: the label, then R, G, B planes
PER_FILE = 10_000
LARGEST_PICKLE = 64 * 2**20  # bytes; the official batches have 31 million, any other size another MD5
VALIDATION = 5_000  # of the 45k/5k split, Section 4.2


def load_cifar10(folder: Path, split: str = "all", *, may_download: bool = False) -> Dataset:
    """Read CIFAR-10 from `folder` (or the layout folder itself), downloading it there if allowed.

    Raises:
        DataError: if it is missing and may not or cannot be downloaded, or a file is damaged.
    """
    layout = _find(folder)
    if may_download and (layout is None or not _whole(layout)):
        _download(folder)
        layout = _find(folder)
    if layout is None:
        raise DataError(
            f"no CIFAR-10 in {folder}: expected a folder cifar-10-batches-py or cifar-10-batches-bin there."
        )
    binary = any(path.exists() for path in _files(layout, ".bin"))
    read = _read_binary if binary else _read_pickle
    *batches, test = (read(path) for path in _files(layout, ".bin" if binary else ""))
    train = Images(
        np.concatenate([batch.pixels for batch in batches]),
        np.concatenate([batch.labels for batch in batches]),
    )
    checksums = {"train": train.sha256(), "test": test.sha256()}
    notices = []
    if checksums["train"] != OFFICIAL_TRAIN_SHA256:
        notices.append("the training images are not those of the official CIFAR-10 (checksum differs)")
    if len(test) < PER_FILE:
        notices.append(f"the test set holds only the first {len(test):,} of the 10,000 test images")
    elif _sha1(test) != OFFICIAL_TEST_SHA1:
        notices.append("the test images are not exactly the official ones (checksum differs)")
    held_out = {"test": test}
    if split == "45k5k":
        held_out = {"val": train.part(len(train) - VALIDATION), "test": test}
        train = train.part(0, len(train) - VALIDATION)
    return Dataset("cifar10", 10, train, held_out, checksums, tuple(notices))


def _files(layout: Path, suffix: str) -> list[Path]:
    return [layout / f"{name}{suffix}" for name in OFFICIAL_MD5]


def _find(folder: Path) -> Path | None:
    """The folder that holds the batches: `folder` itself or one of the official names below it."""
    for layout in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        if any(path.exists() for path in _files(layout, "") + _files(layout, ".bin")):
            return layout
    return None


def _whole(layout: Path) -> bool:
    """Whether all files of one of the two layouts are there."""
    return any(all(path.exists() for path in _files(layout, suffix)) for suffix in ("", ".bin"))


def _download(folder: Path) -> None:
    """Fetch the official archive through torchvision, which shows progress and checks its MD5."""
    from torchvision.datasets import CIFAR10

    try:
        CIFAR10(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"CIFAR-10 is not in {folder} and could not be downloaded ({error}): "
            "fetch it on a machine with network and name its folder with --data."
        ) from None


def _bytes_of(path: Path, most: int) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"CIFAR-10 is incomplete: {path} is missing.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    if len(content) > most:
        raise DataError(
            f"{path} is damaged: {len(content):,} bytes instead of {most:,} or fewer. "
            "Copy or download it again."
        )
    return content


def _read_pickle(path: Path) -> Images:
    """The images of a pickled batch: pixels (N, 3072) and labels, under bytes."""
    content = _bytes_of(path, LARGEST_PICKLE)
    # The checksum comes first: unpickling bytes that nobody vouches for can run code.
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != OFFICIAL_MD5[path.name]:
        raise DataError(f"{path} is damaged: its MD5 is not the official one. Delete it and get it again.")
    batch = pickle.loads(content, encoding="bytes")
    pixels = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
    return Images(pixels, np.asarray(batch[b"labels"], np.int64))


def _read_binary(path: Path) -> Images:
    """The images of a file of records; of the test file, the first ones will do."""
    content = _bytes_of(path, PER_FILE * RECORD)
    count, rest = divmod(len(content), RECORD)
    if rest or (count != PER_FILE and (path.stem != "test_batch" or not count)):
        raise DataError(
            f"{path} is damaged or truncated: {len(content):,} bytes instead of {PER_FILE * RECORD:,}. "
            "Copy or download it again."
        )
    records = np.frombuffer(content, np.uint8).reshape(count, RECORD)
    if records[:, 0].max() > 9:
        raise DataError(f"{path} is damaged: it holds a label above 9. Copy or download it again.")
    return Images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))


def _sha1(images: Images) -> str:
    """That of the images as a binary file."""
    records = np.column_stack([images.labels.astype(np.uint8), images.pixels.reshape(len(images), -1)])
    return hashlib.sha1(records.tobytes(), usedforsecurity=False).hexdigest()
