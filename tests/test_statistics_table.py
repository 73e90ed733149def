"""The statistics side by side, from made-up records worked out by hand."""

import pytest
from conftest import FIRST_IMAGES, write_test_eval

from resrepro.comparison.statistics_table import build_statistics, chosen_on_validation
from resrepro.comparison.tables import DASH
from resrepro.errors import UsageError
from resrepro.records.collection import collect

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
