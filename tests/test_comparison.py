"""Tables from made-up records whose right answer is known by hand."""

import csv
import io
import statistics

import pytest

from resrepro.comparison import build, cells_of, compare, spell_mean
from resrepro.errors import UsageError
from resrepro.records import collect
from resrepro.tables import DASH, to_csv, to_markdown

ENDS_110 = {0: 6.4, 1: 6.7, 2: 6.5, 3: 6.9, 4: 6.6}


def rows_of(table, label):
    """The rows of a net: its own line and the variants below it, as {column: cell}."""
    found = []
    for row in table.rows:
        if row.cells[0] == label or (found and row.cells[0].startswith("↳")):
            found.append(dict(zip(table.columns, row.cells, strict=True)) | {"notes": row.notes})
        elif found:
            break
    return found


def runs_in(folder):
    collection = collect([folder])
    assert not collection.broken
    return collection.runs


@pytest.fixture
def five_of_110(make_run, tmp_path):
    for seed, end in ENDS_110.items():
        make_run(
            tmp_path,
            "cifar10-resnet110",
            seed,
            curve=[(1000, 50.0, 60.0), (63000, 0.2, end - 0.1), (64000, 0.1, end)],
        )
    return tmp_path


def test_without_runs_the_paper_still_stands_and_each_gap_names_its_command(tmp_path):
    table = build("table6", [])
    cells = {row.cells[0]: row.cells for row in table.rows}
    assert [cells[name][3] for name in ("Maxout", "NIN", "DSN", "FitNet-19", "Highway-32")] == [
        "9.38", "8.81", "8.22", "8.39", "8.80",
    ]  # fmt: skip
    assert cells["Highway-19"][3] == "7.54 (7.72±0.16)"
    assert cells["ResNet-110"][3] == "6.43 (6.61±0.16)"
    assert [cells[f"ResNet-{d}"][3] for d in (20, 32, 44, 56, 1202)] == [
        "8.75",
        "7.51",
        "7.17",
        "6.97",
        "7.93",
    ]
    assert [cells[f"plain-{d}"][3] for d in (20, 32, 44, 56, 110)] == [
        "9.69",
        "10.11",
        "11.47",
        "13.26",
        ">60",
    ]
    assert cells["ResNet-20"][4] == DASH
    assert cells["Maxout"][4] == ""
    missing = dict(table.missing)
    assert missing["ResNet-56"] == "resrepro train --depth 56"
    assert missing["plain-20"] == "resrepro train --depth 20 --plain"
    assert missing["ResNet-110"] == "resrepro train --depth 110 --seeds 0-4"


def test_the_110_is_compared_with_the_papers_mean_over_its_five_runs(five_of_110):
    (row,) = rows_of(build("table6", runs_in(five_of_110)), "ResNet-110")
    ends = list(ENDS_110.values())
    assert row["ours"] == f"{sum(ends) / 5:.2f}±{statistics.stdev(ends):.2f} (5)"
    assert row["difference"] == "+0.01"  # 6.62 - 6.61, not 6.62 - 6.43
    assert (row["best run"], row["best sample"]) == ("6.40", "6.30")
    assert row["notes"] == ()


def test_only_runs_that_differ_by_their_seed_alone_share_a_mean(make_run, tmp_path):
    make_run(tmp_path, seed=0, curve=[(64000, 1.0, 8.0)])
    make_run(tmp_path, seed=1, curve=[(64000, 1.0, 9.0)])
    make_run(tmp_path, seed=2, curve=[(64000, 1.0, 20.0)], data="other")
    make_run(tmp_path, seed=3, curve=[(64000, 1.0, 30.0)], mode="fast")
    make_run(tmp_path, seed=4, curve=[(64000, 1.0, 40.0)], bn_group=64)
    make_run(tmp_path, seed=5, curve=[(64000, 1.0, 50.0)], shortcut="B")
    cells = cells_of("cifar10-resnet20", runs_in(tmp_path))
    assert sorted(len(cell.runs) for cell in cells) == [1, 1, 1, 1, 2]
    own, *others = rows_of(build("table6", runs_in(tmp_path)), "ResNet-20")
    assert own["ours"] == "8.50±0.71 (2)"
    assert sorted(row["ours"] for row in others) == ["20.00 (1)", "30.00 (1)", "40.00 (1)", "50.00 (1)"]


def test_a_shortened_run_is_called_so_and_leaves_the_papers_cell_open(make_run, tmp_path):
    make_run(
        tmp_path,
        iterations=2000,
        split="45k5k",
        curve=[(2000, 20.0, 25.0)],
        notices=("only 1,000 test images",),
    )
    table = build("table6", runs_in(tmp_path))
    own, short = rows_of(table, "ResNet-20")
    assert own["ours"] == DASH
    assert "ResNet-20" in dict(table.missing)
    assert short["net"] == "↳ shortened"
    assert short["ours"] == "25.00 (1)"
    assert short["difference"] == "+16.25"
    told = [table.notes[number - 1] for number in short["notes"]]
    assert any("2,000 iterations instead of 64,000" in note for note in told)
    assert any("45,000" in note for note in told)
    assert any("validation images, not on the test set" in note for note in told)
    assert "only 1,000 test images" in told


def test_an_exact_run_on_an_incomplete_test_set_does_not_fill_the_papers_cell(make_run, tmp_path):
    make_run(tmp_path, curve=[(64000, 1.0, 8.0)], notices=("the test set holds only the first 1,000",))
    own, other = rows_of(build("table6", runs_in(tmp_path)), "ResNet-20")
    assert own["ours"] == DASH
    assert (other["net"], other["ours"]) == ("↳ other data", "8.00 (1)")


def test_a_run_whose_warm_up_never_ended_does_not_fill_the_papers_cell(make_run, tmp_path):
    import json

    folder = make_run(tmp_path, "cifar10-resnet110", curve=[(64000, 1.0, 8.0)])
    result = json.loads((folder / "result.json").read_text())
    told = "the warm-up never ended: learning rate 0.01 throughout"
    (folder / "result.json").write_text(json.dumps(result | {"departures": [told]}))
    table = build("table6", runs_in(tmp_path))
    own, other = rows_of(table, "ResNet-110")
    assert own["ours"] == DASH
    assert (other["ours"], [table.notes[n - 1] for n in other["notes"]]) == ("8.00 (1)", [told])


def test_sampling_at_other_points_is_a_cell_of_its_own_that_says_so(make_run, tmp_path):
    make_run(tmp_path, eval_every=500, curve=[(64000, 1.0, 8.0)])
    table = build("table6", runs_in(tmp_path))
    _, other = rows_of(table, "ResNet-20")
    assert table.notes == ("sampled every 500 iterations instead of 1000",)
    assert other["notes"] == (1,)


def test_unfinished_and_diverged_runs_enter_no_cell_but_are_named(make_run, tmp_path):
    make_run(tmp_path, seed=0, curve=[(1000, 50.0, 55.0)])
    make_run(tmp_path, seed=1, curve=[(2000, 50.0, 55.0)], status="diverged")
    table = build("table6", runs_in(tmp_path))
    (row,) = rows_of(table, "ResNet-20")
    assert row["ours"] == DASH
    assert "seed 0 (partial at iteration 1,000)" in table.remarks[0]
    assert "seed 1 (diverged at iteration 2,000)" in table.remarks[0]


def test_figures_are_compared_in_training_and_test_error(make_run, tmp_path):
    make_run(tmp_path, "cifar10-plain56", curve=[(64000, 6.0, 13.5)])
    (row,) = rows_of(build("figure1", runs_in(tmp_path)), "plain-56")
    assert row["training error: paper"] == "5.96"
    assert row["test error: paper"] == "13.25"
    table = build("figure1", runs_in(tmp_path))
    cells = next(row.cells for row in table.rows if row.cells[0] == "plain-56")
    assert cells[1:7] == ("5.96", "6.00 (1)", "+0.04", "13.25", "13.50 (1)", "+0.25")


def test_the_demo_has_no_column_of_the_paper(make_run, tmp_path):
    make_run(tmp_path, "digits-plain56", curve=[(240, 70.0, 72.0)])
    table = build("demo", runs_in(tmp_path))
    assert not any("paper" in column for column in table.columns)
    (row,) = rows_of(table, "plain-56")
    assert (row["training error"], row["test error"]) == ("70.00 (1)", "72.00 (1)")


def test_notes_are_numbered_once_and_in_order(make_run, tmp_path):
    for experiment in ("cifar10-resnet20", "cifar10-plain20"):
        make_run(tmp_path, experiment, iterations=2000)
    table = build("figure6", runs_in(tmp_path))
    assert len(set(table.notes)) == len(table.notes)
    used = [number for row in table.rows for number in row.notes]
    assert set(used) == set(range(1, len(table.notes) + 1))
    markdown = to_markdown(table)
    assert all(f"\n{number}. {note}" in markdown for number, note in enumerate(table.notes, 1))


def test_csv_keeps_raw_numbers(five_of_110):
    table = build("table6", runs_in(five_of_110))
    rows = {row["net"]: row for row in csv.DictReader(io.StringIO(to_csv(table)))}
    ours = rows["ResNet-110"]
    assert float(ours["test_error_ours"]) == pytest.approx(sum(ENDS_110.values()) / 5, abs=1e-4)
    assert float(ours["test_error_paper_mean"]) == 6.61
    assert (ours["n"], ours["seeds"], ours["test_error_measured_on"]) == ("5", "0 1 2 3 4", "test")
    assert rows["ResNet-20"]["test_error_ours"] == ""
    assert table.frame.shape[0] == len(table.rows)


def test_compare_writes_three_forms_that_do_not_change_from_call_to_call(five_of_110, tmp_path):
    out = tmp_path / "tables"
    compare("table6", five_of_110, out)
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert sorted(first) == ["table6.csv", "table6.md", "table6.tex"]
    compare("table6", [five_of_110], out)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first


def test_an_unknown_exhibit_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="table6, figure1, figure6, demo"):
        build("table7", [])


def test_a_single_run_has_no_spread():
    assert spell_mean([8.75]) == "8.75 (1)"
    assert spell_mean([1.0, 3.0]) == "2.00±1.41 (2)"
