"""Runs as jobs of a Slurm cluster: submitted with submitit, requeued by Slurm, recorded as local ones are.

What happens when Slurm wants a job to go:

- Before its time limit it sends SIGUSR2. submitit has a handler for it, which requeues the job; but while a
  run is being trained, `Interrupts` stands in its place: the update is finished and the checkpoint written,
  then `Task` sends the signal again, to submitit's handler, which is back in its place.
- Before preemption it sends SIGTERM, which submitit ignores. In a partition with a grace time the job still
  counts as running then, and Slurm would take an early end for a failure: so the job is requeued as above.
  Without a grace time Slurm has decided already, as it has after `scancel`: the job only ends, in time.
- A job that is killed at once goes on from its last checkpoint, where Slurm requeues it.

Once the run is finished, what is wanted of its net is measured with submitit's handlers in place: SIGUSR2
requeues the job at once, SIGTERM is ignored, and a measurement that was cut short is made anew.
"""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from resrepro.cli.live import LiveView
from resrepro.errors import RecordError, ResreproError, UsageError
from resrepro.launch.job import Failed, Finished, Job, Order, Stopped, failure_of, outcome_of
from resrepro.launch.queueing import (
    FOLDER,
    QueueError,
    Ticket,
    ask_queue,
    has_left,
    waiting_and_running,
    write_note,
    write_submission,
)
from resrepro.launch.sbatch import sbatch_parameters
from resrepro.records import read_run
from resrepro.records.evaluations import OTHER_IMAGES, is_measured
from resrepro.records.holders import Holder
from resrepro.records.reading import CONTROL
from resrepro.spec import catalogue
from resrepro.spec.recipe import setting_rules

if TYPE_CHECKING:
    from submitit import SlurmExecutor
    from submitit.helpers import DelayedSubmission

__all__ = ["Task", "sbatch_parameters", "submit", "waiting_and_running"]

TIME_LIMITS = 100  # that a run may reach, one after the other, before it is no longer requeued


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

    def fail(self, end: Failed) -> None:
        """Tell and keep why it failed."""
        self.say(f"{end.trace}Failed: {end.sentence}")
        self.keep(end.sentence)


@dataclass(frozen=True)
class Task:
    """A run as submitit keeps it, calls it on a node, and hands it to the queue again.

    Attributes:
        run: its name, as far as it is known before a node is.
        measures: what is to be measured of the trained net: test protocols, or RESPONSES.
    """

    job: Job
    order: Order
    runs: Path
    run: str
    measures: tuple[str, ...] = ()

    def __call__(self) -> str:
        """Train the run, or go on with it, and measure what is missing; returns its folder.

        Raises:
            SystemExit: if something failed, or it was stopped; after a stop that is to be followed by more
                it is submitit that leaves.
        """
        from submitit import JobEnvironment

        from resrepro.training.engine import keep_memory

        keep_memory()
        job_id = JobEnvironment().job_id
        log = Log(self, job_id)
        outcome = outcome_of(self.job, self._order_now(), None, log)
        if isinstance(outcome, Finished):
            log.finish(outcome.folder)
            log.run = outcome.folder.parent.name  # of a run that was finished already nothing has begun
            log.keep()
            self._measure(outcome.folder, log)
            return str(outcome.folder)
        if isinstance(outcome, Stopped):
            log.say(outcome.sentence)
            if not _slurm_has_decided(job_id):
                _requeue(log)
            raise SystemExit(128 + outcome.signal_number)
        log.fail(outcome)
        raise SystemExit(1)

    def _measure(self, folder: Path, log: Log) -> None:
        """Measure of the trained net what is not measured yet.

        Raises:
            SystemExit: if some of it failed, once the rest was tried.
        """
        from resrepro.data.loader import Loading
        from resrepro.evaluation import measure_nets

        options, sentences = self.order.options, []
        means = {
            "data": options.get("data"), "device": options.get("device", "auto"),
            "threads": options.get("threads") or options.get("threads_if_new"), "say": log.say,
        }  # fmt: skip
        for what in self._missing(folder):
            try:
                measure_nets(what, [folder], self.runs, loading=Loading(*self.order.loading), **means)
                if what in self._missing(folder):
                    raise RecordError(OTHER_IMAGES)
            except Exception as error:
                end = failure_of(error)
                sentences.append(f"{what} was not measured: {end.sentence}")
                log.fail(replace(end, sentence=" ".join(sentences)))
        if sentences:
            raise SystemExit(1)

    def _missing(self, folder: Path) -> list[str]:
        """What is to be measured still; all of it where the record cannot be read, which measuring tells."""
        try:
            run = read_run(folder)
        except RecordError:
            return list(self.measures)
        return [what for what in self.measures if not is_measured(what, run)]

    def checkpoint(self) -> "DelayedSubmission":
        """What submitit is to call when the job begins again: the same, since the record knows the rest."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _order_now(self) -> Order:
        """What is asked; a job that begins again goes on, where it was to start anew.

        The lock of a job that has left the queue without giving it back, being killed, is taken over.
        """
        told: dict[str, Any] = {} if self.order.options.get("break_lock") else {"break_lock": self._is_over}
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0:
            told["fresh"] = False
        return replace(self.order, options=self.order.options | told)

    def _is_over(self, holder: Holder) -> bool:
        """Whether the queue is sure that the job which holds a lock has ended."""
        try:
            return has_left(self.runs, holder.job)
        except QueueError:
            return False


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


def submit(
    jobs: Sequence[Job],
    order: Order,
    folder: Path,
    slurm: Mapping[str, str] | None = None,
    *,
    measures: Mapping[Job, Sequence[str]] | None = None,
    at_once: int | None = None,
) -> list[Ticket]:
    """Hand runs to the queue as a job array, one task each; those that wait or run there already are left.

    Args:
        jobs: the runs.
        order: what is asked of all; `runs` and `data` are made absolute.
        folder: the runs folder, which every node must see.
        slurm: options of the jobs, see `sbatch_parameters`.
        measures: what is to be measured of a trained net, test protocols or RESPONSES; nothing by default.
        at_once: jobs that may run at once, where `slurm` does not say it.

    Returns:
        The job of each run, in the order of `jobs`, `queued` where it was there already.

    Raises:
        UsageError: if submitit or Slurm is missing, or an option is wrong.
        QueueError: if the queue cannot be asked what is there already.
        ResreproError: if sbatch refuses the jobs.
    """
    runs = folder.absolute()  # not resolved: a node may know the folder by this name only
    parameters = sbatch_parameters(slurm or {}, _own(order, at_once))
    executor = _executor(runs)
    options = dict(order.options) | {"runs": runs, "threads_if_new": parameters["cpus_per_task"]}
    if options.get("data") is not None:
        options["data"] = Path(options["data"]).absolute()
    told = replace(order, options=options, looks=False)
    wanted = measures or {}
    tasks = [Task(job, told, runs, _name_of(job, options), tuple(wanted.get(job, ()))) for job in jobs]
    fast = bool(options.get("fast"))
    there = {ticket.wish: ticket for ticket in waiting_and_running(runs)}
    new = [task for task in tasks if (task.run, task.job.seed, fast) not in there]
    if new:
        ids = _send(executor, new, parameters)
        tickets = [Ticket(each, t.run, t.job.seed, fast) for each, t in zip(ids, new, strict=True)]
        write_submission(runs, tickets)
        there |= {ticket.wish: ticket for ticket in tickets}
    return [there[task.run, task.job.seed, fast] for task in tasks]


def _own(order: Order, at_once: int | None) -> dict[str, str]:
    """The words of --slurm that our own options stand for.

    Raises:
        UsageError: if one is no count.
    """
    threads = order.options.get("threads")
    for option, count in (("threads", threads), ("jobs", at_once)):
        if count is not None and count < 1:
            raise UsageError(f"--{option} must be at least 1, not {count}.")
    asked = {"cpus": threads, "parallel": at_once}
    return {name: str(count) for name, count in asked.items() if count is not None}


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
