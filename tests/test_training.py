"""Training: the record it leaves, going on after an interruption, and what it computes."""

import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import OF_TIMES, TIMES, checkpoint_of, differences, env_of, net_of, result_of, rows_of, same_weights
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from resrepro.data import Dataset, Images, feeds, load_dataset
from resrepro.data.augment import INITIAL_WEIGHTS, Augmentation, TrainingBatches, stream_seed
from resrepro.data.loader import Loading, Views
from resrepro.errors import Diverged, Interrupted, RecordError, UsageError
from resrepro.evaluation.sources import read_net
from resrepro.nets import build_net
from resrepro.records import read_run
from resrepro.records.reading import METRICS_COLUMNS, RECORD_FILES
from resrepro.records.storage import write_json
from resrepro.spec.recipe import Recipe
from resrepro.training import checkpoint, engine, loop
from resrepro.training import session as training
from resrepro.training.checkpoint import load_checkpoint, save_checkpoint
from resrepro.training.measure import Errors
from resrepro.training.progress import SIGNALS, Sample, Watcher
from resrepro.training.session import train

SECRET = "a-value-that-only-the-environment-holds"


class Recorder(Watcher):
    """Remembers every event; `at` maps an update to what is to happen after it."""

    def __init__(self, at: dict[int, Callable[[], object]] | None = None) -> None:
        self.at = at or {}
        self.began: list[tuple[int, int]] = []
        self.steps: list[int] = []
        self.samples: list[Sample] = []
        self.said: list[str] = []
        self.ends = 0

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        self.began.append((done, iterations))

    def step(self, done: int, lr: float, read: Callable[[], Errors]) -> None:
        self.steps.append(done)
        self.at.get(done, lambda: None)()

    def sample(self, sample: Sample) -> None:
        self.samples.append(sample)

    def say(self, text: str) -> None:
        self.said.append(text)

    def end(self) -> None:
        self.ends += 1


# --- a run on the digits, looked at from all sides --------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    runs = tmp_path_factory.mktemp("finished") / "runs"
    watcher = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_OF_THE_TEST", SECRET)
        patch.setenv("HOSTNAME", "host-of-the-test")
        patch.setenv("USER", "user-of-the-test")
        folder = train("digits-resnet8", 3, runs=runs, device="cpu", watcher=watcher, iterations=33)
    return folder, watcher


def test_a_run_lies_under_its_name_and_seed_with_all_its_files(finished: tuple[Path, Recorder]) -> None:
    folder, _ = finished
    assert folder.parts[-3:] == ("runs", "digits-resnet8+iterations=33", "seed3")
    assert {path.name for path in folder.iterdir()} == {
        *RECORD_FILES,
        "checkpoint.pt",
        "checkpoint.previous.pt",
    }


def test_both_errors_are_sampled_every_32nd_of_the_run_and_at_its_end(
    finished: tuple[Path, Recorder],
) -> None:
    folder, watcher = finished
    wanted = [*range(2, 33, 2), 33]  # every min(1000, ceil(33 / 32))
    rows = rows_of(folder)
    assert tuple(rows[0]) == METRICS_COLUMNS
    assert [(int(row["iteration"]), row["split"]) for row in rows] == [
        (k, split) for k in wanted for split in ("train", "test")
    ]
    assert [sample.iteration for sample in watcher.samples] == wanted
    assert watcher.steps == list(range(1, 34))
    assert (watcher.began, watcher.ends) == ([(0, 33)], 1)


def test_rows_hold_plain_numbers_epochs_and_the_rate_of_their_update(finished: tuple[Path, Recorder]) -> None:
    rows = rows_of(finished[0])
    for row in rows:
        numbers = {key: float(value) for key, value in row.items() if key != "split"}
        assert numbers["epoch"] == pytest.approx(numbers["iteration"] * 128 / 1438, abs=1e-4)
        update = numbers["iteration"]  # 33 iterations: the 18th update is the first after the drop at 16.5
        assert numbers["lr"] == pytest.approx(0.05 if update <= 17 else 0.005 if update <= 25 else 0.0005)
        assert 0 <= numbers["top5_err"] <= numbers["top1_err"] <= 100
        assert numbers["images_per_s"] > 0
    walls = [float(row["wall_s"]) for row in rows]
    assert walls == sorted(walls)


def test_the_result_holds_the_last_iteration_as_headline_and_the_best_sample_apart(
    finished: tuple[Path, Recorder],
) -> None:
    folder, _ = finished
    result, rows = result_of(folder), rows_of(folder)
    assert (result["status"], result["iteration"], result["headline"]) == ("shortened", 33, "test")
    for row in rows[-2:]:
        for metric in ("loss", "top1_err", "top5_err"):
            assert result["last"][row["split"]][metric] == pytest.approx(float(row[metric]), abs=1e-6)
    tests = [row for row in rows if row["split"] == "test"]
    lowest = min(tests, key=lambda row: float(row["top1_err"]))
    assert result["best"] == {"iteration": int(lowest["iteration"]), "top1_err": float(lowest["top1_err"])}
    assert "33 iterations instead of 64,000" in " ".join(result["departures"])
    assert result["warmup_switch"] is None


def test_the_net_has_learned_and_its_last_errors_are_those_of_its_checkpoint(
    finished: tuple[Path, Recorder],
) -> None:
    folder, _ = finished
    data = load_dataset("digits")
    net = build_net("digits", 8).eval()
    net.load_state_dict(net_of(folder))
    mean = data.train.pixels.astype(np.float64).mean(axis=0)
    with torch.no_grad():
        test = data.held_out["test"]
        logits = net(torch.tensor((test.pixels - mean) / 255, dtype=torch.float32))
    labels = torch.from_numpy(test.labels)
    last = result_of(folder)["last"]["test"]
    assert last["top1_err"] == pytest.approx(
        100 * float((logits.argmax(1) != labels).double().mean()), abs=0.3
    )
    assert last["loss"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-3)
    assert last["top1_err"] < 40


def test_the_record_can_be_read_and_says_what_was_trained_on(finished: tuple[Path, Recorder]) -> None:
    run = read_run(finished[0])
    assert (run.seed, run.finished, run.exact, run.experiment) == (3, True, False, "digits-resnet8")
    digits = load_dataset("digits")
    assert run.env["data"]["sha256"] == {
        "train": digits.train.sha256(),
        "test": digits.held_out["test"].sha256(),
    }
    assert run.env["data"]["images"] == {"train": 1438, "test": 359}
    assert torch.__version__.startswith(run.env["versions"]["torch"])  # less the local build
    assert run.env["device"] == "cpu"
    assert run.env["command"].endswith("--seed 3")


def test_no_record_file_holds_a_path_a_host_a_user_or_the_environment(
    finished: tuple[Path, Recorder],
) -> None:
    folder, _ = finished
    words = [SECRET, "SECRET_OF_THE_TEST", "host-of-the-test", "user-of-the-test", "somebody"]
    words += [str(folder.parents[2]), str(Path.home()) + "/", str(Path.cwd())]
    host = socket.gethostname()
    words += [host] if len(host) > 6 and host != "localhost" else []
    for name in RECORD_FILES:
        text = (folder / name).read_text()
        assert not [word for word in words if word in text], name
        assert not re.search(r"(?<![\w.])[/~][\w.-]+", text), name
    content = (folder / "checkpoint.pt").read_bytes()
    assert not [word for word in words if word.encode() in content]


def test_running_a_finished_run_again_says_so_and_changes_nothing(finished: tuple[Path, Recorder]) -> None:
    folder, _ = finished
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")}
    watcher = Recorder()
    again = train("digits-resnet8", 3, runs=folder.parents[1], device="cpu", watcher=watcher, iterations=33)
    assert again == folder
    assert "finished already" in " ".join(watcher.said)
    assert watcher.steps == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")} == before


# --- smaller runs, on a part of the digits ----------------------------------------------------------


def small(images: Images, count: int) -> Images:
    return Images(images.pixels[:count, :, ::2, ::2], images.labels[:count])


def small_dataset(name: str, split: str) -> Dataset:
    digits = load_dataset("digits")
    train, test = small(digits.train, 200), small(digits.held_out["test"], 40)
    held_out = {"val": small(digits.train, 20), "test": test} if split == "45k5k" else {"test": test}
    return Dataset(
        name, 10, train, held_out, {"train": train.sha256(), "test": test.sha256()}, ("the images are few",)
    )


@pytest.fixture(autouse=True)
def few_images(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 digits of 8x8 pixels in place of every dataset, except where `finished` is looked at."""
    if "finished" not in request.fixturenames:
        monkeypatch.setattr(feeds, "load_dataset", lambda name, split, folder: small_dataset(name, split))


def short(runs: Path, experiment: str = "digits-resnet8", seed: int = 0, **options: Any) -> Path:
    """12 updates with 32 images each; sampled every third."""
    settings = {"iterations": 12, "batch_size": 32, "eval_every": 3, "lr": 0.05}
    return train(experiment, seed, runs=runs, device="cpu", **settings | options)


def by_hand(seed: int = 0) -> tuple[dict[str, torch.Tensor], list[tuple[float, float]], list[float]]:
    """The same updates by a plain PyTorch loop: final weights, (loss, error) of each batch, test errors."""
    from resrepro.spec import catalogue

    recipe: Recipe = catalogue.derive(
        catalogue.find("digits-resnet8"), iterations=12, batch_size=32, lr=0.05
    ).recipe
    data = small_dataset("digits", "all")
    batches = TrainingBatches(
        recipe, data.train, Augmentation.from_training_images(recipe, data.train, torch.device("cpu")), seed
    )
    weights = torch.Generator().manual_seed(stream_seed(seed, INITIAL_WEIGHTS))
    net = build_net("digits", 8, generator=weights)
    optimizer = torch.optim.SGD(net.parameters(), 0.05, momentum=0.9, weight_decay=1e-4, foreach=False)
    mean = data.train.pixels.astype(np.float64).mean(axis=0)
    test = data.held_out["test"]
    answers, tests = [], []
    for update in range(12):
        images, labels = batches[update]
        optimizer.param_groups[0]["lr"] = 0.05 if update < 6 else 0.005 if update < 9 else 0.0005
        logits = net(images)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        answers.append((loss.item(), 100 * float((logits.argmax(1) != labels).double().mean())))
        net.eval()
        with torch.no_grad():
            logits = net(torch.tensor((test.pixels - mean) / 255, dtype=torch.float32))
        tests.append(100 * float((logits.argmax(1) != torch.from_numpy(test.labels)).double().mean()))
        net.train()
    return net.state_dict(), answers, tests


def test_a_run_makes_the_updates_of_a_plain_loop_and_records_its_errors(tmp_path: Path) -> None:
    folder = short(tmp_path, momentum_form="torch")
    weights, answers, tests = by_hand()
    ours = net_of(folder)
    for name, tensor in weights.items():
        torch.testing.assert_close(ours[name], tensor, rtol=2e-3, atol=2e-4)
    for row in rows_of(folder):
        end = int(row["iteration"])
        if row["split"] == "train":  # the mean over the three batches since the last sample
            batch_losses, batch_errors = zip(*answers[end - 3 : end], strict=True)
            assert float(row["loss"]) == pytest.approx(sum(batch_losses) / 3, rel=1e-3)
            assert float(row["top1_err"]) == pytest.approx(sum(batch_errors) / 3, abs=1.1)  # one of 96 images
        else:
            assert float(row["top1_err"]) == pytest.approx(tests[end - 1], abs=2.6)  # one of 40 images


def test_the_seed_decides_the_run_bit_by_bit(tmp_path: Path) -> None:
    one, again = short(tmp_path / "one"), short(tmp_path / "again")
    other = short(tmp_path / "one", seed=1)
    assert same_weights(one, again)
    assert rows_of(one, *TIMES) == rows_of(again, *TIMES)
    assert not same_weights(one, other)
    assert other == one.with_name("seed1")


def test_both_modes_and_their_engine_are_in_the_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "fast_precision", lambda device: "bf16")
    default, fast = short(tmp_path), short(tmp_path, fast=True, compiling="on")
    told = [env_of(folder) for folder in (default, fast)]
    assert [(env["mode"], env["engine"]) for env in told] == [("default", "eager"), ("fast", "kernels")]
    assert fast.parent.name.replace("+precision=bf16", "") == default.parent.name != fast.parent.name
    assert any("precision bf16" in departure for departure in result_of(fast)["departures"])
    assert not same_weights(default, fast)
    with pytest.raises(UsageError, match="--fast chooses the precision itself"):
        short(tmp_path, fast=True, precision="bf16")


def test_where_there_is_nothing_faster_the_fast_mode_is_the_default_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "fast_precision", lambda device: "float32")
    watcher = Recorder()
    folder = short(tmp_path, fast=True, watcher=watcher)
    assert env_of(folder)["mode"] == "default"
    assert folder.parent.name == short(tmp_path / "other").parent.name
    assert any("no bf16 arithmetic" in sentence for sentence in watcher.said)


def test_the_scale_of_fp16_is_part_of_the_state_and_overflow_skips_an_update(tmp_path: Path) -> None:
    begun = torch.amp.GradScaler("cpu").get_scale()
    assert checkpoint_of(short(tmp_path, precision="fp16"))["scaler"]["scale"] <= begun
    assert checkpoint_of(short(tmp_path))["scaler"] == {}


def test_a_run_goes_on_with_its_engine_or_not_at_all(tmp_path: Path) -> None:
    watcher = Recorder({5: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(Interrupted):
        short(tmp_path, watcher=watcher, compiling="on")
    with pytest.raises(UsageError, match="begun with the engine kernels"):
        short(tmp_path, compiling="off")
    assert env_of(short(tmp_path))["engine"] == "kernels"


def test_a_checkpoint_from_before_there_were_engines_goes_on_eagerly(tmp_path: Path) -> None:
    whole = short(tmp_path / "whole")
    watcher = Recorder({5: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with pytest.raises(Interrupted):
        short(tmp_path / "parts", watcher=watcher)
    (folder,) = (tmp_path / "parts").glob("*/seed0")
    state = checkpoint_of(folder)
    del state["scaler"], state["env"]["engine"]
    save_checkpoint(folder / "checkpoint.pt", state)
    assert differences(short(tmp_path / "parts"), whole) == []


WARM = {"warmup_lr": 0.005, "warmup_window": 4, "warmup_until_err": 99.9}


@pytest.mark.parametrize(
    ("number", "moment", "settings"),
    [
        (signal.SIGTERM, 5, {}),
        (signal.SIGINT, 6, {}),  # a sample is due
        (signal.SIGUSR1, 8, {"precision": "bf16"}),
        (signal.SIGUSR2, 12, {}),  # the last update
        (signal.SIGTERM, 7, {"experiment": "cifar10-resnet8"}),  # crops, flips
        (signal.SIGTERM, 7, {"sampling": "replacement", "momentum_form": "nesterov", "bn_group": 8}),
        (signal.SIGTERM, 2, WARM),
        (signal.SIGTERM, 7, WARM),
        (signal.SIGTERM, 1, {"eval_every": 12}),
        (signal.SIGTERM, 7, {"compiling": "on"}),
        (signal.SIGTERM, 7, {"compiling": "on", "fast": True}),
        (signal.SIGTERM, 7, {"precision": "fp16"}),
    ],
)
def test_an_interrupted_run_goes_on_to_the_very_same_end(
    tmp_path: Path, number: signal.Signals, moment: int, settings: dict
) -> None:
    whole = short(tmp_path / "whole", **settings)
    handlers = [signal.getsignal(each) for each in SIGNALS]
    watcher = Recorder({moment: lambda: os.kill(os.getpid(), number)})
    with pytest.raises(Interrupted, match=f"iteration {moment} of 12") as caught:
        short(tmp_path / "parts", watcher=watcher, **settings)
    assert caught.value.exit_code == 128 + number
    assert (watcher.steps[-1], watcher.ends) == (moment, 1)
    assert [signal.getsignal(each) for each in SIGNALS] == handlers
    (folder,) = (tmp_path / "parts").glob("*/seed0")
    assert (result_of(folder)["status"], result_of(folder)["iteration"]) == ("partial", moment)
    assert read_run(folder).status == "partial"

    watcher = Recorder()
    assert short(tmp_path / "parts", watcher=watcher, **settings) == folder
    assert watcher.began == [(moment, 12)]
    assert watcher.steps == list(range(moment + 1, 13))
    assert differences(folder, whole) == []


def test_a_crash_between_curve_and_checkpoint_leaves_no_double_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = short(tmp_path / "whole")
    write = loop.save_checkpoint
    written = []

    def fail_fourth(path: Path, state: dict) -> None:
        written.append(state["iteration"])
        if len(written) == 4:
            raise RecordError("the disk is full")
        write(path, state)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", fail_fourth)
        with pytest.raises(RecordError, match="disk is full"):
            short(tmp_path / "parts", checkpoint_every="3")
    assert written == [0, 3, 6, 9]
    (folder,) = (tmp_path / "parts").glob("*/seed0")
    assert rows_of(folder)[-1]["iteration"] == "9"
    watcher = Recorder()
    short(tmp_path / "parts", watcher=watcher)
    assert watcher.began == [(6, 12)]
    assert differences(folder, whole) == []


@pytest.mark.parametrize(("moment", "iteration"), [(1, 3), (2, 6), (4, 12)])
def test_an_evaluation_under_way_is_abandoned_at_a_signal_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int, iteration: int
) -> None:
    monkeypatch.setattr(feeds, "EVAL_BATCH", 10)  # the 40 test images in four parts
    whole = short(tmp_path / "whole")
    views = feeds.MemoryFeed.views
    opened: list[int] = []

    def signalled(feed: feeds.MemoryFeed, name: str) -> Iterator[Views]:
        opened.append(0)
        for part in views(feed, name):
            opened[-1] += 1
            if len(opened) == moment and opened[-1] == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield part

    monkeypatch.setattr(feeds.MemoryFeed, "views", signalled)
    with pytest.raises(Interrupted, match=f"Stopped at iteration {iteration} of 12") as caught:
        short(tmp_path / "parts")
    assert caught.value.exit_code == 128 + signal.SIGUSR1
    assert opened == [4] * (moment - 1) + [2]
    (folder,) = (tmp_path / "parts").glob("*/seed0")
    assert [int(row["iteration"]) for row in rows_of(folder)[::2]] == list(range(3, iteration, 3))
    assert (result_of(folder)["status"], result_of(folder)["iteration"]) == ("partial", iteration)
    short(tmp_path / "parts")
    assert opened == [4] * (moment - 1) + [2] + [4] * (5 - moment)
    assert differences(folder, whole) == []


def test_another_session_is_noted_in_the_record_beside_the_first(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        short(tmp_path, watcher=Recorder({5: lambda: os.kill(os.getpid(), signal.SIGTERM)}))
    short(tmp_path)
    (folder,) = tmp_path.glob("*/seed0")
    env = json.loads((folder / "env.json").read_text())
    assert env["later_sessions"] == [{"from_iteration": 5}]


def interrupted(runs: Path, moment: int = 5, **options: Any) -> Path:
    """A run stopped after an update; returns its folder."""
    with pytest.raises(Interrupted):
        short(runs, watcher=stopped_at(moment), **options)
    (folder,) = runs.glob("*/seed0")
    return folder


def test_curves_whose_checkpoint_is_gone_are_set_aside_not_overwritten(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (folder / name).unlink()
    curves = (folder / "metrics.csv").read_bytes()
    assert short(tmp_path) == folder
    assert result_of(folder)["iteration"] == 12
    assert (folder.with_name("seed0.aside1") / "metrics.csv").read_bytes() == curves


@pytest.mark.parametrize("damage", [None, b"", b"\x00\xff", b"iteration\n\n\n"])
@pytest.mark.parametrize("name", RECORD_FILES)
def test_a_damaged_or_missing_record_is_restored_from_the_checkpoint(
    tmp_path: Path, damage: bytes | None, name: str, whole_run: Path
) -> None:
    folder = interrupted(tmp_path)
    (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
    watcher = Recorder()
    assert short(tmp_path, watcher=watcher) == folder
    told = f"Damaged or missing, and restored from the checkpoint: {name}."
    assert (told in watcher.said) is (name != "result.json")  # which is written anew in any case
    assert differences(folder, whole_run) == []
    assert read_run(folder).finished


@pytest.mark.parametrize("name", RECORD_FILES)
def test_the_damaged_record_of_a_finished_run_is_restored_without_training(tmp_path: Path, name: str) -> None:
    folder = short(tmp_path)
    before = result_of(folder, *OF_TIMES)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    watcher = Recorder()
    short(tmp_path, watcher=watcher)
    assert watcher.steps == []
    assert result_of(folder, *OF_TIMES) == before
    assert read_run(folder).finished


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "load_dataset", lambda name, split, folder: small_dataset(name, split))
        return short(tmp_path_factory.mktemp("whole"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_trains_to_about_the_same_errors(tmp_path: Path, precision: str) -> None:
    cpu = short(tmp_path / "cpu", device="cpu")
    gpu = short(tmp_path / "gpu", device="cuda", precision=precision)
    first = [float(rows_of(folder, *TIMES)[0]["loss"]) for folder in (cpu, gpu)]
    assert first[1] == pytest.approx(first[0], rel=0.05)  # same weights and order; other augmentation


def test_a_crash_before_the_first_checkpoint_starts_from_the_beginning(tmp_path: Path) -> None:
    def crash() -> None:
        raise KeyboardInterrupt

    whole = short(tmp_path / "whole")
    watcher = Recorder({2: crash})
    with pytest.raises(KeyboardInterrupt):
        short(tmp_path / "parts", watcher=watcher)
    assert watcher.ends == 1
    (folder,) = (tmp_path / "parts").glob("*/seed0")
    assert read_run(folder).status == "partial"
    short(tmp_path / "parts")
    assert rows_of(folder, *TIMES) == rows_of(whole, *TIMES)


def test_the_warm_up_ends_at_the_first_look_below_its_bound_and_the_rate_changes_there(
    tmp_path: Path,
) -> None:
    settings = {"eval_every": 1, "iterations": 24, "warmup_lr": 0.005, "warmup_window": 4}
    watcher = Recorder()
    folder = short(tmp_path, watcher=watcher, warmup_until_err=70.0, **settings)
    rows = [row for row in rows_of(folder) if row["split"] == "train"]
    errors = [float(row["top1_err"]) for row in rows]  # one batch each
    means = {end: sum(errors[end - 4 : end]) / 4 for end in range(4, 25, 4)}
    switch = min(end for end, mean in means.items() if mean < 70)
    assert 4 < switch < 20, "choose the bound so that the test has something to see"
    assert result_of(folder)["warmup_switch"] == switch
    assert [line for line in watcher.said if f"Warm-up over after {switch} iterations" in line]
    for row in rows:
        update = int(row["iteration"])
        after = 0.05 if update <= 12 else 0.005 if update <= 18 else 0.0005
        assert float(row["lr"]) == pytest.approx(0.005 if update <= switch else after), update


def test_a_warm_up_that_never_ends_keeps_its_rate_to_the_last(tmp_path: Path) -> None:
    folder = short(tmp_path, warmup_lr=0.001, warmup_window=4, warmup_until_err=0.5)
    assert {float(row["lr"]) for row in rows_of(folder)} == {0.001}
    assert "the warm-up never ended: learning rate 0.001 throughout" in result_of(folder)["departures"]
    assert result_of(folder)["warmup_switch"] is None


def test_a_diverged_run_stops_keeps_its_record_and_is_not_gone_on_with(tmp_path: Path) -> None:
    watcher = Recorder()
    with pytest.raises(Diverged, match="no longer finite by iteration 3") as caught:
        short(tmp_path, lr=1e30, watcher=watcher)
    (folder,) = tmp_path.glob("*/seed0")
    assert str(folder) in str(caught.value)
    assert watcher.ends == 1
    assert result_of(folder)["status"] == "diverged"
    train_row = rows_of(folder)[0]
    assert (train_row["split"], math.isfinite(float(train_row["loss"]))) == ("train", False)
    assert read_run(folder).status == "diverged"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(Diverged, match="--fresh"):
        short(tmp_path, lr=1e30)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("iterations", [1, 3])
def test_a_run_that_breaks_at_its_very_end_leaves_a_record_that_can_be_read(
    tmp_path: Path, iterations: int
) -> None:
    # The update after which nothing is finite may be the last one: its own loss still is.
    with contextlib.suppress(Diverged):
        short(tmp_path, lr=1e30, iterations=iterations, eval_every=1)
    (folder,) = tmp_path.glob("*/seed0")
    assert read_run(folder).status in ("diverged", "shortened")


def test_fresh_sets_the_old_run_aside_whole_and_starts_anew(tmp_path: Path) -> None:
    folder = short(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for count in (1, 2):
        watcher = Recorder()
        assert short(tmp_path, fresh=True, watcher=watcher) == folder
        assert watcher.began == [(0, 12)]
        asides = sorted(path.name for path in folder.parent.iterdir())
        assert asides == ["seed0", *(f"seed0.aside{k}" for k in range(1, count + 1))]
    aside = folder.with_name("seed0.aside1")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert same_weights(folder, aside)


def test_notices_and_the_validation_set_reach_watcher_record_and_headline(tmp_path: Path) -> None:
    watcher = Recorder()
    folder = short(tmp_path, "cifar10-resnet8", split="45k5k", watcher=watcher)
    assert "Note: the images are few." in watcher.said
    result = result_of(folder)
    assert (result["notices"], result["headline"]) == (["the images are few"], "val")
    assert [row["split"] for row in rows_of(folder)[:3]] == ["train", "val", "test"]
    assert json.loads((folder / "env.json").read_text())["data"]["notices"] == ["the images are few"]
    best = min(float(row["top1_err"]) for row in rows_of(folder) if row["split"] == "val")
    assert result["best"]["top1_err"] == best


def test_an_untold_number_of_iterations_longer_than_the_experiment_is_complete(tmp_path: Path) -> None:
    folder = short(tmp_path, iterations=241, eval_every=241, batch_size=2)
    assert (result_of(folder)["status"], result_of(folder)["iteration"]) == ("complete", 241)


def test_going_on_with_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        short(tmp_path, watcher=Recorder({5: lambda: os.kill(os.getpid(), signal.SIGTERM)}))
    data = small_dataset("digits", "all")
    other = Dataset("digits", 10, data.train, data.held_out, data.checksums | {"train": "0" * 64})
    monkeypatch.setattr(feeds, "load_dataset", lambda *_: other)
    (folder,) = tmp_path.glob("*/seed0")
    before = (folder / "metrics.csv").read_bytes()
    with pytest.raises(RecordError, match=r"other data.*--fresh"):
        short(tmp_path)
    assert (folder / "metrics.csv").read_bytes() == before


def test_going_on_from_the_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    zero, one = interrupted(tmp_path / "zero"), tmp_path / "one"
    with pytest.raises(Interrupted):
        short(one, seed=1, watcher=stopped_at(5))
    (zero / "checkpoint.pt").write_bytes(next(one.glob("*/seed1/checkpoint.pt")).read_bytes())
    with pytest.raises(RecordError, match="of another run"):
        short(tmp_path / "zero")


def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_notice(
    tmp_path: Path, whole_run: Path
) -> None:
    folder = interrupted(tmp_path, 8, checkpoint_every="3")
    content = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    watcher = Recorder()
    short(tmp_path, watcher=watcher)
    assert watcher.began == [(6, 12)]
    assert "is damaged and was moved to checkpoint.damaged.pt" in " ".join(watcher.said)
    assert (folder / "checkpoint.damaged.pt").exists()
    assert differences(folder, whole_run) == []


def test_two_damaged_checkpoints_are_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (folder / name).write_bytes((folder / name).read_bytes()[:500])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(RecordError, match=r"checkpoint\.pt.*no whole one before it: start anew with --fresh"):
        short(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_threads_are_those_of_the_first_start(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, threads=2)
    with pytest.raises(UsageError, match=r"begun with 2 threads, and 1 would .* say --threads 2"):
        short(tmp_path, threads=1)
    torch.set_num_threads(1)
    used = []
    short(tmp_path, watcher=Recorder({7: lambda: used.append(torch.get_num_threads())}))
    assert used == [2]
    assert read_run(folder).env["threads"] == 2


def test_a_run_that_was_begun_elsewhere_is_not_gone_on_with_here(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    state = load_checkpoint(folder / "checkpoint.pt")
    save_checkpoint(folder / "checkpoint.pt", state | {"env": state["env"] | {"device": "mps"}})
    with pytest.raises(UsageError, match=r"begun on mps, and cpu would round differently: say --device mps"):
        short(tmp_path)


def test_a_cpu_run_keeps_device_and_threads_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    begun = {"device": "cpu", "threads": 3}
    monkeypatch.setattr(checkpoint, "choose_device", torch.device)
    device = checkpoint.frozen_device("auto", torch.device("cuda"), begun)
    assert (device.type, checkpoint.frozen_threads(None, device, begun)) == ("cpu", 3)
    assert checkpoint.frozen_threads(2, device, None) == 2
    with pytest.raises(UsageError, match="begun on cpu, and cuda would round differently"):
        checkpoint.frozen_device("cuda", torch.device("cuda"), begun)


def test_the_threads_of_one_run_are_not_those_of_the_next(tmp_path: Path) -> None:
    torch.set_num_threads(2)
    one = short(tmp_path, threads=1)
    other = short(tmp_path, seed=1)
    assert [read_run(folder).env["threads"] for folder in (one, other)] == [1, 2]


def test_other_bn_groups_than_those_of_the_first_start_are_refused_by_name(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, micro_batch=8)
    assert "+bn_group=8" in folder.parent.name
    with pytest.raises(UsageError, match=r"over groups of 8: go on with it by --bn-group 8, or"):
        short(tmp_path)
    assert short(tmp_path, bn_group=8) == folder
    own = short(tmp_path)  # the other one is finished
    assert "bn_group" not in own.parent.name
    interrupted(tmp_path / "other")
    with pytest.raises(
        UsageError, match=r"the whole batch: go on with it by --bn-group 0, or say --bn-group 8"
    ):
        short(tmp_path / "other", micro_batch=8)


@pytest.mark.parametrize(
    "change",
    [
        {"data": 3}, {"iteration": "5"}, {"iteration": 13}, {"iteration": -1}, {"sampled": 7},
        {"seconds": "abc"}, {"seconds": math.nan}, {"net": []}, {"curve": 5}, {"shares": None},
        {"env": []}, {"env": {"threads": 10**10}}, {"env": {"threads": True}}, {"env": {"threads": -5}},
        {"env": {"versions": [1]}}, {"env": {"cpu": math.nan}}, {"last": {"test": 1}}, {"optimizer": {}},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_that_makes_no_sense_is_one_sentence(
    tmp_path: Path, change: dict[str, Any], stopped_run: Path
) -> None:
    folder = tmp_path / stopped_run.parent.name / "seed0"
    shutil.copytree(stopped_run, folder)
    state = load_checkpoint(folder / "checkpoint.pt")
    changed = {
        key: state[key] | value if isinstance(value, dict) and value and key == "env" else value
        for key, value in change.items()
    }
    save_checkpoint(folder / "checkpoint.pt", state | changed)
    with pytest.raises(RecordError, match=r"does not fit its run \(.*start anew with --fresh"):
        short(tmp_path)


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "load_dataset", lambda name, split, folder: small_dataset(name, split))
        return interrupted(tmp_path_factory.mktemp("stopped"))


def test_a_checkpoint_of_an_earlier_version_is_called_that(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    state = load_checkpoint(folder / "checkpoint.pt")
    del state["curve"]
    save_checkpoint(folder / "checkpoint.pt", state)
    with pytest.raises(RecordError, match="of an earlier version, which kept less"):
        short(tmp_path)


def test_a_signal_before_the_first_update_says_that_nothing_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*asked: Any) -> feeds.Feed:
        os.kill(os.getpid(), signal.SIGUSR1)
        return feeds.open_feed(*asked)

    with monkeypatch.context() as patch:
        patch.setattr(training, "open_feed", signalled)
        with pytest.raises(Interrupted, match=r"before the first update .* the same command") as stop:
            short(tmp_path)
    assert stop.value.exit_code == 128 + signal.SIGUSR1
    assert list(tmp_path.iterdir()) == []
    assert result_of(short(tmp_path))["status"] == "shortened"


def test_whoever_stops_a_fresh_run_is_told_to_leave_that_out(tmp_path: Path) -> None:
    with pytest.raises(Interrupted, match="The same command without --fresh goes on"):
        short(tmp_path, fresh=True, watcher=stopped_at(4))


def test_an_owed_evaluation_enters_the_last_checkpoint_too(tmp_path: Path) -> None:
    folder = interrupted(tmp_path, 12)
    assert checkpoint_of(folder)["sampled"] == 9
    short(tmp_path)
    assert checkpoint_of(folder)["sampled"] == 12
    assert checkpoint_of(folder)["curve"].encode() == (folder / "metrics.csv").read_bytes()
    assert math.isnan(float(rows_of(folder)[-1]["images_per_s"]))  # no image was trained on


def test_a_session_on_another_machine_is_told_and_recorded(tmp_path: Path) -> None:
    folder = interrupted(tmp_path)
    state = load_checkpoint(folder / "checkpoint.pt")
    other = state["env"] | {"cpu": "an older CPU"}
    save_checkpoint(folder / "checkpoint.pt", state | {"env": other})
    write_json(folder / "env.json", other)
    watcher = Recorder()
    short(tmp_path, watcher=watcher)
    assert "CPU (an older CPU at the start, now" in " ".join(watcher.said)
    assert read_run(folder).env["later_sessions"][0]["cpu"] != "an older CPU"


def test_checkpoints_come_as_often_as_asked_and_at_least_at_both_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = loop.save_checkpoint

    def note(path: Path, state: dict) -> None:
        written.append(state["iteration"])
        write(path, state)

    monkeypatch.setattr(loop, "save_checkpoint", note)
    for every, wanted in ((None, [0, 12]), ("5", [0, 5, 10, 12]), ("12", [0, 12]), ("10m", [0, 12])):
        written.clear()
        short(tmp_path / str(every), checkpoint_every=every)
        assert written == wanted


# --- requests that cannot be met --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"seed": -1}, "not -1"),
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"iterations": -3}, "iterations must be at least 1"),
        ({"batch_size": 201}, "batch of 201 is larger than the training set"),
        ({"split": "45k5k"}, "45k/5k"),
        ({"experiment": "digits-resnet9"}, r"8 or 14"),
        ({"experiment": "digits-plain8", "shortcut": "A"}, "exclude each other"),
        ({"rate": 1.0}, "'rate'"),
        ({"threads": 0}, "--threads must be at least 1"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused_and_leaves_no_record(
    tmp_path: Path, options: dict, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        short(tmp_path, **options)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--device cuda: PyTorch sees no such GPU"):
        train("digits-resnet8", runs=tmp_path, device="cuda")


def test_a_runs_folder_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(RecordError, match=r"cannot write to the runs folder .*runs.*--runs"):
        short(tmp_path / "runs")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_runs_folder_without_permission_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir(mode=0o555)
    with pytest.raises(RecordError, match="cannot write to the runs folder"):
        short(tmp_path / "runs")


@pytest.mark.parametrize(
    "changed",
    [
        {"shortcut": "B"},
        {"shortcut": "C"},
        {"option_a_zeros": "symmetric"},
        {"init": "fan_out"},
        {"momentum_form": "nesterov"},
        {"decay_bn_bias": False, "weight_decay": 0.1},
        {"bn_group": 8},
        {"bn_momentum": 0.5},
        {"sampling": "replacement"},
        {"pad": 4},
        {"pad": 4, "pad_order": "pad_first", "pad_value": 99.0},
        {"flip": True},
        {"mean": "per_channel"},
        {"precision": "bf16"},
    ],
    ids=str,
)
def test_every_open_choice_has_its_own_folder_and_its_own_effect(
    tmp_path: Path, changed: dict, base_run: Path
) -> None:
    folder = short(tmp_path, iterations=3, **changed)
    assert folder.parent.name != base_run.parent.name
    assert all(key in folder.parent.name for key in changed)
    if set(changed) & {"shortcut"}:
        assert len(net_of(folder)) > len(net_of(base_run))
    else:
        assert not same_weights(folder, base_run)


@pytest.fixture(scope="module")
def base_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "load_dataset", lambda name, split, folder: small_dataset(name, split))
        return short(tmp_path_factory.mktemp("base"), iterations=3)


# --- passes, processes of readers, and the rule of the plateau --------------------------------------


def test_gradients_of_several_passes_make_the_update_of_one_with_the_same_bn_groups(tmp_path: Path) -> None:
    watcher = Recorder()
    one = short(tmp_path / "one", bn_group=8, lr=0.01)
    several = short(tmp_path / "several", micro_batch=8, lr=0.01, watcher=watcher)
    assert several.parent.name == one.parent.name
    assert watcher.said[-1].endswith("1 process, 4 passes of 8 images; BN over groups of 8.")
    assert json.loads((several / "env.json").read_text())["micro_batch"] == 8
    for name, tensor in net_of(one).items():
        if tensor.ndim:
            assert float((net_of(several)[name] - tensor).norm() / tensor.norm()) < 0.02, name
    for row, wanted in zip(rows_of(several), rows_of(one), strict=True):
        assert float(row["loss"]) == pytest.approx(float(wanted["loss"]), rel=2e-3)


@pytest.mark.parametrize(
    ("trouble", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the GPU's"),
        (MemoryError(), "this machine's"),
        (RuntimeError("[..] DefaultCPUAllocator: can't allocate memory: you tried .."), "this machine's"),
    ],
    ids=["gpu", "python", "cpu"],
)
def test_a_full_memory_is_told_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: Exception, whose: str
) -> None:
    def full(*_: object) -> None:
        raise trouble

    monkeypatch.setattr(F, "cross_entropy", full)
    with pytest.raises(
        UsageError, match=rf"{whose} memory does not hold 32 images per pass: try --micro-batch 16"
    ):
        short(tmp_path)


def stopped_at(moment: int) -> Recorder:
    return Recorder({moment: lambda: os.kill(os.getpid(), signal.SIGTERM)})


def on_photographs(runs: Path, photographs: Path, workers: int = 0, **options: Any) -> Path:
    settings = {"iterations": 6, "batch_size": 8, "image_size": 32, "eval_every": 3, "lr": 0.01}
    return train(
        "folder-resnet18", runs=runs, data=photographs, device="cpu", loading=Loading(workers=workers),
        **settings | options,
    )  # fmt: skip


@pytest.mark.parametrize(("workers", "moments"), [(0, (2,)), (1, (1, 4))])
def test_a_run_on_photographs_goes_on_to_the_very_same_end_whoever_reads_them(
    tmp_path: Path, photographs: Path, whole_photo_run: Path, workers: int, moments: tuple[int, ...]
) -> None:
    for moment in moments:
        with pytest.raises(Interrupted, match=f"iteration {moment} of 6"):
            on_photographs(tmp_path, photographs, workers, watcher=stopped_at(moment))
    folder = on_photographs(tmp_path, photographs, workers)
    assert same_weights(folder, whole_photo_run)
    assert rows_of(folder, *TIMES) == rows_of(whole_photo_run, *TIMES)


@pytest.fixture(scope="module")
def whole_photo_run(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return on_photographs(tmp_path_factory.mktemp("photos"), photographs)


def test_the_rate_falls_where_the_error_comes_to_a_plateau_also_after_an_interruption(
    tmp_path: Path, photographs: Path
) -> None:
    # No error can be 101 points better than another: the rate drops after every two samples.
    rule = {"lr_policy": "plateau", "plateau_patience": 2, "plateau_gain": 101.0, "eval_every": 1}
    watcher = Recorder()
    whole = on_photographs(tmp_path / "whole", photographs, watcher=watcher, **rule)
    assert result_of(whole)["lr_drops"] == [3, 5]
    assert [line for line in watcher.said if "plateau by iteration" in line] == [
        f"The error has come to a plateau by iteration {drop}: the rate drops." for drop in (3, 5)
    ]
    rates = [float(row["lr"]) for row in rows_of(whole) if row["split"] == "val"]
    assert rates == pytest.approx([0.01] * 3 + [0.001] * 2 + [0.0001])
    with pytest.raises(Interrupted):  # one sample into the second waiting
        on_photographs(tmp_path / "parts", photographs, watcher=stopped_at(4), **rule)
    folder = on_photographs(tmp_path / "parts", photographs, **rule)
    assert result_of(folder)["lr_drops"] == [3, 5]
    assert rows_of(folder, *TIMES) == rows_of(whole, *TIMES)
    assert same_weights(folder, whole)


def test_precise_statistics_are_plain_averages_for_the_error_and_leave_the_run_alone(
    tmp_path: Path, photographs: Path, whole_photo_run: Path
) -> None:
    folder = on_photographs(tmp_path, photographs, bn_stats="precise")
    for name, tensor in net_of(whole_photo_run).items():  # running averages among them
        assert torch.equal(net_of(folder)[name], tensor) or name.endswith("num_batches_tracked"), name
    precise, running = (
        [row for row in rows_of(run) if row["split"] == "val"] for run in (folder, whole_photo_run)
    )
    assert [row["loss"] for row in precise] != [row["loss"] for row in running]

    spec = read_net(folder).spec
    feed = feeds.open_feed(spec, photographs, torch.device("cpu"), 0, Loading(workers=0))
    net = read_net(folder).net
    update_bn((images for images, _ in feed.batches(0, 10)), net)  # the 80 images in batches of 8
    losses, wrong = [], 0
    net.eval()
    with torch.no_grad():
        for views in feed.views("val"):
            logits = net((views.scales[0][:, 0].float() - feed.normalisation.mean) / 255)
            losses += F.cross_entropy(logits, views.labels, reduction="none").tolist()
            wrong += int((logits.argmax(1) != views.labels).sum())
    assert len(losses) == 40
    assert float(precise[-1]["loss"]) == pytest.approx(sum(losses) / 40, rel=1e-3)
    assert float(precise[-1]["top1_err"]) == pytest.approx(100 * wrong / 40)
