"""A killed process, a full disk, a vanished folder: no checkpoint is lost, and going on changes no number."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
import warnings

import pytest
from conftest import use_one_thread
from runs import checkpoint_of, differences

from resrepro.errors import RecordError
from resrepro.records.collection import collect
from resrepro.training.progress import Watcher
from resrepro.training.session import train


def short(runs, **options):
    use_one_thread()
    wanted = {"iterations": 16, "batch_size": 16, "eval_every": 2, "checkpoint_every": "3"}
    return train(
        "digits-resnet8", runs=runs, device="cpu", threads=1, engine="eager", **wanted, **options
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return short(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.skipif(sys.platform != "linux", reason="forks with torch loaded")
def test_a_run_that_was_killed_goes_on_to_the_very_same_end(undisturbed, tmp_path):
    folder = tmp_path / undisturbed.parent.name / "seed0"
    process = multiprocessing.get_context("fork").Process(target=short, args=(tmp_path,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        process.start()
    deadline = time.monotonic() + 60
    while not (folder / "metrics.csv").exists() or b"\n8," not in (folder / "metrics.csv").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert collect([tmp_path]).broken == ()
    assert 6 <= checkpoint_of(folder)["iteration"] < 16
    assert short(tmp_path) == folder
    assert differences(folder, undisturbed) == []


@pytest.mark.parametrize("moment", [3, 12, 30])
def test_a_full_disk_is_told_in_a_sentence_and_with_room_again_the_run_goes_on(
    undisturbed, tmp_path, monkeypatch, moment
):
    """The disk is full from the `moment`-th time on that something is forced to it."""
    forced = 0

    def full(file):
        nonlocal forced
        forced += 1
        if forced >= moment:
            raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RecordError, match=r"^cannot write \S+: No space left on device") as caught:
            short(tmp_path)
    assert str(caught.value).endswith("make room, then the same command, without --fresh, goes on).")
    assert not list(tmp_path.rglob("*.part"))
    assert moment < 30 or collect([tmp_path]).broken == ()  # before that the record is only begun
    assert differences(short(tmp_path), undisturbed) == []


class Vanisher(Watcher):
    """Removes the run's folder after an update."""

    def __init__(self, runs):
        self.runs = runs

    def step(self, done, lr, read):
        if done == 4:
            shutil.rmtree(next(self.runs.glob("*/seed0")))


def test_a_folder_that_vanishes_is_told_in_a_sentence_and_not_made_anew(tmp_path):
    with pytest.raises(RecordError, match="its folder has vanished"):
        short(tmp_path, watcher=Vanisher(tmp_path))
    assert not list(tmp_path.glob("*/seed0"))
