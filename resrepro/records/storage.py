"""Files that survive a crash, the record of a run while it is being made, locks of run folders.

Whoever reads such a file sees the old content or the new, at every moment and after every crash. Rows of a
record reach the disk before the result or the checkpoint that counts on them; others are those of a crash.

`runs/<name>/.seed<k>.lock` is held by `filelock`; the system drops it when the holder dies. The note beside
it, `.seed<k>.lock.json`, names the holder: for people, and for other hosts, which may not see the lock.
"""

import errno
import itertools
import json
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from resrepro.errors import RecordError, UsageError
from resrepro.records import reading
from resrepro.records.reading import CHECKPOINT, ENV, FORMAT, METRICS, PREVIOUS, RESULT, SPEC, json_bytes
from resrepro.spec import Spec, digest_of

HEADER = (",".join(reading.METRICS_COLUMNS) + "\n").encode()
LATER = "later_sessions"
PART = ".part"  # ending of a file that is still being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)
NOTE = ".lock.json"
PATIENCE = 0.2  # seconds for a holder of a lock that is just leaving


def write_whole(
    path: Path, content: bytes | Iterable[bytes | memoryview], keep: Path | None = None, make: bool = False
) -> None:
    """Write a file (or its pieces) beside its place, force it to disk, then move it there in one step; its
    folder must be there, or is made with `make`. What was there before stays as `keep`, if that is given.
    RecordError if the disk refuses.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}{PART}")
    try:
        if make:
            make_folder(path.parent)
        with beside.open("wb") as file:
            file.writelines([content] if isinstance(content, bytes) else content)
            file.flush()
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            path.replace(keep)
        beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from None
    finally:
        with suppress(OSError):  # it is still there after an error
            beside.unlink()


write_out = partial(write_whole, make=True)  # of tables, figures and copies


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


class RunWriter:
    """The record of one run while it is being made."""

    def __init__(self, folder: Path, aside: Path | None = None) -> None:
        self.folder = folder
        self.aside = aside  # where an earlier record was moved, if there was one
        self.env: dict[str, Any] = {}  # the content of env.json
        self.curve = HEADER  # the content of metrics.csv
        self._of: dict[str, Any] = {}  # what binds the result to its run: digest and seed

    def begin(self, spec: Spec, seed: int, env: Mapping[str, Any]) -> None:
        """Write what is known before the first iteration."""
        self.env = dict(env)
        self._of = {"digest": spec.digest, "seed": seed}
        write_whole(self.folder / SPEC, json_bytes(describe_spec(spec, seed)))
        write_whole(self.folder / ENV, json_bytes(self.env))
        write_whole(self.folder / METRICS, self.curve)

    def go_on(
        self, spec: Spec, seed: int, env: Mapping[str, Any], curve: bytes, result: Mapping[str, Any]
    ) -> list[str]:
        """Bring the record to the state of a checkpoint; returns the files that had to be restored."""
        self.env, self.curve = dict(env), curve
        self._of = {"digest": spec.digest, "seed": seed}
        self.result(result)  # first: it must never vouch for rows that are cut off
        restored = []
        recorded = _read(self.folder / ENV)
        if digest_of({**recorded, LATER: 0}) == digest_of({**env, LATER: 0}):
            self.env = recorded  # it may tell of a session that wrote no checkpoint
        for name, content in ((SPEC, describe_spec(spec, seed)), (ENV, self.env)):
            if digest_of(_read(self.folder / name)) != digest_of(content):
                write_whole(self.folder / name, json_bytes(content))
                restored.append(name)
        rows = b""
        with suppress(RecordError):
            rows = reading.read_bytes(self.folder / METRICS)
        write_whole(self.folder / METRICS, self.curve)
        return restored + ([] if rows.startswith(self.curve) else [METRICS])

    def add_session(self, iteration: int, env: Mapping[str, Any]) -> None:
        """Note in env.json that another session, perhaps elsewhere, went on from `iteration`."""
        session = {key: env[key] for key in env if self.env.get(key) != env[key] and key != "started"}
        self.env |= {LATER: [*self.env.get(LATER, []), {"from_iteration": iteration, **session}]}
        write_whole(self.folder / ENV, json_bytes(self.env))

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Append rows to metrics.csv and force them to disk. RecordError if somebody else changed the file or
        the disk refuses; it is then as long as before, where that can be had.
        """
        path, added = self.folder / METRICS, "".join(",".join(map(str, row)) + "\n" for row in rows).encode()
        try:
            with path.open("r+b") as file:
                if file.seek(0, os.SEEK_END) != len(self.curve):
                    raise RecordError(f"{path} was changed by somebody else: the same command restores it.")
                file.write(added)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            with suppress(OSError):
                os.truncate(path, len(self.curve))
            raise not_written(path, error) from None
        self.curve += added

    def result(self, content: Mapping[str, Any]) -> None:
        """Replace result.json; it vouches for the rows so far."""
        vouching = {"format": FORMAT, **self._of, **content, "metrics": reading.describe_curve(self.curve)}
        write_whole(self.folder / RESULT, json_bytes(vouching))


class Onlooker(RunWriter):
    """The record as a further process of the run sees it: the first one writes, this one does not."""

    def append(self, rows: Iterable[Sequence[object]]) -> None:
        """Leave it to the first process."""

    def result(self, content: Mapping[str, Any]) -> None:
        """Leave it to the first process."""


def describe_spec(spec: Spec, seed: int) -> dict[str, Any]:
    """The content of spec.json."""
    return {"format": FORMAT, "name": spec.name, "digest": spec.digest, "seed": seed, "spec": spec.to_json()}


def _read(path: Path) -> dict[str, Any]:
    """A JSON record, empty if it is missing or broken."""
    with suppress(RecordError):
        return reading.read_json(path)
    return {}


def run_folder(runs: Path, spec: Spec, seed: int) -> Path:
    """Where a run's record lies: `runs/<name>/seed<k>`."""
    return runs / spec.name / f"seed{seed}"


def has_checkpoint(folder: Path) -> bool:
    """Whether there is a checkpoint to go on from, newest or before."""
    return any((folder / name).exists() for name in (CHECKPOINT, PREVIOUS))


def open_run(folder: Path, spec: Spec, *, fresh: bool = False) -> RunWriter:
    """The record in a run's folder, made if missing; with `fresh` an existing one is set aside first, and so
    is one that holds curves but no checkpoint to go on from. RecordError if it cannot be made, UsageError if
    it holds a run of another specification.
    """
    aside = None
    try:
        curve = folder / METRICS  # without a checkpoint they cannot be continued, but are somebody's hours
        lost = not has_checkpoint(folder) and curve.exists() and curve.stat().st_size > len(HEADER)
        if lost or (fresh and folder.exists()):
            names = (folder.with_name(f"{folder.name}.aside{number}") for number in itertools.count(1))
            aside = folder.rename(next(name for name in names if not name.exists()))
        make_folder(folder)
    except OSError as error:
        raise _refused(folder, error) from None
    for left in folder.glob(f".*{PART}"):  # by a process that was killed in the midst of writing
        left.unlink(missing_ok=True)
    recorded = _read(folder / SPEC)  # empty: none yet, or restored from the checkpoint
    if recorded and digest_of(recorded.get("spec", {})) != spec.digest:
        raise UsageError(f"{folder} holds a run of another specification: set it aside with --fresh.")
    return RunWriter(folder, aside)


def _refused(folder: Path, error: OSError) -> RecordError:
    trouble = f"{folder.parents[1]}: {error.strerror or error}"
    return RecordError(f"cannot write to the runs folder {trouble}. Choose another with --runs.")


class Holder(NamedTuple):
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
    """Hold the lock of a run folder; `say` is told when it was taken over from another process. RecordError
    if it cannot be written, if another process holds it, or if one on another host may hold it and
    `break_lock` does not say that it has ended.
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
        note.write_text(json.dumps(me._asdict()), encoding="utf-8")
    except OSError as error:
        raise _refused(folder, error) from None
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
