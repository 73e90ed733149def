"""Commands of ours on this machine: what they take, how many at once, what is heard of each, how it ended.

A run is the command `resrepro train ..` in a process of its own, which tells its events as JSON lines.
"""

import json
import math
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
from types import FrameType
from typing import IO, Any, NamedTuple

from resrepro.errors import Interrupted, UsageError
from resrepro.machine import cores, cpu_model, free_memory, gpus, gpus_are_shared, named_gpus
from resrepro.records import Run
from resrepro.spec import Spec
from resrepro.spec.architecture import architecture_of
from resrepro.spec.catalogue import find
from resrepro.spec.recipe import CifarRecipe
from resrepro.training.progress import SIGNALS

COMMAND = (sys.executable, "-m", "resrepro")
EVENTS = "RESREPRO_EVENTS"  # to a command that is to tell its events: the process that hears them
PAUSE = 0.25  # seconds between looks at signals
ON_GPU = 6  # runs side by side on one GPU under MPS; without it they gain nothing (measured on one H200)
BASE_BYTES = 900 * 2**20  # of a process that trains a net of a few layers (measured, rounded up)
LAYER_BYTES = 100 * 2**10  # more for each weighted layer and image of a pass (measured, rounded up)
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and Windows' under its Linux
ROW_BYTES = 75  # of a line of metrics.csv
CHECKPOINT_BYTES = 2 * 4 * 2  # of a parameter: float32 and its momentum, the newest and the one before

Event = Mapping[str, Any]
Words = tuple[str, ...]


def seconds_of(spec: Spec, done: int, runs: Iterable[Run], device: str) -> tuple[float, float] | None:
    """What a run takes from iteration `done` on, at least and at most; None where none such is recorded.

    By the runs of this net and mode on this machine: at the speed of the fastest stretch between two samples,
    and at that of the fastest run with all that it measured.
    """

    def compared(cpu: str | None, kind: str | None, spec: Mapping[str, Any]) -> list[object]:
        own = {**spec["recipe"], **spec}
        net = "dataset", "depth", "plain", "shortcut", "batch_size", "image_size", "precision"
        return [cpu, kind, *(own.get(key) for key in net)]

    here = compared(cpu_model(), device_kind(device), spec.to_json())
    alike = (run for run in runs if compared(run.env.get("cpu"), run.env.get("device"), run.spec) == here)
    seen = [run for run in alike if run.result["iteration"]]
    if not seen:
        return None
    ahead, batch = spec.recipe.iterations - done, spec.recipe.batch_size
    whole = min(run.result["seconds"] / run.result["iteration"] for run in seen)
    steps = [batch / speed for run in seen for speed in run.curve["images_per_s"] if speed > 0]  # NaN is not
    return ahead * min([whole, *steps]), ahead * whole


def disk_mib(spec: Spec) -> float:
    """Of a run's folder: two checkpoints, and the curves of two sets at every sample."""
    net = architecture_of(find(spec.experiment))
    samples = math.ceil(spec.recipe.iterations / spec.recipe.sampled_every(1))  # or fewer
    return (CHECKPOINT_BYTES * net.parameters + 2 * samples * ROW_BYTES) / 2**20


def span(seconds: tuple[float, float] | None) -> str:
    """Two durations as one: `45 s`, `40-50 min`, `50 min - 2.1 h`; `unknown` of None."""
    if seconds is None:
        return "unknown"
    (low, unit), (high, other) = (duration(each).split(" ") for each in seconds)
    if unit != other:
        return f"{low} {unit} - {high} {other}"
    return f"{high} {unit}" if low == high else f"{low}-{high} {unit}"


def duration(seconds: float) -> str:
    """A duration with two figures or so: `45 s`, `12 min`, `5.3 h`, `3.1 days`."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 90 * 60)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


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
        sizes = dict(zip(map(str, range(len(free))), free.values(), strict=True))
        free = {"": sizes[index]} if index in sizes else {}
    if not free:
        return {"": 1}
    most = max(1, min(ON_GPU, cores() // len(free))) if small and gpus_are_shared() else 1
    rooms = {gpu: 1 if size is None else min(most, size // largest) for gpu, size in free.items()}
    emptiest = max(free, key=lambda gpu: free[gpu] or 0)
    return {gpu: room for gpu, room in rooms.items() if room} or {emptiest: 1}


def threads_each(jobs: int) -> int | None:
    """The CPU threads of each of several jobs; None, for all, of one."""
    return None if jobs == 1 else max(1, cores() // jobs)


def prepare_images(specs: Sequence[Spec], data: Path | None) -> None:
    """Look for CIFAR-10 once (DataError without), before several processes want to download it."""
    for split in {getattr(spec.recipe, "split", "") for spec in specs if spec.dataset == "cifar10"}:
        from resrepro.data import load_dataset  # imports torch

        load_dataset("cifar10", split, data)


@dataclass(frozen=True)
class Job:
    """A run to train: what it is called, its seed, and the words after `resrepro` that do it.

    Runs of the same words are trained together, by one command.
    """

    run: str
    seed: int
    words: Words

    def __str__(self) -> str:
        return f"{self.run}, seed {self.seed}"


class Outcome(NamedTuple):
    """How a command ended: its exit code, the sentence on it, and the trace of what nobody expected."""

    code: int
    sentence: str = ""
    trace: str = ""


class Command:
    """A command of ours that is running; `tell` is called with each of its events, then with its outcome.

    It is the leader of a process group of its own, so that Ctrl-C reaches this process alone.
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
    """Trains `jobs`, one in each of `places` (see `choose_places`) with `threads`; a failure stops no other.

    `hear` is told of each event of a run, `end` how it ended.
    """

    jobs: Sequence[Job]
    places: Sequence[str]
    threads: int | None = None
    hear: Callable[[Job, Event], None] = lambda job, event: None
    end: Callable[[Job, Outcome], None] = lambda job, outcome: None
    outcomes: dict[Job, Outcome] = field(default_factory=dict)  # of those begun, in the order of their ends
    received: int = 0  # the signal that stopped it

    def run(self) -> None:
        """Train all, or until a signal comes: the first is passed on, and the runs stop after their update; a
        second Ctrl-C, or an error, ends them at once.
        """
        self.running, self.taken, self.finished = dict[Words, Command](), dict[Words, int](), set[Job]()
        self.told: queue.Queue[tuple[Words, Event | Outcome]] = queue.Queue()
        waiting = list(dict.fromkeys(job.words for job in self.jobs))
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # by nohup
        before = {number: signal.signal(number, self._pass_on) for number in heard}
        try:
            while self.running or (waiting and not self.received):
                while waiting and len(self.taken) < len(self.places) and not self.received:
                    self._start(waiting.pop(0))
                with suppress(queue.Empty):
                    self._take(*self.told.get(timeout=PAUSE))
        finally:
            for command in self.running.values():
                command.end()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _start(self, words: Words) -> None:
        self.taken[words] = min(set(range(len(self.places))) - set(self.taken.values()))
        gpu = self.places[self.taken[words]]
        self.running[words] = Command(words, lambda told: self.told.put((words, told)), self.threads, gpu)
        for job in self._jobs_of(words):
            self.hear(job, {"event": "start"})

    def _jobs_of(self, words: Words, event: Event | None = None) -> list[Job]:
        """The runs of a command that have not ended; those of one of its events."""
        left = [job for job in self.jobs if job.words == words and job not in self.outcomes]
        return left if event is None else [job for job in left if event.get("run") in (None, str(job))]

    def _take(self, words: Words, told: Event | Outcome) -> None:
        if not isinstance(told, Outcome):
            for job in self._jobs_of(words, told):
                if told["event"] == "fail":
                    self._end(job, Outcome(told["code"], told["sentence"]))
                    continue
                self.hear(job, told)
                if told["event"] == "finish":
                    self.finished.add(job)
            return
        del self.running[words], self.taken[words]
        if self.received and told.code == -self.received:  # it had no hand free yet to write a checkpoint
            told = Outcome(128 + self.received, "Stopped before it began.")
        for job in self._jobs_of(words):
            self._end(job, Outcome(0) if job in self.finished else told)

    def _end(self, job: Job, outcome: Outcome) -> None:
        self.outcomes[job] = outcome
        self.end(job, outcome)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.received:
            self.received = number
            for command in list(self.running.values()):
                command.process.send_signal(number)


def run_command(words: Sequence[str]) -> Outcome:
    """Run a command of ours to its end (Interrupted after a signal, which is passed on to it)."""
    pool = RunPool([Job("", 0, tuple(words))], [""])
    pool.run()
    if pool.received:
        raise Interrupted("Stopped: the same command goes on.", pool.received)
    return pool.outcomes[pool.jobs[0]]
