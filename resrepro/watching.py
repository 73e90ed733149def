"""What training tells whoever looks on; the base class hears everything and says nothing."""

from collections.abc import Callable
from dataclasses import dataclass

from resrepro.metrics import Errors


@dataclass(frozen=True)
class Sample:
    """One point of the curves: errors by set ("train", "val", "test") after `iteration` updates."""

    iteration: int
    lr: float
    errors: dict[str, Errors]
    images_per_s: float


class Watcher:
    """Receives the events of a run; override what is of interest."""

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """A run starts, or goes on after `done` of `iterations` updates."""

    def step(self, done: int, lr: float, read: Callable[[], Errors]) -> None:
        """Update number `done` was made; `read()` waits for the device and gives the errors since
        the last sample, so call it rarely.
        """

    def sample(self, sample: Sample) -> None:
        """The errors were measured."""

    def say(self, text: str) -> None:
        """Something worth a line happened."""

    def end(self) -> None:
        """The run stopped, for whatever reason."""
