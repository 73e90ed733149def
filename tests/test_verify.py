"""Checking records: each kind of damage is named, nothing is changed, what train restores is whole again."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import call
from conftest import rewrite, use_one_thread, write_ensemble, write_eval, write_layers, write_run
from runs import same_weights

from resrepro.errors import Interrupted
from resrepro.evaluation.weights import write_weights
from resrepro.records import read_run
from resrepro.records.reading import RECORD_FILES
from resrepro.training.checkpoint import load_checkpoint, save_checkpoint
from resrepro.training.progress import Watcher
from resrepro.training.session import train

END, STOP, CHECKPOINTS = 6, 4, 3


class Stopper(Watcher):
    def step(self, done: int, lr: float, read: Callable[[], object]) -> None:
        if done == STOP:
            signal.raise_signal(signal.SIGTERM)


def go_on(runs: Path, **options: Any) -> Path:
    use_one_thread()
    return train(
        "digits-resnet8", runs=runs, device="cpu", threads=1, engine="eager", iterations=END, eval_every=2,
        batch_size=16, checkpoint_every=str(CHECKPOINTS), **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `finished` and `stopped`, runs folders of one run each."""
    top = tmp_path_factory.mktemp("verified")
    go_on(top / "finished")
    with pytest.raises(Interrupted):
        go_on(top / "stopped", watcher=Stopper())
    return top


@pytest.fixture
def finished(made: Path, tmp_path: Path) -> Path:
    return next(shutil.copytree(made / "finished", tmp_path / "runs").glob("*/seed0"))


@pytest.fixture
def stopped(made: Path, tmp_path: Path) -> Path:
    return next(shutil.copytree(made / "stopped", tmp_path / "runs").glob("*/seed0"))


def check(*paths: Path) -> list[str]:
    """What `status --check` says of each record that is not the only, whole one, without its path."""
    code, out, err = call("status", "--check", *map(str, paths))
    assert err == ""
    lines = [line for line in out.splitlines() if not line.startswith("The command")]
    assert code == ("broken: " in out)
    assert ", 0 broken." in lines[-1] or "whole (" in lines[-1] or lines.pop().endswith(" broken.")
    return [line.partition(": ")[2] or line for line in lines]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def spoil(state: dict[str, Any]) -> None:
    next(tensor for name, tensor in state["net"].items() if "running_var" in name)[0] = torch.nan


def test_what_train_made_is_whole_and_stays_as_it_is(finished):
    before = {path: path.read_bytes() for path in finished.parents[1].rglob("*") if path.is_file()}
    assert check(finished) == ["whole (shortened, 6 of 6 iterations)"]
    assert {path: path.read_bytes() for path in finished.parents[1].rglob("*") if path.is_file()} == before


def test_all_records_below_a_folder_that_are_whole_take_one_line(tmp_path):
    pair = [write_run(tmp_path, "imagenet-resnet18", seed) for seed in (0, 1)]
    write_ensemble(tmp_path, pair, 25.0, 8.0)
    (pair[0].with_name("seed0.aside1")).mkdir()
    (pair[0].with_name("seed0.aside1") / "spec.json").touch()
    theirs = write_eval(pair[0], "center", 30.0, 10.0)
    rewrite(theirs, lambda content: [content.pop("digest"), content.update(checkpoint="x.pth")])
    (tmp_path / "foreign" / "x").mkdir(parents=True)
    theirs.replace(tmp_path / "foreign" / "x" / "center.json")
    assert check(tmp_path, pair[0]) == ["4 whole, 0 broken."]
    told = json.loads(call("status", "--check", tmp_path, "--json")[1])
    assert [each["holds"] for each in told] == [
        *["complete, 600,000 of 600,000 iterations, no checkpoint"] * 2,
        "ensemble, multi_scale on imagenet",
        "evaluation, center on imagenet",
    ]


@pytest.mark.parametrize("name", RECORD_FILES)
@pytest.mark.parametrize("damage", [cut, Path.unlink], ids=["cut", "missing"])
def test_a_damaged_record_file_is_named(stopped, name, damage):
    damage(stopped / name)
    (line,) = check(stopped)
    assert line.startswith(f"broken: {name} is {'missing' if damage is Path.unlink else 'broken'}")


def test_train_restores_a_whole_record_from_the_checkpoint(stopped, made):
    assert check(stopped) == ["whole (partial, 4 of 6 iterations)"]
    for name in RECORD_FILES:
        (stopped / name).unlink()
    assert go_on(stopped.parents[1]) == stopped
    assert check(stopped) == ["whole (shortened, 6 of 6 iterations)"]
    assert same_weights(stopped, next((made / "finished").glob("*/seed0")))


def test_checkpoints_that_are_damaged_missing_or_of_another_moment_are_named(finished):
    newest, before = finished / "checkpoint.pt", finished / "checkpoint.previous.pt"
    newest.write_bytes(before.read_bytes())
    assert check(finished) == ["broken: checkpoint.pt is of iteration 3, not of the last, 6."]
    newest.unlink()
    cut(before)
    assert check(finished) == [
        "broken: checkpoint.previous.pt is not a PyTorch checkpoint, or is damaged.",
        "broken: checkpoint.pt is missing.",
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (spoil, "NaN or infinite numbers in bn1.running_var"),
        (lambda state: state.update(seed=1), "is of another run than spec.json"),
        (lambda state: state["net"].popitem(), "does not fit ResNet-8"),
        (lambda state: state.pop("net"), "is not a run of ours"),
    ],
)  # fmt: skip
def test_a_sealed_checkpoint_that_does_not_fit_is_told(stopped, change, told):
    state = load_checkpoint(stopped / "checkpoint.pt")
    change(state)
    save_checkpoint(stopped / "altered.pt", state)
    (stopped / "altered.pt").replace(stopped / "checkpoint.pt")
    (line,) = check(stopped)
    assert (line.startswith("broken: checkpoint.pt "), told in line) == (True, True)


def test_evaluations_and_responses_are_checked_too(tmp_path):
    folder = write_run(tmp_path, "imagenet-resnet18", evals={"center": (30.0, 10.0)})
    rewrite(write_eval(folder, "multi_scale", 30.0, 10.0), lambda content: content.pop("protocol"))
    write_layers(folder)
    path = folder / "responses.csv"
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.26", 1))
    assert [line.removeprefix("broken: ") for line in check(folder)] == [
        "evals/multi_scale.json is broken: it lacks protocol.",
        "responses.csv is broken: its rows do not match their checksum.",
    ]


def test_published_weights_are_checked_too(finished):
    rewrite(finished / "result.json", lambda result: result.update(status="complete"))
    weights = write_weights(read_run(finished), finished)
    assert check(finished) == ["whole (complete, 6 of 6 iterations)"]
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    (line,) = check(finished)
    assert line.startswith("broken: weights.safetensors is damaged")


def test_what_is_no_record_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "seed0").mkdir()
    for file in ("a.txt", "seed0/spec.json"):
        (tmp_path / file).touch()
    for name in ("nowhere", "empty", "a.txt", "seed0/spec.json"):
        code, out, err = call("status", "--check", tmp_path / name)
        assert (code, out, err.startswith("error: there is no record at ")) == (1, "", True)
    code, _, err = call("status", "runs")  # runs are named for the check alone
    assert (code, "--check" in err) == (2, True)
