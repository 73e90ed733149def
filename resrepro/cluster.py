"""Runs as jobs of a Slurm cluster: submitted with submitit, requeued by Slurm, recorded as local ones are.

What happens when Slurm wants a job to go:

- Before its time limit it sends SIGUSR2. submitit has a handler for it, which requeues the job; but while a
  run is being trained, `Interrupts` stands in its place: the update is finished and the checkpoint written,
  then `Task` sends the signal again, to submitit's handler, which is back in its place.
- Before preemption it sends SIGTERM, which submitit ignores. In a partition with a grace time the job still
  counts as running then, and Slurm would take an early end for a failure: so the job is requeued as above.
  Without a grace time Slurm has decided already, as it has after `scancel`: the job only ends, in time.
- A job that is killed at once goes on from its last checkpoint, where Slurm requeues it.
"""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resrepro import catalogue
from resrepro.catalogue import setting_rules
from resrepro.cli.live import LiveView
from resrepro.errors import ResreproError, UsageError
from resrepro.job import Finished, Job, Order, Stopped, outcome_of
from resrepro.memory import keep_memory
from resrepro.queueing import (
    FOLDER,
    QueueError,
    Ticket,
    ask_queue,
    waiting_and_running,
    write_note,
    write_submission,
)
from resrepro.record_files import CONTROL

if TYPE_CHECKING:
    from submitit import SlurmExecutor
    from submitit.helpers import DelayedSubmission

__all__ = ["Task", "sbatch_parameters", "submit", "waiting_and_running"]

TIME_LIMITS = 100  # that a run may reach, one after the other, before it is no longer requeued
DEFAULTS = {"time": "4:00:00", "cpus": "2"}
OURS = {  # the words of --slurm that are not sbatch's, and submitit's for them
    "time": "time", "cpus": "cpus_per_task", "gpus": "gpus_per_node", "parallel": "array_parallelism",
    "signal_delay": "signal_delay_s",
}  # fmt: skip
# A run is one task on one node, and these are what submitit needs for itself.
TAKEN = ("array", "error", "nodes", "ntasks", "ntasks_per_node", "open_mode", "output", "signal", "wrap")
NAME = re.compile(r"[a-z][a-z0-9_]*")
CLOCK = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


class Log(LiveView):
    """What a job prints, as `train` does where there is no terminal; keeps for `status` what it trains."""

    def __init__(self, task: "Task", job_id: str) -> None:
        super().__init__(Console(highlight=False, force_terminal=False))
        self.runs, self.job_id, self.run, self.seed = task.runs, job_id, task.run, task.job.seed

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """Print the run's name, and keep it: --fast decides a part of it here."""
        self.run = name
        self.keep()
        super().begin(name, seed, done, iterations, batch_size)

    def keep(self, ended: str = "") -> None:
        """Keep which run it is, and why it failed."""
        write_note(self.runs, self.job_id, self.run, self.seed, ended)


@dataclass(frozen=True)
class Task:
    """A run as submitit keeps it, calls it on a node, and hands it to the queue again.

    Attributes:
        run: its name, as far as it is known before a node is.
    """

    job: Job
    order: Order
    runs: Path
    run: str

    def __call__(self) -> str:
        """Train the run, or go on with it; returns its folder.

        Raises:
            SystemExit: if it failed, or was stopped; after a stop that is to be followed by more it is
                submitit that leaves.
        """
        from submitit import JobEnvironment

        keep_memory()
        job_id = JobEnvironment().job_id
        log = Log(self, job_id)
        outcome = outcome_of(self.job, self._order_now(), None, log)
        if isinstance(outcome, Finished):
            log.finish(outcome.folder)
            return str(outcome.folder)
        if isinstance(outcome, Stopped):
            log.say(outcome.sentence)
            if not _slurm_has_decided(job_id):
                _requeue(log)
            raise SystemExit(128 + outcome.signal_number)
        log.say(f"{outcome.trace}Failed: {outcome.sentence}")
        log.keep(outcome.sentence)
        raise SystemExit(1)

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit is to call when the job begins again: the same, since the record knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _order_now(self) -> Order:
        """What is asked; a job that begins again goes on, where it was to start anew."""
        again = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        return replace(self.order, options=self.order.options | {"fresh": False}) if again else self.order


def _requeue(log: Log) -> None:
    """Let submitit's handler do it, which ends the process; it counts the time limits, too."""
    from submitit import JobEnvironment
    from submitit.core.utils import UncompletedJobError

    try:
        signal.raise_signal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))
    except (subprocess.SubprocessError, OSError, UncompletedJobError) as error:
        log.keep(f"it was stopped, with a checkpoint, but could not be requeued: {error}")
        raise


def _slurm_has_decided(job_id: str) -> bool:
    """Whether Slurm has cancelled or requeued the job already; requeueing it would bring it back to life."""
    try:
        found = ask_queue([job_id]).get(job_id)
    except QueueError:
        return False
    return found is None or found.state != "RUNNING"


def submit(jobs: Sequence[Job], order: Order, folder: Path, **slurm_options: str) -> list[str]:
    """Hand runs to the queue as a job array, one task each; those that wait or run there already are left.

    Args:
        jobs: the runs.
        order: what is asked of all; `runs` and `data` are made absolute.
        folder: the runs folder, which every node must see.
        **slurm_options: as for `sbatch_parameters`.

    Returns:
        Slurm's id of each run's job, in the order of the jobs.

    Raises:
        UsageError: if submitit or Slurm is missing, or an option is wrong.
        QueueError: if the queue cannot be asked what is there already.
        ResreproError: if sbatch refuses the jobs.
    """
    runs = folder.absolute()  # not resolved: a node may know the folder by this name only
    if order.options.get("threads"):
        slurm_options = {"cpus": str(order.options["threads"])} | slurm_options
    parameters = sbatch_parameters(slurm_options)
    executor = _executor(runs)
    options = dict(order.options) | {"runs": runs, "threads_if_new": parameters["cpus_per_task"]}
    if options.get("data") is not None:
        options["data"] = Path(options["data"]).absolute()
    told = replace(order, options=options, looks=False)
    tasks = [Task(job, told, runs, _name_of(job, options)) for job in jobs]
    fast = bool(options.get("fast"))
    there = {ticket.wish: ticket.job for ticket in waiting_and_running(runs)}
    new = [task for task in tasks if (task.run, task.job.seed, fast) not in there]
    if new:
        ids = _send(executor, new, parameters)
        tickets = [Ticket(each, t.run, t.job.seed, fast) for each, t in zip(ids, new, strict=True)]
        write_submission(runs, tickets)
        there |= {ticket.wish: ticket.job for ticket in tickets}
    return [there[task.run, task.job.seed, fast] for task in tasks]


def _name_of(job: Job, options: Mapping[str, Any]) -> str:
    settings = {key: value for key, value in options.items() if key in setting_rules()}
    return catalogue.derive(catalogue.find(job.experiment), options.get("shortcut"), **settings).name


def _executor(runs: Path) -> "SlurmExecutor":
    try:
        from submitit import SlurmExecutor
    except ModuleNotFoundError:
        raise UsageError(
            "--launcher slurm needs submitit, which is not installed: pip install 'resrepro[cluster]'."
        ) from None
    try:
        return SlurmExecutor(runs / FOLDER, max_num_timeout=TIME_LIMITS)
    except RuntimeError:
        raise UsageError(
            "--launcher slurm needs Slurm's commands (sbatch, srun, squeue), which are not on the PATH here: "
            "submit from a login node of the cluster."
        ) from None


def _send(executor: "SlurmExecutor", tasks: Sequence[Task], parameters: Mapping[str, Any]) -> list[str]:
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    executor.update_parameters(**parameters)
    try:
        return [job.job_id for job in executor.submit_array(tasks)]
    except (FailedJobError, FailedSubmissionError) as error:
        told = CONTROL.sub(" ", " ".join(str(error).split()))
        raise ResreproError(f"sbatch refused the jobs: {told.removeprefix('sbatch: error: ')}") from None


def sbatch_parameters(options: Mapping[str, str]) -> dict[str, Any]:
    """What submitit is to tell sbatch.

    Args:
        options: `time` (minutes, or 4:00:00, or 1-12), `cpus` and `gpus` of a run, `parallel` (runs at once),
            `signal_delay` (seconds before the time limit), and by its long name, with or without dashes, any
            option of sbatch: `partition`, `account`, `mem`, `qos`, ..; an empty value makes it a switch.

    Raises:
        UsageError: if one is not known to be harmless, or is no number where it must be one.
    """
    told = {key.replace("-", "_"): str(value) for key, value in options.items()}
    for key, value in told.items():
        if key in TAKEN:
            raise UsageError(
                f"--slurm {key}: that is set for each job: a run is one task, its log in {FOLDER}/."
            )
        if not NAME.fullmatch(key) or CONTROL.search(value):
            raise UsageError(f"--slurm takes an option of sbatch as key=value, not {f'{key}={value}'!r}.")
    told = DEFAULTS | told
    parameters: dict[str, Any] = {
        OURS[key]: _minutes(value) if key == "time" else _count(key, value)
        for key, value in told.items()
        if key in OURS
    }
    parameters["job_name"] = told.pop("job_name", "resrepro")
    others = {key.replace("_", "-"): value or True for key, value in told.items() if key not in OURS}
    return {**parameters, "additional_parameters": {"requeue": True, **others}}


def _count(key: str, value: str) -> int:
    if not value.isdecimal() or not 0 < int(value) < 10**6:
        raise UsageError(f"--slurm {key}= takes a whole number from 1, not {value!r}.")
    return int(value)


def _minutes(text: str) -> int:
    """A time in one of Slurm's notations, rounded up to minutes: 90, 90:00, 1:30:00, 1-12, 1-12:30.

    Raises:
        UsageError: if it is none.
    """
    found = CLOCK.fullmatch(text)
    if not found:
        raise UsageError(f"--slurm time= takes minutes, or 4:00:00, or days as in 1-12, not {text!r}.")
    days, *parts = (int(part or 0) for part in found.groups())
    given = sum(part is not None for part in found.groups()[1:])
    if found[1] or given == 3:  # hours first
        seconds = ((days * 24 + parts[0]) * 60 + parts[1]) * 60 + parts[2]
    else:
        seconds = parts[0] * 60 + parts[1]
    if not 0 < seconds < 10**8:
        raise UsageError(f"--slurm time={text} is no time that a job can have.")
    return -(-seconds // 60)
