"""What was handed to a cluster's queue from a runs folder, and what the queue (squeue) says of it now.

Each submission is a file `slurm/submission-<id>.json` in the runs folder, each job that has begun one of its
own, `slurm/<job>.json`: no two processes ever write one file. Nothing here imports torch or submitit.
"""

import hashlib
import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from resrepro.errors import RecordError, ResreproError
from resrepro.records.durable import json_bytes, write_out
from resrepro.records.evaluations import MOST_BYTES
from resrepro.records.files import read_plain
from resrepro.records.reading import CONTROL, ENV, EVALS, FORMAT, RESPONSES, RESULT, read_json

FOLDER = "slurm"  # in a runs folder: what is told here, submitit's files, the logs of the jobs
PATIENCE = 60  # seconds for squeue, which waits for the queue's own daemon
JOB = re.compile(r"\d+(_\d+)?", re.ASCII)
FIELDS = ("%i", "%T", "%M", "%R")  # job, state, time used; why it waits, or the nodes that it is on
UNKNOWN_JOB = "invalid job id"  # squeue's word where none of the jobs is left in the queue


class QueueError(ResreproError):
    """The queue cannot be asked, or its answer not be read."""


@dataclass(frozen=True)
class Queued:
    """What squeue says of a job: `state` in Slurm's words, time used, why it waits or where it is."""

    state: str
    used: str = ""
    where: str = ""


@dataclass(frozen=True)
class Ticket:
    """A run that was submitted.

    Attributes:
        job: Slurm's id, `17_0` in an array.
        run: its name as it was asked for.
        fast: whether it was asked for with --fast, which decides the rest of the name on the node.
        recorded: its name as its record has it, empty until it has begun.
        ended: the sentence that it ended with, of a job that failed.
        record: the state (see `state_of`) of the run's record then; empty where that is not known.
        queued: what the queue says of it, None if it is not (or no longer, or not yet) there.
    """

    job: str
    run: str
    seed: int
    fast: bool = False
    recorded: str = ""
    ended: str = ""
    record: str = ""
    queued: Queued | None = None

    def __str__(self) -> str:
        return f"{self.run}, seed {self.seed}"

    @property
    def wish(self) -> tuple[str, int, bool]:
        """What two submissions of one run have in common."""
        return self.run, self.seed, self.fast

    def reason(self, folder: Path) -> str:
        """Why it failed; empty if it did not, or if the run in `folder` was gone on with since."""
        return self.ended if self.record in ("", state_of(folder)) else ""

    def log(self, runs: Path) -> Path:
        """Where the job's output is written."""
        return runs / FOLDER / f"{self.job}_0_log.out"


def write_submission(runs: Path, tickets: Sequence[Ticket]) -> None:
    """Keep what was submitted together.

    Raises:
        RecordError: if the disk refuses.
    """
    entries = [{"job": t.job, "run": t.run, "seed": t.seed, "fast": t.fast} for t in tickets]
    name = f"submission-{tickets[0].job.partition('_')[0]}.json"
    write_out(runs / FOLDER / name, json_bytes({"format": FORMAT, "jobs": entries}))


def write_note(runs: Path, job: str, run: str, seed: int, ended: str = "") -> None:
    """Keep which run a job trains, and the sentence that it ended with if it failed.

    Raises:
        RecordError: if the disk refuses.
    """
    told = {"format": FORMAT, "run": run, "seed": seed, "ended": ended}
    if ended:
        told["record"] = state_of(runs / run / f"seed{seed}")
    write_out(runs / FOLDER / f"{job}.json", json_bytes(told))


def state_of(folder: Path) -> str:
    """A checksum (hex) of a run's records; another when a session began, or something was measured since."""
    digest = hashlib.sha256()
    files = [folder / name for name in (ENV, RESULT, RESPONSES)]
    for path in [*files, *sorted((folder / EVALS).glob("*.json"))]:
        with suppress(OSError):
            content = read_plain(path, MOST_BYTES)
            digest.update(f"{path.name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def read_tickets(runs: Path) -> tuple[list[Ticket], list[str]]:
    """All that was submitted from a runs folder, by id, and a sentence on each broken file."""
    tickets: list[Ticket] = []
    broken: list[str] = []
    for path in (runs / FOLDER).glob("submission-*.json"):
        try:
            tickets += [_with_note(runs, ticket, broken) for ticket in _submitted(path)]
        except RecordError as error:
            broken.append(str(error))
    return sorted(tickets, key=lambda ticket: _numbers(ticket.job)), broken


def _submitted(path: Path) -> list[Ticket]:
    try:
        entries = read_json(path)["jobs"]
        tickets = [Ticket(each["job"], each["run"], each["seed"], each["fast"]) for each in entries]
        if not all(JOB.fullmatch(t.job) and isinstance(t.run, str) and type(t.seed) is int for t in tickets):
            raise ValueError("no job")
    except (KeyError, TypeError, ValueError):
        raise RecordError(f"{path} is broken: it does not say which jobs were submitted.") from None
    return tickets


def _with_note(runs: Path, ticket: Ticket, broken: list[str]) -> Ticket:
    path = runs / FOLDER / f"{ticket.job}.json"
    if not path.exists():
        return ticket
    try:
        told = read_json(path)
        record = str(told.get("record", ""))
        return replace(ticket, recorded=str(told["run"]), ended=str(told["ended"]), record=record)
    except RecordError as error:
        broken.append(str(error))
    except KeyError:
        broken.append(f"{path} is broken: it does not say which run the job trains.")
    return ticket


def _numbers(job: str) -> tuple[int, ...]:
    return tuple(int(part) for part in job.split("_"))


def waiting_and_running(runs: Path) -> list[Ticket]:
    """The jobs submitted from a runs folder that are in the queue now, each with what the queue says.

    Raises:
        QueueError: if there are some and the queue cannot be asked.
    """
    tickets, _ = read_tickets(runs)
    found = ask_queue(ticket.job for ticket in tickets)
    return [replace(ticket, queued=found[ticket.job]) for ticket in tickets if ticket.job in found]


def has_left(runs: Path, job: str | None) -> bool:
    """Whether a job was submitted from a runs folder and is not in the queue any more.

    Raises:
        QueueError: if the queue cannot be asked.
    """
    if job is None or all(ticket.job != job for ticket in read_tickets(runs)[0]):
        return False
    return job not in ask_queue([job])


def ask_queue(jobs: Iterable[str]) -> dict[str, Queued]:
    """What squeue says of those jobs that it knows; nothing is asked where there are none.

    Raises:
        QueueError: if squeue is missing, fails, or says what cannot be read.
    """
    arrays = sorted({job.partition("_")[0] for job in jobs}, key=int)
    if not arrays:
        return {}
    command = ["squeue", "--noheader", "--array", f"--jobs={','.join(arrays)}"]
    command.append(f"--format={'|'.join(FIELDS)}")
    try:
        answer = subprocess.run(
            command, capture_output=True, timeout=PATIENCE, check=False, env=_plain_environment()
        )
    except FileNotFoundError:
        raise QueueError("squeue is not on the PATH here, so the queue cannot be asked.") from None
    except subprocess.TimeoutExpired:
        raise QueueError(f"squeue has not answered within {PATIENCE} seconds.") from None
    except OSError as error:
        raise QueueError(f"squeue cannot be run: {error.strerror or error}.") from None
    told, trouble = (part.decode("utf-8", "replace") for part in (answer.stdout, answer.stderr))
    if answer.returncode:
        if UNKNOWN_JOB in trouble.lower():
            return {}
        raise QueueError(f"squeue failed: {_shown(trouble) or f'exit code {answer.returncode}'}")
    return dict(_job_from(line) for line in told.splitlines() if line.strip())


def _job_from(line: str) -> tuple[str, Queued]:
    """A line of squeue's answer.

    Raises:
        QueueError: if it is none.
    """
    job, *rest = (field.strip() for field in line.split("|", len(FIELDS) - 1))
    if len(rest) != len(FIELDS) - 1 or not JOB.fullmatch(job) or CONTROL.search(line):
        raise QueueError(f"squeue said what cannot be read: {_shown(line)!r}.")
    state, used, where = rest
    return job, Queued(state, used, where.strip("()"))


def _shown(text: str) -> str:
    """The beginning of what another program said, on one line and harmless to a terminal."""
    return CONTROL.sub(" ", " ".join(text.split()))[:200]


def _plain_environment() -> Mapping[str, str]:
    """Ours without what would make squeue speak another language or leave jobs out."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    return kept | {"LC_ALL": "C"}
