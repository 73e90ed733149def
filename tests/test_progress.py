"""How far runs are: by their record, their lock and the queue, on made-up ones of each kind."""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import write_run
from queues import Queue

from resrepro.launch.progress import Progress, look
from resrepro.launch.queueing import Ticket, write_note, write_submission
from resrepro.records.durable import json_bytes
from resrepro.records.holders import this_process
from resrepro.records.reading import read_json
from resrepro.records.write import RunWriter

NET = "digits-plain8"
CURVE = [(50, 40.0, 45.5), (100, 20.0, 30.25)]


@pytest.fixture
def partly(tmp_path: Path) -> Callable[[int], Path]:
    """Writes a run that is not at its end; returns its folder."""
    return lambda seed: write_run(tmp_path / "runs", NET, seed, curve=CURVE, iterations=400)


def lock(folder: Path, **changed: object) -> None:
    """A lock as this process, or one that differs so, writes it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    told = asdict(replace(this_process(), **changed))  # type: ignore[arg-type]
    folder.with_name(f".{folder.name}.lock").write_text(json.dumps(told))


def states(runs: Path) -> dict[int, str]:
    found, notices = look(runs)
    assert notices == []
    return {progress.seed: progress.state for progress in found}


def test_without_a_cluster_records_and_locks_tell(tmp_path: Path, partly: Callable[[int], Path]) -> None:
    runs = tmp_path / "runs"
    write_run(runs, NET, 0, iterations=400)
    write_run(runs, NET, 1, curve=CURVE, iterations=400, status="diverged")
    held, free = partly(2), partly(3)
    lock(held)
    lock(free, ticks=1)  # of a process that has ended; its number was given again
    lock(held.with_name("seed4"))
    lock(held.with_name("seed5"), pid=7, boot="another", machine="another", host="far", job="17")
    found, notices = look(runs)
    assert notices == []
    assert [(each.seed, each.state) for each in found] == [
        (0, "finished"), (1, "diverged"), (2, "running"), (3, "interrupted"), (4, "starting"),
        (5, "starting"),
    ]  # fmt: skip
    assert found[2].where == f"process {os.getpid()} on {this_process().host}"
    assert found[5].where == "process 7 on far, job 17"
    assert found[3] == Progress(held.parent.name, 3, "interrupted", 100, 400, (20.0, 30.25))


def test_with_a_cluster_its_queue_tells_too(
    tmp_path: Path, queue: Queue, partly: Callable[[int], Path]
) -> None:
    runs, name = tmp_path / "runs", partly(0).parent.name
    for seed in (1, 4):
        partly(seed)
    write_submission(runs, [Ticket(f"17_{seed}", name, seed) for seed in range(7)])
    write_note(runs, "17_4", name, 4, "the disk is full.")
    write_note(runs, "17_5", name, 5, "no images.")
    queue.answers(
        "squeue",
        "17_0|RUNNING|12:30|node3\n17_1|PENDING|0:00|(BeginTime)\n17_2|PENDING|0:00|(Priority)\n"
        "17_3|CONFIGURING|0:01|node4\n",
    )
    lock(runs / name / "seed0", host="node3", boot="its own", machine="its own")
    assert states(runs) == {
        0: "running", 1: "waiting", 2: "waiting", 3: "starting", 4: "failed", 5: "failed", 6: "failed",
    }  # fmt: skip
    found, _ = look(runs)
    assert [each.where for each in found[:4]] == [
        "job 17_0 on node3, 12:30", "job 17_1: BeginTime", "job 17_2: Priority", "job 17_3: configuring",
    ]  # fmt: skip
    assert (found[1].done, found[1].errors) == (100, (20.0, 30.25))  # it waits to go on
    assert (found[4].why, found[4].log) == ("the disk is full.", runs / "slurm" / "17_4_0_log.out")
    assert found[6].why == "its job has left the queue and begun no record"


def test_a_job_that_left_the_queue_holds_no_run_whatever_its_lock_says(
    tmp_path: Path, queue: Queue, partly: Callable[[int], Path]
) -> None:
    runs, far = tmp_path / "runs", {"pid": 7, "boot": "another", "machine": "another", "host": "node3"}
    for seed in (0, 1):
        folder = partly(seed)
        lock(folder, job=f"17_{seed}", **far)
    for seed in (2, 3):
        lock(folder.with_name(f"seed{seed}"), job=f"17_{seed}", **far)
    lock(partly(4), job="18_4", **far)  # not submitted from here
    lock(partly(5), **far)
    write_submission(runs, [Ticket(f"17_{seed}", folder.parent.name, seed) for seed in range(4)])
    queue.answers("squeue", "17_0|RUNNING|12:30|node3\n17_2|RUNNING|0:30|node3\n")
    assert states(runs) == {
        0: "running", 1: "interrupted", 2: "starting", 3: "failed", 4: "running", 5: "running",
    }  # fmt: skip
    queue.answers("squeue", trouble="Unable to contact slurm controller", code=1)
    found, _ = look(runs)
    assert [each.state for each in found if each.seed in (0, 1)] == ["running", "running"]  # at their word


@pytest.mark.parametrize("since", ["a session", "a row", "a fresh start"])
def test_why_a_job_failed_is_not_told_of_a_run_that_was_gone_on_with(
    tmp_path: Path, queue: Queue, partly: Callable[[int], Path], since: str
) -> None:
    runs, folder = tmp_path / "runs", partly(0)
    write_submission(runs, [Ticket("17_0", folder.parent.name, 0)])
    write_note(runs, "17_0", folder.parent.name, 0, "the disk is full.")
    queue.answers("squeue")
    (found,), _ = look(runs)
    assert (found.state, found.why, found.log) == (
        "failed", "the disk is full.", runs / "slurm" / "17_0_0_log.out",
    )  # fmt: skip
    writer, env = RunWriter(folder), read_json(folder / "env.json")
    if since == "a session":  # at the iteration at which the job ended
        writer.env = env
        writer.add_session(100, env | {"cpu": "another"})
    elif since == "a row":  # of a process whose lock the job met
        write_run(runs, NET, 0, curve=[*CURVE, (150, 10.0, 25.0)], iterations=400)
    else:
        (folder / "env.json").write_bytes(json_bytes(env | {"arguments": ["train", "--fresh"]}))
    (found,), _ = look(runs)
    assert (found.state, found.why, found.log) == ("interrupted", "", None)


def test_a_finished_run_of_which_something_is_measured_still_says_where(tmp_path: Path, queue: Queue) -> None:
    runs = tmp_path / "runs"
    name = write_run(runs, NET, 0, iterations=400).parent.name
    write_submission(runs, [Ticket("17_0", name, 0)])
    queue.answers("squeue", "17_0|RUNNING|12:30|node3\n")
    (found,), _ = look(runs)
    assert (found.state, found.where) == ("finished", "job 17_0 on node3, 12:30")


def test_a_run_that_was_submitted_again_is_told_of_once(tmp_path: Path, queue: Queue) -> None:
    for job in ("9_0", "17_0"):
        write_submission(tmp_path, [Ticket(job, NET, 0)])
    write_note(tmp_path, "9_0", NET, 0, "no images.")
    queue.answers("squeue", "17_0|PENDING|0:00|(Resources)\n")
    (found,), _ = look(tmp_path)
    assert (found.state, found.where) == ("waiting", "job 17_0: Resources")


def test_a_fast_run_has_its_name_once_it_has_begun(tmp_path: Path, queue: Queue) -> None:
    write_submission(tmp_path, [Ticket("17_0", NET, 0, fast=True), Ticket("17_1", NET, 1, fast=True)])
    write_note(tmp_path, "17_1", f"{NET}+precision=bf16", 1)
    queue.answers("squeue", "17_0|PENDING|0:00|(Resources)\n17_1|RUNNING|0:01|node\n")
    found, _ = look(tmp_path)
    assert [(each.run, each.state) for each in found] == [
        (f"{NET} (--fast)", "waiting"),
        (f"{NET}+precision=bf16", "starting"),
    ]


def test_what_is_broken_and_a_queue_that_is_silent_are_named(
    tmp_path: Path, queue: Queue, partly: Callable[[int], Path]
) -> None:
    runs = tmp_path / "runs"
    (partly(0) / "result.json").write_bytes(json_bytes({"format": 2}))
    write_submission(runs, [Ticket("17_0", NET, 1)])
    queue.answers("squeue", "the controller is on fire")
    found, notices = look(runs)
    assert [each.state for each in found] == ["failed"]
    assert [
        sentence for sentence in notices if "result.json is broken" in sentence or "is broken" in sentence
    ]
    assert any("squeue said what cannot be read" in sentence for sentence in notices)


def test_locks_that_somebody_made_up_are_passed_over(tmp_path: Path) -> None:
    for name in ("a\x1b[2Jb", "fine"):
        lock(tmp_path / name / "seed0")
    lock(tmp_path / "fine" / "seedx")
    os.mkfifo(tmp_path / "fine" / ".seed7.lock")
    found, _ = look(tmp_path)
    assert [(each.run, each.seed) for each in found] == [("fine", 0)]


def test_a_folder_that_is_not_there_holds_no_runs(tmp_path: Path) -> None:
    assert look(tmp_path / "nowhere") == ([], [])
