"""The demo's sentence says what the records say, also when they contradict the paper."""

import pytest

from resrepro.cli.demonstration import DEMO_EXPERIMENTS, verdict
from resrepro.records.collection import collect


def runs_with(make_run, folder, *train_errors):
    for name, error in zip(DEMO_EXPERIMENTS, train_errors, strict=False):
        make_run(folder, name, curve=[(240, error, error)])
    return collect([folder]).runs


@pytest.mark.parametrize(
    ("errors", "words"),
    [
        ((0.1, 70.0, 0.0, 0.2), "degrades the plain net and shortcuts cure it"),
        ((0.1, 70.0, 0.0, 30.0), "and shortcuts lessen it"),
        ((0.1, 0.1, 0.0, 0.0), "do not show"),
        ((5.0, 1.0, 0.0, 0.0), "do not show"),
        ((1.0, 3.0, 1.0, 9.0), "do not show"),
    ],
)
def test_the_verdict_follows_the_training_errors(make_run, tmp_path, errors, words):
    sentence = verdict(runs_with(make_run, tmp_path, *errors))
    assert words in sentence
    assert f"{errors[1]:.1f} % at 56" in sentence


def test_no_verdict_without_all_four(make_run, tmp_path):
    assert "digits-resnet56" in verdict(runs_with(make_run, tmp_path, 1.0, 2.0, 3.0))
