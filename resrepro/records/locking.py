"""A lock beside each run folder, so that two processes never train one run.

`runs/<name>/.seed<k>.lock` is held by `filelock`; the system drops it when the holder dies. The note beside
it, `.seed<k>.lock.json`, names the holder: for people, and for other hosts, which may not see the lock.
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
from resrepro.records.storage import make_folder

PATIENCE = 0.2  # seconds for a holder that is just leaving


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since} UTC"


@contextmanager
def locked(
    folder: Path, *, break_lock: bool = False, say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Hold the lock of a run folder; `say` is told when it was taken over from another process.

    Raises:
        RecordError: if another process holds it, or may hold it on another host and `break_lock` does not say
            that it has ended, or if the lock cannot be written.
    """
    lock, note = FileLock(folder.with_name(f".{folder.name}.lock")), _note_of(folder)
    me = Holder(os.getpid(), socket.gethostname(), f"{datetime.now(UTC):%Y-%m-%d %H:%M}")
    try:
        make_folder(folder.parent)
        before = _take(lock, folder, break_lock)
        note.write_text(json.dumps(asdict(me)), encoding="utf-8")
    except OSError as error:
        raise RecordError(
            f"cannot write to the runs folder {folder.parent.parent}: {error.strerror or error}. "
            "Choose another with --runs."
        ) from None
    try:
        if before is not None:
            say(f"The lock of {before} was taken over.")
        yield
    finally:
        if os.getpid() == me.pid:  # a forked process never held it
            with suppress(OSError):  # what is left behind is taken over by the next
                if _read_note(note) == me:
                    note.unlink()
                    Path(lock.lock_file).unlink()
            lock.release()


def _take(lock: FileLock, folder: Path, break_lock: bool) -> Holder | None:
    """Take the lock; returns a holder that has not given it back."""
    with suppress(Timeout):
        lock.acquire(timeout=PATIENCE)
    holder = _read_note(_note_of(folder))
    is_far = holder is not None and holder.host != socket.gethostname()
    if is_far and break_lock and not lock.is_locked:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.acquire(timeout=PATIENCE)
    if lock.is_locked and (break_lock or not is_far):
        return holder
    lock.release()
    if is_far:
        raise RecordError(
            f"{folder} is locked by {holder}, which cannot be looked for from {socket.gethostname()}: "
            "wait for it, or if it is sure to have ended take the lock with --break-lock."
        )
    raise RecordError(f"{folder} is being trained by {holder or 'another process'}: wait for it or stop it.")


def holder_of(folder: Path) -> Holder | None:
    """Who trains a run, as its note says; None if nobody does. Of another host the note is believed."""
    holder = _read_note(_note_of(folder))
    if holder is not None and holder.host == socket.gethostname():
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # somebody else's, but there
    return holder


def _note_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock.json")


def _read_note(path: Path) -> Holder | None:
    """The holder that a note names; None if it is missing or torn."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_bytes())
        return Holder(int(content["pid"]), str(content["host"]), str(content["since"]))
    return None
