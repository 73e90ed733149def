"""How often a run writes its checkpoint."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from resrepro.errors import UsageError

SHARE = 0.01  # of the run's time that checkpoints may take by default
LEAST_SECONDS = 20.0  # between two of them by default: less is never worth a write
PART = re.compile(r"(\d+)(?:(s|m|min|h)?)")
SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Every:
    """After so many iterations, or so many seconds, whichever is first; by default as often as is cheap."""

    iterations: int | None = None
    seconds: float | None = None


def parse_every(text: str | None) -> Every:
    """`500` -> 500 iterations; `10m` -> 600 seconds; `500,10m` -> both, whichever is first.

    Raises:
        UsageError: if it is none of these.
    """
    found: dict[str, int] = {}
    for part in [] if text is None else text.replace(" ", "").split(","):
        match = PART.fullmatch(part)
        kind = "seconds" if match and match[2] else "iterations"
        if match is None or kind in found or not 1 <= int(match[1]) <= 10**9:
            raise UsageError(
                f"--checkpoint-every takes iterations, minutes or both (500, 10m, 500,10m), not {text!r}."
            )
        found[kind] = int(match[1]) * SECONDS.get(match[2] or "", 1)
    return Every(**found)


class Cadence:
    """Tells when the next checkpoint is due, from the time that the last one took."""

    def __init__(self, every: Every, clock: Callable[[], float] = time.perf_counter) -> None:
        self.every, self.clock = every, clock
        self.last = clock()
        self.cost = 0.0

    def written(self, seconds: float) -> None:
        """A checkpoint was written just now, in so many seconds."""
        self.last, self.cost = self.clock(), seconds

    def due(self, done: int) -> bool:
        """Whether one is due after `done` updates."""
        since = self.clock() - self.last
        if self.every == Every():
            return since >= max(LEAST_SECONDS, self.cost / SHARE)
        by_count = self.every.iterations is not None and done % self.every.iterations == 0
        return by_count or (self.every.seconds is not None and since >= self.every.seconds)
