"""The statistics side by side, and the power table, from made-up records worked out by hand."""

import pytest

from resrepro.comparison.power_table import build_power
from resrepro.comparison.statistics_table import build_statistics, chosen_on_validation
from resrepro.comparison.tables import DASH
from resrepro.errors import UsageError
from resrepro.figures.exhibits import tables_about
from resrepro.records import collect

CURVES = {0: [(1000, 9.0, 12.0), (63_000, 2.0, 8.5), (64_000, 1.0, 9.0)], 1: [(64_000, 1.0, 10.0)]}


def runs_in(folder):
    found = collect([folder])
    assert not found.broken
    return found.runs


def rows_of(table):
    return [dict(zip(table.columns, row.cells, strict=True)) for row in table.rows]


@pytest.fixture
def two_seeds(make_run, tmp_path):
    for seed, curve in CURVES.items():
        make_run(tmp_path, "cifar10-resnet20", seed, curve=curve)
    return runs_in(tmp_path)


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
    validation, test = rows_of(build_statistics("table6", runs_in(tmp_path)))
    assert (validation["set"], validation["chosen on validation"]) == ("validation", DASH)
    assert (test["set"], test["last"], test["chosen on validation"]) == ("test", "6.50 (1)", "6.00 (1)")


def test_only_the_set_of_the_row_is_told(make_run, tmp_path):
    make_run(tmp_path, split="45k5k")
    notes = build_statistics("table6", runs_in(tmp_path)).notes
    assert notes == ("trained on 45,000 images and validated on the last 5,000",)


def test_the_seeds_that_tell_neighbours_apart_by_hand(make_run, tmp_path):
    for seed, shift in enumerate((-1.0, 0.0, 1.0)):  # a deviation of 1 each, and gaps of 1 and of 0.5
        for depth, middle in ((20, 9.0), (32, 8.0), (44, 7.5)):
            make_run(tmp_path, f"cifar10-resnet{depth}", seed, curve=[(64_000, 1, middle + shift)])
    table = build_power("table6", runs_in(tmp_path))
    assert [(row["nets"], row["gap"], row["std"], row["seeds per net"]) for row in rows_of(table)] == [
        ("ResNet-20, ResNet-32", "+1.00", "1.00", "17"),  # Cohen (1988), d = 1
        ("ResNet-32, ResNet-44", "+0.50", "1.00", "64"),  # d = 0.5
    ]


def test_without_a_spread_no_number_of_seeds_is_made_up(two_seeds, make_run, tmp_path):
    make_run(tmp_path, "cifar10-resnet32", curve=[(64_000, 1, 7.5)])
    table = build_power("table6", runs_in(tmp_path))
    assert rows_of(table)[0]["seeds per net"] == DASH
    assert table.notes == ("cannot be estimated: a spread takes two seeds of each net",)


def test_a_gap_that_no_one_will_tell_apart_says_so(make_run, tmp_path):
    for seed, shift in enumerate((-1.0, 0.0, 1.0)):
        make_run(tmp_path, "cifar10-resnet20", seed, curve=[(64_000, 1, 9.001 + shift)])
        make_run(tmp_path, "cifar10-resnet32", seed, curve=[(64_000, 1, 9 + shift)])
    assert rows_of(build_power("table6", runs_in(tmp_path)))[0]["seeds per net"] == ">10000"


def test_an_error_is_called_by_the_set_that_it_was_measured_on(make_run, tmp_path):
    for net in ("resnet20", "resnet32"):
        for seed in (0, 1):
            make_run(tmp_path, f"cifar10-{net}", seed, split="45k5k", curve=[(64_000, 1, 9.0 + seed)])
    table = build_power("table6", runs_in(tmp_path))
    assert [row["error"] for row in rows_of(table)] == ["validation"]
    assert table.records[0]["error"] == "validation"


def test_training_errors_recorded_over_different_intervals_are_no_neighbours(make_run, tmp_path):
    make_run(tmp_path, "cifar10-plain20")
    make_run(tmp_path, "cifar10-plain56", eval_every=500)
    assert build_power("figure1", runs_in(tmp_path)).rows == ()


def test_seeds_that_are_left_out_are_told(make_run, tmp_path):
    for net in ("resnet20", "resnet32"):
        make_run(tmp_path, f"cifar10-{net}", curve=[(64_000, 1, 9.0)])
    make_run(tmp_path, "cifar10-resnet32", 1, curve=[(3000, 90, 90)], status="diverged")
    assert "Left out: ResNet-32 seed 1 (diverged at iteration 3,000)." in (
        build_power("table6", runs_in(tmp_path)).notes
    )


def test_plain_and_residual_nets_are_no_neighbours_and_neither_are_two_protocols(make_run, tmp_path):
    make_run(tmp_path, "cifar10-resnet56")
    make_run(tmp_path, "cifar10-plain20")
    make_run(tmp_path, "cifar10-plain56", lr=0.05)
    table = build_power("figure6", runs_in(tmp_path))
    assert table.rows == ()
    assert table.remarks == ("There are no two nets with finished runs under one protocol.",)


@pytest.mark.parametrize("exhibit", ["table1", "table5"])
def test_what_is_not_of_single_nets_is_refused(exhibit):
    with pytest.raises(UsageError, match="not made of runs of single nets; there are table2"):
        build_statistics(exhibit, [])


def test_both_are_to_be_had_at_once(two_seeds):
    made = tables_about("table6", two_seeds, statistics=True, power=True)
    assert [table.name for table in made] == ["table6-statistics", "table6-power"]
    assert tables_about("table6", two_seeds, statistics=False, power=False) == []
