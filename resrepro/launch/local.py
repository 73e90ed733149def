"""Commands of ours on this machine: what they take, how many at once, what is heard of each, how it ended.

A run is the command `resrepro train ..` in a process of its own, which tells its events as JSON lines.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, cycle, islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from resrepro.errors import Interrupted, UsageError
from resrepro.machine import cores, cpu_model, free_memory, gpus, gpus_are_shared, named_gpus
from resrepro.records import Run
from resrepro.spec import Spec
from resrepro.spec.architecture import architecture_of
from resrepro.spec.catalogue import find
from resrepro.spec.recipe import CifarRecipe
from resrepro.training.progress import Interrupts

COMMAND = (sys.executable, "-m", "resrepro")
EVENTS = "RESREPRO_EVENTS"  # to a command that is to tell its events: the process that hears them
PAUSE = 0.25  # seconds between looks at signals
ON_GPU = 6  # runs side by side on one GPU under MPS; without it they gain nothing (measured on one H200)
BASE_BYTES = 900 * 2**20  # of a process that trains a net of a few layers (measured, rounded up)
LAYER_BYTES = 100 * 2**10  # more for each weighted layer and image of a pass (measured, rounded up)
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and Windows' under its Linux
CHECKPOINT_BYTES = 2 * 4 * 2  # of a parameter: float32 and its momentum, the newest and the one before

Event = Mapping[str, Any]
Words = tuple[str, ...]


def seconds_of(spec: Spec, done: int, runs: Iterable[Run], device: str) -> tuple[float, float] | None:
    """What a run takes from iteration `done` on, at least and at most, by the runs of this net and mode on
    this machine (None without any): at the speed of the fastest stretch between two samples, and at that of
    the fastest run with all that it measured.
    """
    net = "dataset", "depth", "plain", "shortcut", "batch_size", "image_size", "precision"

    def compared(cpu: str | None, kind: str | None, spec: Mapping[str, Any]) -> list[object]:
        return [cpu, kind, *({**spec["recipe"], **spec}.get(key) for key in net)]

    here = compared(cpu_model(), device_kind(device), spec.to_json())
    alike = (run for run in runs if compared(run.env.get("cpu"), run.env.get("device"), run.spec) == here)
    if not (seen := [run for run in alike if run.result["iteration"]]):
        return None
    ahead, batch = spec.recipe.iterations - done, spec.recipe.batch_size
    whole = min(run.result["seconds"] / run.result["iteration"] for run in seen)
    steps = [batch / speed for run in seen for speed in run.curve["images_per_s"] if speed > 0]  # NaN is not
    return ahead * min([whole, *steps]), ahead * whole


def disk_mib(spec: Spec) -> float:
    """Of a run's folder, whose checkpoints are most of it."""
    return CHECKPOINT_BYTES * architecture_of(find(spec.experiment)).parameters / 2**20


def span(seconds: tuple[float, float] | None) -> str:
    """Two durations as one: `45 s`, `40-50 min`, `50 min - 2.1 h`, `3.1 days`; `unknown` of None."""

    def told(seconds: float) -> tuple[str, str]:
        if seconds < 90 * 60:
            return (f"{seconds / 60:.0f}", "min") if seconds >= 90 else (f"{seconds:.0f}", "s")
        return (f"{seconds / 3600:.1f}", "h") if seconds < 48 * 3600 else (f"{seconds / 86400:.1f}", "days")

    if seconds is None:
        return "unknown"
    (low, unit), (high, other) = map(told, seconds)
    if unit != other:
        return f"{low} {unit} - {high} {other}"
    return f"{high} {unit}" if low == high else f"{low}-{high} {unit}"


def device_kind(device: str) -> str:
    """`cpu`, `cuda` or `mps`; of `auto` that of the fastest one here, as far as it shows without PyTorch."""
    if device != "auto":
        return device.partition(":")[0]
    gpu = named_gpus() != [] and any(Path(driver).exists() for driver in GPU_DRIVERS)
    return "cuda" if gpu else "mps" if sys.platform == "darwin" else "cpu"


def choose_places(
    jobs: int | None, specs: Sequence[Spec], device: str, micro_batch: int | None = None
) -> list[str]:
    """Where to train at once, a run in each place: `jobs` runs, one spec for each, or as many as have room.
    On a CPU as many as there are cores and memory; on each NVIDIA GPU one, or where MPS is running as many as
    its memory holds, at most ON_GPU. One at a time on other GPUs, and of nets on photographs, whose workers
    keep the cores busy, one on each GPU. Returns the GPU of each run, as CUDA_VISIBLE_DEVICES is to name it;
    "" leaves that as it is. UsageError if `jobs` is less than 1.
    """
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs must be at least 1, not {jobs}.")
    passes = [min(micro_batch or spec.recipe.batch_size, spec.recipe.batch_size) for spec in specs]
    each = [BASE_BYTES + LAYER_BYTES * spec.depth * of for spec, of in zip(specs, passes, strict=True)]
    largest, small = max(each, default=1), all(isinstance(spec.recipe, CifarRecipe) for spec in specs)
    kind, rooms = device_kind(device), {"": 1}
    if kind == "cuda":
        rooms = _rooms_on_gpus(device, largest, small)
    elif kind == "cpu" and small:
        rooms = {"": max(1, min(cores(), free_memory() // largest))}
    layers = [gpu for layer in range(max(rooms.values())) for gpu, room in rooms.items() if room > layer]
    return list(islice(chain(layers, cycle(rooms)), max(1, min(jobs or len(layers), len(specs)))))


def _rooms_on_gpus(device: str, largest: int, small: bool) -> dict[str, int]:
    """How many runs have room on each GPU that is not full; on the emptiest one at least."""
    free = gpus()
    if index := device.partition(":")[2]:  # which the command itself takes
        free = {"": size for number, size in enumerate(free.values()) if str(number) == index}  # noqa: B035
    if not free:
        return {"": 1}
    most = max(1, min(ON_GPU, cores() // len(free))) if small and gpus_are_shared() else 1
    rooms = {gpu: 1 if size is None else min(most, size // largest) for gpu, size in free.items()}
    emptiest = max(free, key=lambda gpu: free[gpu] or 0)
    return {gpu: room for gpu, room in rooms.items() if room} or {emptiest: 1}


def prepare_images(specs: Sequence[Spec], data: Path | None) -> None:
    """Look for CIFAR-10 once (DataError without), before several processes want to download it."""
    for split in {getattr(spec.recipe, "split", "") for spec in specs if spec.dataset == "cifar10"}:
        from resrepro.data import load_dataset  # imports torch

        load_dataset("cifar10", split, data)


@dataclass(frozen=True)
class Job:
    """A run to train; those of the same words are trained together, by one command."""

    run: str  # what it is called
    seed: int
    words: Words  # after `resrepro`

    def __str__(self) -> str:
        return f"{self.run}, seed {self.seed}"


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    sentence: str = ""
    trace: str = ""  # of what nobody expected


class Command:
    """A command of ours that is running; `tell` is called with each of its events, then with its outcome. It
    is the leader of a process group of its own, so that Ctrl-C reaches this process alone.
    """

    def __init__(
        self, words: Sequence[str], tell: Callable[[Event | Outcome], None], threads: int | None, gpu: str
    ) -> None:
        self.stderr: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        # What a run computes with by default; one that goes on keeps the number that it began with.
        share = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        share |= {"CUDA_VISIBLE_DEVICES": gpu} if gpu else {}
        self.process = subprocess.Popen(
            [*COMMAND, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.stderr,
            text=True, start_new_session=True, env=os.environ | share | {EVENTS: str(os.getpid())},
        )  # fmt: skip
        self.tell = tell
        self.ear = threading.Thread(target=self._listen, daemon=True)
        self.ear.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # what a library has printed
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self.tell(event)
        self.tell(self._outcome(self.process.wait()))

    def _outcome(self, code: int) -> Outcome:
        with self.stderr:
            self.stderr.seek(0)
            told = self.stderr.read().strip()
        if code == 0:
            return Outcome(0)
        if code > 0:
            trace = told if "Traceback (most recent call last)" in told else ""
            silent = f"its process ended with exit code {code} and said nothing of it."
            return Outcome(code, told.rpartition("\n")[2].removeprefix("error: ") or silent, trace)
        name = signal.Signals(-code).name
        why = ", perhaps for want of memory (fewer --jobs may help)" if name == "SIGKILL" else ""
        return Outcome(code, f"its process was killed by {name}{why}; the same command goes on.")

    def end(self) -> None:
        """End it and all that it started, at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.ear.join()


@dataclass
class RunPool:
    """Trains `jobs`, one in each of `places` (see `choose_places`); a failure stops no other."""

    jobs: Sequence[Job]
    places: Sequence[str]
    hear: Callable[[Job, Event], None] = lambda job, event: None  # told of each event of a run
    end: Callable[[Job, Outcome], None] = lambda job, outcome: None  # told how a run ended
    outcomes: dict[Job, Outcome] = field(default_factory=dict)  # of those begun, in the order of their ends
    received: int = 0  # the signal that stopped it

    def run(self) -> None:
        """Train all, or until a signal comes: the first is passed on, and the runs stop after their update; a
        second one (see `Interrupts`), or an error, ends them at once.
        """
        self.running, self.taken, self.finished = dict[Words, Command](), dict[Words, int](), set[Job]()
        self.told: queue.Queue[tuple[Words, Event | Outcome]] = queue.Queue()
        waiting = list(dict.fromkeys(job.words for job in self.jobs))
        try:
            with Interrupts() as interrupts:
                while self.running or (waiting and not self.received):
                    while waiting and len(self.taken) < len(self.places) and not self.received:
                        self._start(waiting.pop(0))
                    with suppress(queue.Empty):
                        self._take(*self.told.get(timeout=PAUSE))
                    if interrupts.received and not self.received:
                        self.received = interrupts.received
                        for command in self.running.values():
                            command.process.send_signal(self.received)
        finally:
            for command in self.running.values():
                command.end()

    def _start(self, words: Words) -> None:
        self.taken[words] = min(set(range(len(self.places))) - set(self.taken.values()))
        gpu, count = self.places[self.taken[words]], len(self.places)
        threads = None if count == 1 else max(1, cores() // count)  # its share; of one alone all
        self.running[words] = Command(words, lambda told: self.told.put((words, told)), threads, gpu)
        for job in self._jobs_of(words):
            self.hear(job, {"event": "start"})

    def _jobs_of(self, words: Words) -> list[Job]:
        """The runs of a command that have not ended."""
        return [job for job in self.jobs if job.words == words and job not in self.outcomes]

    def _take(self, words: Words, told: Event | Outcome) -> None:
        ends = dict[Job, Outcome]()
        if isinstance(told, Outcome):
            del self.running[words], self.taken[words]
            if self.received and told.code == -self.received:  # it had no hand free yet for a checkpoint
                told = Outcome(128 + self.received, "Stopped before it began.")
            ends = {job: Outcome(0) if job in self.finished else told for job in self._jobs_of(words)}
        else:
            for job in (job for job in self._jobs_of(words) if told.get("run") in (None, str(job))):
                if told["event"] == "fail":
                    ends[job] = Outcome(told["code"], told["sentence"])
                    continue
                self.hear(job, told)
                if told["event"] == "finish":
                    self.finished.add(job)
        self.outcomes |= ends
        for job, outcome in ends.items():
            self.end(job, outcome)


def run_command(words: Sequence[str]) -> Outcome:
    """Run a command of ours to its end (Interrupted after a signal, which is passed on to it)."""
    pool = RunPool([Job("", 0, tuple(words))], [""])
    pool.run()
    if pool.received:
        raise Interrupted("Stopped: the same command goes on.", pool.received)
    return pool.outcomes[pool.jobs[0]]
