"""Tables from made-up records whose right answer is known by hand."""

import csv
import io
import statistics

import pytest
from conftest import rewrite, write_eval

from resrepro.comparison.cells import cells_of, data_told, eval_command, spell_mean
from resrepro.comparison.paper_rows import build
from resrepro.comparison.tables import DASH, to_csv, to_markdown
from resrepro.errors import UsageError
from resrepro.figures.exhibits import compare
from resrepro.records import collect

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
    folder = make_run(tmp_path, "cifar10-resnet110", curve=[(64000, 1.0, 8.0)])
    told = "the warm-up never ended: learning rate 0.01 throughout"
    rewrite(folder / "result.json", lambda result: result.update(departures=[told]))
    table = build("table6", runs_in(tmp_path))
    own, other = rows_of(table, "ResNet-110")
    assert own["ours"] == DASH
    assert (other["ours"], [table.notes[n - 1] for n in other["notes"]]) == ("8.00 (1)", [told])


def test_sampling_at_other_points_is_a_cell_of_its_own_that_says_so(make_run, tmp_path):
    make_run(tmp_path, eval_every=500, curve=[(64000, 1.0, 8.0)])
    table = build("table6", runs_in(tmp_path))
    _, other = rows_of(table, "ResNet-20")
    assert table.notes == ("sampled every 500 iterations; as densely as the paper's curves: every 1000",)
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
    with pytest.raises(UsageError, match=r"there are table2, .*table6, .*figure1, .*figure6, .*demo"):
        build("table7", [])


# --- ImageNet: Tables 2 to 4 and Figure 4 -----------------------------------------------------------


def test_the_papers_rows_of_tables_2_to_4_stand_without_runs():
    rows = {name: {row.cells[0]: row.cells for row in build(name, []).rows} for name in ("table2", "table3")}
    assert {net: cells[1:3] for net, cells in rows["table2"].items()} == {
        "plain-18": ("27.94", DASH), "plain-34": ("28.54", DASH),
        "ResNet-18": ("27.88", DASH), "ResNet-34": ("25.03", DASH),
    }  # fmt: skip
    assert rows["table3"]["GoogLeNet"] == ("GoogLeNet", "", "", "", "9.15", "", "")
    assert rows["table3"]["ResNet-34 B"] == ("ResNet-34 B", "24.52", DASH, "", "7.46", DASH, "")
    table = build("table4", [])
    cells = {row.cells[0]: (row.cells[1], row.cells[4]) for row in table.rows}
    assert cells == {
        "VGG (ILSVRC'14)": ("", "8.43"), "GoogLeNet (ILSVRC'14)": ("", "7.89"), "VGG (v5)": ("24.40", "7.10"),
        "PReLU-net": ("21.59", "5.71"), "BN-inception": ("21.99", "5.81"), "ResNet-34 B": ("21.84", "5.71"),
        "ResNet-34 C": ("21.53", "5.60"), "ResNet-50": ("20.74", "5.25"), "ResNet-101": ("19.87", "4.60"),
        "ResNet-152": ("19.38", "4.49"),
    }  # fmt: skip
    assert [table.notes[n - 1] for n in table.rows[0].notes] == [
        "the paper's number is of the ILSVRC test set"
    ]
    assert dict(table.missing)["ResNet-34 C"] == (
        "resrepro train --dataset imagenet --depth 34 --shortcut C --data DIR"
    )


def test_table_2_takes_the_ten_crop_error_and_not_the_centre_crops(make_run, tmp_path):
    evals = {"ten_crop": (25.5, 8.0), "multi_scale": (23.5, 6.0), "center": (29.5, 9.5)}
    make_run(tmp_path, "imagenet-resnet34", curve=[(600_000, 25.0, 28.5)], evals=evals)
    runs = runs_in(tmp_path)
    (row,) = rows_of(build("table2", runs), "ResNet-34")
    assert (row["top-1 error: paper"], row["ours"], row["difference"]) == ("25.03", "25.50 (1)", "+0.47")
    assert row["notes"] == ()
    cells = next(row.cells for row in build("table3", runs).rows if row.cells[0] == "ResNet-34 A")
    assert cells[1:] == ("25.03", "25.50 (1)", "+0.47", "7.76", "8.00 (1)", "+0.24")
    figure = next(row.cells for row in build("figure4", runs).rows if row.cells[0] == "ResNet-34")
    assert figure[1:7] == ("24.78", "25.00 (1)", "+0.22", "28.33", "28.50 (1)", "+0.17")


def test_table_4_takes_the_multi_scale_errors_of_its_own_nets(make_run, tmp_path):
    evals = {"ten_crop": (22.5, 6.5), "multi_scale": (20.75, 5.5)}
    make_run(tmp_path, "imagenet-resnet50", evals=evals)
    make_run(tmp_path, "imagenet-resnet34", evals=evals)  # option A has no row in Table 4
    table = build("table4", runs_in(tmp_path))
    ours = {
        row.cells[0]: (row.cells[2], row.cells[5]) for row in table.rows if row.cells[2] not in ("", DASH)
    }
    assert ours == {"ResNet-50": ("20.75 (1)", "5.50 (1)")}


def test_shortcut_options_of_the_34_have_rows_of_their_own(make_run, tmp_path):
    for option, error in (("", 25.0), ("-b", 24.5), ("-c", 24.25)):
        make_run(tmp_path, f"imagenet-resnet34{option}", evals={"ten_crop": (error, 7.5)})
    table = build("table3", runs_in(tmp_path))
    ours = {row.cells[0]: row.cells[2] for row in table.rows if row.cells[0].startswith("ResNet-34")}
    assert ours == {"ResNet-34 A": "25.00 (1)", "ResNet-34 B": "24.50 (1)", "ResNet-34 C": "24.25 (1)"}


def test_a_finished_run_without_the_evaluation_shows_the_dash_and_names_the_command(make_run, tmp_path):
    make_run(tmp_path / "runs", "imagenet-resnet18", evals={"multi_scale": (26.0, 8.0)})
    make_run(tmp_path / "results", "imagenet-plain34", iterations=700, image_size=64)
    runs = collect([tmp_path / "runs", tmp_path / "results"]).runs
    table = build("table2", runs)
    (row,) = rows_of(table, "ResNet-18")
    assert (row["ours"], row["difference"]) == (DASH, "")
    commands = [command for _, command in table.missing]
    assert "resrepro eval runs/imagenet-resnet18/seed0 --protocol ten_crop --data DIR" in commands
    short = "runs/imagenet-plain34+iterations=700+image_size=64/seed0"
    assert f"resrepro eval {short} --protocol ten_crop --data DIR" in commands
    assert "resrepro train --dataset imagenet --depth 18 --data DIR" not in commands
    assert "resrepro train --dataset imagenet --depth 34 --plain --data DIR" in commands
    assert len([command for command in commands if "eval" in command]) == 2
    (variant,) = rows_of(table, "plain-34")[1:]
    assert (variant["net"], variant["ours"]) == ("↳ shortened", DASH)


def test_the_command_names_all_seeds_that_lack_it_in_the_folder_that_has_checkpoints(make_run, tmp_path):
    from dataclasses import replace
    from pathlib import Path

    first = runs_in(make_run(tmp_path, "folder-resnet18", iterations=700).parent.parent)[0]
    here, published = (replace(first, folder=Path(top) / first.name / "seed0") for top in ("mine", "results"))
    told = "resrepro eval {}/folder-resnet18+iterations=700/seed0 --protocol center --data DIR"
    assert eval_command([here], "center") == told.format("mine")
    assert eval_command([published], "center") == told.format("runs")
    assert str(tmp_path) not in eval_command([first, first], "center")
    assert eval_command([first, first], "center").count("/seed0") == 2


@pytest.mark.parametrize(
    "changed",
    [
        {"iteration": 300_000},
        {"iteration": 0},
        {"bn_stats": "precise"},
        {"digest": "f" * 64},
        {"data": {"name": "imagenet", "images": {"val": 100}, "classes": 1000, "sha256": {"val": "1"}}},
    ],
)
def test_an_evaluation_of_anything_else_enters_nothing(make_run, tmp_path, changed):
    write_eval(make_run(tmp_path, "imagenet-resnet18"), "ten_crop", 20.0, 5.0, **changed)
    (row,) = rows_of(build("table2", runs_in(tmp_path)), "ResNet-18")
    assert row["ours"] == DASH


@pytest.mark.parametrize("curve", [[], [(300_000, 40.0, 41.0)]])
def test_untrained_and_partly_trained_nets_enter_no_table(make_run, tmp_path, curve):
    make_run(tmp_path, "imagenet-resnet18", curve=curve, evals={"ten_crop": (99.9, 99.5)})
    for exhibit in ("table2", "figure4"):
        table = build(exhibit, runs_in(tmp_path))
        (row,) = rows_of(table, "ResNet-18")
        assert row["ours"] == DASH
        assert "imagenet-resnet18 seed 0 (partial at iteration" in table.remarks[0]
        assert "99.9" not in to_markdown(table)
        assert "99.9" not in to_csv(table)


def test_only_seeds_of_the_same_specification_and_data_share_a_mean(make_run, tmp_path):
    short = {"iterations": 700, "image_size": 64}
    for seed, error in enumerate((50.0, 52.0)):
        make_run(tmp_path, "folder-resnet18", seed, evals={"ten_crop": (error, 10.0)}, **short)
    make_run(tmp_path, "folder-resnet18", 2, evals={"ten_crop": (10.0, 1.0)}, data="another folder", **short)
    make_run(tmp_path, "folder-resnet18", 3, evals={"ten_crop": (20.0, 1.0)}, iterations=700, image_size=32)
    make_run(tmp_path, "imagenet-resnet18", 4, evals={"ten_crop": (30.0, 1.0)}, **short)
    own, *others = rows_of(build("table2", runs_in(tmp_path)), "ResNet-18")
    assert own["ours"] == DASH
    assert sorted(row["ours"] for row in others) == [
        "10.00 (1)", "20.00 (1)", "30.00 (1)", "51.00±1.41 (2)",
    ]  # fmt: skip


def test_a_mean_is_of_the_seeds_that_were_evaluated(make_run, tmp_path):
    for seed in range(3):
        evals = {"ten_crop": (27.0 + seed, 9.0)} if seed else {}
        make_run(tmp_path, "imagenet-resnet18", seed, evals=evals)
    table = build("table2", runs_in(tmp_path))
    (row,) = rows_of(table, "ResNet-18")
    assert (row["ours"], row["best run"]) == ("28.50±0.71 (2)", "28.00")
    assert "best sample" not in table.columns  # it is of the centre crop
    record = next(record for record in table.records if record["net"] == "ResNet-18")
    assert (record["n"], record["seeds"], record["top-1_error_protocol"]) == (2, "1 2", "ten_crop")
    assert [command for label, command in table.missing if label == "ResNet-18"] == [
        "resrepro eval runs/imagenet-resnet18/seed0 --protocol ten_crop --data DIR"
    ]


def test_best_sample_stands_in_no_table_of_another_protocol(make_run, tmp_path):
    make_run(tmp_path, "imagenet-resnet34", evals={"ten_crop": (25.5, 8.0), "multi_scale": (24.0, 7.0)})
    for exhibit in ("table2", "table3", "table4"):
        table = build(exhibit, runs_in(tmp_path))
        assert not {"best run", "best sample"} & set(table.columns)
        assert "Best" not in " ".join(table.remarks)
        assert "best_sample" not in table.records[0]
    assert {"best run", "best sample"} <= set(build("figure4", runs_in(tmp_path)).columns)


def test_a_folder_of_other_images_stands_below_its_net_without_a_difference(make_run, tmp_path):
    notice = "the folder tiny has 10 classes, 5,000 training and 500 validation images"
    settings = {"iterations": 700, "image_size": 64, "batch_size": 64}
    make_run(tmp_path, "folder-resnet18", evals={"ten_crop": (50.0, 10.0)}, **settings)
    make_run(tmp_path, "folder-plain18", evals={"ten_crop": (51.0, 11.0)}, notices=(notice,), **settings)
    make_run(tmp_path, "folder-plain34", evals={"ten_crop": (52.0, 12.0)}, classes=1000, **settings)
    table = build("table2", runs_in(tmp_path))
    own, other = rows_of(table, "ResNet-18")
    assert (own["ours"], other["net"], other["ours"]) == (DASH, "↳ shortened", "50.00 (1)")
    assert other["difference"] == ""
    told = [table.notes[number - 1] for number in other["notes"]]
    assert "a folder of other images instead of ImageNet" in told
    assert "700 iterations instead of 600,000 (the schedule keeps its shape)" in told
    assert "10 classes, 5,000 training and 500 validation images" in told
    assert any("No difference is given" in remark for remark in table.remarks)
    _, named = rows_of(table, "plain-18")
    told = [table.notes[number - 1] for number in named["notes"]]
    assert notice in told
    assert "10 classes, 5,000 training and 500 validation images" not in told  # said by the notice
    assert rows_of(table, "plain-34")[1]["difference"] == ""  # as many classes, but not ImageNet's images


def test_a_whole_run_on_other_images_is_called_other_data(make_run, tmp_path):
    make_run(tmp_path, "folder-resnet18", evals={"ten_crop": (50.0, 10.0)})
    own, other = rows_of(build("table2", runs_in(tmp_path)), "ResNet-18")
    assert (own["ours"], other["net"]) == (DASH, "↳ other data")
    make_run(
        tmp_path / "more", "imagenet-resnet18", evals={"ten_crop": (27.0, 9.0)}, notices=("other images",)
    )
    own, other = rows_of(build("table2", runs_in(tmp_path / "more")), "ResNet-18")
    assert (own["ours"], other["net"], other["ours"]) == (DASH, "↳ other data", "27.00 (1)")


def test_what_an_evaluation_has_to_say_of_its_images_is_told(make_run, tmp_path):
    folder = make_run(tmp_path, "imagenet-resnet18")
    data = runs_in(tmp_path)[0].env["data"]
    write_eval(folder, "ten_crop", 27.5, 9.0, data=data | {"notices": ["2 files are no images"]})
    table = build("table2", runs_in(tmp_path))
    (row,) = rows_of(table, "ResNet-18")
    assert [table.notes[number - 1] for number in row["notes"]] == ["2 files are no images"]


def test_an_evaluation_that_repeats_the_numbers_of_images_adds_no_note(make_run, tmp_path):
    notice = "the folder tiny has 10 classes, 5,000 training and 500 validation images"
    folder = make_run(tmp_path, "folder-resnet18", iterations=700, notices=(notice,))
    data = runs_in(tmp_path)[0].env["data"]
    repeated = ["the folder tiny has 500 validation images of 10 classes", "2 files are no images"]
    write_eval(folder, "ten_crop", 27.5, 9.0, data=data | {"notices": repeated})
    notes = build("table2", runs_in(tmp_path)).notes
    assert notice in notes
    assert "2 files are no images" in notes
    assert repeated[0] not in notes


def test_data_are_told_unless_they_are_imagenets_or_said_already():
    assert data_told(1000, {"train": 1_281_167, "val": 50_000}) == []
    assert data_told(1000, {"val": 100}) == ["1,000 classes, 100 validation images"]
    assert data_told(None, {"val": 100}, ["it has 90 validation images"]) == ["100 validation images"]
    assert data_told(10, {"val": 100}, ["it has 10 classes and 100 validation images"]) == []


def test_a_single_run_has_no_spread():
    assert spell_mean([8.75]) == "8.75 (1)"
    assert spell_mean([1.0, 3.0]) == "2.00±1.41 (2)"


def test_shortened_runs_of_two_modes_are_told_apart_the_default_first_and_notes_are_in_order(
    make_run, tmp_path
):
    short = {"iterations": 400, "split": "45k5k"}
    for seed in (0, 1):
        make_run(tmp_path, "cifar10-resnet20", seed, precision="bf16", mode="fast", **short)
    make_run(tmp_path, "cifar10-resnet20", iterations=800)
    make_run(tmp_path, "cifar10-resnet20", **short)
    table = build("table6", collect([tmp_path]).runs)
    rows = [row for row in table.rows if row.cells[0].startswith("↳")]
    assert [row.cells[0] for row in rows] == ["↳ shortened", "↳ shortened", "↳ shortened, fast"]
    assert ["(1)" in row.cells[4] for row in rows] == [True, True, False]
    assert all(list(row.notes) == sorted(row.notes) for row in table.rows)
