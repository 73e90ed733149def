"""The packaged numbers and curves against what the paper prints."""

import itertools

import pytest

from resrepro.paper import curves, layouts, published
from resrepro.spec import catalogue


def test_the_ends_of_the_figure_6_curves_agree_with_table_6_within_their_reading_error():
    frame = curves("figure6")
    for depth in (20, 32, 44, 56):
        curve = frame[
            (frame.panel == "middle") & (frame.series == f"ResNet-{depth}") & (frame.kind == "test")
        ]
        end = curve.sort_values("x").value.iloc[-1]
        assert end == pytest.approx(published()["table6", f"ResNet-{depth}", "test_err"].value, abs=0.035)


def test_figure_1_and_figure_6_draw_the_same_plain_runs():
    one, six = curves("figure1"), curves("figure6")
    for series, kind in itertools.product(("plain-20", "plain-56"), ("train", "test")):
        a = one[(one.series == series) & (one.kind == kind)].set_index("x").value
        b = six[(six.series == series) & (six.kind == kind)].set_index("x").value
        shared = a.index.intersection(b.index)
        assert len(shared) > 30
        assert (a[shared] - b[shared]).abs().max() < 0.1


def test_table_2_as_printed_and_the_centre_crop_of_figure_4_some_points_above_it():
    numbers = published()
    printed = {"plain-18": 27.94, "plain-34": 28.54, "ResNet-18": 27.88, "ResNet-34": 25.03}
    assert {net: numbers["table2", net, "top1_err"].value for net in printed} == printed
    for net, ten_crop in printed.items():
        assert 3 < numbers["figure4", net, "top1_err_final"].value - ten_crop < 4


def test_the_ends_of_the_figure_4_curves_are_the_numbers_that_its_table_shows():
    frame = curves("figure4")
    for net, (kind, metric) in itertools.product(
        ("plain-18", "plain-34", "ResNet-18", "ResNet-34"),
        (("train", "train_err_final"), ("val-centre-crop", "top1_err_final")),
    ):
        last = frame[(frame.series == net) & (frame.kind == kind)].sort_values("x").iloc[-1]
        assert last.x == 55
        assert last.value == pytest.approx(published()["figure4", net, metric].value, abs=0.006)


def test_every_protocol_of_a_layout_is_one_that_eval_knows():
    asked = {q["protocol"] for plan in layouts().values() for q in plan["quantities"] if "protocol" in q}
    assert asked == {"ten_crop", "multi_scale"} & catalogue.protocols().keys()


def test_every_row_of_a_layout_names_an_experiment_and_a_published_number_that_exist():
    for name, plan in layouts().items():
        for row in plan["rows"]:
            if "experiment" in row:
                experiment = catalogue.find(row["experiment"])
                option = experiment.spec().shortcut
                with_option = f"ResNet-{experiment.depth} {option}"  # as Tables 3 and 4 print it
                assert row["label"] in (experiment.label, with_option)
            source = row.get("published_in", plan.get("of", name)), row["label"]
            metrics = {metric for exhibit, label, metric in published() if (exhibit, label) == source}
            wanted = [set(quantity["value"]) for quantity in plan["quantities"] if "value" in quantity]
            if "experiment" in row and row["label"] != "plain-110":
                assert all(metrics & values for values in wanted), (name, row["label"])
            elif wanted:  # others' nets have some of the numbers
                assert any(metrics & values for values in wanted) or row["label"] == "plain-110"


def test_every_experiment_that_claims_an_exhibit_stands_in_it():
    for experiment in catalogue.experiments().values():
        for exhibit in experiment.exhibits:
            plan = layouts()[exhibit]
            rows = [*plan.get("members", ()), *(row.get("experiment") for row in plan["rows"])]
            if exhibit != "demo":  # the demo's table holds the four nets that it trains
                assert experiment.name in rows
