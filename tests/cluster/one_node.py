"""A real Slurm of one node, in a folder of its own, as root and without systemd: set up, used, taken down.

Debian's packages `slurm-wlm` and `munge` bring the programs. Nothing outside the folder is written to, and
only processes that were started from here are ended.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

# A job waits for as long as credentials last before it begins again: two minutes by Slurm's default.
LONGEST = 60.0  # seconds until a daemon answers or ends, on a machine that is busy
CONF = """\
ClusterName=resrepro
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
ReturnToService=2
KillWait={kill_wait}
MinJobAge=3600
InactiveLimit=0
SlurmdParameters=config_overrides
NodeName=localhost NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=localhost Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=localhost PriorityTier=2 PreemptMode=OFF
"""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


class OneNode:
    """A munged, a slurmctld and a slurmd; `env` is what commands need to find them.

    Partitions: `low`, whose jobs are requeued when one on `high` needs their place.
    """

    def __init__(self, folder: Path, cpus: int = 2, kill_wait: int = 10, grace: int = 0) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen[bytes]] = []
        controller, node = free_ports(2)
        text = CONF.format(
            folder=folder, cpus=cpus, controller=controller, node=node, kill_wait=kill_wait, grace=grace,
        )  # fmt: skip
        for name in ("state", "spool"):
            (folder / name).mkdir()
        (folder / "slurm.conf").write_text(text)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SQUEUE"))}
        self.env["SLURM_CONF"] = str(folder / "slurm.conf")

    def __enter__(self) -> "OneNode":
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        place = self.folder
        self._daemon(
            "munged", "--foreground", "--force", f"--socket={place}/munge.socket",
            f"--key-file={place}/munge.key", f"--log-file={place}/munged.log",
            f"--pid-file={place}/munged.pid", f"--seed-file={place}/munged.seed",
        )  # fmt: skip
        self.wait_until((place / "munge.socket").exists)
        self._daemon("slurmctld", "-D")
        self.wait_until(lambda: self.ask("scontrol", "ping").returncode == 0)
        self._daemon("slurmd", "-D", "-N", "localhost")
        self.wait_until(lambda: "idle" in self.ask("sinfo", "--noheader", "--format=%T").stdout)

    def _daemon(self, *words: str) -> None:
        own = {"env": self.env, "start_new_session": True}
        with (self.folder / f"{words[0]}.out").open("wb") as log:
            self.daemons.append(subprocess.Popen(words, stdout=log, stderr=log, **own))

    def ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run one of Slurm's commands."""
        return subprocess.run(
            words, env=self.env, capture_output=True, text=True, timeout=LONGEST, check=False
        )

    def queue(self) -> dict[str, str]:
        """The state of every job, by its id."""
        told = self.ask("squeue", "--noheader", "--array", "--format=%i %T").stdout
        return dict(line.split() for line in told.splitlines())

    def sbatch(self, *words: str, partition: str) -> str:
        """Submit a shell command; returns its job's id."""
        told = self.ask(
            "sbatch", "--parsable", f"--partition={partition}", f"--output={self.folder}/%j.out",
            f"--chdir={self.folder}", *words,
        )  # fmt: skip
        assert told.returncode == 0, told.stderr
        return told.stdout.strip()

    def wait_until(self, holds: Callable[[], object], seconds: float = LONGEST) -> None:
        """Look until something holds.

        Raises:
            RuntimeError: if it does not in time, or a daemon has ended; with the ends of the logs.
        """
        end = time.monotonic() + seconds
        while not holds():
            dead = [each.args[0] for each in self.daemons if each.poll() is not None]  # type: ignore[index]
            if dead or time.monotonic() > end:
                raise RuntimeError(f"{f'{dead} ended' if dead else 'nothing happens'}:\n{self.logs()}")
            time.sleep(0.2)

    def logs(self) -> str:
        """The end of every log."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-1500:]}" for path in paths)

    def close(self) -> None:
        """End all jobs and daemons, the last one first, and whatever they left."""
        if len(self.daemons) == 3:
            with suppress(subprocess.TimeoutExpired, RuntimeError):
                for partition in ("low", "high"):
                    self.ask("scancel", f"--partition={partition}")
                self.wait_until(lambda: not self.queue(), 15)
        for daemon in reversed(self.daemons):
            _end(daemon)
        end = time.monotonic() + LONGEST
        while (left := self.left()) and time.monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def left(self) -> list[int]:
        """The processes that were started for this cluster and are still there, but for this one.

        They are known by our configuration in their environment, which Slurm hands on to its jobs.
        """
        mark, found = f"SLURM_CONF={self.folder}/slurm.conf".encode(), []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0") and int(entry.name) != os.getpid():
                    found.append(int(entry.name))
        return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
