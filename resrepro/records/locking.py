"""A lock beside each run folder, so that two processes never train one run.

`runs/<name>/.seed<k>.lock` is held by `flock` (through `filelock`), which the kernel drops when the holder
dies however it dies. The note beside it, `.seed<k>.lock.json`, names the holder: for people, and for other
hosts that see the files but perhaps not the `flock`. The folder may be renamed while it is locked.
"""

import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from resrepro.errors import RecordError
from resrepro.records.reading import MALFORMED
from resrepro.records.storage import make_folder, read_plain

PATIENCE = 0.2  # seconds for a holder that is just leaving
MOST_BYTES = 4096  # of a note; ours are far shorter
NOTED = ("pid", "host", "since", "job")


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock; `job` is its id in a Slurm cluster's queue."""

    pid: int
    host: str
    since: str
    job: str = ""

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host} since {self.since} UTC{job}"


def this_process() -> Holder:
    """This process, as a holder from now on."""
    since = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    return Holder(os.getpid(), socket.gethostname(), since, os.environ.get("SLURM_JOB_ID", ""))


class Lock:
    """The lock of a run folder, which `locked` takes and gives back."""

    def __init__(self, folder: Path) -> None:
        self.path = folder.with_name(f".{folder.name}.lock")
        self.note = self.path.with_name(f"{self.path.name}.json")
        self.holder = this_process()
        self.content = json.dumps(asdict(self.holder)).encode()
        self.file = FileLock(self.path)

    def acquire(self) -> bool:
        """Take the lock, unless another process has it."""
        with suppress(Timeout):
            self.file.acquire(timeout=PATIENCE)
        return self.file.is_locked

    def replace(self) -> bool:
        """Take a new lock in place of one that is held, by a process that is said to have ended."""
        self.path.unlink(missing_ok=True)
        self.file = FileLock(self.path)
        return self.acquire()

    def check(self) -> None:
        """Make sure that this process still holds the lock.

        Raises:
            RecordError: if another process has broken it.
        """
        with suppress(OSError):
            if self.note.read_bytes() == self.content:
                return
        raise RecordError(
            f"another process has broken the lock {self.path}, so this one stops: two must not train one run."
        )

    def release(self) -> None:
        """Give the lock back, unless another process has broken it; a forked one never held it."""
        if self.holder.pid != os.getpid():
            return
        with suppress(OSError, RecordError):  # what is left behind is taken over by the next
            self.check()
            self.note.unlink()
            self.path.unlink()  # while it is held: whoever has opened it finds it gone, and looks again
        self.file.release()


@contextmanager
def locked(
    folder: Path, *, break_lock: bool = False, say: Callable[[str], None] = lambda text: None
) -> Iterator[Lock]:
    """Hold the lock of a run folder; `say` is told when it was taken over from another process.

    Raises:
        RecordError: if another process holds it, or may hold it on another host and `break_lock` does not say
            that it has ended, or if the lock cannot be written.
    """
    try:
        make_folder(folder.parent)
        lock = Lock(folder)
        notice = _take(lock, folder, break_lock)
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


def _take(lock: Lock, folder: Path, break_lock: bool) -> str:
    """Take the lock and leave a note; returns what to say of a holder that has not given it back."""
    is_free, holder = lock.acquire(), _read_note(lock.note)
    try:
        is_far = holder is not None and holder.host != socket.gethostname()
        if not is_free and not is_far:
            raise RecordError(
                f"{folder} is being trained by {holder or 'another process'}: wait for it or stop it; "
                "it is not broken into."
            )
        if is_far and not break_lock:
            raise RecordError(
                f"{folder} is locked by {holder}, which cannot be looked for from {socket.gethostname()}: "
                "wait for it, or if it is sure to have ended take the lock with --break-lock."
            )
        if not is_free and not lock.replace():
            raise RecordError(f"the lock of {folder} keeps changing hands: wait for the other processes.")
        lock.note.write_bytes(lock.content)
    except BaseException:
        lock.file.release()
        raise
    if holder is None:
        return ""
    if is_far:
        return f"The lock of {holder} was broken, as asked."
    return f"The lock of process {holder.pid}, which has ended, was taken over."


def holder_of(folder: Path) -> Holder | None:
    """Who trains a run, as its note says, without touching the lock; None if nobody does.

    A process of another host, which cannot be looked for, is taken at its word.
    """
    holder = _read_note(Lock(folder).note)
    if holder is None or holder.host != socket.gethostname():
        return holder
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return holder  # somebody else's, but there
    return holder


def _read_note(path: Path) -> Holder | None:
    """The holder that a note names; None if it names none, being missing, torn or not ours."""
    try:
        pid, *texts = (json.loads(read_plain(path, MOST_BYTES))[key] for key in NOTED)
    except (OSError, *MALFORMED):
        return None
    known = type(pid) is int and 0 < pid < 2**31
    known &= all(isinstance(text, str) and text.isprintable() for text in texts)
    return Holder(pid, *texts) if known else None
