"""Runs through a real Slurm that stops them: requeued, finished, bit by bit those of an undisturbed start."""

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from one_node import OneNode
from runs import differences, json_of

pytestmark = pytest.mark.cluster
NAME = "digits-resnet8+iterations=80+eval_every=10"
TRAIN = [
    sys.executable, "-m", "resrepro", "train", "digits-resnet8", "--iterations", "80", "--eval-every", "10",
    "--checkpoint-every", "10", "--device", "cpu", "--threads", "1",
]  # fmt: skip
LONG = 300.0  # seconds for what takes ten, on a machine that is busy


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """A cluster of one node with two cores."""
    cluster = OneNode(tmp_path_factory.mktemp("slurm"))
    with cluster:
        yield cluster
    assert cluster.left() == []


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The runs folder of the same runs, trained here and without a break."""
    runs = tmp_path_factory.mktemp("undisturbed")
    command = [*TRAIN, "--seeds", "0-4", "--jobs", "2", "--runs", str(runs)]
    subprocess.run(command, check=True, capture_output=True, timeout=LONG)
    return runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The runs folder of the cluster."""
    return tmp_path_factory.mktemp("runs")


def submit(slurm, runs, seeds, *options):
    """Submit runs by the command; returns the ids of their jobs."""
    which = "--seeds" if "-" in seeds else "--seed"
    words = [*TRAIN, which, seeds, "--runs", str(runs), "--launcher", "slurm", "--slurm", "partition=low"]
    told = subprocess.run([*words, *options], env=slurm.env, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    lines = [line.partition(": job ")[2] for line in told.stdout.splitlines() if ": job " in line]
    return [line.partition(" (")[0] for line in lines]  # what may follow is whether it is there already


def cpus(count):
    return ["--slurm", f"cpus-per-task={count}"]


def status(slurm, runs):
    words = [sys.executable, "-m", "resrepro", "status", "--runs", str(runs)]
    return subprocess.run(words, env=slurm.env, capture_output=True, text=True, check=True).stdout


def folder(runs, seed):
    return runs / NAME / f"seed{seed}"


def done(runs, seed):
    """The iteration that a run's record has come to."""
    try:
        return int(json_of(folder(runs, seed), "result")["iteration"])
    except (OSError, json.JSONDecodeError):
        return 0


def starts(runs, seed):
    """The iterations that the run was taken up again from."""
    return [each["from_iteration"] for each in json_of(folder(runs, seed), "env").get("later_sessions", [])]


def restarts(slurm, job):
    told = slurm.ask("scontrol", "show", "job", job).stdout
    return int(told.partition("Restarts=")[2].split()[0])


def log(runs, seed):
    return "".join(path.read_text() for path in (runs / "slurm" / NAME / f"seed{seed}").glob("*_log.out"))


def gone(slurm, jobs):
    """Whether Slurm has ended them all, and well."""
    states = {job: slurm.ask("scontrol", "show", "job", job).stdout for job in jobs}
    assert not [text for text in states.values() if "JobState=FAILED" in text], slurm.logs()
    return all("JobState=COMPLETED" in text for text in states.values())


def trainer_of(runs, seed):
    """The process that trains a run, as its lock names it."""
    return int(json.loads((runs / NAME / f".seed{seed}.lock.json").read_text())["pid"])


def is_held(pid, number):
    """Whether a process is stopped, and no such signal waits for it."""
    try:
        told = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    except (FileNotFoundError, ProcessLookupError):
        return False
    waiting = int(told["ShdPnd"], 16) | int(told["SigPnd"], 16)
    return "T" in told["State"] and not waiting >> (number - 1) & 1


@contextmanager
def held(*pids):
    """While active, runs stand still: they are not to be over before Slurm has done what it is to do."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):  # Slurm wakes up itself what it stops
                os.kill(pid, signal.SIGCONT)


def test_a_preempted_run_of_a_grid_is_requeued_and_ends_as_if_nothing_had_been(slurm, runs, undisturbed):
    jobs = submit(slurm, runs, "0-2", *cpus(1))
    assert submit(slurm, runs, "0-2", *cpus(1)) == jobs  # which are not submitted twice
    slurm.wait_until(lambda: done(runs, 0) >= 10 and done(runs, 1) >= 10, LONG)
    trainers = [trainer_of(runs, seed) for seed in (0, 1)]
    with held(*trainers):
        told = status(slurm, runs)
        slurm.sbatch("--wrap=sleep 2", "--ntasks=1", partition="high")
        slurm.wait_until(lambda: not all(is_held(pid, signal.SIGTERM) for pid in trainers), LONG)
    assert told.count("running") == 3, told  # two, and the sum of them
    assert f"job {jobs[0]} on localhost" in told
    assert f"job {jobs[2]}: " in told
    slurm.wait_until(lambda: gone(slurm, jobs), LONG)
    (preempted,) = [seed for seed in range(3) if starts(runs, seed)]
    assert "Stopped at iteration" in log(runs, preempted)  # it had the time for a checkpoint
    assert min(starts(runs, preempted)) >= 10
    for seed in range(3):
        assert differences(folder(runs, seed), folder(undisturbed, seed)) == []
    assert "3 runs: 3 finished." in status(slurm, runs)


def test_a_run_with_a_grace_time_is_requeued_by_its_own_wish(slurm, runs, undisturbed):
    slurm.ask("scontrol", "update", "PartitionName=low", "GraceTime=60")
    try:
        jobs = submit(slurm, runs, "3", *cpus(2))
        slurm.wait_until(lambda: done(runs, 3) >= 10, LONG)
        with held(trainer := trainer_of(runs, 3)):
            slurm.sbatch("--wrap=sleep 2", "--ntasks=1", partition="high")
            slurm.wait_until(lambda: not is_held(trainer, signal.SIGTERM), LONG)
        slurm.wait_until(lambda: gone(slurm, jobs), LONG)
    finally:
        slurm.ask("scontrol", "update", "PartitionName=low", "GraceTime=0")
    assert restarts(slurm, jobs[0]) == len(starts(runs, 3)) == 1
    assert differences(folder(runs, 3), folder(undisturbed, 3)) == []


def test_a_run_that_comes_to_its_time_limit_is_requeued(slurm, runs, undisturbed):
    jobs = submit(slurm, runs, "4", *cpus(2))
    slurm.wait_until(lambda: done(runs, 4) >= 10, LONG)
    with held(trainer := trainer_of(runs, 4)):
        slurm.ask("scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=1")  # the warning comes 90 s before
        slurm.wait_until(lambda: not is_held(trainer, signal.SIGUSR2), LONG)
        slurm.ask("scontrol", "update", f"JobId={jobs[0]}", "TimeLimit=60")
    slurm.wait_until(lambda: gone(slurm, jobs), LONG)
    assert restarts(slurm, jobs[0]) == len(starts(runs, 4)) == 1
    assert "Caught signal SIGUSR2" in log(runs, 4)  # by submitit, after the checkpoint
    assert differences(folder(runs, 4), folder(undisturbed, 4)) == []


def test_a_cancelled_run_writes_a_checkpoint_and_is_not_brought_back(slurm, runs):
    jobs = submit(slurm, runs, "5", *cpus(2))
    slurm.wait_until(lambda: done(runs, 5) >= 10, LONG)
    with held(trainer_of(runs, 5)):
        slurm.ask("scancel", jobs[0])
    slurm.wait_until(lambda: not slurm.queue(), LONG)
    assert "Stopped at iteration" in log(runs, 5)
    assert "JobState=CANCELLED" in slurm.ask("scontrol", "show", "job", jobs[0]).stdout
    assert "1 interrupted" in status(slurm, runs)


def test_what_sbatch_refuses_is_told_in_a_sentence(slurm, runs):
    words = [*TRAIN, "--runs", str(runs), "--launcher", "slurm", "--slurm", "partition=nowhere"]
    told = subprocess.run([*words, "--seed", "9"], env=slurm.env, capture_output=True, text=True, check=False)
    assert told.returncode == 1
    assert "invalid partition specified: nowhere" in told.stderr
    assert "Traceback" not in told.stderr


def reproduce(slurm, place, exhibit, *options):
    """Hand an exhibit on the digits to the queue; returns the ids of new jobs, and all that is said."""
    words = [
        sys.executable, "-m", "resrepro", "reproduce", exhibit, "--dataset", "digits", "--device", "cpu",
        "--launcher", "slurm", "--slurm", "partition=low", "--slurm", "cpus-per-task=1", *options,
    ]  # fmt: skip
    told = subprocess.run(words, env=slurm.env, cwd=place, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    lines = [line for line in told.stdout.splitlines() if ": job " in line and "already" not in line]
    return [line.rpartition("job ")[2] for line in lines], told.stdout


def test_an_exhibit_is_reproduced_through_the_queue(slurm, tmp_path):
    """The command that README shows, handed to the queue, and again once that has worked it off."""
    jobs, submitted = reproduce(slurm, tmp_path, "figure1", "--seeds", "3")
    assert len(jobs) == 6
    assert "No finished run for figure1-digits yet" in submitted
    slurm.wait_until(lambda: gone(slurm, jobs), 5 * LONG)
    again, shown = reproduce(slurm, tmp_path, "figure1", "--seeds", "3")
    assert again == []  # nothing was left to submit
    rows = (tmp_path / "tables" / "figure1-digits.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["plain-20", "plain-56"]
    assert (tmp_path / "figures" / "figure1-digits.png").stat().st_size > 10_000
    verdicts = shown.partition("claims")[2]
    assert "plain-56" in verdicts
    assert any(word in verdicts for word in ("held", "failed", "undecided"))
