"""What can be reproduced, on which images, and which nets, measurements and claims that takes."""

import pytest

from resrepro.errors import UsageError
from resrepro.figures.exhibits import figures, tables
from resrepro.launch.goals import choose_exhibits, names
from resrepro.spec import catalogue


def chosen(name, dataset=None):
    (exhibit,) = choose_exhibits([name], dataset)
    return exhibit


def nets(exhibit):
    return {name.partition("-")[2] for name in exhibit.experiments}


def test_everything_that_is_compared_or_plotted_can_be_reproduced():
    stand_ins = {f"{name}-digits" for name in names()}
    assert set(names()) == {*tables(), *figures()} - stand_ins
    for name in names():
        exhibit = chosen(name)
        assert exhibit.is_table or exhibit.is_figure
        for experiment in exhibit.experiments:
            assert catalogue.find(experiment).dataset == exhibit.dataset


def test_the_claims_are_numbers_of_the_27_and_those_of_classification_all_have_an_exhibit():
    claims = {number for name in names() for number in chosen(name).claims}
    assert claims <= set(range(1, 28))
    # 7 is of runs that no exhibit shows, 19 and 21 as well; 27 is detection
    assert set(range(1, 28)) - claims == {7, 19, 21, 27}


def test_the_papers_own_nets_and_what_is_measured_of_them():
    assert nets(chosen("figure1")) == {"plain20", "plain56"}
    assert nets(chosen("figure7")) == {"plain20", "plain56", "resnet20", "resnet56", "resnet110"}
    assert chosen("figure7").measures == ("responses",)
    assert chosen("table2").measures == chosen("table3").measures == ("ten_crop",)
    assert chosen("table4").measures == ("multi_scale",)
    assert chosen("table5").measures == ()
    assert [name for name in names() if chosen(name).ensemble] == ["table5"]
    for name in ("table1", "figure3"):
        assert (chosen(name).dataset, chosen(name).experiments) == (None, ())


def test_digits_stand_in_for_cifar10_under_names_of_their_own():
    exhibit = chosen("figure1", "digits")
    assert (exhibit.name, exhibit.experiments) == ("figure1-digits", ("digits-plain20", "digits-plain56"))
    assert {chosen(name, "digits").stem for name in ("figure1", "figure7")} == {
        "figure1-digits", "figure7-digits",
    }  # fmt: skip
    assert chosen("figure7").stem == "figure7"
    depths = (20, 32, 44, 56)
    residual = {f"resnet{depth}" for depth in (*depths, 110)}
    assert nets(chosen("figure6", "digits")) == residual | {f"plain{depth}" for depth in depths}
    assert nets(chosen("table6", "digits")) == residual
    assert set(chosen("figure7", "digits").experiments) == {
        "digits-plain20", "digits-plain56", "digits-resnet20", "digits-resnet56", "digits-resnet110",
    }  # fmt: skip


def test_a_folder_of_photographs_takes_imagenets_nets_and_stands_in_its_exhibits():
    exhibit = chosen("table3", "folder")
    assert (exhibit.name, exhibit.stem) == ("table3", "table3-folder")
    assert "folder-resnet34-b" in exhibit.experiments
    assert {name.replace("folder", "imagenet") for name in exhibit.experiments} == set(
        chosen("table3").experiments
    )


def test_all_is_what_the_paper_has_or_what_the_dataset_can_stand_in_for():
    assert [exhibit.name for exhibit in choose_exhibits(["all"])] == [n for n in names() if n != "demo"]
    digits = [exhibit.name for exhibit in choose_exhibits(["all"], "digits")]
    assert digits == ["table1", "figure3", "table6-digits", "figure1-digits", "figure6-digits", "figure7"]
    assert len(choose_exhibits(["figure1", "all", "figure1"])) == len(names()) - 1


@pytest.mark.parametrize(
    ("name", "dataset", "sentence"),
    [
        ("figure2", None, "no exhibit 'figure2' to reproduce: there are table1, .*demo and all"),
        ("figure1-digits", None, "no exhibit 'figure1-digits'"),
        ("figure1", "mnist", "no dataset 'mnist': there are cifar10, digits, imagenet, folder"),
        ("table2", "digits", "table2 is an exhibit of imagenet or folder, not of digits"),
        ("figure1", "folder", "figure1 is an exhibit of cifar10 or digits, not of folder"),
        ("demo", "cifar10", "demo is an exhibit of digits, not of cifar10"),
    ],
)
def test_what_does_not_exist_is_refused_in_a_sentence(name, dataset, sentence):
    with pytest.raises(UsageError, match=sentence):
        choose_exhibits([name], dataset)
