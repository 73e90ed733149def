"""Files that survive a crash: replaced whole or appended to, forced to disk, sealed with a checksum.

Whoever reads such a file sees the old content or the new, at every moment and after every crash. Everything
reaches the disk through the ten operations at the top, so that the tests can make each one fail, be cut
short, or be the last before the power goes. What strangers made is read with bounds.
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from resrepro.errors import RecordError

SEAL = "checksum"  # key of a JSON record: SHA-256 (hex) of all its other entries
PART = ".part"  # ending of a file that is still being written
PIECE = 2**20  # bytes that are written at once
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WITHOUT_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
LONGEST_NAME = 200  # characters of a name in a message; file systems stop at 255 bytes


# --- the operations ----------------------------------------------------------------------------------


def create(path: Path) -> int:
    """A new, empty file; its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def open_end(path: Path) -> int:
    """The end of a file that is there; its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def write(file: int, content: bytes) -> None:
    """All of the content, in as many calls as the system needs."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]


def sync(file: int) -> None:
    """Wait until the file's content is on the disk."""
    os.fsync(file)


def close(file: int) -> None:
    """Close a file; some file systems tell of a full disk only here."""
    os.close(file)


def cut(path: Path, size: int) -> None:
    """Cut a file back to its first `size` bytes."""
    os.truncate(path, size)


def move(source: Path, target: Path) -> None:
    """Give a file another name in one step, in place of what had it."""
    source.replace(target)


def link(source: Path, target: Path) -> None:
    """Give a file a second name."""
    os.link(source, target)


def remove(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the file system can."""
    folder = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse, having done it already
            os.fsync(folder)
    finally:
        os.close(folder)


# --- writing --------------------------------------------------------------------------------------------


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
            write(self._file, content)
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
        file = create(beside)
        try:
            sink = Sink(file)
            yield sink
            sink.flush()
            sync(file)
        finally:
            close(file)
        if keep is not None and path.exists():
            _keep(path, keep)
        move(beside, path)
        sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            remove(beside)
        trouble = error if isinstance(error, OSError) else sink and sink.error
        if trouble:
            raise not_written(path, trouble) from None
        raise


def _keep(path: Path, keep: Path) -> None:
    """Give a file another name besides its own, in place of what had it; at no moment it is without one."""
    second = keep.with_name(f".{keep.name}.{os.getpid()}{PART}")
    try:
        link(path, second)
    except OSError as error:
        if error.errno not in WITHOUT_LINKS:
            raise
        move(path, keep)
        return
    try:
        move(second, keep)
    finally:
        if second.exists():  # where both were names of one file already, or the move failed
            with contextlib.suppress(OSError):
                remove(second)


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
        file = open_end(path)
        try:
            if os.fstat(file).st_size != size:
                raise RecordError(f"{path} was changed by somebody else: the same command restores it.")
            write(file, content)
            sync(file)
        finally:
            close(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            cut(path, size)
        raise not_written(path, error) from None


def cut_back(path: Path, size: int) -> None:
    """Cut a file back to its first `size` bytes.

    Raises:
        RecordError: if the disk refuses.
    """
    try:
        cut(path, size)
    except OSError as error:
        raise not_written(path, error) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and force their names to disk (OSError)."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for made in missing:
        sync_folder(made.parent)


def sweep(folder: Path) -> None:
    """Remove what a process that was killed in the midst of writing left behind."""
    for left in folder.glob(f".*{PART}"):
        with contextlib.suppress(OSError):
            remove(left)


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


# --- reading what strangers made -----------------------------------------------------------------------


class NotPlain(OSError):
    """A pipe, device or socket in the place of a file."""


class TooLarge(OSError):
    """A file of more bytes than are read; `size` is their number."""

    def __init__(self, path: Path, size: int) -> None:
        super().__init__(errno.EFBIG, f"it has {size:,} bytes", str(path))
        self.size = size


def open_plain(path: Path) -> BinaryIO:
    """Open a file for reading bytes, without waiting for anyone to write into a pipe.

    Raises:
        NotPlain: if it is a pipe, a device or a socket.
        OSError: if it is missing, a folder or cannot be read.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise NotPlain(errno.EINVAL, "it is a pipe or device, not a file", str(path))
    return file


def read_plain(path: Path, most: int) -> bytes:
    """The content of a file of at most `most` bytes.

    Raises:
        TooLarge: if it has more; nothing is read then.
        OSError: as `open_plain`.
    """
    with open_plain(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise TooLarge(path, size)
        return file.read(size)


def shown(text: str) -> str:
    """A sentence that a stranger had a part in, without control characters and endless words."""
    return re.sub(r"[^ /]+", lambda word: printable(word[0]), text)


def printable(text: str) -> str:
    """A stranger's name as a message may show it: control characters written out, not too long."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: LONGEST_NAME + 1])
    return shown if len(text) <= LONGEST_NAME else f"{shown[:LONGEST_NAME]}..."
