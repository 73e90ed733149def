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
from resrepro.records.storage import Holder, holder_of, locked

HOLD = """
import os, sys
from pathlib import Path
from resrepro.records.storage import locked
with locked(Path(sys.argv[1])):
    {inside}
    print("held", flush=True)
    sys.stdin.read()
"""
ELSEWHERE = {"pid": 4321, "host": "elsewhere", "since": "2026-11-24 09:12"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "x" / "seed0"


@contextlib.contextmanager
def holding(folder: Path, inside: str = "") -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock and waits; `inside` is what it does first."""
    command = [sys.executable, "-c", HOLD.format(inside=inside), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def leave_note(folder: Path, content: str) -> Path:
    """The note of a lock that nobody holds here, as one left behind or of another host is."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    note = folder.with_name(f".{folder.name}.lock.json")
    note.write_text(content)
    return note


def taking(folder: Path, break_lock: bool = False) -> list[str]:
    """What is said on taking the lock, which is given back again."""
    said: list[str] = []
    with locked(folder, break_lock=break_lock, say=said.append):
        assert holder_of(folder).pid == os.getpid()
    assert list(folder.parent.glob(".*")) == []
    return said


def refused(folder: Path, pid: int, break_lock: bool = False) -> None:
    """Check that the lock is not to be had, and that it is said who holds it."""
    told = rf"{folder} is being trained by process {pid} on {socket.gethostname()} since 20.*: wait for it"
    with pytest.raises(RecordError, match=told), locked(folder, break_lock=break_lock):
        pass


def test_a_second_process_is_refused_and_told_of_the_first(folder):
    with holding(folder) as process:
        for break_lock in (False, True):
            refused(folder, process.pid, break_lock)


def test_one_process_cannot_have_it_twice_and_gives_it_back_after_an_error(folder):
    with pytest.raises(ZeroDivisionError), locked(folder):  # noqa: PT012
        refused(folder, os.getpid())
        _ = 1 / 0
    assert taking(folder) == []


def test_the_folder_can_be_set_aside_while_it_is_locked(folder):
    folder.mkdir(parents=True)
    with holding(folder) as process:
        folder.rename(folder.with_name("seed0.aside1"))
        refused(folder, process.pid)


def test_the_lock_of_a_killed_process_is_free_and_taken_over_with_a_notice(folder):
    with holding(folder) as process:
        process.kill()
        process.wait()
        assert holder_of(folder) is None
        (said,) = taking(folder)
        assert said.startswith(f"The lock of process {process.pid} on ")
        assert said.endswith(" was taken over.")


def test_a_worker_that_ends_does_not_release_the_lock_of_its_parent(folder):
    worker = "child = os.fork()\n    if child == 0:\n        raise SystemExit\n    os.waitpid(child, 0)"
    with holding(folder, inside=worker) as process:
        refused(folder, process.pid)


def test_the_lock_of_another_host_is_refused_with_the_way_out_and_broken_on_request(folder):
    note = leave_note(folder, json.dumps(ELSEWHERE))
    with pytest.raises(RecordError) as caught, locked(folder):
        pass
    assert str(caught.value) == (
        f"{folder} is locked by process 4321 on elsewhere since 2026-11-24 09:12 UTC, which cannot "
        f"be looked for from {socket.gethostname()}: wait for it, or if it is sure to have ended take the "
        "lock with --break-lock."
    )
    assert json.loads(note.read_text()) == ELSEWHERE
    assert holder_of(folder) == Holder(**ELSEWHERE)
    said = ["The lock of process 4321 on elsewhere since 2026-11-24 09:12 UTC was taken over."]
    assert taking(folder, break_lock=True) == said


def test_a_lock_that_another_host_holds_is_broken_on_request(folder):
    with holding(folder):
        leave_note(folder, json.dumps(ELSEWHERE))  # as if that process were on the other host
        assert len(taking(folder, break_lock=True)) == 1


@pytest.mark.parametrize("content", ["", "{", "null", "[1, 2]", '{"pid": 4321}'])
def test_a_torn_note_names_no_holder(folder, content):
    leave_note(folder, content)
    assert holder_of(folder) is None
    assert taking(folder) == []


def test_a_lock_that_cannot_be_made_is_told_in_a_sentence(folder, monkeypatch):
    def fail(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as context:
        context.setattr(Path, "write_text", fail)
        with pytest.raises(RecordError) as caught, locked(folder):
            pass
    assert str(caught.value) == (
        f"cannot write to the runs folder {folder.parent.parent}: No space left on device. "
        "Choose another with --runs."
    )
    del caught
    assert taking(folder) == []
