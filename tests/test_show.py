"""`resrepro list`, and names among which one is wrong."""

import re

import pytest
from commands import call

pytestmark = pytest.mark.usefixtures("empty_folder")


def test_the_experiments_are_listed_with_their_exhibits():
    code, listed, _ = call("list")
    assert code == 0
    assert re.search(r"^cifar10-resnet110 +ResNet-110 +cifar-64k-warm +0-4 +table6, figure6 *$", listed, re.M)


def test_of_one_experiment_the_layers_are_shown_as_in_table_1_and_counted():
    code, text, _ = call("list imagenet-resnet50")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert re.search(r"^conv3_x +28x28 +1x1, 128 /2; 3x3, 128; 1x1, 512 +1 +projection *$", text, re.M)
    assert re.search(r"^conv3_x +28x28 +1x1, 128; 3x3, 128; 1x1, 512 +3 +identity *$", text, re.M)
    words = " ".join(text.split())
    assert "50 layers (projections do not count), 25,557,032 parameters, 3.858e9 multiply-adds" in words


def test_of_one_experiment_each_setting_is_marked():
    code, text, _ = call("list cifar10-resnet110")
    assert code == 0
    for words in (r"warmup_until_err +80 +stated 4.2", r"bn_group +0 +assumed", r"flip +on +stated"):
        assert re.search(words, text), words
    assert re.search(r"\d+ stated, \d+ derived, \d+ assumed\.", text)
    assert "Run it: resrepro train --depth 110" in text


def test_a_net_that_the_catalogue_does_not_list_is_shown_too():
    code, text, _ = call("list cifar10-resnet26")
    assert (code, "26 layers" in text) == (0, True)
    assert "the paper gives no number for ResNet-26" in " ".join(text.split())


def test_a_wrong_name_among_right_ones_draws_nothing(tmp_path):
    for words in (("compare", "table1", "table99"), ("plot", "figure3", "figure99")):
        code, told, error = call(*words)
        assert (code, told) == (2, "")
        assert "99" in error
    assert not list((tmp_path / "here").iterdir())
