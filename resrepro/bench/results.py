"""What a benchmark measured, and the numbers that follow from it. Nothing here imports torch."""

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from resrepro.bench.contestants import USUAL, Contestant, Plan, twin_without_engine
from resrepro.bench.work import step_operations


@dataclass(frozen=True)
class Turn:
    """What a contestant did in one round."""

    images: int
    seconds: float

    @property
    def speed(self) -> float:
        """Images per second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Range:
    """The median over rounds, and the lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """That of some values, at least one."""
        listed = sorted(values)
        return cls(statistics.median(listed), listed[0], listed[-1])


@dataclass(frozen=True)
class Entry:
    """A contestant and its turns, one per round.

    Attributes:
        engine: what computed (see `training.engine`).
        data_seconds: for a batch of the data pipeline alone.
        memory_mib: the most that it held, of the GPU's memory where it computes there.
        compile_seconds: what its engine took before the first step at full speed.
    """

    contestant: Contestant
    turns: tuple[Turn, ...]
    data_seconds: float
    memory_mib: float
    compile_seconds: float
    engine: str = "eager"

    @property
    def speed(self) -> Range:
        """Images per second."""
        return Range.of(turn.speed for turn in self.turns)

    @property
    def step_seconds(self) -> float:
        """For a training step, by the median."""
        return self.contestant.batch_size / self.speed.median

    @property
    def operations_per_second(self) -> float:
        """Of convolutions and the fully connected layer (see `work`), by the median."""
        return step_operations(self.contestant.depth) * self.speed.median

    @property
    def data_share(self) -> float:
        """What the data pipeline alone takes, against a step; where workers run beside it may exceed 1."""
        return self.data_seconds / self.step_seconds


@dataclass(frozen=True)
class Outcome:
    """All of a benchmark: `machine` in words; `peaks` the most matrix operations per second by precision."""

    plan: Plan
    machine: Mapping[str, Any]
    entries: tuple[Entry, ...]
    peaks: Mapping[str, float]

    def of(self, depth: int) -> tuple[Entry, ...]:
        """The entries of one net."""
        return tuple(entry for entry in self.entries if entry.contestant.depth == depth)

    def find(self, depth: int, mode: str) -> Entry | None:
        """The entry of a net and mode: of the usual loop the one with the better number of workers."""
        found = [entry for entry in self.of(depth) if entry.contestant.mode == mode]
        return max(found, key=lambda entry: entry.speed.median, default=None)

    def shown(self, depth: int) -> tuple[Entry, ...]:
        """The entries of a net, one per mode."""
        found = [self.find(depth, mode) for mode in self.plan.modes]
        return tuple(entry for entry in found if entry is not None)

    def ratio(self, entry: Entry) -> Range | None:
        """How much faster than the usual loop, round by round; None if that did not take part."""
        usual = self.find(entry.contestant.depth, USUAL)
        return None if usual is None else ratio_of(entry, usual)

    def share_of_peak(self, entry: Entry) -> float:
        """Achieved operations against those of the machine's matrix product in the same precision."""
        return entry.operations_per_second / self.peaks[entry.contestant.arithmetic.precision]

    def breaks_even(self, entry: Entry) -> int | None:
        """The iterations after which the engine has paid for its start.

        None if it has no start to pay for, the same mode without it was not measured, or it never pays.
        """
        twin = twin_without_engine(entry.contestant.mode, self.plan.modes)
        eager = None if twin is None else self.find(entry.contestant.depth, twin)
        if eager is None or not entry.compile_seconds:
            return None
        saved = eager.step_seconds - entry.step_seconds
        return math.ceil(entry.compile_seconds / saved) if saved > 0 else None


def ratio_of(entry: Entry, base: Entry) -> Range:
    """The ratio of speeds within each round: what slows the machine down for a while slows both."""
    pairs = zip(entry.turns, base.turns, strict=True)
    return Range.of(one.speed / other.speed for one, other in pairs)
