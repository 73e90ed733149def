"""What a run tells while it trains, how a signal stops it, and how often it writes its checkpoint."""

import math
import os
import re
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from resrepro.errors import UsageError

if TYPE_CHECKING:  # which imports torch, and a process that only looks on has no use for it
    from resrepro.training.measure import Errors

LOOK_EVERY = 0.5  # seconds between looks at the device; each one waits for it


class Sample(NamedTuple):
    """One point of the curves."""

    iteration: int  # updates made
    lr: float
    errors: "dict[str, Errors]"  # by set: "train", "val", "test"
    images_per_s: float  # NaN where a session measures before it has made a step


class Watcher:
    """Receives the events of a run; override what is of interest."""

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """A run starts, or goes on after `done` of `iterations` updates."""

    def step(self, done: int, lr: float, read: "Callable[[], Errors]") -> None:
        """Update number `done` was made; `read()`, the errors since the last sample, waits for the device."""

    def sample(self, sample: Sample) -> None:
        """The errors were measured."""

    def say(self, text: str) -> None:
        """Something worth a line happened."""

    def end(self) -> None:
        """The run stopped, for whatever reason."""


class Pace:
    """How fast a run comes on in this session, from its update number `done` on."""

    def __init__(self, done: int, iterations: int, batch_size: int) -> None:
        self.done_before = self.looked_at = done
        self.iterations, self.batch_size = iterations, batch_size
        self.started = self.looked = time.perf_counter()

    def is_due(self) -> bool:
        """Whether the last look is long enough ago for another."""
        return time.perf_counter() - self.looked >= LOOK_EVERY

    def look(self, done: int) -> float:
        """Images per second since the last look."""
        now = time.perf_counter()
        speed = (done - self.looked_at) * self.batch_size / (now - self.looked)
        self.looked, self.looked_at = now, done
        return speed

    def seconds_left(self, done: int) -> float:
        """By the speed of this session so far, evaluations included."""
        per_update = (time.perf_counter() - self.started) / max(done - self.done_before, 1)
        return per_update * (self.iterations - done)


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` where it is less than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sample_line(sample: Sample, pace: Pace) -> str:
    """A sample as a line of its own, with speed and time left where they are known."""
    line = f"iteration {sample.iteration:>6,}  lr {sample.lr:<7g} loss {sample.errors['train'].loss:.4f}"
    line += "".join(f"  {name} {error.top1_err:.2f} %" for name, error in sample.errors.items())
    if math.isnan(sample.images_per_s):
        return line
    left = clock(pace.seconds_left(sample.iteration))
    return f"{line}  {sample.images_per_s:,.0f} images/s  {left} left"


# Ctrl-C; what a scheduler or a closed terminal sends; what Slurm's --signal may be told to send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
ECHO = 2.0  # seconds in which a terminal, a scheduler, its job and torchrun may each pass on one signal


class Interrupts:
    """While active, the first signal is noted in `received`, for the run to stop at its next event. A second
    one acts at once, unless it is the echo of the first. Outside the main thread this does nothing.
    """

    def __init__(self) -> None:
        self.received, self._at = 0, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            attached = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN  # not so under nohup
            numbers = [number for number in SIGNALS if number != signal.SIGHUP or attached]
            self._before = {number: signal.signal(number, self._note) for number in numbers}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._at = number, time.monotonic()
        elif time.monotonic() - self._at > ECHO:
            self.__exit__()
            os.kill(os.getpid(), number)


SHARE = 0.01  # of the run's time that checkpoints may take by default
LEAST_SECONDS = 20.0  # between two of them by default: less is never worth a write
PART = re.compile(r"([1-9]\d{,8})(s|m|min|h)?")
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass
class CheckpointInterval:
    """How often a run writes its checkpoint: after so many iterations or seconds, whichever is first; without
    either as often as is cheap, by the time that the last one took (`cost`).
    """

    iterations: int | None = None
    seconds: float | None = None
    last: float = field(default_factory=time.perf_counter)
    cost: float = 0.0

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """`500` -> 500 iterations; `10m` -> 600 seconds; `500,10m` -> both; None -> neither (UsageError)."""
        limits: dict[str, int] = {}
        for part in text.replace(" ", "").split(",") if text is not None else ():
            match = PART.fullmatch(part)
            kind = "seconds" if match and match[2] else "iterations"
            if match is None or kind in limits:
                raise UsageError(
                    f"--checkpoint-every takes iterations, minutes or both (500, 10m, 500,10m), not {text!r}."
                )
            limits[kind] = int(match[1]) * SECONDS.get(match[2] or "", 1)
        return cls(**limits)

    def written(self, seconds: float) -> None:
        """A checkpoint was written just now, in so many seconds."""
        self.last, self.cost = time.perf_counter(), seconds

    def due(self, done: int) -> bool:
        """Whether one is due after `done` updates."""
        since = time.perf_counter() - self.last
        if self.iterations is None and self.seconds is None:
            return since >= max(LEAST_SECONDS, self.cost / SHARE)
        by_count = self.iterations is not None and done % self.iterations == 0
        return by_count or (self.seconds is not None and since >= self.seconds)
