"""Checkpoint files looked at before PyTorch opens them: as large inside as outside, and all numbers true.

PyTorch's reader and Python's find their way through a zip archive by different fields of it. Where the
two could see different archives, the file is refused.
"""

import io
import os
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from resrepro.errors import RecordError
from resrepro.records.files import NotPlain, open_plain
from resrepro.training.pickles import Damaged, NoTensor, Refused, Storage, read_pickle

LARGEST_FILE = 4 * 2**30  # bytes; a ResNet-152 with all that Adam keeps of it has 0.72 GB
LARGEST_DIRECTORY = 16 * 2**20  # bytes of a zip's list of entries: 200,000 of them
END, END_SIZE, LONGEST_COMMENT = b"PK\5\6", 22, 2**16 - 1
LOCATOR, LOCATOR_SIZE, WIDE_END, WIDE_END_SIZE = b"PK\6\7", 20, b"PK\6\6", 56  # of zip64
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # torch.serialization has the same
# NotImplementedError is what zipfile says of a compression or version that it does not know.
UNREADABLE = (Damaged, zipfile.BadZipFile, NotImplementedError, EOFError, struct.error, ValueError)
ANEW = "save the state dict alone (`torch.save(net.state_dict(), ...)`)"


def check_archive(path: Path) -> None:
    """Refuse a checkpoint that PyTorch should not open; nothing of it is built, whatever it says.

    Afterwards `torch.load(weights_only=True)` needs memory in proportion to the file, at most
    LARGEST_FILE, and no tensor has more elements than the file has.

    Raises:
        RecordError: if the file is none, too large, compressed, contradicts itself, or holds objects
            other than tensors, plain values and numpy scalars.
        OSError: if it is missing or cannot be read.
    """
    try:
        with open_plain(path) as file:
            _check(file)
    except NotPlain:
        raise RecordError(f"{path} is a pipe or device, not a file: name a checkpoint.") from None
    except NoTensor:
        raise RecordError(
            f"{path} holds a pickled object that is no tensor, so it is not opened: {ANEW}."
        ) from None
    except UNREADABLE:
        raise RecordError(f"{path} is not a PyTorch checkpoint, or is damaged.") from None
    except Refused as reason:
        raise RecordError(f"{path} is not opened, for {reason}: {ANEW}.") from None


def _check(file: IO[bytes]) -> None:
    size = file.seek(0, os.SEEK_END)
    if size > LARGEST_FILE:
        raise Refused(f"it has {size:,} bytes, more than the {LARGEST_FILE:,} that are read")
    file.seek(0)
    start = file.read(4)
    file.seek(0)
    if start.startswith(b"PK"):
        _check_zip(file, size)
    elif start.startswith(b"\x80"):
        with io.FileIO(file.fileno(), closefd=False) as raw:
            _check_legacy(_ToItsEnd(raw, size), size)
    else:
        raise Damaged("neither of the formats")


# --- the zip archives of PyTorch 1.6 and later ------------------------------------------------------


def _check_zip(file: IO[bytes], size: int) -> None:
    start = _directory_start(file, size)
    with zipfile.ZipFile(file) as archive:
        if archive.start_dir != start:
            raise Damaged("the two readers see different archives")
        sizes = _entries(archive.infolist(), size)
        names = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        if "data.pkl" not in names or "constants.pkl" in names:  # the latter is TorchScript's
            raise Damaged("no data.pkl")
        content = archive.read(names["data.pkl"])
    _, storages = read_pickle(io.BytesIO(content))
    _compare(storages, sizes)


def _directory_start(file: IO[bytes], size: int) -> int:
    """Where the list of entries begins, by the record at the end; some bytes may follow that."""
    base = file.seek(max(0, size - END_SIZE - LONGEST_COMMENT - LOCATOR_SIZE - WIDE_END_SIZE))
    tail = file.read()
    end = tail.rfind(END)
    if end < 0 or len(tail) - end < END_SIZE:
        raise Damaged("no end record")
    length, start = struct.unpack_from("<II", tail, end + 12)
    locator = end - LOCATOR_SIZE
    if locator >= 0 and tail.startswith(LOCATOR, locator):
        wide = locator - WIDE_END_SIZE
        (place,) = struct.unpack_from("<Q", tail, locator + 8)
        if wide < 0 or not tail.startswith(WIDE_END, wide) or place != base + wide:
            raise Damaged("zip64 record")
        length, start = struct.unpack_from("<QQ", tail, wide + 40)
    if length > LARGEST_DIRECTORY:
        raise Refused(f"its list of entries has {length:,} bytes")
    return int(start)


def _entries(infos: list[zipfile.ZipInfo], size: int) -> dict[str, int]:
    """The bytes of each entry, by its name without the archive's folder."""
    roots = {info.filename.partition("/")[0] for info in infos}
    found: dict[str, int] = {}
    for info in infos:
        name = info.orig_filename.partition("/")[2].lower()  # PyTorch finds entries in any case
        if len(roots) > 1 or not name.isascii() or "\0" in info.orig_filename or ".." in name.split("/"):
            raise Damaged("names")
        if name in found:
            raise Refused("two of its entries have one name")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise Refused("its entries are compressed, which torch.save never does")
        if info.flag_bits & 1:
            raise Refused("its entries are encrypted")
        found[name] = info.file_size
    if sum(found.values()) > size:
        raise Refused("its entries together are larger than the file")
    return found


def _compare(storages: Mapping[str, Storage], sizes: Mapping[str, int]) -> None:
    for key, storage in storages.items():
        if sizes.get(f"data/{key}".lower()) != storage.nbytes:
            raise Refused("a tensor's numbers are not as many as it says")


# --- the format of the years before -----------------------------------------------------------------


class _ToItsEnd(io.BufferedReader):
    """A file of which no more is asked than it has, for Python makes room for all that is asked."""

    def __init__(self, raw: io.RawIOBase, size: int) -> None:
        super().__init__(raw)
        self.seek(0)
        self.end = size

    def read(self, size: int | None = -1, /) -> bytes:
        """As `BufferedReader.read`."""
        rest = max(0, self.end - self.tell())
        return super().read(rest if size is None or size < 0 else min(size, rest))


def _check_legacy(file: IO[bytes], size: int) -> None:
    """A row of pickles (magic number, version, system, content, names of storages), then raw numbers."""
    if (read_pickle(file)[0], read_pickle(file)[0]) != (LEGACY_MAGIC, LEGACY_VERSION):
        raise Damaged("magic number")
    read_pickle(file)
    _, storages = read_pickle(file)
    read_pickle(file)
    if sum(storage.nbytes for storage in storages.values()) > size:
        raise Refused("a tensor's numbers are not as many as it says")
