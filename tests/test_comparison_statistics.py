"""Intervals and power against scipy's own tests and textbook numbers; the statistics of nets, by hand."""

import math
import statistics

import numpy as np
import pytest
from conftest import FIRST_IMAGES, write_test_eval
from scipy import integrate, stats

from resrepro.comparison.statistics import (
    MOST_SEEDS,
    build_statistics,
    chosen_on_validation,
    difference_of,
    mean_of,
    pooled_std,
    power_of,
    seeds_needed,
    variance_of,
)
from resrepro.comparison.table import DASH
from resrepro.errors import UsageError
from resrepro.records.collection import collect

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


def test_seeds_that_agree_are_known_to_within_their_resolution():
    step = 100.0
    exact = np.random.default_rng(3).uniform(-step / 2, step / 2, 100_000)  # what rounding to a step hides
    assert variance_of([400, 400], step) == pytest.approx(exact.var(), rel=0.01)
    reach = float(stats.t.ppf(0.975, 4)) * step / math.sqrt(12 * 5)
    assert mean_of([400] * 5, step).interval() == pytest.approx((400 - reach, 400 + reach))
    assert difference_of([2.0, 2.0], [1.0, 1.0], 0.01).interval()[0] > 0.9
    assert pooled_std([2.0, 2.0], [1.0, 1.0], 0.01) == pytest.approx(0.01 / math.sqrt(12))
    assert mean_of(FIVE, 0.01) == mean_of(FIVE)  # a spread beyond it is what it is


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


@pytest.mark.parametrize(("effect", "seeds"), [(8, 2), (8, 5), (12, 2), (1.6, 64), (50, 3), (1e5, 2)])
def test_power_of_large_effects_is_that_of_the_integral(effect, seeds):
    freedom, shift = 2 * (seeds - 1), effect * math.sqrt(seeds / 2)
    bound = stats.t.ppf(0.975, freedom)

    def told_apart(squares):  # times the density of a chi-squared number of so many degrees of freedom
        reach = bound * math.sqrt(squares / freedom)
        both = stats.norm.sf(reach - shift) + stats.norm.cdf(-reach - shift)
        return both * stats.chi2.pdf(squares, freedom)

    end = freedom + 40 * math.sqrt(2 * freedom) + 40
    assert power_of(effect, seeds) == pytest.approx(
        integrate.quad(told_apart, 0, end, limit=300)[0], abs=1e-6
    )


def test_no_more_seeds_are_named_than_are_worth_naming():
    assert seeds_needed(0.036, 1) is None  # 12,114
    assert 9_000 < seeds_needed(0.0401, 1) <= MOST_SEEDS


def test_a_stricter_level_takes_more_seeds():
    assert power_of(1.0, 17, 0.95) >= 0.8 > power_of(1.0, 17, 0.99)
    assert seeds_needed(1.0, 1.0, level=0.99) == 26  # Cohen (1988), two-sided 1 %


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


CURVES = {0: [(1000, 9.0, 12.0), (63_000, 2.0, 8.5), (64_000, 1.0, 9.0)], 1: [(64_000, 1.0, 10.0)]}


def rows_of(table):
    return [dict(zip(table.columns, row.cells, strict=True)) for row in table.rows]


@pytest.fixture
def two_seeds(make_run, tmp_path):
    for seed, curve in CURVES.items():
        make_run(tmp_path, "cifar10-resnet20", seed, curve=curve)
    return collect([tmp_path])


def test_last_best_run_and_best_sample_stand_side_by_side(two_seeds):
    table = build_statistics("table6", two_seeds)
    assert rows_of(table) == [
        {
            "net": "ResNet-20", "set": "test", "last": "9.50±0.71 (2)", "best run": "9.00",
            "best sample": "8.50", "chosen on validation": DASH,
        }
    ]  # fmt: skip
    assert table.records[0]["last_of_each_seed"] == "9 10"
    assert table.name == "table6-statistics"


class Sampled:
    """A run by its sampled errors alone: two samples share the lowest validation error."""

    def __init__(self, **errors):
        self.errors = errors

    def top1_errors(self, part):
        return self.errors.get(part, {})


def test_the_lowest_validation_error_chooses_and_the_first_of_equals_counts():
    validation, test = {1000: 7.0, 2000: 6.0, 64_000: 6.0}, {1000: 3.0, 2000: 4.0, 64_000: 5.0}
    assert chosen_on_validation(Sampled(val=validation, test=test)) == 4.0
    assert chosen_on_validation(Sampled(test=test)) is None


def test_a_run_that_measured_both_sets_has_a_row_for_each(make_run, tmp_path):
    make_run(tmp_path, split="45k5k", curve=[(1000, 9, 7.0), (2000, 8, 6.0), (64_000, 1, 6.5)])
    validation, test = rows_of(build_statistics("table6", collect([tmp_path])))
    assert (validation["set"], validation["chosen on validation"]) == ("validation", DASH)
    assert (test["set"], test["last"], test["chosen on validation"]) == ("test", "6.50 (1)", "6.00 (1)")


def test_only_the_set_of_the_row_is_told(make_run, tmp_path):
    make_run(tmp_path, split="45k5k")
    notes = build_statistics("table6", collect([tmp_path])).notes
    assert notes == ("trained on 45,000 images and validated on the last 5,000",)


def test_a_part_of_the_test_set_is_called_so_and_later_evaluations_play_no_part(make_run, tmp_path):
    folder = make_run(tmp_path, split="45k5k", curve=[(64_000, 1, 6.5)], test_images=1000)
    write_test_eval(folder, 8.7)
    table = build_statistics("table6", collect([tmp_path]))
    validation, test = rows_of(table)
    assert (validation["set"], test["set"], test["last"]) == ("validation", "test (1,000)", "6.50 (1)")
    assert [row.notes for row in table.rows] == [(1,), (1, 2)]
    assert table.notes[1] == FIRST_IMAGES.format(1000)


def test_groups_of_one_net_have_rows_of_their_own_the_longest_first(make_run, tmp_path):
    make_run(tmp_path, iterations=2000, curve=[(2000, 1, 30.0)])
    make_run(tmp_path, curve=[(64_000, 1, 9.0)])
    rows = rows_of(build_statistics("table6", collect([tmp_path])))
    assert [row["last"] for row in rows] == ["9.00 (1)", "30.00 (1)"]


def test_several_folders_are_counted(make_run, tmp_path):
    make_run(tmp_path / "runs")
    make_run(tmp_path / "results", seed=1)
    table = build_statistics("table6", collect([tmp_path / "runs", tmp_path / "results"]))
    assert table.remarks[0] == "Runs read: 1 of runs and 1 of results."


@pytest.mark.parametrize("exhibit", ["table1", "table5"])
def test_what_is_not_of_single_nets_is_refused(exhibit):
    with pytest.raises(UsageError, match="not made of runs of single nets; there are table2"):
        build_statistics(exhibit, collect([]))
