"""Several runs at once, each in a process of its own: who trains next, what is heard of it, how it ends.

The process that starts the others does not load PyTorch. It has the images in memory once: a forked
process sees the same pages, and nobody writes to them. Where forking is not safe each process loads its own.
"""

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

from resrepro.data import Dataset, load_dataset
from resrepro.errors import UsageError
from resrepro.launch.job import Event, Failed, Finished, Job, Order, Outcome, Stopped, work
from resrepro.spec.experiment import Spec
from resrepro.spec.recipe import CifarRecipe
from resrepro.training.progress import SIGNALS, Interrupts

PAUSE = 0.2  # seconds between looks at signals and at processes that have died

Hear = Callable[[Job, Event | Outcome | None], None]


def load_shared(specs: Sequence[Spec], data: str | Path | None) -> dict[tuple[str, str], Dataset]:
    """The images that these runs train on, by name and split; photographs are left in their files.

    Raises:
        DataError: if some are missing or damaged.
    """
    recipes = {(spec.dataset, spec.recipe.split) for spec in specs if isinstance(spec.recipe, CifarRecipe)}
    return {(name, split): load_dataset(name, split, data) for name, split in sorted(recipes)}


def starts_by_forking() -> bool:
    """Whether a process may be forked: its threads, which PyTorch starts, would be missing in the copy.

    On macOS those of the system's libraries would.
    """
    return sys.platform == "linux" and "torch" not in sys.modules


@dataclass
class Worker:
    """The process of one run, and the end of the pipe on which it is heard."""

    process: BaseProcess
    pipe: Connection
    outcome: Outcome | None = None

    def heard(self) -> Iterator[Event]:
        """What it has said since; its outcome is kept."""
        try:
            while self.pipe.poll():
                told = self.pipe.recv()
                if isinstance(told, Finished | Stopped | Failed):
                    self.outcome = told
                else:
                    yield told
        except (EOFError, OSError):  # it has closed its end, or died in the middle of a word
            return

    def end(self) -> Outcome:
        """How it ended, which it may not have been able to say."""
        self.pipe.close()
        return self.outcome or Failed(_cause_of_death(self.process.exitcode or 0))


def _cause_of_death(code: int) -> str:
    """A sentence on a process that ended without an outcome."""
    if code >= 0:
        return f"its process ended with exit code {code} and said nothing of it."
    name = signal.Signals(-code).name
    memory = " (as the system does where memory runs out: fewer --jobs may help)" if name == "SIGKILL" else ""
    return f"its process was killed by {name}{memory}; the same command goes on from its last checkpoint."


@dataclass
class Crew:
    """Trains `jobs`, `size` at a time, and tells `hear` of every event; nothing ends the others with one.

    `hear` is called with None when a job's process starts.

    Attributes:
        waiting: those that were not begun.
        outcomes: how those ended that were, in the order of their ends.
        received: the signal that stopped it, or 0.
    """

    jobs: Sequence[Job]
    size: int
    order: Order
    datasets: Mapping[tuple[str, str], Dataset]
    hear: Hear = lambda job, told: None
    look: Callable[[], None] = lambda: None
    outcomes: dict[Job, Outcome] = field(default_factory=dict)
    received: int = 0

    def __post_init__(self) -> None:
        """Choose how processes are started."""
        self.waiting = deque(self.jobs)
        self.active: dict[Job, Worker] = {}
        self.forks = starts_by_forking()
        self.context: Any = multiprocessing.get_context("fork" if self.forks else "spawn")

    def train(self) -> None:
        """Train all of them, or until a signal comes: it is passed on, and the jobs stop after their step.

        Raises:
            UsageError: if one finds that the machine cannot do what is asked of all.
        """
        with self._none_left_behind(), Interrupts() as interrupts, interrupts.patiently():
            while self.active or (self.waiting and not self.received):
                if interrupts.received and not self.received:
                    self.received = interrupts.received
                    self._pass_on(self.received)
                while self.waiting and len(self.active) < self.size and not self.received:
                    self._start(self.waiting.popleft())
                wait([worker.pipe for worker in self.active.values()], PAUSE)
                self._listen()
                self.look()

    def _start(self, job: Job) -> None:
        pipe, end = self.context.Pipe(duplex=False)
        dataset = self.datasets.get(job.data) if self.forks else None  # it would be copied
        process = self.context.Process(target=work, args=(job, self.order, dataset, end, os.getpid()))
        # A signal that comes between the start and the child's own handlers waits for those.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
            self.active[job] = Worker(process, pipe)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        end.close()
        self.hear(job, None)

    def _listen(self) -> None:
        """Take in what was said, and the outcomes of those that have ended."""
        for job, worker in list(self.active.items()):
            dead = not worker.process.is_alive()  # asked first: what it said before is all in the pipe
            for event in worker.heard():
                self.hear(job, event)
            if dead:  # not before: the next one may need its memory
                del self.active[job]
                self._take(job, worker.end())

    def _take(self, job: Job, outcome: Outcome) -> None:
        if isinstance(outcome, Failed) and outcome.of_all:
            self._pass_on(signal.SIGTERM)
            for worker in self.active.values():
                worker.process.join()
            raise UsageError(outcome.sentence)
        self.outcomes[job] = outcome
        self.hear(job, outcome)

    def _pass_on(self, number: int) -> None:
        for worker in self.active.values():
            if worker.process.is_alive():
                os.kill(worker.process.pid or 0, number)

    @contextmanager
    def _none_left_behind(self) -> Iterator[None]:
        """While active, a signal that nobody waits for any more ends all processes, as does an error."""

        def end_at_once(number: int, frame: FrameType | None) -> None:
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)

        before = {number: signal.signal(number, end_at_once) for number in SIGNALS}
        try:
            yield
        finally:
            for worker in self.active.values():
                worker.process.kill()
            for number, handler in before.items():
                signal.signal(number, handler)
