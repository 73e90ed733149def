"""CIFAR-10 in its official python and binary layouts, unpacked or not, or as PNG files in class folders.

Pickled batches are unpickled only after their official MD5 matched. The training images are compared with
the SHA-256 of the official ones, a binary test file with its official SHA-1.
"""

import hashlib
import pickle
import tarfile
import zlib
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
LARGEST = 64 * 2**20  # bytes of a file in an archive; the official batches have 31 million
TRAINING, VALIDATION = 50_000, 5_000  # of the 45k/5k split, Section 4.2
ARCHIVES = ("cifar-10-python.tar.gz", "cifar-10-binary.tar.gz")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PNG = "the images are PNG files in class folders, not the official files"


def load_cifar10(folder: Path, split: str = "all", *, may_download: bool = False) -> Dataset:
    """Read CIFAR-10 from `folder` (or the layout or archive itself), downloading it there if allowed.
    DataError if it is missing and may not or cannot be downloaded, or a file is damaged.
    """
    source = _find(folder)
    if source is None and may_download:
        from torchvision.datasets import CIFAR10  # shows progress and checks the archive's MD5

        try:
            CIFAR10(str(folder), download=True)
        except (OSError, RuntimeError) as error:
            raise DataError(
                f"CIFAR-10 is not in {folder} and could not be downloaded ({error}): "
                "fetch it on a machine with network and name its folder with --data."
            ) from None
        source = _find(folder)
    if source is None:
        raise DataError(
            f"no CIFAR-10 in {folder}: expected a folder cifar-10-batches-py or cifar-10-batches-bin there, "
            f"{' or '.join(ARCHIVES)}, or PNG files in train/<class>/ and test/<class>/."
        )
    official = source.is_file() or not (source / "train").is_dir()
    train, test = _read(source) if official else (_read_folder(source, part) for part in ("train", "test"))
    checksums, notices = {"train": train.sha256(), "test": test.sha256()}, list[str]()
    if official:
        if checksums["train"] != OFFICIAL_TRAIN_SHA256:
            notices.append("the training images are not those of the official CIFAR-10 (checksum differs)")
        if len(test) < PER_FILE:
            notices.append(f"the test set holds only the first {len(test):,} of the 10,000 test images")
        else:
            records = np.column_stack([test.labels.astype(np.uint8), test.pixels.reshape(PER_FILE, -1)])
            if hashlib.sha1(records.tobytes(), usedforsecurity=False).hexdigest() != OFFICIAL_TEST_SHA1:
                notices.append("the test images are not exactly the official ones (checksum differs)")
    else:
        notices = [f"{PNG}: {len(train):,} to train on and {len(test):,} to test"]
        if split == "45k5k" and len(train) != TRAINING:
            raise DataError(f"the 45k/5k split takes {TRAINING:,} training images, not {len(train):,}.")
    held_out = {"test": test}
    if split == "45k5k":
        held_out = {"val": train.part(len(train) - VALIDATION, len(train)), "test": test}
        train = train.part(0, len(train) - VALIDATION)
    return Dataset("cifar10", 10, train, held_out, checksums, tuple(notices))


def _find(folder: Path) -> Path | None:
    """What holds the images: `folder` itself or what has one of the official names below it."""
    for layout in (folder, folder / "cifar-10-batches-py", folder / "cifar-10-batches-bin"):
        if any(path.name.removesuffix(".bin") in OFFICIAL_MD5 for path in layout.glob("*")):
            return layout
    for archive in (folder, *(folder / name for name in ARCHIVES)):
        if archive.is_file():
            return archive
    return folder if all((folder / part).is_dir() for part in ("train", "test")) else None


def _read(source: Path) -> tuple[Images, Images]:
    """Training and test images of a folder in an official layout, or of an archive of one."""
    if source.is_file():
        found = _unpacked(source)
    else:
        paths = [path for path in source.iterdir() if path.name.removesuffix(".bin") in OFFICIAL_MD5]
        try:
            found = {path.name: path.read_bytes() for path in paths}
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}.") from None
    suffix = ".bin" if any(name.endswith(".bin") for name in found) else ""
    names = [f"{name}{suffix}" for name in OFFICIAL_MD5]  # training batches first
    if missing := [name for name in names if name not in found]:
        raise DataError(f"CIFAR-10 is incomplete: {source / missing[0]} is missing.")
    *batches, test = (_images(source / name, found[name]) for name in names)
    pixels, labels = zip(*((batch.pixels, batch.labels) for batch in batches), strict=True)
    return Images(np.concatenate(pixels), np.concatenate(labels)), test


def _unpacked(archive: Path) -> dict[str, bytes]:
    """The batches in an archive by file name; nothing is written to the disk."""
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(archive, "r|*") as members:
            for member in members:
                name = Path(member.name).name
                wanted = name.removesuffix(".bin") in OFFICIAL_MD5 and member.size <= LARGEST
                if wanted and (file := members.extractfile(member)):
                    found[name] = file.read()
    except (tarfile.TarError, EOFError, zlib.error, OSError):
        raise DataError(f"{archive} is damaged or cut short: download it again.") from None
    return found


def _read_folder(root: Path, split: str) -> Images:
    """PNG files in class folders, one of each class in turn: the last 5,000 of 50,000 have 500 of each."""
    from resrepro.data.photos import BadImage, read_image, scan

    photos = scan(root, split).labelled_by(CLASSES, "CIFAR-10")
    counts = np.bincount(photos.labels, minlength=len(CLASSES))
    if not counts.all():
        raise DataError(f"{root / split} has no folder {CLASSES[counts.argmin()]}: CIFAR-10 has ten classes.")
    order = np.lexsort((photos.labels, np.concatenate([np.arange(count) for count in counts])))
    pixels = np.empty((len(photos), 3, 32, 32), np.uint8)
    for place, index in enumerate(order):
        try:
            image, _ = read_image(photos.path(index))
        except BadImage as reason:
            raise DataError(f"{photos.path(index)} is no readable image ({reason}).") from None
        if image.size != (32, 32):
            size = f"{image.width}x{image.height}"
            raise DataError(f"{photos.path(index)} has {size} pixels, and CIFAR-10's images have 32x32.")
        pixels[place] = np.asarray(image).transpose(2, 0, 1)
    return Images(pixels, photos.labels[order])


def _images(path: Path, stored: bytes) -> Images:
    """The images of a batch, pickled or of records; of the test file of records, the first ones will do."""
    if path.suffix != ".bin":
        # The checksum comes first: unpickling bytes that nobody vouches for can run code.
        if hashlib.md5(stored, usedforsecurity=False).hexdigest() != OFFICIAL_MD5[path.name]:
            raise DataError(f"{path} is damaged: its MD5 is not the official one. Get it again.")
        batch = pickle.loads(stored, encoding="bytes")
        pixels = np.asarray(batch[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return Images(pixels, np.asarray(batch[b"labels"], np.int64))
    count, rest = divmod(len(stored), RECORD)
    if rest or not 0 < count <= PER_FILE or (count < PER_FILE and path.stem != "test_batch"):
        raise DataError(
            f"{path} is damaged or truncated: {len(stored):,} bytes instead of {PER_FILE * RECORD:,}. "
            "Copy or download it again."
        )
    records = np.frombuffer(stored, np.uint8).reshape(count, RECORD)
    if records[:, 0].max() > 9:
        raise DataError(f"{path} is damaged: it holds a label above 9. Copy or download it again.")
    return Images(records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64))
