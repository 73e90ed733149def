"""Opening files that strangers made: never a pipe that hangs, never more than a stated number of bytes."""

import errno
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

LONGEST_NAME = 200  # characters of a name in a message; file systems stop at 255 bytes


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
