"""What a few seeds can tell: Student's t for a mean, Welch's for a difference, and how many seeds it takes.

All intervals are two-sided. Nothing here knows what the numbers are of.
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


def mean_of(values: Sequence[float]) -> Estimate | None:
    """The mean of some seeds by Student's t; None for fewer than two, or without any spread."""
    if len(values) < 2 or not (variance := statistics.variance(values)):
        return None
    return Estimate(statistics.fmean(values), math.sqrt(variance / len(values)), len(values) - 1)


def difference_of(first: Sequence[float], second: Sequence[float]) -> Estimate | None:
    """The mean of the first less that of the second by Welch's t, which takes no spreads for equal.

    None if one has fewer than two values, or if neither has any spread: then there is no test.
    """
    if min(len(first), len(second)) < 2:
        return None
    shares = [statistics.variance(values) / len(values) for values in (first, second)]
    total = sum(shares)
    if not total:
        return None
    # Welch and Satterthwaite
    parts = [share**2 / (len(values) - 1) for share, values in zip(shares, (first, second), strict=True)]
    gap = statistics.fmean(first) - statistics.fmean(second)
    return Estimate(gap, math.sqrt(total), total**2 / sum(parts))


def pooled_std(first: Sequence[float], second: Sequence[float]) -> float | None:
    """The standard deviation of two nets' seeds taken together; None if one has fewer than two."""
    if min(len(first), len(second)) < 2:
        return None
    freedom = len(first) + len(second) - 2
    squares = sum((len(values) - 1) * statistics.variance(values) for values in (first, second))
    return math.sqrt(squares / freedom)


def power_of(effect: float, seeds: int, level: float = LEVEL) -> float:
    """How often a two-sided two-sample t test with so many seeds per net tells two nets apart.

    `effect` is their difference in standard deviations (Cohen's d).
    """
    from scipy.special import nctdtr, stdtrit

    freedom = 2 * (seeds - 1)
    shift = abs(effect) * math.sqrt(seeds / 2)
    bound = float(stdtrit(freedom, (1 + level) / 2))
    return float(1 - nctdtr(freedom, shift, bound) + nctdtr(freedom, shift, -bound))


def seeds_needed(gap: float, std: float, power: float = POWER) -> int | None:
    """Seeds per net with which a gap is told from chance (5 %, two-sided) with the given power.

    None if that would take more than `MOST_SEEDS`; a spread of 0 cannot be told from an unknown one.
    """
    if not gap or not std:
        return None
    effect = abs(gap) / std
    low, high = 1, 2  # power rises with seeds: low never suffices, high is doubled until it does
    while power_of(effect, high) < power:
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power_of(effect, middle) >= power else (middle, high)
    return high
