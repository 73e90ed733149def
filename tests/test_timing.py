"""What an update takes, timed on made-up images; nothing is kept of it."""

import os
from pathlib import Path
from typing import Any

import pytest
from commands import call

from resrepro.training import timing
from resrepro.training.timing import seconds_per_iteration


@pytest.mark.parametrize(
    ("experiment", "settings"),
    [
        ("digits-resnet8", {}),
        ("cifar10-resnet8", {"split": "45k5k", "batch_size": 8}),
        ("folder-resnet18", {"image_size": 32, "batch_size": 64}),  # of which only a part is made
    ],
)
def test_a_few_updates_of_any_kind_of_net_are_timed_without_its_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: str, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(timing, "UPDATES", 2)
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"])  # so that it is put back
    monkeypatch.chdir(tmp_path)
    options = {"device": "cpu", "threads": 1, "shortcut": None, "data": None, "fresh": True, **settings}
    assert 0 < seconds_per_iteration(experiment, options) < 60
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_the_time_by_a_command_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "digits-resnet8", "--iterations", 30, "--device", "cpu", "--fast", "--dry-run"]
    code, told, error = call(*words)
    assert code == 0, error
    assert "1 run: 1 to start; about " in told
    assert list(tmp_path.iterdir()) == []
