"""What a few seeds can tell: Student's t for a mean, Welch's for a difference, and how many seeds it takes.

All intervals are two-sided. Nothing here knows what the numbers are of. A `resolution` is the step in which
a quantity is measured: seeds that agree may still differ by less than one step, so their variance counts as
at least that of a number rounded to it, a twelfth of its square.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
POWER = 0.8
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean, or a difference of two: its value, standard error and degrees of freedom."""

    value: float
    error: float
    freedom: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """The two-sided interval of a level, e.g. 0.95."""
        from scipy.special import stdtrit

        reach = float(stdtrit(self.freedom, (1 + level) / 2)) * self.error
        return self.value - reach, self.value + reach


def variance_of(values: Sequence[float], resolution: float = 0.0) -> float:
    """The variance of two seeds or more, never below what their resolution leaves open."""
    return max(statistics.variance(values), resolution**2 / 12)


def mean_of(values: Sequence[float], resolution: float = 0.0) -> Estimate | None:
    """The mean of some seeds by Student's t; None for fewer than two, or without spread and resolution."""
    if len(values) < 2 or not (variance := variance_of(values, resolution)):
        return None
    return Estimate(statistics.fmean(values), math.sqrt(variance / len(values)), len(values) - 1)


def difference_of(
    first: Sequence[float], second: Sequence[float], resolution: float = 0.0
) -> Estimate | None:
    """The mean of the first less that of the second by Welch's t, which takes no spreads for equal.

    None if one has fewer than two values, or if there is neither a spread nor a resolution: then there is no
    test.
    """
    if min(len(first), len(second)) < 2:
        return None
    shares = [variance_of(values, resolution) / len(values) for values in (first, second)]
    total = sum(shares)
    if not total:
        return None
    # Welch and Satterthwaite
    parts = [share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)]
    gap = statistics.fmean(first) - statistics.fmean(second)
    return Estimate(gap, math.sqrt(total), total**2 / sum(parts))


def pooled_std(first: Sequence[float], second: Sequence[float], resolution: float = 0.0) -> float | None:
    """The standard deviation of two nets' seeds taken together; None if one has fewer than two."""
    if min(len(first), len(second)) < 2:
        return None
    freedom = len(first) + len(second) - 2
    squares = sum((len(values) - 1) * variance_of(values, resolution) for values in (first, second))
    return math.sqrt(squares / freedom)


def power_of(effect: float, seeds: int, level: float = LEVEL) -> float:
    """How often a two-sided two-sample t test with so many seeds per net tells two nets apart.

    `effect` is their difference in standard deviations (Cohen's d).
    """
    from scipy.special import nctdtr, stdtrit

    freedom = 2 * (seeds - 1)
    shift = abs(effect) * math.sqrt(seeds / 2)
    bound = float(stdtrit(freedom, (1 + level) / 2))
    below = (float(nctdtr(freedom, shift, end)) for end in (bound, -bound))
    missed, reversed_ = (share if math.isfinite(share) else 0.0 for share in below)  # too small: scipy's nan
    return 1 - missed + reversed_


def seeds_needed(gap: float, std: float, power: float = POWER, level: float = LEVEL) -> int | None:
    """Seeds per net with which a gap is told from chance (two-sided, at a level) with the given power.

    None if that would take more than `MOST_SEEDS`; a spread of 0 cannot be told from an unknown one.
    """
    if not gap or not std:
        return None
    effect = abs(gap) / std
    low, high = 1, 2  # power rises with seeds: low never suffices, high is doubled until it does
    while power_of(effect, high, level) < power:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, middle, level) >= power else (middle, high)
    return high
