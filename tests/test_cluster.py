"""Jobs of a cluster without one: what sbatch is told, and a job as submitit runs, stops and requeues it."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from commands import call
from conftest import write_run
from queues import Queue
from runs import differences, env_of
from submitit.core.submission import process_job
from submitit.core.utils import DelayedSubmission

from resrepro.errors import ResreproError, UsageError
from resrepro.evaluation import evaluate, responses
from resrepro.launch import cluster
from resrepro.launch.cluster import Log, submit
from resrepro.launch.goals import choose_exhibits
from resrepro.launch.job import Failed, Job, Order, Stopped
from resrepro.launch.progress import look
from resrepro.launch.queueing import Ticket, read_tickets, write_submission
from resrepro.records import disk, read_run
from resrepro.records.evaluations import is_measured, read_responses
from resrepro.records.holders import this_process
from resrepro.training.session import train

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


def ids(tickets: list[Ticket]) -> list[str]:
    return [ticket.job for ticket in tickets]


def test_runs_are_submitted_as_an_array_and_kept(tmp_path: Path, sbatch: Queue) -> None:
    options = {"partition": "gpu", "time": "90", "cpus": "3"}
    assert ids(submit(JOBS, Order({**ASKED, "threads": None}), tmp_path, options)) == ["17_0", "17_1"]
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
    both = submit(JOBS, Order(ASKED), tmp_path)
    assert ids(both) == ["21", "17_1"]
    assert [ticket.queued is not None for ticket in both] == [False, True]
    assert ids(submit(JOBS[1:], Order(ASKED | {"threads": 2}), tmp_path)) == ["17_1"]
    assert ids(submit(JOBS[1:], Order(ASKED | {"iterations": 8}), tmp_path)) == ["21"]  # another run
    assert len(sbatch.asked("sbatch")) == 3


def test_an_option_of_sbatch_may_have_any_name(tmp_path: Path, sbatch: Queue) -> None:
    submit(JOBS, Order(ASKED), tmp_path, {"jobs": "1", "folder": "x", "measures": "y"})
    (script,) = (tmp_path / "slurm").glob("*_submission.sh")
    assert {"#SBATCH --jobs=1", "#SBATCH --folder=x", "#SBATCH --measures=y"} <= set(
        script.read_text().splitlines()
    )


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


# What an exhibit needs of the trained nets


def test_a_job_measures_what_is_not_measured_yet(
    tmp_path: Path,
    sbatch: Queue,
    on_node: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / f"{NET}+iterations=6+lr=0.01+eval_every=2" / "seed0"
    for measures in ([], ["single"], ["single", "responses"]):
        submit(JOBS, Order(ASKED), tmp_path, measures=dict.fromkeys(JOBS, measures))
        on_node(tmp_path)
        found = read_run(run)
        assert [what for what in ("single", "responses") if is_measured(what, found)] == measures
    told = capsys.readouterr().out
    assert told.count("is evaluated as") == 1  # not by the second job and the third
    with monkeypatch.context() as patch:
        patch.setattr("resrepro.evaluation.measure_nets", None)  # nothing is left to measure
        on_node(tmp_path)
    (ticket, _), _ = read_tickets(tmp_path)
    assert (ticket.recorded, ticket.ended) == (run.parent.name, "")


def test_a_measurement_that_fails_fails_the_job_once_the_others_were_tried(
    tmp_path: Path, sbatch: Queue, on_node: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    measures = dict.fromkeys(JOBS, ("ten_crop", "responses", "multi_scale"))
    submit(JOBS, Order(ASKED), tmp_path, measures=measures)
    with pytest.raises(SystemExit) as end:
        on_node(tmp_path)
    assert end.value.code == 1
    ((ticket, _), _), run = read_tickets(tmp_path), train(NET, 0, runs=tmp_path, **ASKED)
    assert ticket.ended.startswith("ten_crop was not measured: ")
    assert " multi_scale was not measured: " in ticket.ended
    assert read_run(run).responses is not None
    assert "Failed: ten_crop was not measured" in capsys.readouterr().out
    sbatch.answers("squeue")
    (found, _), _ = look(tmp_path)
    assert (found.state, found.why, found.log) == ("finished", ticket.ended, ticket.log(tmp_path))
    evaluate(run, protocol="single", runs=tmp_path, device="cpu", threads=1)  # what failed may be made up for
    (found, _), _ = look(tmp_path)
    assert (found.state, found.why, found.log) == ("finished", "", None)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_signal_that_meets_a_measurement_leaves_no_half_of_it(
    tmp_path: Path,
    sbatch: Queue,
    on_node: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
) -> None:
    write = responses.write_responses

    def meeting_a_signal(*told: Any) -> Path:
        with monkeypatch.context() as patch:
            patch.setattr(disk, "sync", lambda file: os.kill(os.getpid(), number))
            return write(*told)

    submit(JOBS, Order(ASKED), tmp_path, measures=dict.fromkeys(JOBS, ("responses",)))
    with monkeypatch.context() as patch:
        patch.setattr(responses, "write_responses", meeting_a_signal)
        if number == signal.SIGTERM:  # which submitit lets pass: Slurm will end what does not end in time
            on_node(tmp_path)
        else:
            with pytest.raises(SystemExit):
                on_node(tmp_path)
    (folder,) = tmp_path.glob("*/seed0")
    assert list(folder.glob(".*.part")) == []
    assert (read_responses(folder) is not None) == (number == signal.SIGTERM)
    assert sbatch.asked("scontrol") == (["requeue 17_0 "] if number == signal.SIGUSR2 else [])
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    on_node(tmp_path)
    assert read_responses(folder) is not None
    assert "later_sessions" not in env_of(folder)  # the run itself was left alone


def queued(folder: Path) -> dict[str, tuple[str, ...]]:
    """What the first jobs of array 17 are to measure, by the experiment."""
    tasks = [DelayedSubmission.load(path).function for path in folder.glob("slurm/17_*_submitted.pkl")]
    return {f"{task.job}": task.measures for task in tasks}


def test_an_exhibit_of_responses_is_completed_through_the_queue(
    sbatch: Queue, on_node: Callable[[Path], Any], empty_folder: None
) -> None:
    words = ["--dataset", "digits", "--iterations", "4", "--device", "cpu", "--seeds", "2"]
    words += ["--launcher", "slurm", "--runs", "there"]
    for net in ("plain56", "resnet20", "resnet56", "resnet110"):
        words += ["--without", f"digits-{net}"]
    run = Path("there/digits-plain20+iterations=4/seed0")
    train("digits-plain20", 0, runs="there", iterations=4, device="cpu", threads=1)
    code, told, error = call("reproduce", "figure7", *words, "--jobs", "1")
    assert code == 0, error
    name = "digits-plain20+iterations=4, seed"
    assert f"{name} 0: job 17_0\n{name} 1: job 17_1\nNext: resrepro status --runs there\n" in told
    assert "No measured run for figure7-digits yet: nothing is written." in told
    assert queued(Path("there")) == {f"digits-plain20, seed {k}": ("responses",) for k in range(2)}
    scripts = Path("there/slurm").glob("*_submission.sh")
    assert "--array=0-1%1\n" in max(scripts, key=lambda path: path.stat().st_mtime_ns).read_text()
    sbatch.answers("squeue", "17_0|RUNNING|0:01|node3\n17_1|PENDING|0:00|(Priority)\n")
    _, told, _ = call("reproduce", "figure7", *words)
    assert f"{name} 0: job 17_0 (running already)\n{name} 1: job 17_1 (waiting already)\n" in told
    on_node(Path("there"))
    assert read_responses(run) is not None
    sbatch.answers("squeue", "17_1|PENDING|0:00|(Priority)\n")
    code, told, error = call("reproduce", "figure7", *words)
    assert code == 0, error
    assert f"{name} 0: job" not in told
    assert "Written: tables/figure7" in told


def test_an_ensemble_whose_nets_are_there_is_told_as_a_command(sbatch: Queue, empty_folder: None) -> None:
    words = ["reproduce", "table5", "--dataset", "folder", "--data", "my photos", "--launcher", "slurm"]
    nets = choose_exhibits(["table5"], "folder")[0].experiments
    for net in nets[:-1]:
        write_run(Path("runs"), net, 0, evals={"multi_scale": (20.0, 5.0)})
    _, told, _ = call(*words)
    assert f"{nets[-1]}, seed 0: job 17\n" in told  # the only run that is to be trained
    assert "To measure:" not in told
    write_run(Path("runs"), nets[-1], 0, evals={"multi_scale": (20.0, 5.0)})
    code, told, error = call(*words)
    assert code == 0, error
    members = " ".join(f"runs/{net}/seed0" for net in nets)
    way = f"To measure: resrepro eval {members} --ensemble --protocol multi_scale --data 'my photos'\n"
    assert way in told
    assert ": job" not in told


# Locks of jobs that were killed


@pytest.fixture
def left_behind(tmp_path: Path, sbatch: Queue) -> Path:
    """The lock of job 9_0, which was submitted from here and trained the run on another node."""
    write_submission(tmp_path, [Ticket("9_0", NET, 0)])
    path = tmp_path / f"{NET}+iterations=6+lr=0.01+eval_every=2" / ".seed0.lock"
    path.parent.mkdir()
    there = replace(this_process(), pid=4321, host="node3", boot="its own", machine="its own", job="9_0")
    path.write_text(json.dumps(asdict(there)))
    submit(JOBS, Order(ASKED), tmp_path)
    return path


def test_the_lock_of_a_job_that_has_left_the_queue_is_taken_over(
    tmp_path: Path,
    sbatch: Queue,
    left_behind: Path,
    on_node: Callable[[Path], Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    sbatch.answers("squeue", "17_0|RUNNING|1:00|node4\n")
    on_node(tmp_path)
    told = capsys.readouterr().out
    assert "The lock of process 4321 on node3 since" in told
    assert "(job 9_0) was taken over, since that job has ended." in told
    assert read_run(left_behind.with_name("seed0")).finished


@pytest.mark.parametrize("why", ["it is there", "the queue is silent", "it is none of ours"])
def test_a_lock_is_left_alone_where_the_queue_does_not_say_that_its_job_is_over(
    tmp_path: Path, sbatch: Queue, left_behind: Path, on_node: Callable[[Path], Any], why: str
) -> None:
    before = left_behind.read_bytes()
    if why == "the queue is silent":
        sbatch.answers("squeue", trouble="Unable to contact slurm controller", code=1)
    else:
        sbatch.answers("squeue", "9_0|RUNNING|1:00|node3\n" if why == "it is there" else "")
    if why == "it is none of ours":
        (tmp_path / "slurm" / "submission-9.json").unlink()
    with pytest.raises(SystemExit):
        on_node(tmp_path)
    ended = {ticket.job: ticket.ended for ticket in read_tickets(tmp_path)[0]}["17_0"]
    assert "is locked by process 4321 on node3" in ended
    assert left_behind.read_bytes() == before


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
        0,
        [
            f"{NET}+iterations=6, seed 0: job 17_0",
            f"{NET}+iterations=6, seed 1: job 17_1",
            "Next: resrepro status",
        ],
    )
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
    _, again, _ = call(*words)
    assert again.splitlines()[:2] == [
        f"{NET}+iterations=6, seed 0: job 17_0 (running already)",
        f"{NET}+iterations=6, seed 1: job 17_1 (waiting already)",
    ]
    assert call("status", "--runs", "nowhere")[:2] == (0, "No runs in nowhere.\n")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--launcher", "ray"], "--launcher takes local or slurm"),
        (["--slurm", "time=5"], "--slurm is for --launcher slurm"),
        (["--launcher", "slurm", "--slurm", "time"], "--slurm takes key=value"),
        (["--launcher", "slurm", "--slurm", "nodes=3"], "a run is one task"),
        (["--launcher", "slurm", "--dry-run", "--slurm", "nodes=3"], "a run is one task"),
        (["--launcher", "slurm", "--threads", "0"], "--threads must be at least 1, not 0"),
        (["--launcher", "slurm", "--jobs", "0"], "--jobs must be at least 1, not 0"),
    ],
)
def test_options_that_mean_nothing_are_refused(words: list[str], told: str, empty_folder: None) -> None:
    code, _, sentence = call("train", NET, *words)
    assert code == 2
    assert told in sentence
