"""Intervals and power against scipy's own tests and textbook numbers."""

import math
import statistics

import numpy as np
import pytest
from scipy import integrate, stats

from resrepro.comparison import MOST_SEEDS, estimate, power_of, seeds_needed

FIVE, THREE = [6.4, 6.7, 6.5, 6.9, 6.6], [7.3, 6.8, 8.0]


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
def test_a_difference_has_the_interval_of_welchs_test(level):
    theirs = stats.ttest_ind(FIVE, THREE, equal_var=False)
    found = estimate([FIVE, THREE])
    assert found.value == pytest.approx(statistics.fmean(FIVE) - statistics.fmean(THREE))
    assert found.freedom == pytest.approx(theirs.df)
    assert found.interval(level) == pytest.approx(tuple(theirs.confidence_interval(level)))


def test_a_mean_has_the_interval_of_students_test():
    theirs = stats.ttest_1samp(FIVE, 0).confidence_interval(0.95)
    assert estimate([FIVE]).interval() == pytest.approx(tuple(theirs))


@pytest.mark.parametrize(
    "nets", [([1.0], THREE), (FIVE, []), ([2.0, 2.0], [1.0, 1.0]), ([1.0],), ([2.0, 2.0],)]
)
def test_one_seed_or_no_spread_at_all_is_no_test(nets):
    assert estimate(nets) is None


def test_seeds_that_agree_are_known_to_within_their_resolution():
    step = 100.0
    exact = np.random.default_rng(3).uniform(-step / 2, step / 2, 100_000)  # what rounding to a step hides
    assert estimate([[400, 400]], step).std == pytest.approx(exact.std(), rel=0.01)
    reach = float(stats.t.ppf(0.975, 4)) * step / math.sqrt(12 * 5)
    assert estimate([[400] * 5], step).interval() == pytest.approx((400 - reach, 400 + reach))
    assert estimate([[2.0, 2.0], [1.0, 1.0]], 0.01).interval()[0] > 0.9
    assert estimate([FIVE], 0.01) == estimate([FIVE])  # a spread beyond it is what it is
    assert estimate([[2.0, 2.0], THREE]).interval()[0] < -5  # that of one net alone is enough


def test_the_pooled_deviation_weighs_by_degrees_of_freedom():
    squares = [sum((x - statistics.fmean(values)) ** 2 for x in values) for values in (FIVE, THREE)]
    assert estimate([FIVE, THREE]).std == pytest.approx((sum(squares) / 6) ** 0.5)


# Cohen (1988), Table 2.4.1 for a two-sided 5 % and a power of 80 %: n per group; checked by other programs.
@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 64), (0.8, 26), (1.0, 17), (1.2, 12), (1.4, 10)])
def test_the_seeds_needed_are_those_of_cohens_table(effect, seeds):
    assert seeds_needed(effect, 1.0) == seeds_needed(-3 * effect, 3.0) == seeds
    assert power_of(effect, seeds) >= 0.8 > power_of(effect, seeds - 1)


def test_no_more_seeds_are_named_than_are_worth_naming():
    assert seeds_needed(0, 1) is seeds_needed(0.39, 1) is None
    assert 95 < seeds_needed(0.4, 1) <= MOST_SEEDS
    assert seeds_needed(40, 0.3) == 2
    assert seeds_needed(1.0, 1.0, level=0.99) == 26  # Cohen (1988), two-sided 1 %


@pytest.mark.parametrize(("effect", "seeds"), [(8, 2), (12, 2), (1.6, 64), (50, 3), (1e5, 2)])
def test_power_of_large_effects_is_that_of_the_integral(effect, seeds):
    freedom, shift = 2 * (seeds - 1), effect * math.sqrt(seeds / 2)
    bound = stats.t.ppf(0.975, freedom)

    def told_apart(squares):  # times the density of a chi-squared number of so many degrees of freedom
        reach = bound * math.sqrt(squares / freedom)
        both = stats.norm.sf(reach - shift) + stats.norm.cdf(-reach - shift)
        return both * stats.chi2.pdf(squares, freedom)

    end = freedom + 40 * math.sqrt(2 * freedom) + 40
    expected = integrate.quad(told_apart, 0, end, limit=300)[0]
    assert power_of(effect, seeds) == pytest.approx(expected, abs=1e-6)


def test_nets_that_do_not_differ_are_told_apart_in_about_one_of_twenty_cases():
    pairs = np.random.default_rng(1).normal(10, 1, (3000, 2, 4))
    intervals = [estimate(pair.tolist()).interval() for pair in pairs]
    assert 0.015 < sum(low > 0 for low, _ in intervals) / 3000 < 0.033
    assert 0.015 < sum(high < 0 for _, high in intervals) / 3000 < 0.033
