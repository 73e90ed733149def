"""What training tells whoever looks on; the base class hears everything and says nothing."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # which imports torch, and a process that only looks on has no use for it
    from resrepro.training.metrics import Errors

LOOK_EVERY = 0.5  # seconds between looks at the device; each one waits for it


@dataclass(frozen=True)
class Sample:
    """One point of the curves: errors by set ("train", "val", "test") after `iteration` updates.

    `images_per_s` is NaN where a session measures before it has made a step.
    """

    iteration: int
    lr: float
    errors: "dict[str, Errors]"
    images_per_s: float


class Watcher:
    """Receives the events of a run; override what is of interest."""

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """A run starts, or goes on after `done` of `iterations` updates."""

    def step(self, done: int, lr: float, read: "Callable[[], Errors]") -> None:
        """Update number `done` was made; `read()` waits for the device and gives the errors since
        the last sample, so call it rarely.
        """

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
        each = (time.perf_counter() - self.started) / max(done - self.done_before, 1)
        return each * (self.iterations - done)


def clock(seconds: float) -> str:
    """`1:02:03`, or `2:03` where it is less than an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sample_line(sample: Sample, pace: Pace) -> str:
    """A sample as a line of its own."""
    told = f"iteration {sample.iteration:>6,}  lr {sample.lr:<7g} {errors_line(sample)}"
    if math.isnan(sample.images_per_s):  # nothing is known of the time either
        return told
    left = clock(pace.seconds_left(sample.iteration))
    return f"{told}  {sample.images_per_s:,.0f} images/s  {left} left"


def errors_line(sample: Sample) -> str:
    """`loss 0.1234  train 1.20 %  test 9.30 %`."""
    parts = [f"{name} {error.top1_err:.2f} %" for name, error in sample.errors.items()]
    return "  ".join([f"loss {sample.errors['train'].loss:.4f}", *parts])
