"""What was submitted is kept, and what squeue says of it is read, whatever it says."""

from pathlib import Path

import pytest
from conftest import write_run
from queues import Queue

from resrepro.launch import queueing
from resrepro.launch.queueing import (
    Queued,
    QueueError,
    Ticket,
    ask_queue,
    has_left,
    read_tickets,
    state_of,
    waiting_and_running,
    write_note,
    write_submission,
)

ANSWER = """\
17_0|RUNNING|12:30|node3
17_1|PENDING|0:00|(Priority)
17_2|PENDING|0:00|(JobHeldUser|Resources)
9|COMPLETING|1-02:00:00|node[1-2]
"""


def test_what_was_submitted_is_read_again_in_the_order_of_the_ids(tmp_path: Path) -> None:
    later = [Ticket("100_0", "digits-plain8", 0, fast=True)]
    first = [Ticket(f"17_{k}", "digits-plain8", k) for k in range(11)]
    write_submission(tmp_path, later)
    write_submission(tmp_path, first)
    assert read_tickets(tmp_path) == ([*first, *later], [])


def test_a_job_tells_what_it_trains_and_why_it_failed(tmp_path: Path) -> None:
    write_submission(tmp_path, [Ticket("17_0", "digits-plain8", 3, fast=True)])
    write_note(tmp_path, "17_0", "digits-plain8+precision=bf16", 3)
    (begun,), _ = read_tickets(tmp_path)
    assert (begun.recorded, begun.ended) == ("digits-plain8+precision=bf16", "")
    assert begun.wish == ("digits-plain8", 3, True)  # so that it is not submitted twice
    write_note(tmp_path, "17_0", begun.recorded, 3, "no images.")
    assert read_tickets(tmp_path)[0][0].ended == "no images."


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b'{"format": 2, "jobs": 3}', b"\xff" * 9])
def test_a_broken_file_is_named_and_the_others_are_read(tmp_path: Path, content: bytes) -> None:
    write_submission(tmp_path, [Ticket("17_0", "digits-plain8", 0)])
    (tmp_path / "slurm" / "submission-3.json").write_bytes(content)
    (tmp_path / "slurm" / "17_0.json").write_bytes(content)
    tickets, broken = read_tickets(tmp_path)
    assert [ticket.job for ticket in tickets] == ["17_0"]
    assert len(broken) == 2
    assert all(".json is broken" in sentence for sentence in broken)


@pytest.mark.parametrize(
    "entry", [("17_0; rm", "x", 0), ("17", 5, 0), ("17", "x", "0"), ("17", "\x1b[2J", 0), ("-1", "x", 0)]
)
def test_what_is_no_job_is_refused(tmp_path: Path, entry: tuple[str, str, int]) -> None:
    write_submission(tmp_path, [Ticket("17_0", "x", 0)])
    write_submission(tmp_path, [Ticket("18", "x", 0), Ticket(*entry)])
    tickets, broken = read_tickets(tmp_path)
    assert ([ticket.job for ticket in tickets], len(broken)) == (["17_0"], 1)


def test_the_answer_of_squeue_is_read(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_STATES", "COMPLETED")  # of the user's, which would leave jobs out
    queue.answers("squeue", ANSWER)
    assert ask_queue(["17_1", "9", "17_0"]) == {
        "17_0": Queued("RUNNING", "12:30", "node3"),
        "17_1": Queued("PENDING", "0:00", "Priority"),
        "17_2": Queued("PENDING", "0:00", "JobHeldUser|Resources"),
        "9": Queued("COMPLETING", "1-02:00:00", "node[1-2]"),
    }
    assert queue.asked("squeue") == ["--noheader --array --jobs=9,17 --format=%i|%T|%M|%R "]


def test_only_jobs_of_the_runs_folder_that_are_in_the_queue_are_told(
    queue: Queue,
    tmp_path: Path,
) -> None:
    assert waiting_and_running(tmp_path) == []
    assert queue.asked("squeue") == []  # nothing was submitted
    write_submission(tmp_path, [Ticket(f"17_{k}", "digits-plain8", k) for k in (0, 5)])
    queue.answers("squeue", ANSWER)
    (found,) = waiting_and_running(tmp_path)
    assert (found.job, found.queued) == ("17_0", Queued("RUNNING", "12:30", "node3"))


def test_a_job_has_left_where_it_was_submitted_and_the_queue_does_not_list_it(
    queue: Queue, tmp_path: Path
) -> None:
    write_submission(tmp_path, [Ticket(f"17_{k}", "digits-plain8", k) for k in (0, 5)])
    queue.answers("squeue", ANSWER)
    assert not has_left(tmp_path, "17_0")
    assert has_left(tmp_path, "17_5")
    assert not has_left(tmp_path, "17_6")  # of somebody else's submission nothing is known
    assert not has_left(tmp_path, None)
    queue.answers("squeue", trouble="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert has_left(tmp_path, "17_0")
    queue.answers("squeue", trouble="Unable to contact slurm controller", code=1)
    with pytest.raises(QueueError):
        has_left(tmp_path, "17_0")


def test_the_state_of_a_record_changes_with_each_of_its_files(tmp_path: Path) -> None:
    run = write_run(tmp_path, "digits-plain8", 0)
    states = [state_of(tmp_path / "nowhere"), state_of(run)]
    (run / "responses.csv").write_text("1")
    states.append(state_of(run))
    (run / "evals").mkdir()
    for name in ("single.json", "center.json"):
        (run / "evals" / name).write_text("1")
        states.append(state_of(run))
    for name in ("env.json", "result.json"):
        (run / name).write_text("1")
        states.append(state_of(run))
    assert len(set(states)) == 7
    assert state_of(run) == states[-1]


def test_jobs_that_slurm_has_forgotten_are_not_in_the_queue(queue: Queue) -> None:
    queue.answers("squeue", trouble="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert ask_queue(["17"]) == {}


@pytest.mark.parametrize(
    "told",
    ["slurm is down", "17|RUNNING|1:00", "17_x|RUNNING|1:00|n", "17|RUN\x1b[2J|1:00|n", b"\xff\xfe\x00|",
     "|||",
     "17_0 17_1|RUNNING|1:00|n", "１７|RUNNING|1:00|n"],
)  # fmt: skip
def test_an_answer_that_cannot_be_read_is_one_harmless_sentence(queue: Queue, told: str | bytes) -> None:
    queue.answers("squeue", told)
    with pytest.raises(QueueError, match="squeue said what cannot be read") as refusal:
        ask_queue(["17"])
    assert str(refusal.value).isprintable()


def test_a_queue_that_does_not_answer_is_one_sentence(
    queue: Queue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    queue.answers("squeue", trouble="error:\n\x1b[31mUnable to contact slurm controller", code=1)
    with pytest.raises(QueueError, match=r"squeue failed: .*Unable to contact") as refusal:
        ask_queue(["17"])
    assert str(refusal.value).isprintable()
    queue.answers("squeue", seconds=5)
    monkeypatch.setattr(queueing, "PATIENCE", 0.1)
    with pytest.raises(QueueError, match="not answered"):
        ask_queue(["17"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(QueueError, match="not on the PATH"):
        ask_queue(["17"])
