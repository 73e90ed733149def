"""Which process holds a lock: what a lock file says of it, and whether it is still alive."""

import json
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "OAR_JOB_ID", "JOB_ID")
ARRAY = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")  # of a task, which has a JOB_ID of its own besides
LIMIT = 4096  # bytes; what we write is far shorter


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as the lock file names it."""

    pid: int
    host: str
    started: str
    boot: str | None = None
    machine: str | None = None
    job: str | None = None
    ticks: int | None = None  # when the process started, which tells a reused pid apart

    def __str__(self) -> str:
        job = f" (job {self.job})" if self.job else ""
        return f"process {self.pid} on {self.host} since {self.started} UTC{job}"

    def shares_kernel_with(self, other: "Holder") -> bool:
        """Whether both are of one boot of one machine."""
        if self.boot or other.boot:
            return self.boot == other.boot
        return self.host == other.host

    def was_before_the_restart_of(self, other: "Holder") -> bool:
        """Whether the machine of both was restarted in between."""
        one_machine = self.machine is not None and (self.host, self.machine) == (other.host, other.machine)
        return one_machine and None not in (self.boot, other.boot) and self.boot != other.boot


def this_process() -> Holder:
    """This process, as a holder."""
    return Holder(
        pid=os.getpid(),
        host=_as_name(socket.gethostname()) or "an unnamed host",
        started=f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        boot=_line_of(Path("/proc/sys/kernel/random/boot_id")),
        machine=_line_of(Path("/etc/machine-id")),
        job=_job_here(),
        ticks=_state_and_start(os.getpid())[1],
    )


def _job_here() -> str | None:
    """The cluster job that this process is of, by the id that its queue shows: 17_0 in an array of Slurm."""
    parts = [_as_name(os.environ.get(name)) for name in ARRAY]
    if all(parts) and _as_name(os.environ.get(JOBS[0])):
        return "_".join(part for part in parts if part)
    return next((job for name in JOBS if (job := _as_name(os.environ.get(name)))), None)


def holder_from(content: bytes) -> Holder | None:
    """The holder that a lock file names; None if it names none, being empty, torn or not ours."""
    try:
        found = json.loads(content) if len(content) <= LIMIT else {}
        holder = Holder(**{key: found[key] for key in Holder.__dataclass_fields__})
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    numbers = [holder.pid, 0 if holder.ticks is None else holder.ticks]
    names = [holder.host, holder.started]
    names += [name for name in (holder.boot, holder.machine, holder.job) if name is not None]
    sound = all(type(number) is int for number in numbers) and all(_as_name(name) for name in names)
    return holder if sound and 0 < holder.pid < 2**31 else None


def _as_name(text: object) -> str | None:
    """Text that can be shown in a sentence, None if it cannot."""
    return text if isinstance(text, str) and 0 < len(text) < 256 and text.isprintable() else None


def _line_of(path: Path) -> str | None:
    try:
        return _as_name(path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        return None


def _state_and_start(pid: int) -> tuple[str | None, int | None]:
    """The state of a process, such as "Z" for a zombie, and its start in clock ticks since the boot."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        fields = stat.rpartition(")")[2].split()  # the program's name before it may hold anything
        return fields[0], int(fields[19])
    except (OSError, ValueError, IndexError):
        return None, None


def is_alive(holder: Holder) -> bool:
    """Whether a process of this machine is there and not merely waited for."""
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's, but there
    state, ticks = _state_and_start(holder.pid)
    return state not in ("Z", "X") and (None in (ticks, holder.ticks) or ticks == holder.ticks)
