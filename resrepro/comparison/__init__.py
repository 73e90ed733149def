"""Our runs beside the paper's numbers: which share a cell, their tables, and here what a few seeds can tell.

Student's t for a mean, Welch's for a difference, and how many seeds it takes; all intervals are two-sided.
A `resolution` is the step in which a quantity is measured: seeds that agree may still differ by less than one
step, so their variance counts as at least that of a number rounded to it, a twelfth of its square.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 100  # per net that are named; nobody trains more


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two: its value, standard error and degrees of freedom."""

    value: float
    error: float
    freedom: float
    std: float  # of the seeds about the mean of their net

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The two-sided interval of a level, e.g. 0.95."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return self.value - reach, self.value + reach

    def lies_in(self, low: float, high: float, comparisons: int = 1) -> bool | None:
        """Whether it lies between two bounds, as far as its interval tells; None if that does not. One of
        several comparisons lies outside only by a stricter interval.
        """
        first, last = self.interval()
        if low < first and last < high:
            return True
        first, last = self.interval(strict_level(comparisons))
        return False if last < low or high < first else None


def strict_level(comparisons: int) -> float:
    """The level of the interval by which one of several comparisons fails (Bonferroni)."""
    return 1 - (1 - LEVEL) / comparisons


def estimate(nets: Sequence[Sequence[float]], resolution: float = 0.0) -> Estimate | None:
    """The mean of one net's seeds, or that of a first net less that of a second, unequal spreads allowed.
    None where a net has fewer than two seeds, and where there is neither a spread nor a resolution.
    """
    if min(map(len, nets)) < 2:
        return None
    variances = [max(statistics.variance(values), resolution**2 / 12) for values in nets]
    if not any(variances):
        return None
    counts = list(map(len, nets))
    shares = [variance / count for variance, count in zip(variances, counts, strict=True)]
    # Welch and Satterthwaite; of a single net the seeds less one
    parts = sum(share**2 / (count - 1) for share, count in zip(shares, counts, strict=True))
    squares = sum(variance * (count - 1) for variance, count in zip(variances, counts, strict=True))
    first, *second = map(statistics.fmean, nets)
    freedom, std = sum(shares) ** 2 / parts, math.sqrt(squares / (sum(counts) - len(nets)))
    return Estimate(first - sum(second), math.sqrt(sum(shares)), freedom, std)


def power_of(effect: float, seeds: int, level: float = LEVEL) -> float:
    """How often a two-sided t test with so many seeds per net finds a difference of `effect` (Cohen's d)."""
    from scipy.special import nctdtr, stdtrit

    freedom = 2 * (seeds - 1)
    shift = abs(effect) * math.sqrt(seeds / 2)
    bound = float(stdtrit(freedom, (1 + level) / 2))
    below = (float(nctdtr(freedom, shift, end)) for end in (bound, -bound))
    missed, reversed_ = (share if math.isfinite(share) else 0.0 for share in below)  # too small: scipy's nan
    return 1 - missed + reversed_


def seeds_needed(gap: float, std: float, level: float = LEVEL) -> int | None:
    """Seeds per net that tell a gap from chance in four cases of five; None if more than `MOST_SEEDS`."""
    return next((n for n in range(2, MOST_SEEDS + 1) if power_of(gap / std, n, level) >= POWER), None)
