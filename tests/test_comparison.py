"""Tables from made-up records whose right answer is known by hand."""

import csv
import io
import re
import shutil
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import FIRST_IMAGES, runs_in, write_eval, write_test_eval

from resrepro.comparison.groups import RULE
from resrepro.comparison.table import DASH, GAPS, to_csv, to_markdown
from resrepro.comparison.tables import ASSUMED, NO_DIFFERENCE, SHORTENED, build
from resrepro.figures import compare
from resrepro.paper import layouts

ENDS_110 = {0: 6.4, 1: 6.7, 2: 6.5, 3: 6.9, 4: 6.6}


def rows_of(table, label):
    """The rows of a net: its own line and those of other groups below, as {column: cell}, with its notes."""
    found = []
    for row in table.rows:
        if row.cells[0] == label or (found and row.cells[0].startswith("↳")):
            notes = [table.notes[number - 1] for number in row.notes]
            found.append(dict(zip(table.columns, row.cells, strict=True)) | {"notes": notes})
        elif found:
            break
    return found


@pytest.fixture
def five_of_110(make_run, tmp_path):
    for seed, end in ENDS_110.items():
        curve = [(1000, 50.0, 60.0), (63000, 0.2, end - 0.1), (64000, 0.1, end)]
        make_run(tmp_path, "cifar10-resnet110", seed, curve=curve)
    return tmp_path


def test_without_runs_the_paper_still_stands_and_each_gap_names_its_command(tmp_path):
    table = build("table6", [])
    assert {row.cells[0]: row.cells[3] for row in table.rows} == {
        "Maxout": "9.38", "NIN": "8.81", "DSN": "8.22", "FitNet-19": "8.39",
        "Highway-19": "7.54 (7.72±0.16)", "Highway-32": "8.80",
        "ResNet-20": "8.75", "ResNet-32": "7.51", "ResNet-44": "7.17", "ResNet-56": "6.97",
        "ResNet-110": "6.43 (6.61±0.16)", "ResNet-1202": "7.93",
        "plain-20": "9.69", "plain-32": "10.11", "plain-44": "11.47", "plain-56": "13.26", "plain-110": ">60",
    }  # fmt: skip
    ours = {row.cells[0]: row.cells[4] for row in table.rows}
    assert (ours["ResNet-20"], ours["Maxout"]) == (DASH, "")
    missing = dict(table.missing)
    assert missing["plain-20"] == "resrepro train --depth 20 --plain"
    assert missing["ResNet-110"] == "resrepro train --depth 110 --seeds 0-4"
    assert [row.cells[:3] for row in build("table2", []).rows] == [
        ("plain-18", "27.94", DASH), ("plain-34", "28.54", DASH),
        ("ResNet-18", "27.88", DASH), ("ResNet-34", "25.03", DASH),
    ]  # fmt: skip
    rows = [row.cells for row in build("table3", []).rows]
    assert {
        ("GoogLeNet", "", "", "", "9.15", "", ""),
        ("ResNet-34 B", "24.52", DASH, "", "7.46", DASH, ""),
    } <= {*rows}
    table = build("table4", [])
    assert table.notes[table.rows[0].notes[0] - 1] == "the paper's number is of the ILSVRC test set"
    command = "resrepro train --dataset imagenet --depth 34 --shortcut C --data DIR"
    assert dict(table.missing)["ResNet-34 C"] == command


def test_the_110_is_compared_with_the_papers_mean_over_its_five_runs(five_of_110):
    table, ends = build("table6", runs_in(five_of_110)), list(ENDS_110.values())
    (row,) = rows_of(table, "ResNet-110")
    assert row["test error"] == f"{sum(ends) / 5:.2f}±{statistics.stdev(ends):.2f} (5)"
    assert row["difference"] == "+0.01"  # 6.62 - 6.61, not 6.62 - 6.43
    assert (row["best run"], row["best sample"]) == ("6.40", "6.30")
    assert row["notes"] == []
    rows = {row["net"]: row for row in csv.DictReader(io.StringIO(to_csv(table)))}
    ours = rows["ResNet-110"]
    assert float(ours["test_error_ours"]) == pytest.approx(sum(ends) / 5, abs=1e-4)
    assert float(ours["test_error_paper_mean"]) == 6.61
    assert (ours["n"], ours["seeds"], ours["test_error_measured_on"]) == ("5", "0 1 2 3 4", "test")
    assert rows["ResNet-20"]["test_error_ours"] == ""
    assert table.frame.shape[0] == len(table.rows)


def test_only_runs_that_differ_by_their_seed_alone_share_a_mean(make_run, tmp_path):
    others = {20: {"data": "other"}, 30: {"mode": "fast"}, 40: {"bn_group": 64}, 50: {"shortcut": "B"}}
    for seed, (error, options) in enumerate({8: {}, 9: {}, **others}.items()):
        make_run(tmp_path, seed=seed, curve=[(64000, 1.0, error)], **options)
    (own,) = rows_of(build("table6", runs_in(tmp_path)), "ResNet-20")
    assert own["test error"] == "8.50±0.71 (2)"
    same, *others = rows_of(build("table6", runs_in(tmp_path), every=True), "ResNet-20")
    assert same == own
    assert sorted(row["test error"] for row in others) == [
        "20.00 (1)", "30.00 (1)", "40.00 (1)", "50.00 (1)",
    ]  # fmt: skip
    assert sorted(row["net"] for row in others) == ["↳ whole", "↳ whole", "↳ whole", "↳ whole (fast)"]
    assert {row["paper"] for row in others} == {""}


def test_a_shortened_run_stands_in_its_nets_row_without_a_difference(make_run, tmp_path):
    make_run(tmp_path, iterations=2000, split="45k5k", curve=[(2000, 20.0, 25.0)])
    table = build("table6", runs_in(tmp_path))
    (row,) = rows_of(table, "ResNet-20")
    assert (row["paper"], row["test error"], row["validation error"], row["difference"]) == (
        "8.75", "25.00 (1)", "25.00 (1)", "",
    )  # fmt: skip
    assert row["notes"] == [
        "2,000 iterations instead of 64,000 (the schedule keeps its shape)",
        "trained on 45,000 images and validated on the last 5,000",
    ]
    assert NO_DIFFERENCE in table.remarks
    assert (table.lead, "ResNet-20" in dict(table.missing)) == (GAPS, False)
    same = "resrepro train --depth 20 --plain --iterations 2000 --split 45k5k"
    assert dict(table.missing)["plain-20"] == same


def test_advice_fills_the_very_cell_where_longer_runs_of_another_protocol_are_there(make_run, tmp_path):
    """After `reproduce .. --iterations 60` a full run that is there already must not be advised."""
    full = [make_run(tmp_path / "runs", f"digits-{net}") for net in ("resnet20", "resnet56")]
    for net in ("resnet20", "resnet32", "resnet44"):
        make_run(tmp_path / "runs", f"digits-{net}", iterations=60)
    shutil.rmtree(full[0])
    table = build("table6-digits", runs_in(tmp_path / "runs"))
    command = "resrepro train --dataset digits --depth {} --iterations 60"
    assert dict(table.missing) == {f"ResNet-{depth}": command.format(depth) for depth in (56, 110)}
    assert table.lead == GAPS
    for net in ("resnet56", "resnet110"):
        make_run(tmp_path / "runs", f"digits-{net}", iterations=60)
    table = build("table6-digits", runs_in(tmp_path / "runs"))
    assert table.lead == SHORTENED
    assert dict(table.missing)["ResNet-20"] == "resrepro train --dataset digits --depth 20"
    assert "ResNet-56" not in dict(table.missing)


def test_advice_names_the_runs_folder_and_trains_first_what_was_published(make_run, tmp_path):
    make_run(tmp_path, iterations=60, split="45k5k", test_images=1000)
    [run] = runs_in(tmp_path)
    name = f"{run.name}/seed0"
    same = "resrepro train --depth {} --iterations 60 --split 45k5k"
    for top, train in (("mine", ""), ("results", f"{same.format(20)} && ")):
        table = build("table6", [replace(run, folder=Path(top) / name)])
        folder = "mine" if top == "mine" else "runs"
        assert dict(table.missing)["ResNet-20"] == f"{train}resrepro eval {folder}/{name} --data DIR"
        there = " --runs mine" if top == "mine" else ""
        assert dict(table.missing)["ResNet-32"] == same.format(32) + there


def test_the_frame_has_numbers_and_nan(make_run, tmp_path):
    make_run(tmp_path)
    for exhibit in ("table6", "table2", "table5", "figure7"):
        types = compare(exhibit, tmp_path, None).frame.dtypes.astype(str)
        texts = r"net|run|seeds|departures|set|ensemble|members|protocol|bn_stats|.*_(measured_on|protocol)"
        assert {name for name, kind in types.items() if kind not in ("float64", "int64")} == {
            name for name in types.index if re.fullmatch(texts, name)
        }, exhibit


def test_a_part_of_the_test_set_fills_no_cell_and_is_no_best_sample(make_run, tmp_path):
    make_run(tmp_path, curve=[(1000, 9.0, 7.0), (64000, 1.0, 8.0)], test_images=1000)
    table = build("table6", runs_in(tmp_path))
    (row,) = rows_of(table, "ResNet-20")
    assert [row[name] for name in ("test error", "validation error", "difference")] == [DASH, "", ""]
    assert (row["best run"], row["best sample"]) == (DASH, "")
    assert dict(table.missing)["ResNet-20"] == "resrepro eval runs/cifar10-resnet20/seed0 --data DIR"
    assert "7.00" not in to_markdown(table)
    assert "8.0" not in to_csv(table)


# --- the test error that `eval` measured afterwards -----------------------------------------------------


def test_a_test_error_measured_afterwards_counts_and_says_so(make_run, tmp_path):
    for seed, error in enumerate((8.7, 8.9)):
        folder = make_run(tmp_path, seed=seed, split="45k5k", curve=[(64000, 1.0, 8.0)], test_images=1000)
        write_test_eval(folder, error)
    make_run(tmp_path, seed=2, split="45k5k", curve=[(64000, 1.0, 9.1)])  # with all test images at hand
    table = build("table6", runs_in(tmp_path))
    (row,) = rows_of(table, "ResNet-20")
    assert (row["test error"], row["validation error"]) == ("8.90±0.20 (3)", "8.37±0.64 (3)")
    assert (row["difference"], row["best run"]) == ("+0.15", "8.70")
    assert FIRST_IMAGES.format(1000) not in to_markdown(table)
    record = next(record for record in table.records if record["net"] == "ResNet-20")
    assert (record["test_error_ours"], record["test_error_measured_on"]) == (8.9, "test")
    assert not any("eval" in command for label, command in table.missing if label == "ResNet-20")


@pytest.mark.parametrize(
    "changed",
    [
        {"images": 9980},
        {"data": {"name": "cifar10", "images": {"test": 10_000}, "sha256": {"train": "0" * 64}}},
        {"iteration": 63_000}, {"protocol": "ten_crop"}, {"digest": "f" * 64}, {"bn_stats": "precise"},
    ],
)  # fmt: skip
def test_no_other_evaluation_is_the_test_error(make_run, tmp_path, changed):
    write_test_eval(make_run(tmp_path, split="45k5k", test_images=1000), 8.7, **changed)
    (run,) = runs_in(tmp_path)
    assert (run.test_afterwards, run.error("test")) == (None, None)


# --- which protocol is shown ----------------------------------------------------------------------------


def test_one_protocol_is_shown_by_the_rule_and_the_others_are_named(make_run, tmp_path):
    for net in ("resnet20", "plain20"):
        make_run(tmp_path, f"cifar10-{net}", split="45k5k", mode="fast", precision="bf16")
        for seed in range(3):
            make_run(tmp_path, f"cifar10-{net}", seed, iterations=2000, curve=[(2000, 30, 40)])
    make_run(tmp_path, "cifar10-resnet32", iterations=2000, curve=[(2000, 30, 40)])
    make_run(tmp_path, "cifar10-resnet44", curve=[(1000, 50.0, 55.0)])
    make_run(tmp_path, "cifar10-resnet44", 1, curve=[(2000, 50.0, 55.0)], status="diverged")
    table = build("table6", runs_in(tmp_path))
    unfinished = "{0} seed 0 (partial at iteration 1,000), {0} seed 1 (diverged at iteration 2,000)"
    assert table.remarks[2] == f"Not in the table: {unfinished.format('cifar10-resnet44')}."
    assert rows_of(table, "ResNet-44")[0]["test error"] == DASH
    assert [len(rows_of(table, f"{net}-20")) for net in ("ResNet", "plain")] == [1, 1]
    assert [rows_of(table, net)[0]["test error"] for net in ("ResNet-20", "ResNet-32")] == ["10.00 (1)", DASH]
    assert table.remarks[:2] == (
        f"Runs shown: CIFAR-10, 64,000 iterations, split 45k5k, fast (2 nets, 2 runs). Rule: {RULE}.",
        "Not shown: CIFAR-10, 2,000 of 64,000 iterations (3 nets, 7 runs). "
        "`--settings iterations=2000` shows such runs. `--all` shows every run.",
    )
    assert ASSUMED in table.remarks
    assert dict(table.missing)["ResNet-32"] == "resrepro train --depth 32 --split 45k5k --fast"
    every = build("table6", runs_in(tmp_path), every=True)
    own, other = rows_of(every, "ResNet-20")
    assert (own["net"], own["test error"]) == ("ResNet-20", "10.00 (1)")
    assert (other["net"], other["test error"]) == ("↳ 2,000 it.", "40.00±0.00 (3)")
    assert (other["layers"], other["difference"], other["paper"]) == ("", "", "")
    own, other = rows_of(every, "ResNet-32")
    assert (own["test error"], other["test error"]) == (DASH, "40.00 (1)")
    assert "`--all`" not in " ".join(every.remarks)


# --- ImageNet: Tables 2 to 4 and Figure 4 -----------------------------------------------------------


def test_each_exhibit_takes_its_own_error(make_run, tmp_path):
    evals = {"ten_crop": (25.5, 8.0), "multi_scale": (23.5, 6.0), "center": (29.5, 9.5)}
    make_run(tmp_path, "imagenet-resnet34", curve=[(600_000, 25.0, 28.5)], evals=evals)
    make_run(tmp_path, "cifar10-plain56", curve=[(64000, 6.0, 13.5)])
    for exhibit, net, cells in (
        ("table2", "ResNet-34", ("25.03", "25.50 (1)", "+0.47")),
        ("table3", "ResNet-34 A", ("25.03", "25.50 (1)", "+0.47", "7.76", "8.00 (1)", "+0.24")),
        ("figure4", "ResNet-34", ("24.78", "25.00 (1)", "+0.22", "28.33", "28.50 (1)", "+0.17")),
        ("figure1", "plain-56", ("5.96", "6.00 (1)", "+0.04", "13.25", "13.50 (1)", "+0.25", "")),
    ):
        table = build(exhibit, runs_in(tmp_path))
        assert next((row.cells[1:], row.notes) for row in table.rows if row.cells[0] == net) == (cells, ())
    assert table.columns[1:] == (
        "training error: paper", "ours", "difference", "test error: paper", "ours", "difference",
        "validation error",
    )  # fmt: skip


def test_a_mean_is_of_the_seeds_that_were_evaluated_and_the_others_commands_are_named(make_run, tmp_path):
    for seed in range(3):
        evals = {"ten_crop": (27.0 + seed, 9.0)} if seed else {"multi_scale": (26.0, 8.0)}
        make_run(tmp_path, "imagenet-resnet18", seed, evals=evals)
    make_run(tmp_path, "imagenet-resnet34", evals={"multi_scale": (26.0, 8.0)})
    table = build("table2", runs_in(tmp_path))
    (row,) = rows_of(table, "ResNet-18")
    assert (row["top-1 error"], row["difference"]) == ("28.50±0.71 (2)", "+0.62")
    record = next(record for record in table.records if record["net"] == "ResNet-18")
    assert (record["n"], record["seeds"], record["top-1_error_protocol"]) == (2, "1 2", "ten_crop")
    (row,) = rows_of(table, "ResNet-34")
    assert (row["top-1 error"], row["difference"]) == (DASH, "")
    command = "resrepro eval runs/imagenet-{}/seed0 --protocol ten_crop --data DIR"
    assert table.missing == (
        *(
            (f"plain-{n}", f"resrepro train --dataset imagenet --depth {n} --plain --data DIR")
            for n in (18, 34)
        ),
        *((f"ResNet-{n}", command.format(f"resnet{n}")) for n in (18, 34)),
    )


def test_best_run_and_best_sample_stand_in_table_6_alone(make_run, tmp_path):
    make_run(tmp_path, "imagenet-resnet34", evals={"ten_crop": (25.5, 8.0), "multi_scale": (24.0, 7.0)})
    make_run(tmp_path, "cifar10-resnet56")
    make_run(tmp_path, "digits-resnet56")
    for exhibit in set(layouts()) - {"table5"}:  # whose rows are ensembles
        table = build(exhibit, runs_in(tmp_path))
        best = {"best run", "best sample"} & set(table.columns)
        assert len(best) == (2 if exhibit in ("table6", "table6-digits") else 0), exhibit
        assert bool(best) == ("Best" in " ".join(table.remarks)) == ("best_sample" in table.records[0])


def test_a_folder_of_other_images_has_a_table_of_its_own_without_differences(make_run, tmp_path):
    notice = "the folder tiny has 10 classes, 5,000 training and 500 validation images"
    settings = {"iterations": 700, "image_size": 64, "batch_size": 64, "notices": (notice,)}
    folder = make_run(tmp_path, "folder-resnet18", **settings)
    said, new = "the folder tiny has 500 validation images of 10 classes", "2 files are no images"
    data = runs_in(tmp_path)[0].env["data"] | {"notices": [said, new]}
    write_eval(folder, "ten_crop", 50.0, 10.0, data=data)
    make_run(tmp_path, "folder-plain34", evals={"ten_crop": (52.0, 12.0)}, **settings)
    table = build("table2-folder", runs_in(tmp_path))
    assert all(row["run"] == "" for row in build("table2", runs_in(tmp_path)).records)
    assert table.title.startswith("Table 2 on tiny (10 classes, images of 64x64) instead of ImageNet: top-1")
    (row,) = rows_of(table, "ResNet-18")
    assert (row["top-1 error"], row["difference"], row["paper"]) == ("50.00 (1)", "", "27.88")
    shortened = "700 iterations instead of 600,000 (the schedule keeps its shape)"
    assert {"a folder of other images instead of ImageNet", shortened, notice, new} <= set(row["notes"])
    assert said not in table.notes
    assert NO_DIFFERENCE in table.remarks
