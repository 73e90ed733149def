"""A lock beside each run folder, so that two processes never train one run.

`runs/<name>/.seed<k>.lock` is held by `flock`, which the kernel drops when the holder dies however it
dies. A line of JSON in it names the holder: for people, for other hosts that see the file but not its
`flock`, and for file systems that have none. The folder itself may be renamed while it is locked.
"""

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from resrepro.errors import RecordError
from resrepro.records.durable import make_folder
from resrepro.records.files import read_plain
from resrepro.records.holders import LIMIT, Holder, holder_from, is_alive, this_process

WITHOUT_FLOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
LOOKS = 8  # at a lock that somebody may just be taking or leaving
PAUSE = 0.02  # seconds, between two looks
TAKEOVERS = 5
Breaks = bool | Callable[[Holder], bool]
"""Whether the lock of a holder who cannot be looked for from here is taken; or what knows it of a holder."""


class Lock:
    """A lock file, open: `flocked` is whether it is ours, None where the file system has no `flock`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = b""
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self.descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
            self.is_new = True
        except FileExistsError:
            self.descriptor = os.open(path, flags)
            self.is_new = False
        _open_locks.add(self)
        try:
            self.file = os.fstat(self.descriptor)
            self.flocked = self._flock()
            self.holder = holder_from(os.pread(self.descriptor, LIMIT + 1, 0))
            self.was_replaced = not self.is_in_place()  # between opening it and holding it
        except BaseException:
            self.close()
            raise

    def _flock(self) -> bool | None:
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in WITHOUT_FLOCK:
                return None
            raise
        return True

    @property
    def is_ours(self) -> bool:
        """Whether it fell to this process; another may be named in it still."""
        return self.is_new if self.flocked is None else self.flocked

    def is_in_place(self) -> bool:
        """Whether the path still leads to this file, with what we wrote."""
        try:  # opening, unlike stat, asks the server of a network folder anew
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        try:
            if not os.path.samestat(os.fstat(descriptor), self.file):
                return False
            return not self.content or os.pread(descriptor, LIMIT, 0) == self.content
        finally:
            os.close(descriptor)

    def check(self) -> None:
        """Make sure that this process still holds the lock.

        Raises:
            RecordError: if another process has broken it, or it cannot be read.
        """
        try:
            in_place = self.is_in_place()
        except OSError as error:
            raise RecordError(f"cannot read the lock {self.path}: {error.strerror or error}.") from None
        if not in_place:
            raise RecordError(
                f"another process has broken the lock {self.path}, so this one stops: "
                "two must not train one run."
            )

    def name(self, holder: Holder) -> None:
        """Write who holds it."""
        content = (json.dumps(asdict(holder)) + "\n").encode()
        os.ftruncate(self.descriptor, 0)
        if os.write(self.descriptor, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(self.descriptor)  # the file stays open, and other hosts are to see it now
        self.content = content

    def remove(self) -> None:
        """Remove the file, unless another lies in its place."""
        if self.is_in_place():
            self.path.unlink(missing_ok=True)

    def release(self) -> None:
        """Remove the file and let go of it; in a forked child, which never held it, do nothing."""
        if self in _open_locks:
            with contextlib.suppress(OSError):  # what is left behind is taken over by the next
                self.remove()
            self.close()

    def close(self) -> None:
        """Let go of the file."""
        _open_locks.discard(self)
        os.close(self.descriptor)


_open_locks: set[Lock] = set()


def _close_in_child() -> None:
    """A worker that outlives its killed parent must not keep the parent's `flock`."""
    for lock in tuple(_open_locks):
        with contextlib.suppress(OSError):
            lock.close()


os.register_at_fork(after_in_child=_close_in_child)


@contextlib.contextmanager
def locked(
    folder: Path, *, break_lock: Breaks = False, say: Callable[[str], None] = lambda text: None
) -> Iterator[Lock]:
    """Hold the lock of a run folder; `say` is told when it was taken over from another process.

    Raises:
        RecordError: if another process holds it, or may hold it on another host and `break_lock` does not
            say that it has ended, or if the lock cannot be written.
    """
    try:
        make_folder(folder.parent)
        lock, notice = _acquire(folder, break_lock)
    except OSError as error:
        raise RecordError(
            f"cannot write to the runs folder {folder.parent.parent}: {error.strerror or error}. "
            "Choose another with --runs."
        ) from None
    try:
        if notice:
            say(notice)
        yield lock
    finally:
        lock.release()


def holder_of(folder: Path) -> Holder | None:
    """Who trains a run, as far as that can be seen from here, without touching the lock; None if nobody does.

    A holder on another host, which cannot be looked for, is taken at its word.
    """
    try:
        content = read_plain(_lock_of(folder), LIMIT)
    except OSError:
        return None
    holder, here = holder_from(content), this_process()
    return None if holder is None or _has_ended(holder, here, flocked=None) else holder


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _acquire(folder: Path, break_lock: Breaks) -> tuple[Lock, str | None]:
    """The lock, held and named, and what to say of an earlier holder."""
    here, notice = this_process(), None
    for _ in range(TAKEOVERS):
        lock = _look(folder)
        if lock.is_ours and lock.holder is None:
            try:
                lock.name(here)
                if _stays(lock, was_taken=notice is not None):
                    return lock, notice
            except BaseException:
                lock.release()
                raise
            lock.close()
        else:
            try:
                notice = _reason_to_take(lock, here, folder, break_lock)
                lock.remove()  # a new file, so that a holder that lives after all can notice
            finally:
                lock.close()
    raise _changing_hands(folder)


def _look(folder: Path) -> Lock:
    """The lock file, made if missing; one that another process holds is looked at several times.

    Whoever is just taking or leaving it may not be named in it yet, or not any more.
    """
    path = _lock_of(folder)
    for looks in range(1, 4 * LOOKS):
        with contextlib.suppress(FileNotFoundError):  # removed since it was found to be there
            lock = Lock(path)
            if not lock.was_replaced and (lock.is_ours or looks >= LOOKS):
                return lock
            lock.close()
        time.sleep(PAUSE)
    raise _changing_hands(folder)


def _stays(lock: Lock, was_taken: bool) -> bool:
    """Whether a new lock is still there once a slower process, after the same old lock, has had its turn.

    Only under `flock` are looking at an old lock and removing it one step.
    """
    if lock.flocked and not was_taken:
        return True
    time.sleep(LOOKS * PAUSE / 2)
    return lock.is_in_place()


def _reason_to_take(lock: Lock, here: Holder, folder: Path, break_lock: Breaks) -> str | None:
    """What to say on taking the lock from its holder; nothing of one that ended before it was named.

    Raises:
        RecordError: if the holder is alive, or may be and is on another host.
    """
    holder = lock.holder
    ended = _has_ended(holder, here, lock.flocked) if holder else lock.flocked is None
    if ended is False:
        raise RecordError(
            f"{folder} is being trained by {holder or 'another process'}: wait for it or stop it; "
            "it is not broken into."
        )
    if holder is None:
        return None
    if ended:
        return f"The lock of process {holder.pid}, which has ended, was taken over."
    if holder.job is not None and holder.job == here.job:
        return f"The lock of {holder} was taken over, since this is the same job."
    if callable(break_lock) and break_lock(holder):
        return f"The lock of {holder} was taken over, since that job has ended."
    if break_lock is True:
        return f"The lock of {holder} was broken, as asked."
    raise RecordError(
        f"{folder} is locked by {holder}, which cannot be looked for from {here.host}: wait for it, "
        "or if it is sure to have ended take the lock with --break-lock."
    )


def _has_ended(holder: Holder, here: Holder, flocked: bool | None) -> bool | None:
    """Whether a holder has ended, None if that cannot be known from here."""
    if holder.shares_kernel_with(here):
        if flocked is not None:
            return flocked
        # Containers share a kernel but number their processes each for itself.
        return not is_alive(holder) if holder.host == here.host else None
    return True if flocked is not False and holder.was_before_the_restart_of(here) else None


def _changing_hands(folder: Path) -> RecordError:
    return RecordError(
        f"the lock of {folder} keeps changing hands: wait for the other processes and try again."
    )
