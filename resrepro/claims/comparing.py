"""What the seeds of one net or two say of a claimed region, in numbers and in words.

A number over seeds is known up to an interval. Where some seeds did not get as far as the measure asks
(a level that a run never reached), theirs is a lower bound, so the interval is open to that side.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from resrepro.claims.entries import Net, Region
from resrepro.claims.measures import Measure
from resrepro.comparison.groups import SeedGroup
from resrepro.comparison.statistics import LEVEL, Estimate, difference_of, mean_of, pooled_std
from resrepro.records import Run

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"
ABOVE: Region = (0.0, math.inf)
MOST_DIGITS = 8


@dataclass(frozen=True)
class Seeds:
    """What a measure says of the seeds of a net.

    Attributes:
        values: of each seed that was measured.
        never: how many of these are lower bounds: what was waited for did not happen.
        lacking: the seeds that were not measured.
        diverged: the seeds that have no value as their training diverged.
        resolution: the step of the values.
    """

    values: tuple[float, ...] = ()
    never: int = 0
    lacking: tuple[Run, ...] = ()
    diverged: tuple[Run, ...] = ()
    resolution: float = 0.0

    @property
    def open(self) -> bool:
        """Whether seeds are missing whose values could turn a verdict."""
        return bool(self.lacking or self.diverged)


def seeds_of(measure: Measure, group: SeedGroup, held_out: str, left_out: Sequence[Run]) -> Seeds:
    """The seeds of a net as a measure reads them; `held_out` is the set that errors are measured on."""
    read = [(run, measure.value(run, held_out)) for run in group.runs]
    return Seeds(
        values=tuple(value for _, value in read if value is not None),
        never=sum(measure.never(run) for run, value in read if value is not None),
        lacking=tuple(run for run, value in read if value is None),
        diverged=tuple(run for run in left_out if run.status == "diverged"),
        resolution=max(map(measure.resolution, group.runs)),
    )


@dataclass(frozen=True)
class Comparison:
    """A mean, or the difference of two, that is to lie in a region."""

    seeds: Mapping[Net, Seeds]
    region: Region

    @property
    def nets(self) -> tuple[Net, ...]:
        """The net, or the two in their order."""
        return tuple(self.seeds)

    @property
    def name(self) -> str:
        """`plain-56`, or `plain-56 less plain-20`."""
        return " less ".join(net.label for net in self.nets)

    @property
    def counts(self) -> tuple[int, ...]:
        """How many values each net has."""
        return tuple(len(each.values) for each in self.seeds.values())

    @property
    def value(self) -> float:
        """The mean, or the first one's less the second one's."""
        first, *second = (statistics.fmean(each.values) for each in self.seeds.values())
        return first - sum(second)

    @property
    def step(self) -> float:
        """The resolution of the values, the coarser one of two nets."""
        return max(each.resolution for each in self.seeds.values())

    @property
    def estimate(self) -> Estimate | None:
        """The value with its error; None if that is not known."""
        first, *second = (each.values for each in self.seeds.values())
        return difference_of(first, second[0], self.step) if second else mean_of(first, self.step)

    @property
    def std(self) -> float:
        """The standard deviation of the seeds, of two nets pooled; 0 if it is not known."""
        first, *second = (each.values for each in self.seeds.values())
        return pooled_std(first, second[0] if second else first, self.step) or 0.0

    @property
    def unbounded(self) -> tuple[bool, bool]:
        """Whether the value may lie below, and above, any interval: as runs of one net never got there."""
        first, *second = (each.never > 0 for each in self.seeds.values())
        return any(second), first

    def state(self, comparisons: int) -> str:
        """Whether it lies in the region, as one of so many comparisons of a claim."""
        if any(each.open for each in self.seeds.values()):
            return UNDECIDED
        return state_of(self.estimate, self.region, comparisons, self.unbounded)

    def other_way(self, comparisons: int) -> bool:
        """Whether it is undecided only for the stricter level at which one of several comparisons fails."""
        if self.state(comparisons) != UNDECIDED or any(each.open for each in self.seeds.values()):
            return False
        return state_of(self.estimate, self.region, 1, self.unbounded) == FAILED


def strict_level(comparisons: int) -> float:
    """The level of the interval by which one of several comparisons fails (Bonferroni)."""
    return 1 - (1 - LEVEL) / comparisons


def state_of(
    estimate: Estimate | None,
    region: Region,
    comparisons: int,
    unbounded: tuple[bool, bool] = (False, False),
) -> str:
    """Whether a number lies in a region, as far as its interval tells; `unbounded` ends of it are open."""
    if estimate is None:
        return UNDECIDED
    low, high = _opened(estimate.interval(LEVEL), unbounded)
    if (region[0] < low or region[0] == -math.inf) and (high < region[1] or region[1] == math.inf):
        return HELD
    low, high = _opened(estimate.interval(strict_level(comparisons)), unbounded)
    return FAILED if high < region[0] or region[1] < low else UNDECIDED


def _opened(interval: tuple[float, float], unbounded: tuple[bool, bool]) -> tuple[float, float]:
    low, high = interval
    return -math.inf if unbounded[0] else low, math.inf if unbounded[1] else high


def together(states: Sequence[str]) -> str:
    """Failed if one is, held if all are; nothing at all is undecided."""
    if FAILED in states:
        return FAILED
    return HELD if states and set(states) == {HELD} else UNDECIDED


def told_of(each: Comparison, state: str, measure: Measure) -> str:
    """A comparison in words, with its interval: `plain-56 less plain-20 41.70 [39.14, 44.26]`."""
    if each.estimate is None:
        return f"{each.name} {measure.number(each.value)}"
    low, high = _opened(each.estimate.interval(), each.unbounded)
    digits = _digits((low, high), each.region, measure)
    first = "(−∞" if math.isinf(low) else f"[{measure.number(low, digits)}"
    last = "∞)" if math.isinf(high) else f"{measure.number(high, digits)}]"
    position = _position(each.region, state, measure, digits)
    return f"{each.name} {measure.number(each.value, digits)} {first}, {last}{position}"


def _digits(ends: tuple[float, float], region: Region, measure: Measure) -> int:
    """Decimals that show on which side of its region's bounds an interval ends."""
    pairs = [pair for pair in itertools.product(ends, region) if all(map(math.isfinite, pair))]
    for digits in range(measure.digits, MOST_DIGITS):
        if all(round(end, digits) != round(bound, digits) for end, bound in pairs):
            return digits
    return measure.digits


def _position(region: Region, state: str, measure: Measure, digits: int) -> str:
    """Where an interval lies that decides; of a claimed direction only what contradicts it is told."""
    if state == UNDECIDED or (region, state) == (ABOVE, HELD):
        return ""
    if region == ABOVE:
        return ", the other way"
    told = range_told(region, measure, digits)
    if state == FAILED:
        told = f"not {told}" if math.isinf(max(map(abs, region))) else told.replace("within", "outside")
    return f", {told}"


def range_told(region: Region, measure: Measure, digits: int) -> str:
    """`below 7.54`, `above 60.00` or `within −0.50 to 0.50`."""
    low, high = region
    if math.isinf(high):
        return f"above {measure.number(low, digits)}"
    if math.isinf(low):
        return f"below {measure.number(high, digits)}"
    return f"within {measure.number(low, digits)} to {measure.number(high, digits)}"
