"""How far every run of a runs folder is: from its record, from its lock, and from the cluster's queue."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from resrepro.launch.queueing import Queued, QueueError, Ticket, ask_queue, read_tickets
from resrepro.records import RUN_NAME, Run
from resrepro.records.collection import collect
from resrepro.records.locking import Holder, holder_of

# What a run may be, in the order in which they are counted.
STATES = ("running", "starting", "waiting", "interrupted", "failed", "diverged", "finished")
COMING = ("RUNNING", "CONFIGURING", "COMPLETING", "STAGE_OUT")  # Slurm's states of a job that is not waiting
LOCK = re.compile(r"\.seed(\d+)\.lock", re.ASCII)


@dataclass(frozen=True)
class Progress:
    """A run, how far it is, and whose hands it is in.

    Attributes:
        state: one of STATES.
        iterations: 0 where there is no record yet.
        errors: the last errors measured, top-1 in percent, of the training set and of the set that counts.
        where: the job or process that trains it, or what the job waits for.
        why: the sentence that it ended with, of a run that failed, or of which a measurement did.
        log: the output of its job.
    """

    run: str
    seed: int
    state: str
    done: int = 0
    iterations: int = 0
    errors: tuple[float, ...] = ()
    where: str = ""
    why: str = ""
    log: Path | None = None


def look(runs: Path) -> tuple[list[Progress], list[str]]:
    """Every run below a runs folder and every one submitted from it, by name and seed.

    Returns:
        The runs, and a sentence on each file that is broken and on a queue that does not answer.

    Raises:
        RecordError: if the folder is a file.
    """
    collection = collect([runs])
    tickets, broken = read_tickets(runs)
    notices = [*collection.broken, *broken]
    jobs = [ticket.job for ticket in tickets]
    try:
        queue = ask_queue(jobs)
        ended = set(jobs) - queue.keys()
    except QueueError as error:
        queue, ended = {}, set()
        notices.append(f"Only what lies in {runs} is shown: {error}")
    newest = {_place(ticket): replace(ticket, queued=queue.get(ticket.job)) for ticket in tickets}
    found = {
        (run.name, run.seed): _recorded(run, newest.pop((run.name, run.seed), None), ended)
        for run in collection.runs
    }
    for place, ticket in newest.items():
        found[place] = _unrecorded(ticket, runs)
    for name, seed in _starting(runs, found):
        holder = _holder_of(runs / name / f"seed{seed}", ended)
        if holder is not None:
            found[name, seed] = Progress(name, seed, "starting", where=_process(holder))
    return [found[place] for place in sorted(found)], notices


def _holder_of(folder: Path, ended: Collection[str]) -> Holder | None:
    """Who trains a run; a job that the queue no longer knows trains nothing, whatever its lock says."""
    holder = holder_of(folder)
    return None if holder is not None and holder.job in ended else holder


def _place(ticket: Ticket) -> tuple[str, int]:
    """The name and seed under which a submitted run is, or will be, recorded."""
    return ticket.recorded or ticket.run + " (--fast)" * ticket.fast, ticket.seed


def _recorded(run: Run, ticket: Ticket | None, ended: Collection[str]) -> Progress:
    """What a record, its lock and its job tell of a run; `ended` are the jobs that have left the queue."""
    errors = (run.last("train"), run.last(run.headline_split))
    known = Progress(
        run.name, run.seed, "interrupted", run.result["iteration"], run.result["iterations"],
        tuple(error for error in errors if error is not None),
    )  # fmt: skip
    over = "finished" if run.finished else "diverged" if run.status == "diverged" else ""
    holder = None if over else _holder_of(run.folder, ended)
    if ticket is not None and ticket.queued is not None:  # of one that is over something may be measured
        state = over or ("running" if holder else _state_of(ticket.queued))
        return replace(known, state=state, where=_job(ticket, ticket.queued))
    if holder is not None:
        return replace(known, state="running", where=_process(holder))
    if ticket is None:
        return replace(known, state=over or known.state)
    why = ticket.reason(run.folder)
    tells = why or not (over or ticket.ended)  # else its log is of what came before
    log = ticket.log(run.folder.parent.parent) if tells else None
    return replace(known, state=over or ("failed" if why else known.state), why=why, log=log)


def _unrecorded(ticket: Ticket, runs: Path) -> Progress:
    """What is known of a run that was submitted and has no record."""
    name, seed = _place(ticket)
    if ticket.queued is not None:
        return Progress(name, seed, _state_of(ticket.queued), where=_job(ticket, ticket.queued))
    why = ticket.ended or "its job has left the queue and begun no record"
    return Progress(name, seed, "failed", why=why, log=ticket.log(runs))


def _state_of(queued: Queued) -> str:
    return "starting" if queued.state in COMING else "waiting"


def _job(ticket: Ticket, queued: Queued) -> str:
    """`job 17_0 on node3, 12:30`, or `job 17_0: Priority`."""
    if queued.state == "RUNNING":
        return f"job {ticket.job} on {queued.where}, {queued.used}"
    return f"job {ticket.job}: {queued.where if queued.state == 'PENDING' else queued.state.lower()}"


def _process(holder: Holder) -> str:
    return f"process {holder.pid} on {holder.host}" + (f", job {holder.job}" if holder.job else "")


def _starting(runs: Path, known: Mapping[tuple[str, int], Progress]) -> Iterable[tuple[str, int]]:
    """The runs that have a lock and no record yet."""
    for lock in sorted(runs.glob("*/.seed*.lock")):
        name, found = lock.parent.name, LOCK.fullmatch(lock.name)
        if found and RUN_NAME.fullmatch(name) and (name, int(found[1])) not in known:
            yield name, int(found[1])
