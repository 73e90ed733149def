"""Intervals and power against scipy's own tests, textbook numbers, and simulated nets that do not differ."""

import statistics

import numpy as np
import pytest
from scipy import stats

from resrepro.significance import (
    difference_of,
    mean_of,
    pooled_std,
    power_of,
    seeds_needed,
)

FIVE, THREE = [6.4, 6.7, 6.5, 6.9, 6.6], [7.3, 6.8, 8.0]


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_a_difference_has_the_interval_of_welchs_test(level):
    theirs = stats.ttest_ind(FIVE, THREE, equal_var=False)
    found = difference_of(FIVE, THREE)
    assert found.value == pytest.approx(statistics.fmean(FIVE) - statistics.fmean(THREE))
    assert found.freedom == pytest.approx(theirs.df)
    assert found.interval(level) == pytest.approx(tuple(theirs.confidence_interval(level)))


def test_a_mean_has_the_interval_of_students_test():
    theirs = stats.ttest_1samp(FIVE, 0).confidence_interval(0.95)
    assert mean_of(FIVE).interval() == pytest.approx(tuple(theirs))


@pytest.mark.parametrize(("first", "second"), [([1.0], THREE), (FIVE, []), ([2.0, 2.0], [1.0, 1.0])])
def test_one_seed_or_no_spread_at_all_is_no_test(first, second):
    assert difference_of(first, second) is None
    assert mean_of(first if len(first) < 2 or first[0] == first[1] else second) is None


def test_a_spread_of_one_net_alone_is_enough():
    assert difference_of([2.0, 2.0], THREE).interval()[0] < -5


# Cohen (1988), Table 2.4.1 for a two-sided 5 % and a power of 80 %: n per group; checked by other programs.
@pytest.mark.parametrize(
    ("effect", "seeds"), [(0.2, 394), (0.5, 64), (0.8, 26), (1.0, 17), (1.2, 12), (1.4, 10)]
)
def test_the_seeds_needed_are_those_of_cohens_table(effect, seeds):
    assert seeds_needed(effect, 1.0) == seeds_needed(-3 * effect, 3.0) == seeds
    assert power_of(effect, seeds) >= 0.8 > power_of(effect, seeds - 1)


def test_power_is_what_simulated_nets_show():
    rng = np.random.default_rng(0)
    first, second = rng.normal(1.5, 1, (4000, 5)), rng.normal(0, 1, (4000, 5))
    told = stats.ttest_ind(first, second, axis=1).pvalue < 0.05
    assert power_of(1.5, 5) == pytest.approx(told.mean(), abs=0.03)


def test_what_cannot_be_estimated_is_none_and_a_gap_far_above_the_spread_takes_two_seeds():
    assert seeds_needed(0, 1) is None
    assert seeds_needed(1, 0) is None
    assert seeds_needed(0.001, 1) is None  # beyond any number worth naming
    assert seeds_needed(40, 0.3) == 2


def test_the_pooled_deviation_weighs_by_degrees_of_freedom():
    squares = [sum((x - statistics.fmean(values)) ** 2 for x in values) for values in (FIVE, THREE)]
    assert pooled_std(FIVE, THREE) == pytest.approx((sum(squares) / 6) ** 0.5)
    assert pooled_std([1.0], THREE) is None


def test_nets_that_do_not_differ_are_told_apart_in_about_one_of_twenty_cases():
    rng = np.random.default_rng(1)
    above = below = 0
    for first, second in rng.normal(10, 1, (3000, 2, 4)):
        low, high = difference_of(list(first), list(second)).interval()
        above, below = above + (low > 0), below + (high < 0)
    assert 0.015 < above / 3000 < 0.033
    assert 0.015 < below / 3000 < 0.033
