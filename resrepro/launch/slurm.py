"""Runs as jobs of a Slurm cluster: submitted with submitit, requeued by Slurm, recorded as local ones are.

A job runs commands. Before the time limit Slurm sends SIGUSR2, for which submitit has a handler that requeues
the job at once. While a command runs ours stands in its place: the command hears the signal, finishes its
update and writes its checkpoint; then submitit's handler has its turn. What was submitted lies in
`slurm/<run>/seed<k>/` of the runs folder, with submitit's files and the log; squeue knows a job by the script
in there.
"""

import getpass
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from resrepro.errors import ResreproError, UsageError
from resrepro.launch.local import COMMAND, Job

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

FOLDER = "slurm"  # in a runs folder
TIME_LIMITS = 100  # that a run may reach, one after the other, before it is no longer requeued
DEFAULTS = {"time": "4:00:00", "cpus_per_task": "2", "requeue": "", "job_name": "resrepro"}
PATIENCE = 60  # seconds for squeue, which waits for the queue's own daemon
FIELDS = "%i|%T|%M|%R|%o"  # job, state, time used, why it waits or where it is, its script


class QueueError(ResreproError):
    """The queue cannot be asked, or its answer not be read."""


@dataclass(frozen=True)
class QueuedRun(Job):
    """A run as submitit keeps it and calls it on a node: to be trained, then measured by commands."""

    measures: tuple[Sequence[str], ...] = ()

    def __call__(self) -> None:
        """Run the commands; SystemExit if one fails, or was stopped. A job that begins again goes on where it
        was to start anew, and takes over the lock of its last node.
        """
        train = list(self.words)
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            train = [*(word for word in train if word != "--fresh"), "--break-lock"]
        for words in (train, *self.measures):
            _run_command(words)

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit is to call when the job begins again: the same, since the record knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _run_command(words: Sequence[str]) -> None:
    """Run a command of ours and pass signals on to it; SystemExit if it failed or was stopped. Where it is to
    go on submitit's handler ends the process and requeues the job: in a partition with a grace time a job
    that ends early on SIGTERM would have failed.
    """
    threads = os.environ.get("SLURM_CPUS_PER_TASK", "1")
    process = subprocess.Popen([*COMMAND, *words], env=os.environ | {"OMP_NUM_THREADS": threads})
    received: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        received.append(number)
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGUSR2, signal.SIGTERM)}
    code = process.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if code and received:
        with suppress(QueueError):  # requeueing would bring back what Slurm has cancelled or requeued already
            if all(each.state != "RUNNING" for each in _squeue(f"--jobs={os.environ['SLURM_JOB_ID']}")):
                raise SystemExit(1)
        signal.raise_signal(signal.SIGUSR2)
    if code:
        raise SystemExit(1)


def submit(
    wanted: Sequence[QueuedRun], runs: Path, options: Mapping[str, str], threads: int | None
) -> "Iterator[tuple[QueuedRun, str, QueuedJob | None]]":
    """Hand runs of a runs folder, which every node must see, to the queue, a job each; those that wait or run
    there already are left. Yields of each run the id of its job, and what the queue said if it was there.
    `options` are those of sbatch by their long names, an empty value makes one a switch; `threads` are the
    CPU cores of a job where the options do not say it. UsageError if submitit or Slurm is missing, QueueError
    if the queue cannot be asked what is there already, ResreproError if sbatch refuses a job.
    """
    try:
        from submitit import SlurmExecutor
        from submitit.core.utils import FailedJobError, FailedSubmissionError
    except ModuleNotFoundError:
        raise UsageError("--launcher slurm needs submitit: pip install submitit.") from None
    own = {} if threads is None else {"cpus_per_task": str(threads)}
    others = {key: value or True for key, value in (DEFAULTS | own | dict(options)).items()}
    there = jobs_of(runs)
    for each in wanted:
        if job := there.get((each.run, each.seed)):
            yield each, job.id, job
            continue
        try:  # not resolved: a node may know the folder by this name only
            place = runs.absolute() / FOLDER / each.run / f"seed{each.seed}"
            executor = SlurmExecutor(place, max_num_timeout=TIME_LIMITS)
            executor.update_parameters(stderr_to_stdout=True, additional_parameters=others)
            yield each, str(executor.submit(each).job_id), None
        except (FailedJobError, FailedSubmissionError) as error:
            told = " ".join(str(error).split()).removeprefix("sbatch: error: ")
            raise ResreproError(f"sbatch refused the jobs: {told}") from None
        except RuntimeError:
            raise UsageError(
                "--launcher slurm needs Slurm's commands (sbatch, srun, squeue), which are not on the PATH "
                "here: submit from a login node of the cluster."
            ) from None


class QueuedJob(NamedTuple):
    """What squeue says of a job: its state, the time used, why it waits or where it is, its script."""

    id: str
    state: str
    used: str
    where: str
    script: Path

    def __str__(self) -> str:
        """`job 17 on node3, 12:30`, or `job 17: Priority`."""
        if self.state == "RUNNING":
            return f"job {self.id} on {self.where}, {self.used}"
        return f"job {self.id}: {self.where if self.state == 'PENDING' else self.state.lower()}"


def jobs_of(runs: Path) -> dict[tuple[str, int], QueuedJob]:
    """The queue's jobs that come from a runs folder, by their run (QueueError if it cannot be asked)."""
    top = runs.absolute() / FOLDER
    jobs = _squeue(f"--user={getpass.getuser()}") if top.exists() else []
    return {place_of(job.script.parent): job for job in jobs if job.script.is_relative_to(top)}


def place_of(folder: Path) -> tuple[str, int]:
    """Name and seed of the run of a folder `<run>/seed<k>`."""
    return folder.parent.name, int(folder.name.removeprefix("seed"))


def _squeue(which: str) -> list[QueuedJob]:
    """What squeue says of some jobs that it knows (QueueError if that cannot be had or read)."""
    words = ["squeue", "--noheader", which, f"--format={FIELDS}"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        raise QueueError("squeue is not on the PATH here, so the queue cannot be asked.") from None
    except subprocess.TimeoutExpired as error:
        raise QueueError(f"squeue cannot be asked: {error}.") from None
    if answer.returncode and "invalid job id" not in answer.stderr.lower():  # its word where none is left
        raise QueueError(f"squeue failed: {answer.stderr.strip() or f'exit code {answer.returncode}'}")
    jobs = [[part.strip() for part in line.split("|", 4)] for line in answer.stdout.splitlines()]
    return [QueuedJob(id, state, used, at.strip("()"), Path(path)) for id, state, used, at, path in jobs]
