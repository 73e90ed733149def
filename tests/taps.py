"""Between the package and the disk: each operation of `records.disk` is counted, fails, or is the last."""

import errno
import functools
import os
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from power import OPERATIONS

from resrepro.records import disk
from resrepro.training import loop

MOMENTS = ("before", "amid", "after")  # amid: of a write, half of its bytes
TROUBLES = {
    "ENOSPC": errno.ENOSPC, "EDQUOT": errno.EDQUOT, "EROFS": errno.EROFS, "EIO": errno.EIO,
    "ENOENT": errno.ENOENT, "EIO once": errno.EIO,
}  # fmt: skip
NEEDS_NO_ROOM = ("remove", "cut", "close", "sync_folder")  # what goes on working on a full disk


def die() -> None:
    """What `kill -9` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def forked(work: Callable[[], object]) -> int:
    """The exit status of some work in a forked process; a negative signal number if it was killed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Tap:
    """Sees every operation of `records.disk`, numbered from 1, and lets it pass."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.safe: list[int] = []  # before each operation: the update of the last checkpoint written
        self._saved = -1

    @contextmanager
    def active(self) -> Iterator[None]:
        with ExitStack() as stack:
            for name in OPERATIONS:
                seen = functools.partial(self._see, name, getattr(disk, name))
                stack.enter_context(mock.patch.object(disk, name, seen))
            noted = functools.partial(self._note_checkpoint, loop.save_checkpoint)
            stack.enter_context(mock.patch.object(loop, "save_checkpoint", noted))
            yield

    def _note_checkpoint(self, save: Callable[..., None], path: Path, state: dict[str, Any]) -> None:
        save(path, state)
        self._saved = state["iteration"]

    def _see(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        self.names.append(name)
        self.safe.append(self._saved)
        return self.do(name, real, *arguments)

    def do(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        return real(*arguments)


class Kill(Tap):
    """Kills the process before, amid or after operation `at`."""

    def __init__(self, at: int, moment: str) -> None:
        super().__init__()
        self.at, self.moment = at, moment

    def do(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        if len(self.names) != self.at:
            return real(*arguments)
        if self.moment == "amid":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if self.moment == "after":
            real(*arguments)
        return die()


class Failing(Tap):
    """The disk fails from operation `at` on, or in that one alone; of a write half arrives."""

    def __init__(self, at: int, trouble: str) -> None:
        super().__init__()
        self.at, self.code, self.once = at, TROUBLES[trouble], trouble.endswith("once")
        self.spared = NEEDS_NO_ROOM if trouble in ("ENOSPC", "EDQUOT") else ()
        self.failed: list[str] = []

    def do(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        turn = len(self.names)
        if turn < self.at or (self.once and turn > self.at) or name in self.spared:
            return real(*arguments)
        self.failed.append(name)
        if name == "write":
            real(arguments[0], arguments[1][: len(arguments[1]) // 2])
        if name == "close":  # the descriptor is gone all the same
            real(*arguments)
        raise OSError(self.code, os.strerror(self.code))
