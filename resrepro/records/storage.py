"""Files that survive a crash, forced to disk and sealed with a checksum; locks of run folders.

Whoever reads such a file sees the old content or the new, at every moment and after every crash.

`runs/<name>/.seed<k>.lock` is held by `filelock`; the system drops it when the holder dies. The note beside
it, `.seed<k>.lock.json`, names the holder: for people, and for other hosts, which may not see the lock.
"""

import errno
import hashlib
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from resrepro.errors import RecordError

SEAL = "checksum"  # key of a JSON record: SHA-256 (hex) of all its other entries
PART = ".part"  # ending of a file that is still being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
NOTE = ".lock.json"
PATIENCE = 0.2  # seconds for a holder of a lock that is just leaving


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


@contextmanager
def replacing(path: Path, keep: Path | None = None) -> Iterator[Sink]:
    """Write a file beside its place, force it to disk, then move it there in one step.

    The file that was there stays as `keep`, if that is given. After an error it is where it was; where the
    disk refuses that is a RecordError.
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
        with suppress(OSError):
            beside.unlink()
        trouble = error if isinstance(error, OSError) else sink and sink.error
        if trouble:
            raise not_written(path, trouble) from None
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file by this content; its folder must be there (RecordError if the disk refuses)."""
    with replacing(path) as sink:
        sink.write(content)


def write_out(path: Path, content: bytes) -> None:
    """The same in a folder that is made if it is missing, for tables, figures and copies."""
    try:
        make_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from None
    write_whole(path, content)


def append(path: Path, content: bytes, size: int) -> None:
    """Append to a file of `size` bytes and force it to disk. RecordError if it has another size, or the disk
    refuses; it is then as long as before, where that can be had.
    """
    try:
        with path.open("r+b") as file:
            if file.seek(0, os.SEEK_END) != size:
                raise RecordError(f"{path} was changed by somebody else: the same command restores it.")
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with suppress(OSError):
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
        with suppress(OSError):  # some network file systems refuse, having done it already
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
    """Replace a JSON record, sealed with its checksum (RecordError if the disk refuses)."""
    write_whole(path, json_bytes(content))


def json_bytes(content: Mapping[str, Any]) -> bytes:
    """A JSON record as it lies on the disk, sealed with its checksum; NaN and infinity are ValueErrors."""
    return (json.dumps({**content, SEAL: seal_of(content)}, indent=2, allow_nan=False) + "\n").encode()


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of a record's entries, however they are ordered and spaced."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    from filelock import FileLock, Timeout  # slow to load

    lock, note = FileLock(folder.with_name(f".{folder.name}.lock")), folder.with_name(f".{folder.name}{NOTE}")
    me = Holder(os.getpid(), socket.gethostname(), f"{datetime.now(UTC):%Y-%m-%d %H:%M}")
    try:
        make_folder(folder.parent)
        with suppress(Timeout):
            lock.acquire(timeout=PATIENCE)
        before = _read_note(note)  # by one who has not given it back
        is_far = before is not None and before.host != me.host
        if is_far and break_lock and not lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.acquire(timeout=PATIENCE)
        if not lock.is_locked or (is_far and not break_lock):
            lock.release()
            raise RecordError(
                f"{folder} is locked by {before}, which cannot be looked for from {me.host}: "
                "wait for it, or if it is sure to have ended take the lock with --break-lock."
                if is_far
                else f"{folder} is being trained by {before or 'another process'}: wait for it or stop it."
            )
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


def holder_of(folder: Path) -> Holder | None:
    """Who trains a run, as its note says; None if nobody does. Of another host the note is believed."""
    holder = _read_note(folder.with_name(f".{folder.name}{NOTE}"))
    if holder is not None and holder.host == socket.gethostname():
        try:
            os.kill(holder.pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass  # somebody else's, but there
    return holder


def _read_note(path: Path) -> Holder | None:
    """The holder that a note names; None if it is missing or torn."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        content = json.loads(path.read_bytes())
        return Holder(int(content["pid"]), str(content["host"]), str(content["since"]))
    return None
