"""Runs as jobs of a Slurm cluster: submitted with submitit, requeued by Slurm, recorded as local ones are.

A job runs the commands that train a run and measure what is wanted of it. When Slurm wants it to go:

- Before the time limit it sends SIGUSR2, for which submitit has a handler that requeues the job at once.
  While a command runs ours stands in its place: the command hears the signal, finishes its update and writes
  its checkpoint; then submitit's handler has its turn.
- Before preemption it sends SIGTERM. In a partition with a grace time the job still counts as running then,
  and Slurm would take an early end for a failure: so the job is requeued as above. Without a grace time Slurm
  has decided already, as it has after `scancel`: the job only ends, in time.
- A job that is killed at once goes on from its last checkpoint, where Slurm requeues it.

What was submitted lies in `slurm/<run>/seed<k>/` of the runs folder, with submitit's files and the log;
squeue knows a job by the script in there.
"""

import getpass
import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from resrepro.errors import RecordError, ResreproError, UsageError
from resrepro.launch.local import COMMAND
from resrepro.records import RUN_NAME, read_run
from resrepro.records.collection import RUN_FOLDER
from resrepro.records.evaluations import is_measured
from resrepro.records.locking import holder_of
from resrepro.records.reading import CONTROL

if TYPE_CHECKING:
    from submitit import SlurmExecutor
    from submitit.helpers import DelayedSubmission

FOLDER = "slurm"  # in a runs folder
TIME_LIMITS = 100  # that a run may reach, one after the other, before it is no longer requeued
DEFAULTS = {"time": "4:00:00", "cpus_per_task": "2", "requeue": "", "job_name": "resrepro"}
PATIENCE = 60  # seconds for squeue, which waits for the queue's own daemon
FIELDS = "%i|%T|%M|%R|%o"  # job, state, time used, why it waits or where it is, its script
Place = tuple[str, int]  # name and seed of a run


class QueueError(ResreproError):
    """The queue cannot be asked, or its answer not be read."""


# --- jobs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QueuedRun:
    """A run to submit: the command that trains it, and those that measure it, by what they measure."""

    run: str
    seed: int
    words: tuple[str, ...]
    measures: tuple[tuple[str, Sequence[str]], ...] = ()

    def __str__(self) -> str:
        return f"{self.run}, seed {self.seed}"


@dataclass(frozen=True)
class Task:
    """A run as submitit keeps it, calls it on a node, and hands it to the queue again."""

    queued: QueuedRun
    runs: Path

    def __call__(self) -> str:
        """Train the run, or go on with it, and measure what is missing; returns its folder.

        Raises:
            SystemExit: if something failed, or it was stopped.
        """
        folder = self.runs / self.queued.run / f"seed{self.queued.seed}"
        failed = _run_command(self._words_now(folder))
        for what, words in () if failed else self.queued.measures:
            try:
                done = is_measured(what, read_run(folder))
            except RecordError:
                done = False  # measuring tells why
            failed |= not done and _run_command(words)
        if failed:
            raise SystemExit(1)
        return str(folder)

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit is to call when the job begins again: the same, since the record knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _words_now(self, folder: Path) -> list[str]:
        """The command that trains; a job that begins again goes on, where it was to start anew.

        The lock of this job on another node, or of a job that has left the queue being killed, is taken over.
        """
        restarted = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        words = [word for word in self.queued.words if not (restarted and word == "--fresh")]
        holder = holder_of(folder)
        if holder is not None and holder.job:
            jobs = {job.id for job in _squeue([holder.job])} - {os.environ.get("SLURM_JOB_ID")}
            words += [] if holder.job in jobs else ["--break-lock"]
        return words


def _run_command(words: Sequence[str]) -> bool:
    """Run a command of ours and pass signals on to it; whether it failed.

    Raises:
        SystemExit: if it was stopped; where it is to go on, by submitit's handler, which requeues the job.
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
        if not _slurm_has_decided():
            signal.raise_signal(signal.SIGUSR2)  # submitit's handler, which ends the process
        raise SystemExit(128 + received[0])
    return code != 0


def _slurm_has_decided() -> bool:
    """Whether Slurm has cancelled or requeued this job already; requeueing it would bring it back to life."""
    try:
        jobs = _squeue([os.environ["SLURM_JOB_ID"]])
    except QueueError:
        return False
    return not any(job.state == "RUNNING" for job in jobs)


def submit(
    wanted: Sequence[QueuedRun], runs: Path, options: Mapping[str, str], threads: int | None
) -> "list[tuple[QueuedRun, str, QueuedJob | None]]":
    """Hand runs to the queue, a job each; those that wait or run there already are left.

    Args:
        wanted: the runs.
        runs: the runs folder, which every node must see; the words of `wanted` are made for it.
        options: options of sbatch by their long names; an empty value makes one a switch.
        threads: CPU cores of a job where the options do not say it.

    Returns:
        Of each run the id of its job, and what the queue said of it if it was there already.

    Raises:
        UsageError: if submitit or Slurm is missing.
        QueueError: if the queue cannot be asked what is there already.
        ResreproError: if sbatch refuses a job.
    """
    runs = runs.absolute()  # not resolved: a node may know the folder by this name only
    own = {} if threads is None else {"cpus_per_task": str(threads)}
    parameters = DEFAULTS | own | {key.replace("-", "_"): value for key, value in options.items()}
    executors = [_executor(runs / FOLDER / each.run / f"seed{each.seed}") for each in wanted]
    there = jobs_of(runs)
    submitted = []
    for each, executor in zip(wanted, executors, strict=True):
        job = there.get((each.run, each.seed))
        submitted.append((each, job.id if job else _send(executor, Task(each, runs), parameters), job))
    return submitted


def _executor(place: Path) -> "SlurmExecutor":
    try:
        from submitit import SlurmExecutor
    except ModuleNotFoundError:
        raise UsageError(
            "--launcher slurm needs submitit, which is not installed: pip install 'resrepro[cluster]'."
        ) from None
    try:
        return SlurmExecutor(place, max_num_timeout=TIME_LIMITS)
    except RuntimeError:
        raise UsageError(
            "--launcher slurm needs Slurm's commands (sbatch, srun, squeue), which are not on the PATH here: "
            "submit from a login node of the cluster."
        ) from None


def _send(executor: "SlurmExecutor", task: Task, parameters: Mapping[str, str]) -> str:
    """Submit a job; returns its id."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    others = {key: value or True for key, value in parameters.items()}
    executor.update_parameters(stderr_to_stdout=True, additional_parameters=others)
    try:
        return str(executor.submit(task).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        told = shown(str(error), 1000).removeprefix("sbatch: error: ")
        raise ResreproError(f"sbatch refused the jobs: {told}") from None


# --- the queue -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QueuedJob:
    """What squeue says of a job: its state, the time used, why it waits or where it is, its script."""

    id: str
    state: str
    used: str
    where: str
    script: Path = field(compare=False)

    def __str__(self) -> str:
        """`job 17 on node3, 12:30`, or `job 17: Priority`."""
        if self.state == "RUNNING":
            return f"job {self.id} on {self.where}, {self.used}"
        return f"job {self.id}: {self.where if self.state == 'PENDING' else self.state.lower()}"


def jobs_of(runs: Path) -> dict[Place, QueuedJob]:
    """The jobs in the queue that were submitted from a runs folder, by their run; without any none is asked.

    Raises:
        QueueError: if there may be some and the queue cannot be asked.
    """
    top = runs.absolute() / FOLDER
    if not top.exists():
        return {}
    jobs = [job for job in _squeue() if job.script.is_relative_to(top)]
    return {place: job for job in jobs if (place := place_of(job.script.parent)) is not None}


def place_of(folder: Path) -> Place | None:
    """The run of a folder `<run>/seed<k>`."""
    if not RUN_FOLDER.fullmatch(folder.name) or not RUN_NAME.fullmatch(folder.parent.name):
        return None
    return folder.parent.name, int(folder.name.removeprefix("seed"))


def _squeue(jobs: Sequence[str] = ()) -> list[QueuedJob]:
    """What squeue says of some jobs, those that it knows, or of all of this user.

    Raises:
        QueueError: if squeue is missing, fails, or says what cannot be read.
    """
    which = f"--jobs={','.join(jobs)}" if jobs else f"--user={getpass.getuser()}"
    plain = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", which, f"--format={FIELDS}"],
            capture_output=True, text=True, errors="replace", timeout=PATIENCE, check=False,
            env=plain | {"LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError:
        raise QueueError("squeue is not on the PATH here, so the queue cannot be asked.") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise QueueError(f"squeue cannot be asked: {shown(str(error))}.") from None
    if answer.returncode and "invalid job id" not in answer.stderr.lower():  # its word where none is left
        raise QueueError(f"squeue failed: {shown(answer.stderr) or f'exit code {answer.returncode}'}")
    return [_job_from(line) for line in answer.stdout.splitlines() if line.strip()]


def _job_from(line: str) -> QueuedJob:
    fields = [part.strip() for part in line.split("|", 4)]
    if len(fields) != 5 or not re.fullmatch(r"\d+\S*", fields[0], re.ASCII) or CONTROL.search(line):
        raise QueueError(f"squeue said what cannot be read: {shown(line)!r}.")
    job, state, used, where, script = fields
    return QueuedJob(job, state, used, where.strip("()"), Path(script))


def shown(text: str, most: int = 200) -> str:
    """The beginning of what another program said, on one line and harmless to a terminal."""
    return CONTROL.sub(" ", " ".join(text.split()))[:most]
