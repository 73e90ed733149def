"""Table 5: the paper's ensembles with ours below."""

import pytest
from conftest import write_ensemble

from resrepro.comparison.table import DASH
from resrepro.comparison.tables import build
from resrepro.figures import compare
from resrepro.records.collection import collect


def table_in(folder, exhibit="table5"):
    found = collect([folder])
    assert not found.broken
    return build(exhibit, found.runs, found.ensembles)


def ours_in(table):
    return [dict(zip(table.columns, row.cells, strict=True)) for row in table.rows if row.cells[0][0] == "↳"]


@pytest.fixture
def members(make_run, tmp_path):
    """ResNet-34 B and two seeds of ResNet-152, trained to their end on ImageNet."""
    wanted = (("imagenet-resnet34-b", 0), ("imagenet-resnet152", 0), ("imagenet-resnet152", 1))
    return [make_run(tmp_path, name, seed) for name, seed in wanted]


def test_the_papers_ensembles_stand_alone_where_there_are_none_of_ours(tmp_path):
    table = table_in(tmp_path)
    paper = {row.cells[0]: row.cells[3] for row in table.rows}
    assert paper == {
        "VGG (ILSVRC'14)": "7.32", "GoogLeNet (ILSVRC'14)": "6.66", "VGG (v5)": "6.80",
        "PReLU-net": "4.94", "BN-inception": "4.82", "ResNet (ILSVRC'15)": "3.57",
    }  # fmt: skip
    assert [row.cells[4] for row in table.rows] == ["", "", "", "", "", DASH]
    missing = dict(table.missing)
    assert missing["ResNet-152"] == "resrepro train --dataset imagenet --depth 152 --data DIR"
    assert missing["ensemble"].startswith("resrepro eval RUN RUN ... --ensemble")


def test_every_ensemble_of_ours_is_told_with_its_nets_and_no_difference(members, tmp_path):
    write_ensemble(tmp_path, members, 18.5, 3.75)
    table = table_in(tmp_path)
    (row,) = ours_in(table)
    assert row == {
        "ensemble": "↳ ensemble of 3", "nets": "3", "protocol": "multi_scale",
        "top-5 error: paper (test)": "", "ours (val)": "3.75",
    }  # fmt: skip
    assert table.notes == ("ResNet-34 (B) seed 0, ResNet-152 (B) seeds 0 and 1",)
    assert table.missing == ()
    assert any("test set" in remark and "no difference" in remark for remark in table.remarks)
    record = table.records[-1]
    wanted = ("n", "top-5_error_ours_val", "top-1_error_ours_val")
    assert [record[name] for name in wanted] == [3, 3.75, 18.5]
    write_ensemble(tmp_path, members[1:], 19.5, 4.5, name="two", protocol="ten_crop")
    assert sorted(row["ours (val)"] for row in ours_in(compare("table5", tmp_path, None))) == ["3.75", "4.50"]


def test_departures_name_the_nets_that_they_are_of(make_run, members, tmp_path):
    short = make_run(tmp_path, "imagenet-resnet50", iterations=600)
    write_ensemble(tmp_path, [*members, short], 18.5, 3.75)
    notes = table_in(tmp_path).notes
    assert "ResNet-50 (B): 600 iterations instead of 600,000 (the schedule keeps its shape)" in notes


def test_other_data_are_told_once(make_run, tmp_path):
    notice = "the folder tiny has 10 classes, 5,000 training and 500 validation images"
    members = [make_run(tmp_path, "folder-resnet50", s, iterations=600, notices=(notice,)) for s in (0, 1)]
    write_ensemble(tmp_path, members, 40.0, 10.0)
    assert ours_in(table_in(tmp_path)) == []
    notes = table_in(tmp_path, "table5-folder").notes
    assert "a folder of other images instead of ImageNet" in notes
    assert [note for note in notes if "500 validation" in note] == [notice]


def test_ensembles_on_other_sets_or_data_or_of_a_partly_trained_net_enter_no_row_but_are_named(
    make_run, members, tmp_path
):
    for name in ("imagenet", "cifar10"):
        data = {"name": name, "images": {"test": 9}, "sha256": {}, "classes": 10}
        errors = {"test": {"top1_err": 1.0, "top5_err": 1.0}}
        write_ensemble(tmp_path, members, 18.5, 3.75, name, data=data, errors=errors)
    partial = make_run(tmp_path, "imagenet-resnet50", curve=[(5000, 90.0, 91.0)])
    write_ensemble(tmp_path, [*members, partial], 18.5, 3.75)
    table = table_in(tmp_path)
    assert ours_in(table) == []
    for reason in (
        "measured on imagenet",
        "measured on cifar10",
        "ResNet-50 (B) is partial at iteration 5,000",
    ):
        assert f" seeds 0 and 1 ({reason})" in table.remarks[0].replace(", ResNet-50 (B) seed 0", "")
