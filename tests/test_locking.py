"""The lock of a run folder: one holder at a time, whatever became of the one before."""

import contextlib
import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from resrepro.errors import RecordError
from resrepro.records import holders, locking
from resrepro.records.holders import holder_from
from resrepro.records.locking import locked

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
from resrepro.records import locking
from resrepro.errors import RecordError
folder, stale, rounds, has_flock = Path(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3]), sys.argv[4]

def no_flock(*ignored):
    raise OSError(38, "Function not implemented")

if has_flock == "no":
    locking.fcntl.flock = no_flock

def race(start, answers, finish):
    os.read(start, 1)
    try:
        with locking.locked(folder, break_lock=True) as lock:
            os.write(answers, b"w")
            os.read(finish, 1)
            lock.check()
    except RecordError as error:
        refused = "is being trained by" in str(error)
        os.write(answers, b"r" if refused else b"?")
        if not refused:
            print(error, file=sys.stderr, flush=True)

for _ in range(rounds):
    folder.with_name(f".{folder.name}.lock").write_bytes(stale)
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


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No cluster job, and short pauses, since only the processes of the races meet at the same instant."""
    monkeypatch.setattr(locking, "PAUSE", 0.002)
    for name in holders.JOBS:
        monkeypatch.delenv(name, raising=False)


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


def content_here(**changes: object) -> bytes:
    """What a lock of this very process would say, with changes."""
    return json.dumps(asdict(locking.this_process()) | changes).encode()


def leave_lock(folder: Path, content: bytes) -> None:
    """A lock file that nobody has open, as one left behind or of another host is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_of(folder).write_bytes(content)


def another_host(**changes: object) -> bytes:
    told = {"pid": 4321, "host": "elsewhere", "boot": "b2", "machine": "m2", "started": "2026-11-24 09:12"}
    return content_here(**told | changes)


def taking(folder: Path, break_lock: bool = False) -> list[str]:
    """What is said on taking the lock, which is let go of again."""
    said: list[str] = []
    with locked(folder, break_lock=break_lock, say=said.append) as lock:
        lock.check()
        holder = holder_from(lock_of(folder).read_bytes())
        assert holder is not None
        assert holder == replace(locking.this_process(), started=holder.started)  # a minute may have begun
    assert not lock_of(folder).exists()
    return said


def no_flock(*ignored: object) -> None:
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_flock)


# One holder at a time


def test_a_second_process_is_refused_and_told_of_the_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PBS_JOBID", "77.server")
    with holding(folder) as process:
        assert process.stdout.readline() == "held\n"
        for break_lock in (False, True):
            with pytest.raises(RecordError) as caught, locked(folder, break_lock=break_lock):
                pass
            found = str(caught.value)
            assert found.startswith(
                f"{folder} is being trained by process {process.pid} on {socket.gethostname()} since 20"
            )
            assert found.endswith(" UTC (job 77.server): wait for it or stop it; it is not broken into.")


def test_one_process_cannot_have_it_twice(folder: Path) -> None:
    with locked(folder) as lock:
        with pytest.raises(RecordError, match=f"is being trained by process {os.getpid()} "), locked(folder):
            pass
        lock.check()
    assert taking(folder) == []


def test_a_released_lock_leaves_nothing_behind_also_after_an_error(folder: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(folder):  # noqa: PT012
        assert [path.name for path in folder.parent.iterdir()] == [".seed0.lock"]
        _ = 1 / 0
    assert list(folder.parent.iterdir()) == []


def test_it_is_released_when_the_notice_cannot_be_said(folder: Path) -> None:
    leave_lock(folder, another_host())

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


def test_a_holder_that_is_not_named_yet_is_refused_in_a_sentence(folder: Path) -> None:
    leave_lock(folder, b'{"pid": 12')
    with lock_of(folder).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RecordError, match="is being trained by another process: wait"), locked(folder):
            pass
    assert lock_of(folder).exists()


def test_a_lock_file_removed_just_before_it_is_held_counts_for_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, calls = fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:  # the holder before lets go of it right now
            lock_of(folder).unlink()
        flock(descriptor, operation)

    leave_lock(folder, b"")
    monkeypatch.setattr(fcntl, "flock", late)
    assert taking(folder) == []
    assert len(calls) == 2


def test_a_holder_that_is_just_leaving_is_waited_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock, calls = fcntl.flock, []

    def busy_at_first(descriptor: int, operation: int) -> None:
        calls.append(operation)
        if len(calls) == 1:
            raise BlockingIOError
        flock(descriptor, operation)

    leave_lock(folder, another_host())
    monkeypatch.setattr(fcntl, "flock", busy_at_first)
    with pytest.raises(RecordError, match="locked by process 4321"), locked(folder):
        pass
    assert len(calls) == 2


# Holders that died


def test_the_lock_of_a_killed_process_is_taken_over_with_a_notice(folder: Path) -> None:
    with holding(folder) as process:
        process.stdout.readline()
        process.kill()
        process.wait()
        assert lock_of(folder).exists()
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


@pytest.mark.parametrize(
    ("has_flock", "rounds", "changes"),
    [
        ("yes", 20, {"pid": 4321}),
        ("yes", 6, {"host": "elsewhere", "boot": "b2", "machine": "m2"}),
        ("no", 5, {"ticks": 1}),
    ],
    ids=["of a dead process", "of another host", "without flock"],
)
def test_of_processes_that_race_for_an_old_lock_exactly_one_wins(
    folder: Path, has_flock: str, rounds: int, changes: dict[str, object]
) -> None:
    folder.parent.mkdir(parents=True)
    command = [sys.executable, "-c", RACE, str(folder), content_here(**changes), str(rounds), has_flock]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.stdout.split()) == ("", ["rrrw"] * rounds)
    assert list(folder.parent.iterdir()) == []


def test_the_lock_from_before_the_machine_was_restarted_is_taken_over(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "this_process", lambda: holders.Holder(1, "h", "now", "b1", "m1"))
    before = {"host": "h", "boot": "b0", "machine": "m1"}
    leave_lock(folder, content_here(**before, pid=77))
    assert taking(folder) == ["The lock of process 77, which has ended, was taken over."]
    for other in ({"host": "g"}, {"machine": "m0"}, {"machine": None}, {"boot": None}):
        leave_lock(folder, content_here(**before | other))
        with pytest.raises(RecordError, match="cannot be looked for from h"), locked(folder):
            pass
    leave_lock(folder, content_here(**before))
    with lock_of(folder).open("r+b") as file:  # who holds it lives, so that was another machine after all
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RecordError, match="cannot be looked for from h"), locked(folder):
            pass


def test_where_boots_have_no_names_the_host_name_counts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "this_process", lambda: holders.Holder(1, "mac", "now"))
    leave_lock(folder, content_here(pid=77))
    assert taking(folder) == ["The lock of process 77, which has ended, was taken over."]
    leave_lock(folder, content_here(host="other-mac"))
    with pytest.raises(RecordError, match="locked by process 1 on other-mac"), locked(folder):
        pass


# Other hosts


def test_the_lock_of_another_host_is_refused_with_the_way_out(folder: Path) -> None:
    leave_lock(folder, another_host(job="55"))
    with pytest.raises(RecordError) as caught, locked(folder):
        pass
    assert str(caught.value) == (
        f"{folder} is locked by process 4321 on elsewhere since 2026-11-24 09:12 UTC (job 55), which cannot "
        f"be looked for from {socket.gethostname()}: wait for it, or if it is sure to have ended take the "
        "lock with --break-lock."
    )
    assert lock_of(folder).read_bytes() == another_host(job="55")


def test_a_job_that_was_started_again_takes_its_own_lock(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_lock(folder, another_host(job="55"))
    monkeypatch.setenv("SLURM_JOB_ID", "56")
    monkeypatch.setenv("JOB_ID", "55")  # the first of them counts
    with pytest.raises(RecordError, match="locked by process 4321"), locked(folder):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "55")
    assert taking(folder) == [
        "The lock of process 4321 on elsewhere since 2026-11-24 09:12 UTC (job 55) was taken over, "
        "since this is the same job."
    ]


def test_the_lock_of_another_host_is_broken_on_request(folder: Path) -> None:
    leave_lock(folder, another_host())
    assert taking(folder, break_lock=True) == [
        "The lock of process 4321 on elsewhere since 2026-11-24 09:12 UTC was broken, as asked."
    ]


def test_it_is_taken_over_where_somebody_knows_that_its_holder_has_ended(folder: Path) -> None:
    asked: list[holders.Holder] = []

    def knows(holder: holders.Holder) -> bool:
        asked.append(holder)
        return holder.job == "17_0"

    def taken() -> str:
        said: list[str] = []
        with locked(folder, break_lock=knows, say=said.append) as lock:
            lock.check()
        return "".join(said)

    leave_lock(folder, another_host(job="17_0"))
    assert taken() == (
        "The lock of process 4321 on elsewhere since 2026-11-24 09:12 UTC (job 17_0) was taken over, "
        "since that job has ended."
    )
    leave_lock(folder, another_host(job="17_1"))
    with pytest.raises(RecordError, match="locked by process 4321 on elsewhere"):
        taken()
    assert lock_of(folder).read_bytes() == another_host(job="17_1")
    lock_of(folder).unlink()
    with holding(folder) as process:  # of one that is seen to live nobody is asked
        process.stdout.readline()
        with pytest.raises(RecordError, match=f"trained by process {process.pid} "):
            taken()
    assert [holder.job for holder in asked] == ["17_0", "17_1"]


def test_a_task_of_an_array_is_named_as_the_queue_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "17")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert holders.this_process().job is None  # of a shell that has them from somewhere
    monkeypatch.setenv("SLURM_JOB_ID", "21")
    assert holders.this_process().job == "17_3"
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID")
    assert holders.this_process().job == "21"


def test_so_it_is_where_the_other_host_holds_it_by_flock(folder: Path) -> None:
    leave_lock(folder, another_host())
    with lock_of(folder).open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RecordError, match="locked by process 4321 on elsewhere"), locked(folder):
            pass
        assert "was broken, as asked" in taking(folder, break_lock=True)[0]


@pytest.mark.parametrize("left", ["removed", "replaced", "written over"])
def test_a_holder_notices_that_its_lock_was_broken_and_leaves_the_new_one(folder: Path, left: str) -> None:
    with locked(folder) as lock:
        lock.check()
        if left != "written over":
            lock_of(folder).unlink()
        if left != "removed":
            lock_of(folder).write_bytes(another_host())
        with pytest.raises(RecordError, match=r"another process has broken the lock .*seed0\.lock, so"):
            lock.check()
    assert lock_of(folder).exists() == (left != "removed")


def test_a_broken_lock_is_a_new_file_so_that_its_holder_notices(folder: Path) -> None:
    with holding(folder) as process:
        process.stdout.readline()
        before = lock_of(folder).stat()
        lock_of(folder).write_bytes(another_host())  # as if the holder were there
        with locked(folder, break_lock=True):
            assert not os.path.samestat(before, lock_of(folder).stat())


# What may lie there


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"null", b"[1, 2]", b'"pid"', b"\xff\xfe", b"{}", b"[" * 4000, b"1" * 4095, b" " * 10**6,
        content_here()[:-9],
        *(another_host(**{key: value}) for key, value in [
            ("pid", "4321"), ("pid", True), ("pid", -1), ("pid", 0), ("pid", 10**20), ("pid", 1.5),
            ("pid", None), ("host", ""), ("host", 5), ("host", None), ("host", "a\x1b[31m"), ("host", "a\nb"),
            ("host", "\ud800"), ("host", "a\u202eb"), ("host", "a" * 300), ("host", ["a"]), ("started", {}),
            ("boot", 3), ("machine", []), ("job", "\t"), ("job", True), ("ticks", "1"), ("ticks", True),
        ]),
    ],
)  # fmt: skip
def test_what_names_no_holder_is_taken_over_in_silence(folder: Path, content: bytes) -> None:
    leave_lock(folder, content)
    assert taking(folder) == []


def test_names_of_this_process_that_cannot_be_shown_are_left_out(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "5\x1b[31m")
    monkeypatch.setenv("PBS_JOBID", "")
    monkeypatch.setattr(socket, "gethostname", lambda: "")
    assert (locking.this_process().job, locking.this_process().host) == (None, "an unnamed host")
    assert taking(folder) == []


def test_a_link_or_a_folder_in_its_place_is_never_followed(folder: Path, tmp_path: Path) -> None:
    folder.parent.mkdir(parents=True)
    (tmp_path / "precious").write_text("precious")
    for place in (
        lambda: lock_of(folder).symlink_to(tmp_path / "precious"),
        lambda: lock_of(folder).symlink_to(tmp_path / "nowhere"),
        lambda: os.mkfifo(lock_of(folder)),
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


# File systems without flock


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_live_holder_is_refused(folder: Path) -> None:
    with holding(folder) as process:
        process.stdout.readline()
        for break_lock in (False, True):
            with (
                pytest.raises(RecordError, match=f"is being trained by process {process.pid} "),
                locked(folder, break_lock=break_lock),
            ):
                pass
    with locked(folder), pytest.raises(RecordError, match=f"process {os.getpid()} "), locked(folder):
        pass


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_dead_holder_and_a_zombie_are_taken_over(folder: Path) -> None:
    with holding(folder) as process:
        process.stdout.readline()
        left = lock_of(folder).read_bytes()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and a zombie until it is reaped
        notice = [f"The lock of process {process.pid}, which has ended, was taken over."]
        assert taking(folder) == notice
        process.wait()
        leave_lock(folder, left)
        assert taking(folder) == notice


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_pid_that_was_given_again_is_told_apart(folder: Path) -> None:
    ticks = locking.this_process().ticks
    leave_lock(folder, content_here(ticks=ticks - 1))
    assert taking(folder) == [f"The lock of process {os.getpid()}, which has ended, was taken over."]
    leave_lock(folder, content_here(ticks=None))  # it cannot be told: rather refuse
    with pytest.raises(RecordError, match="is being trained by"), locked(folder):
        pass


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_process_of_another_user_is_alive(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_ours(pid: int, number: int) -> None:
        raise PermissionError

    leave_lock(folder, content_here())
    monkeypatch.setattr(os, "kill", not_ours)
    with pytest.raises(RecordError, match="is being trained by"), locked(folder):
        pass


@pytest.mark.usefixtures("without_flock")
def test_without_flock_another_container_of_this_kernel_is_another_host(folder: Path) -> None:
    leave_lock(folder, content_here(host="container", pid=2**31 - 1))
    with pytest.raises(RecordError, match="cannot be looked for from"), locked(folder):
        pass
    assert "was broken, as asked" in taking(folder, break_lock=True)[0]


@pytest.mark.usefixtures("without_flock")
def test_without_flock_a_torn_lock_is_taken_over_in_silence(folder: Path) -> None:
    leave_lock(folder, b'{"pid": 12')
    assert taking(folder) == []


# Disks


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_lock_that_cannot_be_made_is_told_in_a_sentence(
    folder: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*ignored: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(RecordError) as caught, locked(folder):
        pass
    runs = folder.parent.parent
    assert str(caught.value) == (
        f"cannot write to the runs folder {runs}: {os.strerror(number)}. Choose another with --runs."
    )


def test_a_file_where_the_runs_folder_should_be_is_told_in_a_sentence(folder: Path) -> None:
    folder.parent.parent.write_text("")
    with (
        pytest.raises(RecordError, match=r"cannot write to the runs folder .*: Not a directory"),
        locked(folder),
    ):
        pass


@pytest.mark.parametrize("call", ["write", "fsync", "ftruncate"])
def test_on_a_full_disk_no_lock_is_left_behind(
    folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*ignored: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(os, call, fail)
        with pytest.raises(RecordError, match=r"runs folder .*: No space left on device"), locked(folder):
            pass
    assert list(folder.parent.iterdir()) == []
    assert taking(folder) == []


def test_a_disk_with_room_for_a_part_of_the_line_is_full(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as context:
        context.setattr(os, "write", lambda descriptor, content: write(descriptor, content[:9]))
        with pytest.raises(RecordError, match="No space left on device"), locked(folder):
            pass
    assert list(folder.parent.iterdir()) == []


def test_a_lock_that_cannot_be_removed_harms_nobody(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*ignored: object, **named: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as context:
        context.setattr(Path, "unlink", fail)
        with locked(folder):
            pass
    assert taking(folder) == [f"The lock of process {os.getpid()}, which has ended, was taken over."]


def test_no_descriptor_is_left_open(folder: Path) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())
    leave_lock(folder, another_host())
    with pytest.raises(RecordError), locked(folder):
        pass
    with locked(folder, break_lock=True), pytest.raises(RecordError), locked(folder):
        pass
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_who_trains_a_run_is_seen_without_touching_its_lock(folder: Path) -> None:
    assert locking.holder_of(folder) is None
    lock = folder.with_name(f".{folder.name}.lock")
    with locked(folder):
        content = lock.read_bytes()
        assert locking.holder_of(folder) == holder_from(content)
        assert lock.read_bytes() == content
    here = holders.this_process()
    far = replace(here, host="far", boot="another", machine="another")
    for left, seen in ((far, far), (replace(here, ticks=1), None)):  # the second has ended
        lock.write_text(json.dumps(asdict(left)))
        assert locking.holder_of(folder) == seen
    lock.unlink()
    os.mkfifo(lock)
    assert locking.holder_of(folder) is None
