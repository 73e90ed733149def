"""The lock of a run folder: one holder at a time, whatever became of the one before."""

import contextlib
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resrepro.errors import RecordError
from resrepro.records.locking import Holder, holder_of, locked, this_process

HOLD = """
import os, sys
from pathlib import Path
from resrepro.records.locking import locked
with locked(Path(sys.argv[1])):
    {inside}
    print("held", flush=True)
    sys.stdin.read()
"""
# Several processes start for one lock at once; whoever has it keeps it until all have been answered.
RACE = """
import os, sys
from pathlib import Path
from resrepro.records.locking import locked
from resrepro.errors import RecordError
folder, stale, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])

def race(start, answers, finish):
    os.read(start, 1)
    try:
        with locked(folder) as lock:
            os.write(answers, b"w")
            os.read(finish, 1)
            lock.check()
    except RecordError as error:
        refused = "is being trained by" in str(error)
        os.write(answers, b"r" if refused else b"?")
        if not refused:
            print(error, file=sys.stderr, flush=True)

for _ in range(rounds):
    folder.with_name(f".{folder.name}.lock").touch()
    folder.with_name(f".{folder.name}.lock.json").write_text(stale)
    start, answers, finish = os.pipe(), os.pipe(), os.pipe()
    racers = []
    for _ in range(4):
        racers.append(os.fork())
        if not racers[-1]:
            try:
                race(start[0], answers[1], finish[0])
            finally:
                os._exit(0)
    os.write(start[1], b"1234")
    told = b""
    while len(told) < 4:
        told += os.read(answers[0], 1)
    os.write(finish[1], b"1234")
    for racer in racers:
        os.waitpid(racer, 0)
    print("".join(sorted(told.decode())))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x" / "seed0"


@contextlib.contextmanager
def holding(folder: Path, inside: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock and waits; `inside` is what it does first."""
    command = [sys.executable, "-c", HOLD.format(inside=inside), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def note_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock.json")


def note(**changes: object) -> bytes:
    """What the note of a process on another host says, with changes."""
    told = {"pid": 4321, "host": "elsewhere", "since": "2026-11-24 09:12", "job": ""}
    return json.dumps(told | changes).encode()


def leave_lock(folder: Path, content: bytes) -> None:
    """A lock that nobody holds here, as one left behind or of another host is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_of(folder).touch()
    note_of(folder).write_bytes(content)


def taking(folder: Path, break_lock: bool = False) -> list[str]:
    """What is said on taking the lock, which is given back again."""
    said: list[str] = []
    with locked(folder, break_lock=break_lock, say=said.append) as lock:
        lock.check()
        assert holder_of(folder) == this_process()
    assert list(folder.parent.glob(".*")) == []
    return said


# One holder at a time


def test_a_second_process_is_refused_and_told_of_the_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    with holding(folder) as process:
        assert process.stdout.readline() == "held\n"
        for break_lock in (False, True):
            with pytest.raises(RecordError) as caught, locked(folder, break_lock=break_lock):
                pass
            found = str(caught.value)
            assert found.startswith(
                f"{folder} is being trained by process {process.pid} on {socket.gethostname()} since 20"
            )
            assert found.endswith(" UTC (job 77): wait for it or stop it; it is not broken into.")


def test_one_process_cannot_have_it_twice_and_gives_it_back_after_an_error(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(folder) as lock:  # noqa: PT012
        with pytest.raises(RecordError, match=f"is being trained by process {os.getpid()} "), locked(folder):
            pass
        lock.check()
        _ = 1 / 0
    assert taking(folder) == []


def test_it_is_released_when_the_notice_cannot_be_said(folder: Path) -> None:
    leave_lock(folder, note())

    def fail(text: str) -> None:
        raise BrokenPipeError(text)

    with pytest.raises(BrokenPipeError), locked(folder, break_lock=True, say=fail):
        pass
    assert not lock_of(folder).exists()


def test_the_folder_can_be_set_aside_while_it_is_locked(folder: Path) -> None:
    folder.mkdir(parents=True)
    with holding(folder) as process:
        process.stdout.readline()
        folder.rename(folder.with_name("seed0.aside1"))
        with pytest.raises(RecordError, match=f"trained by process {process.pid} "), locked(folder):
            pass


# Holders that died


def test_the_lock_of_a_killed_process_is_free_and_taken_over_with_a_notice(folder: Path) -> None:
    with holding(folder) as process:
        process.stdout.readline()
        process.kill()
        process.wait()
        assert lock_of(folder).exists()
        assert holder_of(folder) is None
        assert taking(folder) == [f"The lock of process {process.pid}, which has ended, was taken over."]


def test_workers_that_outlive_their_killed_parent_do_not_keep_its_lock(folder: Path) -> None:
    worker = "child = os.fork()\n    if child == 0:\n        sys.stdin.read(); os._exit(0)\n    print(child)"
    with holding(folder, inside=worker) as process:
        child = int(process.stdout.readline())
        process.stdout.readline()
        process.kill()
        process.wait()
        assert taking(folder) == [f"The lock of process {process.pid}, which has ended, was taken over."]
        os.kill(child, 0)  # it is there still
        process.stdin.close()
        process.stdout.read()  # until the child has ended as well


@pytest.mark.parametrize("end", ["os._exit(0)", "raise SystemExit"], ids=["at once", "through the with"])
def test_a_worker_that_ends_does_not_release_the_lock_of_its_parent(folder: Path, end: str) -> None:
    worker = f"child = os.fork()\n    if child == 0:\n        {end}\n    os.waitpid(child, 0)"
    with holding(folder, inside=worker) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(RecordError, match=f"trained by process {process.pid} "), locked(folder):
            pass


def test_of_processes_that_race_for_an_old_lock_exactly_one_wins(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    left = note(host=socket.gethostname()).decode()
    command = [sys.executable, "-c", RACE, str(folder), left, "10"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.stdout.split()) == ("", ["rrrw"] * 10)
    assert list(folder.parent.iterdir()) == []


# Other hosts


def test_the_lock_of_another_host_is_refused_with_the_way_out_and_broken_on_request(folder: Path) -> None:
    leave_lock(folder, note(job="55"))
    with pytest.raises(RecordError) as caught, locked(folder):
        pass
    assert str(caught.value) == (
        f"{folder} is locked by process 4321 on elsewhere since 2026-11-24 09:12 UTC (job 55), which cannot "
        f"be looked for from {socket.gethostname()}: wait for it, or if it is sure to have ended take the "
        "lock with --break-lock."
    )
    assert note_of(folder).read_bytes() == note(job="55")
    assert holder_of(folder) == Holder(4321, "elsewhere", "2026-11-24 09:12", "55")
    assert taking(folder, break_lock=True) == [
        "The lock of process 4321 on elsewhere since 2026-11-24 09:12 UTC (job 55) was broken, as asked."
    ]


def test_a_lock_that_another_host_holds_is_broken_on_request_and_that_notices(folder: Path) -> None:
    with locked(folder) as lock:
        lock.content = note()  # as if this were the other host
        note_of(folder).write_bytes(lock.content)
        with pytest.raises(RecordError, match="locked by process 4321 on elsewhere"), locked(folder):
            pass
        with locked(folder, break_lock=True) as other:
            other.check()
            with pytest.raises(RecordError, match=r"another process has broken the lock .*seed0\.lock, so"):
                lock.check()
        left = lock_of(folder).stat() if lock_of(folder).exists() else None
    assert left is None
    assert taking(folder) == []


# What may lie there


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[1, 2]", b"\xff\xfe", b"[" * 4000, b" " * 10**6, note()[:-9],
        *(note(**{key: value}) for key, value in [
            ("pid", "4321"), ("pid", True), ("pid", -1), ("pid", 10**20), ("host", 5), ("host", "a\x1b[31m"),
            ("host", "\ud800"), ("host", "a\u202eb"), ("since", {}), ("job", "\t"), ("job", None),
        ]),
    ],
)  # fmt: skip
def test_what_names_no_holder_is_taken_over_in_silence(folder: Path, content: bytes) -> None:
    leave_lock(folder, content)
    assert taking(folder) == []


def test_a_link_or_a_folder_in_its_place_is_never_followed(folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    for place in (
        lambda: lock_of(folder).symlink_to(tmp_path / "precious"),
        lambda: lock_of(folder).symlink_to(tmp_path / "nowhere"),
    ):
        place()
        with pytest.raises(RecordError, match="cannot write to the runs folder"), locked(folder):
            pass
        lock_of(folder).unlink()
    lock_of(folder).mkdir()
    with pytest.raises(RecordError, match="cannot write to the runs folder"), locked(folder):
        pass
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


# Disks


def test_a_lock_that_cannot_be_made_is_told_in_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.parent.mkdir(parents=True)

    def fail(*ignored: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, name in ((os, "open"), (Path, "write_bytes")):
        with monkeypatch.context() as context:
            context.setattr(owner, name, fail)
            with pytest.raises(RecordError) as caught, locked(folder):
                pass
        assert str(caught.value) == (
            f"cannot write to the runs folder {folder.parent.parent}: No space left on device. "
            "Choose another with --runs."
        )
    assert taking(folder) == []


def test_a_file_where_the_runs_folder_should_be_is_told_in_a_sentence(folder: Path) -> None:
    folder.parent.parent.write_text("")
    with (
        pytest.raises(RecordError, match=r"cannot write to the runs folder .*: Not a directory"),
        locked(folder),
    ):
        pass
