"""Files that survive a crash: replaced whole or appended to, forced to disk, sealed with a checksum.

Whoever reads such a file sees the old content or the new, at every moment and after every crash.
"""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from resrepro.errors import RecordError

SEAL = "checksum"  # key of a JSON record: SHA-256 (hex) of all its other entries
PART = ".part"  # ending of a file that is still being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Sink:
    """A file being written, with the SHA-256 of what it was given.

    A library that writes into it may turn an error of the disk into one of its own: `error` keeps it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.error: OSError | None = None
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Take some bytes; returns how many."""
        self._digest.update(content)
        try:
            return self._file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        """Hand what is waiting to the system."""
        self._file.flush()

    def sha256(self) -> str:
        """Checksum (hex) of everything so far."""
        return self._digest.hexdigest()


@contextlib.contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Sink]:
    """Write a file beside its place, force it to disk, then move it there in one step.

    The file that was there stays as `keep`, if that is given. After an error it is where it was.

    Raises:
        RecordError: if the disk refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    sink: Sink | None = None
    try:
        with beside.open("wb") as file:
            sink = Sink(file)
            yield sink
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        beside.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        trouble = error if isinstance(error, OSError) else sink and sink.error
        if trouble:
            raise not_written(path, trouble) from None
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by this content; its folder must be there.

    Raises:
        RecordError: if the disk refuses; the file is then as it was.
    """
    with replacing(path) as sink:
        sink.write(content)


def write_out(path: Path, content: bytes) -> None:
    """The same in a folder that is made if it is missing, for tables, figures and copies.

    Raises:
        RecordError: if the disk refuses.
    """
    try:
        make_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from None
    write_whole(path, content)


def append(path: Path, content: bytes, size: int) -> None:
    """Append to a file of `size` bytes and force it to disk.

    Raises:
        RecordError: if the file has another size, or the disk refuses; the file is then as long as before,
            where that can be had.
    """
    try:
        with path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) != size:
                raise RecordError(f"{path} was changed by somebody else: the same command restores it.")
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, size)
        raise not_written(path, error) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and force its name to disk (OSError)."""
    folder.mkdir(parents=True, exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can."""
    folder = os.open(path, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse, having done it already
            os.fsync(folder)
    finally:
        os.close(folder)


def not_written(path: Path, error: OSError) -> RecordError:
    """One sentence on a file that cannot be written, with the way out."""
    way_out = "what was written before is whole"
    if error.errno in FULL:
        way_out += "; make room, then the same command, without --fresh, goes on"
    elif error.errno in GONE and not path.parent.exists():
        way_out = "its folder has vanished; bring it back, or start anew"
    return RecordError(f"cannot write {path}: {error.strerror or error} ({way_out}).")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON record, sealed with its checksum.

    Raises:
        RecordError: if the disk refuses.
    """
    write_whole(path, json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON record as it lies on the disk, sealed with its checksum; NaN and infinity are ValueErrors."""
    return (json.dumps(sealed(content), indent=2, allow_nan=False) + "\n").encode()


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its checksum as the last entry."""
    return {**content, SEAL: seal_of(content)}


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a record's entries, however they are ordered and spaced."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
