"""Jobs of a cluster without one: what sbatch is told, and a job as submitit runs, stops and requeues it."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import call
from queues import Queue
from runs import differences, env_of
from submitit.core.submission import process_job

from resrepro import cluster
from resrepro.cluster import Log, sbatch_parameters, submit
from resrepro.errors import ResreproError, UsageError
from resrepro.job import Failed, Job, Order, Stopped
from resrepro.queueing import read_tickets
from resrepro.training import train

NET = "digits-resnet8"
ASKED: dict[str, Any] = {"iterations": 6, "eval_every": 2, "lr": 0.01, "device": "cpu", "threads": 1}
JOBS = [Job(NET, seed) for seed in range(2)]


@pytest.fixture
def sbatch(queue: Queue) -> Queue:
    """A queue that takes jobs as number 17, and is never asked by submitit what became of them."""
    queue.answers("sbatch", "Submitted batch job 17\n")
    queue.answers("srun")
    queue.answers("scontrol")
    queue.answers("sacct")
    return queue


@pytest.fixture
def on_node(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Any]]:
    """Runs the first job of array 17 as submitit does on a node; the folder is the runs folder."""
    told = {"SUBMITIT_EXECUTOR": "slurm", "SLURM_JOB_ID": "18", "SLURM_ARRAY_JOB_ID": "17"}
    told |= {"SLURM_ARRAY_TASK_ID": "0", "SUBMITIT_FOLDER": ""}  # the last is set by submitit itself
    for key, value in told.items():
        monkeypatch.setenv(key, value)
    numbers = (signal.SIGTERM, signal.SIGCONT, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in numbers]
    yield lambda runs: process_job(runs / "slurm")
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_runs_are_submitted_as_an_array_and_kept(tmp_path: Path, sbatch: Queue) -> None:
    ids = submit(JOBS, Order({**ASKED, "threads": None}), tmp_path, partition="gpu", time="90", cpus="3")
    assert ids == ["17_0", "17_1"]
    (script,) = (tmp_path / "slurm").glob("*_submission.sh")
    lines = set(script.read_text().splitlines())
    assert lines >= {
        "#SBATCH --array=0-1%2", "#SBATCH --partition=gpu", "#SBATCH --time=90", "#SBATCH --cpus-per-task=3",
        "#SBATCH --requeue", "#SBATCH --signal=USR2@90", "#SBATCH --job-name=resrepro",
    }  # fmt: skip
    tickets, _ = read_tickets(tmp_path)
    assert [(ticket.job, ticket.seed) for ticket in tickets] == [("17_0", 0), ("17_1", 1)]
    assert {ticket.run for ticket in tickets} == {f"{NET}+iterations=6+lr=0.01+eval_every=2"}


def test_runs_that_wait_or_run_are_not_submitted_twice(tmp_path: Path, sbatch: Queue) -> None:
    submit(JOBS, Order(ASKED), tmp_path)
    sbatch.answers("squeue", "17_1|RUNNING|1:00|node\n")  # 17_0 is over
    sbatch.answers("sbatch", "Submitted batch job 21\n")
    assert submit(JOBS, Order(ASKED), tmp_path) == ["21", "17_1"]
    assert submit(JOBS[1:], Order(ASKED | {"threads": 2}), tmp_path) == ["17_1"]
    assert submit(JOBS[1:], Order(ASKED | {"iterations": 8}), tmp_path) == ["21"]  # another run
    assert len(sbatch.asked("sbatch")) == 3


def test_a_job_trains_its_run_as_train_does(
    tmp_path: Path, sbatch: Queue, on_node: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    submit(JOBS, Order(ASKED), tmp_path / "runs")
    on_node(tmp_path / "runs")
    there = train(NET, 0, runs=tmp_path / "here", **ASKED)
    assert differences(tmp_path / "runs" / there.parent.name / "seed0", there) == []
    assert "ResNet-8, seed 0: training error" in capsys.readouterr().out
    (ticket, _), _ = read_tickets(tmp_path / "runs")
    assert (ticket.recorded, ticket.ended) == (there.parent.name, "")


@pytest.mark.parametrize("numbers", [[signal.SIGUSR2], [signal.SIGTERM, signal.SIGUSR2]])
def test_a_signal_waits_for_the_checkpoint_and_then_requeues(
    tmp_path: Path,
    sbatch: Queue,
    on_node: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    numbers: list[signal.Signals],
) -> None:
    runs, checkpoints = tmp_path / "runs", []
    submit(JOBS, Order({**ASKED, "fresh": True}), runs)
    sbatch.answers("squeue", "17_0|RUNNING|1:00|node\n")
    with monkeypatch.context() as patch:
        patch.setattr(Log, "step", lambda self, done, lr, read: done == 3 and send_all(numbers))
        patch.setattr(cluster, "_requeue", looking_at(cluster._requeue, runs, checkpoints))
        with pytest.raises(SystemExit):
            on_node(runs)
    assert sbatch.asked("scontrol") == ["requeue 17_0 "]
    assert checkpoints == [3]  # written when the job was requeued
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    on_node(runs)  # which goes on, though the first start was to be a fresh one
    there = train(NET, 0, runs=tmp_path / "here", **ASKED)
    again = runs / there.parent.name / "seed0"
    assert [each["from_iteration"] for each in env_of(again)["later_sessions"]] == [3]
    assert differences(again, there) == []


def send_all(numbers: list[signal.Signals]) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


def looking_at(requeue: Callable[[Log], None], runs: Path, found: list[int]) -> Callable[[Log], None]:
    def look_first(log: Log) -> None:
        import torch

        (path,) = runs.glob("*/seed0/checkpoint.pt")
        found.append(torch.load(path, weights_only=True)["iteration"])
        requeue(log)

    return look_first


@pytest.mark.parametrize("answer", ["17_0|COMPLETING|1:00|node\n", "17_0|CANCELLED|1:00|node\n", ""])
def test_a_job_that_slurm_has_cancelled_or_requeued_is_left_to_it(
    tmp_path: Path,
    sbatch: Queue,
    on_node: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
) -> None:
    submit(JOBS, Order(ASKED), tmp_path)
    sbatch.answers("squeue", answer)
    monkeypatch.setattr(cluster, "outcome_of", lambda *told: Stopped("Stopped.", signal.SIGTERM))
    with pytest.raises(SystemExit) as end:
        on_node(tmp_path)
    assert end.value.code == 128 + signal.SIGTERM
    assert sbatch.asked("scontrol") == []


def test_a_job_that_cannot_be_requeued_says_so(
    tmp_path: Path, sbatch: Queue, on_node: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(JOBS, Order(ASKED), tmp_path)
    sbatch.answers("squeue", "17_0|RUNNING|1:00|node\n")
    sbatch.answers("scontrol", code=1)
    monkeypatch.setattr(cluster, "outcome_of", lambda *told: Stopped("Stopped.", signal.SIGTERM))
    with pytest.raises(Exception, match="scontrol"):
        on_node(tmp_path)
    assert "could not be requeued" in read_tickets(tmp_path)[0][0].ended


def test_why_a_run_failed_is_kept(
    tmp_path: Path,
    sbatch: Queue,
    on_node: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    submit(JOBS, Order(ASKED), tmp_path)
    monkeypatch.setattr(cluster, "outcome_of", lambda *told: Failed("the disk is full."))
    with pytest.raises(SystemExit) as end:
        on_node(tmp_path)
    assert end.value.code == 1
    assert "Failed: the disk is full." in capsys.readouterr().out
    assert read_tickets(tmp_path)[0][0].ended == "the disk is full."


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("0:30", 1), ("90:01", 91), ("1:30:00", 90), ("1-12", 2160), ("1-12:30", 2190),
     ("2-0:0:1", 2881)],
)  # fmt: skip
def test_a_time_is_read_as_slurm_reads_it(text: str, minutes: int) -> None:
    assert sbatch_parameters({"time": text})["time"] == minutes


def test_any_option_of_sbatch_is_passed_on() -> None:
    told = sbatch_parameters(
        {"mem": "8G", "gpus": "1", "parallel": "4", "mail-user": "a@b.c", "exclusive": ""}
    )
    assert told["additional_parameters"] == {
        "requeue": True,
        "mem": "8G",
        "mail-user": "a@b.c",
        "exclusive": True,
    }
    assert (told["gpus_per_node"], told["array_parallelism"]) == (1, 4)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("time", "soon", "takes minutes"), ("time", "0", "no time that a job can have"),
        ("cpus", "two", "whole number from 1"), ("gpus", "0", "whole number from 1"),
        ("ntasks", "2", "a run is one task"), ("output", "x", "a run is one task"),
        ("mem", "8G\n#SBATCH --uid=0", "as key=value"), ("a b", "1", "as key=value"),
        ("Mem;", "1", "as key=value"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(key: str, value: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        sbatch_parameters({key: value})


def test_without_submitit_or_slurm_a_sentence_says_what_to_do(
    tmp_path: Path, sbatch: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="not on the PATH here: submit from a login node"):
        submit(JOBS, Order(ASKED), tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UsageError, match=r"pip install 'resrepro\[cluster\]'"):
        submit(JOBS, Order(ASKED), tmp_path)


def test_what_sbatch_refuses_is_one_harmless_sentence(tmp_path: Path, sbatch: Queue) -> None:
    sbatch.answers("sbatch", trouble="sbatch: error: no \x1b[31mpartition\n", code=1)
    with pytest.raises(ResreproError, match=r"sbatch refused the jobs: .*partition") as refusal:
        submit(JOBS, Order(ASKED), tmp_path)
    assert str(refusal.value).isprintable()
    assert read_tickets(tmp_path) == ([], [])


def test_the_command_submits_and_status_shows(tmp_path: Path, sbatch: Queue, empty_folder: None) -> None:
    words = ["train", NET, "--seeds", "0-1", "--iterations", "6", "--launcher", "slurm", "--jobs", "1"]
    code, told, _ = call(*words)
    assert (code, told.splitlines()) == (
        0, [f"{NET}, seed 0: job 17_0", f"{NET}, seed 1: job 17_1", "Next: resrepro status"],
    )  # fmt: skip
    (script,) = Path("runs/slurm").glob("*_submission.sh")
    assert "--array=0-1%1\n" in script.read_text()
    sbatch.answers("squeue", "17_0|RUNNING|0:01|node3\n17_1|PENDING|0:00|(Priority)\n")
    code, told, _ = call("status")
    assert (code, told.splitlines()) == (
        0,
        [
            f"{NET}+iterations=6",
            "  seed 0  starting      job 17_0 on node3, 0:01",
            "  seed 1  waiting       job 17_1: Priority",
            "2 runs: 1 starting, 1 waiting.",
        ],
    )
    assert call("status", "--runs", "nowhere")[:2] == (0, "No runs in nowhere.\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--launcher", "ray"], "--launcher takes local or slurm"),
        (["--slurm", "time=5"], "--slurm is for --launcher slurm"),
        (["--launcher", "slurm", "--slurm", "time"], "--slurm takes key=value"),
    ],
)
def test_options_that_mean_nothing_are_refused(words: list[str], told: str, empty_folder: None) -> None:
    code, _, sentence = call("train", NET, *words)
    assert code == 2
    assert told in sentence
