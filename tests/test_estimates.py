"""`resrepro train --dry-run`: what a run will take, from a few real steps, with nothing written."""

from functools import partial

import pytest
import torch
from commands import call
from conftest import use_one_thread
from rich.console import Console

from resrepro.bench.calibration import calibrate
from resrepro.cli.forecast import Outlook, table_of
from resrepro.errors import UsageError
from resrepro.launch.estimates import Estimate, estimate_from, notes_on
from resrepro.training.session import train

CPU = torch.device("cpu")
TOLD = {
    "name": "cifar10-resnet20", "iterations": 1000, "eval_every": 300, "sets": 2, "step_seconds": 0.5,
    "start_seconds": 30.0,    "evaluation_seconds": 7.0, "reads": True, "memory_mib": 900.0, "gpu_mib": None,
    "checkpoint_bytes": 3 * 2**20,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_bound(monkeypatch):
    """The bound on memory would stay with this process, which is not a child."""
    monkeypatch.setattr("resrepro.bench.calibration.stay_within_memory", lambda: None)
    use_one_thread()


def asked(experiment, data=None, **settings):
    return {
        "experiment": experiment, "shortcut": None, "micro_batch": None, "fast": False,
        "compiling": "off", "data": data,
        "loading": [0, 0], "seconds": 0.02, "settings": settings,
    }  # fmt: skip


def test_time_is_of_all_updates_and_evaluations_and_disk_of_two_checkpoints():
    found = estimate_from(TOLD)
    assert found.seconds == 30 + 1000 * 0.5 + 4 * 7.0  # evaluated after 300, 600, 900 and 1000
    assert found.disk_mib == pytest.approx(6 + 4 * 2 * 75 / 2**20)
    assert (found.memory_mib, found.gpu_mib, found.reads) == (900.0, None, True)
    without = estimate_from(TOLD | {"reads": False})
    assert "Reading photographs is not included" in " ".join(notes_on([found, without]))
    assert "not included" not in " ".join(notes_on([found]))


def test_the_size_of_a_checkpoint_is_that_of_the_one_that_a_run_writes(tmp_path):
    told = calibrate(asked("digits-resnet8", iterations=4, lr_drops=[1, 2]), CPU)
    assert (told["iterations"], told["sets"], told["reads"]) == (4, 2, True)
    assert told["name"] == "digits-resnet8+iterations=4+lr_drops=1,2"
    assert told["step_seconds"] > 0
    assert told["evaluation_seconds"] > 0
    run = train("digits-resnet8", iterations=4, runs=tmp_path, device="cpu")
    written = (run / "checkpoint.pt").stat().st_size
    assert told["checkpoint_bytes"] == pytest.approx(written, rel=0.1)
    assert list(tmp_path.iterdir()) == [run.parent]


def test_photographs_are_read_if_they_are_there_and_made_up_if_not(photographs):
    small = {"batch_size": 8, "image_size": 32, "iterations": 3}
    real = calibrate(asked("folder-resnet18", str(photographs), **small), CPU)
    assert real["reads"] is True
    assert real["evaluation_seconds"] > 0
    made_up = calibrate(asked("folder-resnet18", **small), CPU)
    assert made_up["reads"] is False
    # 4 classes there, ImageNet's 1,000 here: 512 weights for each, with their momentum
    more = made_up["checkpoint_bytes"] - real["checkpoint_bytes"]
    assert more == pytest.approx(996 * 513 * 4 * 2, rel=0.05)


def test_cifar10_is_made_up_in_its_real_size():
    told = calibrate(asked("cifar10-resnet8", batch_size=16), CPU)
    assert (told["iterations"], told["eval_every"], told["sets"]) == (64_000, 1_000, 2)


def test_what_could_not_be_trained_is_not_measured_either():
    with pytest.raises(UsageError, match="does not divide"):
        calibrate(asked("digits-resnet8") | {"micro_batch": 100}, CPU)


@pytest.mark.usefixtures("empty_folder")
def test_a_dry_run_tells_of_every_run_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("resrepro.launch.estimates.SECONDS", 0.1)
    code, stdout, stderr = call(
        "train", "--dataset", "digits", "--depth", 8, "--seeds", "0-2", "--dry-run", "--threads", 1,
        "--device", "cpu", "--jobs", 1,
    )  # fmt: skip
    assert code == 0, stderr
    assert "digits-resnet8" in stdout
    assert "all, one after the other" in stdout
    assert "nothing was written" in stdout
    assert max(map(len, stdout.splitlines())) <= 80
    assert list((tmp_path / "here").iterdir()) == []


def test_the_table_adds_up_what_runs_one_after_the_other(capsys):
    one = Estimate("a", 100, 3600.0, 500.0, None, 2.0, True)
    other = Estimate("b", 100, 7200.0, 700.0, None, 3.0, True)
    last_line = partial(_last_line, capsys)
    fresh = [Outlook(one, (0, 0)), Outlook(other, (0, 0))]
    assert last_line(fresh, 1) == "all, one after the other 4 6.0 h 700 10.0"
    assert last_line(fresh, 2) == "all, 2 at once 4 3.0 h 1,400 10.0"  # the two largest of them
    assert last_line(fresh, 8) == "all, 8 at once 4 2.0 h 2,400 10.0"  # no shorter than the longest
    begun = [Outlook(one, (100, 50)), Outlook(other, (0, 0))]  # one done, one half done
    assert last_line(begun, 1) == "what is left, one after the other 3 4.5 h 700 6.0"
    done = [Outlook(one, (100, 100))]
    assert last_line(done, 1).startswith("what is left, one after the other 0 0")


def _last_line(capsys, *told):
    Console(width=80).print(table_of(*told))
    return " ".join(capsys.readouterr().out.strip().splitlines()[-1].split())


@pytest.mark.usefixtures("empty_folder")
def test_a_dry_run_counts_what_was_made_already(monkeypatch):
    monkeypatch.setattr("resrepro.launch.estimates.SECONDS", 0.1)
    asked = ("train", "--dataset", "digits", "--depth", 8, "--iterations", 4, "--threads", 1)
    assert call(*asked)[0] == 0
    code, told, _ = call(*asked, "--seeds", "0-2", "--jobs", 2, "--dry-run")
    assert code == 0
    assert "what is left, 2 at once" in told
    assert "1 of 3 done already." in told
    assert "Each net was measured alone" in told
    assert max(map(len, told.splitlines())) <= 80
    code, told, _ = call(*asked, "--seeds", "0-2", "--jobs", 1, "--fresh", "--dry-run")
    assert (code, "done already" in told, "all, one after the other" in told) == (0, False, True)


@pytest.mark.usefixtures("empty_folder")
def test_a_dry_run_that_cannot_start_is_one_sentence():
    code, _, stderr = call("train", "--dataset", "digits", "--depth", 8, "--dry-run", "--device", "abacus")
    assert code == 2
    assert stderr.count("error:") == 1
    assert "no device 'abacus'" in stderr
