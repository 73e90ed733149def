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
from typing import Any

from resrepro.errors import RecordError
from resrepro.records import disk

SEAL = "checksum"  # key of a JSON record: SHA-256 (hex) of all its other entries
PART = ".part"  # ending of a file that is still being written
PIECE = 2**20  # bytes that are written at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class Sink:
    """A file being written, with the SHA-256 of what it was given.

    A library that writes into it may turn an error of the disk into one of its own: `error` keeps it.
    """

    def __init__(self, file: int) -> None:
        self.error: OSError | None = None
        self._file = file
        self._waiting = bytearray()
        self._digest = hashlib.sha256()

    def write(self, content: bytes) -> int:
        """Take some bytes; returns how many."""
        self._digest.update(content)
        self._waiting += content
        if len(self._waiting) >= PIECE:
            self.flush()
        return len(content)

    def flush(self) -> None:
        """Hand what is waiting to the system."""
        content, self._waiting = bytes(self._waiting), bytearray()
        try:
            disk.write(self._file, content)
        except OSError as error:
            self.error = error
            raise

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
        file = disk.create(beside)
        try:
            sink = Sink(file)
            yield sink
            sink.flush()
            disk.sync(file)
        finally:
            disk.close(file)
        if keep is not None and path.exists():
            _keep(path, keep)
        disk.move(beside, path)
        disk.sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            disk.remove(beside)
        trouble = error if isinstance(error, OSError) else sink and sink.error
        if trouble:
            raise not_written(path, trouble) from None
        raise


def _keep(path: Path, keep: Path) -> None:
    """Give a file another name besides its own, in place of what had it; at no moment it is without one."""
    second = keep.with_name(f".{keep.name}.{os.getpid()}{PART}")
    try:
        disk.link(path, second)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        disk.move(path, keep)
        return
    try:
        disk.move(second, keep)
    finally:
        if second.exists():  # where both were names of one file already, or the move failed
            with contextlib.suppress(OSError):
                disk.remove(second)


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
        file = disk.open_end(path)
        try:
            if os.fstat(file).st_size != size:
                raise RecordError(f"{path} was changed by somebody else: the same command restores it.")
            disk.write(file, content)
            disk.sync(file)
        finally:
            disk.close(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            disk.cut(path, size)
        raise not_written(path, error) from None


def cut_back(path: Path, size: int) -> None:
    """Cut a file back to its first `size` bytes.

    Raises:
        RecordError: if the disk refuses.
    """
    try:
        disk.cut(path, size)
    except OSError as error:
        raise not_written(path, error) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and force their names to disk (OSError)."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        disk.sync_folder(made.parent)


def sweep(folder: Path) -> None:
    """Remove what a process that was killed in the midst of writing left behind."""
    for left in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            disk.remove(left)


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
