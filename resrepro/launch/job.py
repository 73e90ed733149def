"""One of several runs at once, in its own process: what it is asked, what it says, how it ends."""

import os
import signal
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resrepro.data import Dataset
from resrepro.errors import Interrupted, ResreproError, UsageError, sentence_on
from resrepro.spec.experiment import Spec
from resrepro.training.progress import SIGNALS, Interrupts, Pace, Sample, StoppedEarly, Watcher, sample_line

if TYPE_CHECKING:
    from resrepro.data.loader import Loading
    from resrepro.training.measure import Errors


@dataclass(frozen=True)
class Job:
    """A run to train: experiment and seed, and the name and split of its images."""

    experiment: str
    seed: int
    data: tuple[str, str] = ("", "")

    @classmethod
    def of(cls, spec: Spec, seed: int) -> "Job":
        """The job that trains a specification with a seed."""
        return cls(spec.experiment, seed, (spec.dataset, getattr(spec.recipe, "split", "")))

    def __str__(self) -> str:
        return f"{self.experiment}, seed {self.seed}"


@dataclass(frozen=True)
class Order:
    """What is asked of all jobs alike.

    Attributes:
        options: for `resrepro.training.session.train`.
        loading: the values of a `Loading`, whose module loads PyTorch.
        looks: whether somebody wants to see every half second how far they are.
    """

    options: dict[str, Any]
    loading: tuple[Any, ...] = ()
    looks: bool = False


@dataclass(frozen=True)
class Began:
    """The run starts, or goes on after `done` updates."""

    done: int
    iterations: int


@dataclass(frozen=True)
class Stepped:
    """How far it is."""

    done: int
    images_per_s: float
    seconds_left: float


@dataclass(frozen=True)
class Sampled:
    """The errors were measured: top-1 in percent by set, and all of it on one line."""

    errors: dict[str, float]
    line: str


@dataclass(frozen=True)
class Said:
    """Something worth a line happened."""

    text: str


Event = Began | Stepped | Sampled | Said


@dataclass(frozen=True)
class Finished:
    """The run is whole, in its folder."""

    folder: Path


@dataclass(frozen=True)
class Stopped:
    """A signal stopped it."""

    sentence: str
    signal_number: int


@dataclass(frozen=True)
class Failed:
    """An error ended it.

    Attributes:
        sentence: what to tell.
        kind: the error's class.
        of_all: whether no other job can do better, since the machine cannot do what is asked.
        trace: where it happened, of an error that nobody expected.
    """

    sentence: str
    kind: type[ResreproError] = ResreproError
    of_all: bool = False
    trace: str = ""


Outcome = Finished | Stopped | Failed
Send = Callable[[Event | Outcome], None]


class Reporter(Watcher):
    """Sends what happens; notices when nobody is left to hear it, and then asks the run to stop."""

    def __init__(self, send: Send, parent: int, looks: bool) -> None:
        self.send, self.parent, self.looks = send, parent, looks
        self.pace = Pace(0, 0, 0)
        self.alone = False

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """Tell that the run starts."""
        self.pace = Pace(done, iterations, batch_size)
        self.send(Began(done, iterations))

    def step(self, done: int, lr: float, read: "Callable[[], Errors]") -> None:
        """Tell how far it is, twice a second."""
        if os.getppid() != self.parent and not self.alone:
            self.alone = True
            os.kill(os.getpid(), signal.SIGTERM)
        if self.looks and self.pace.is_due():
            read()  # waits for the device: the speed is of finished work
            self.send(Stepped(done, self.pace.look(done), self.pace.seconds_left(done)))

    def sample(self, sample: Sample) -> None:
        """Tell the errors."""
        errors = {name: each.top1_err for name, each in sample.errors.items()}
        self.send(Sampled(errors, sample_line(sample, self.pace)))

    def say(self, text: str) -> None:
        """Pass it on."""
        self.send(Said(text))


def work(job: Job, order: Order, dataset: Dataset | None, pipe: Connection, parent: int) -> None:
    """Train one run and send its outcome: what a started process does. Signals are blocked before."""

    def send(told: Event | Outcome) -> None:
        if os.getppid() == parent:  # else the pipe would fill, with nobody to empty it
            with suppress(BrokenPipeError):
                pipe.send(told)

    from resrepro.training.engine import keep_memory

    keep_memory()
    with Interrupts() as interrupts:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            outcome = outcome_of(job, order, dataset, Reporter(send, parent, order.looks))
            with interrupts.patiently():
                send(outcome)
        except StoppedEarly as stop:
            send(Stopped("Stopped before it began.", stop.signal_number))


def outcome_of(job: Job, order: Order, dataset: Dataset | None, watcher: Watcher) -> Outcome:
    """Train the run; every error is an outcome."""
    try:
        from resrepro.training.session import train

        try:
            loading = _checked(order)
        except UsageError as error:
            return Failed(str(error), UsageError, of_all=True)
        told = order.options | {"loading": loading, "watcher": watcher}
        return Finished(train(job.experiment, job.seed, **told))
    except Interrupted as stop:
        return Stopped(str(stop), stop.exit_code - 128)
    except Exception as error:
        return failure_of(error)


def failure_of(error: Exception) -> Failed:
    """What to tell of an error that was just caught; one that nobody expected is told with its trace."""
    expected = isinstance(error, ResreproError | OSError)
    kind = type(error) if isinstance(error, ResreproError) else ResreproError
    return Failed(sentence_on(error), kind, trace="" if expected else traceback.format_exc())


def _checked(order: Order) -> "Loading":
    """How files are read, once it is sure that the machine can do what is asked of every job.

    Raises:
        UsageError: if it cannot.
    """
    from resrepro.data.loader import Loading
    from resrepro.training.engine import choose_device, threads_used, use_precision
    from resrepro.training.progress import CheckpointInterval

    CheckpointInterval.parse(order.options.get("checkpoint_every"))
    device = choose_device(order.options.get("device", "auto"))
    use_precision(order.options.get("precision") or "float32", device)
    with threads_used(order.options.get("threads")):
        return Loading(*order.loading)
