"""The few operations by which records and checkpoints reach the disk.

All of them pass through here, so that the tests can make each one fail, be cut short, or be the last
before the power goes.
"""

import contextlib
import os
from pathlib import Path


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
