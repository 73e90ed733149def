"""Training: the record it leaves, going on after an interruption, and what it computes."""

import math
import os
import re
import shutil
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import OF_TIMES, TIMES, differences, json_of, net_of, result_of, rows_of, same_weights
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from resrepro.data import Dataset, Images, feeds, load_dataset
from resrepro.data.augment import INITIAL_WEIGHTS, TrainingBatches, stream_seed
from resrepro.data.loader import Loading
from resrepro.errors import Diverged, Interrupted, RecordError, ResreproError, UsageError
from resrepro.evaluation.sources import read_net
from resrepro.nets import build_net
from resrepro.records import read_run
from resrepro.records.reading import METRICS_COLUMNS, RECORD_FILES, json_bytes
from resrepro.training import checkpoint, engine, session
from resrepro.training.checkpoint import load_checkpoint, save_checkpoint
from resrepro.training.progress import SIGNALS, Watcher
from resrepro.training.session import train

SECRET = "a-value-that-only-the-environment-holds"


class Recorder(Watcher):
    """Remembers every event; `at` maps an update to what is to happen after it."""

    def __init__(self, at=None):
        self.at = at or {}
        self.began = []
        self.steps = []
        self.samples = []
        self.said = []
        self.ends = 0

    def begin(self, name, seed, done, iterations, batch_size):
        self.began.append((done, iterations))

    def step(self, done, lr, read):
        self.steps.append(done)
        self.at.get(done, lambda: None)()

    def sample(self, sample):
        self.samples.append(sample)

    def say(self, text):
        self.said.append(text)

    def end(self):
        self.ends += 1


# --- a run on the digits, looked at from all sides --------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    runs = tmp_path_factory.mktemp("finished") / "runs"
    watcher = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_OF_THE_TEST", SECRET)
        patch.setenv("HOSTNAME", "host-of-the-test")
        patch.setenv("USER", "its-user")
        folder = train("digits-resnet8", 3, runs=runs, device="cpu", watcher=watcher, iterations=33)
    return folder, watcher


def test_a_run_lies_under_its_name_with_all_its_files_and_the_finished_one_is_left_alone(finished):
    folder, _ = finished
    assert folder.parts[-3:] == ("runs", "digits-resnet8+iterations=33", "seed3")
    assert {path.name for path in folder.iterdir()} == {
        *RECORD_FILES, "checkpoint.pt", "checkpoint.previous.pt",
    }  # fmt: skip
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")}
    watcher = Recorder()
    again = train("digits-resnet8", 3, runs=folder.parents[1], device="cpu", watcher=watcher, iterations=33)
    assert again == folder
    assert "finished already" in " ".join(watcher.said)
    assert watcher.steps == []
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")} == before


def test_both_errors_are_sampled_every_32nd_of_the_run_and_at_its_end(finished):
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


def test_rows_hold_plain_numbers_epochs_and_the_rate_of_their_update(finished):
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


def test_the_result_holds_the_last_iteration_as_headline_and_the_best_sample_apart(finished):
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


def test_the_net_has_learned_and_its_last_errors_are_those_of_its_checkpoint(finished):
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


def test_the_record_can_be_read_and_says_what_was_trained_on(finished):
    run = read_run(finished[0])
    assert (run.seed, run.finished, run.paper_exact, run.experiment) == (3, True, False, "digits-resnet8")
    digits = load_dataset("digits")
    assert run.env["data"]["sha256"] == {
        "train": digits.train.sha256(),
        "test": digits.held_out["test"].sha256(),
    }
    assert run.env["data"]["images"] == {"train": 1438, "test": 359}
    assert torch.__version__.startswith(run.env["versions"]["torch"])  # less the local build
    assert run.env["device"] == "cpu"
    assert run.env["command"].endswith("--seed 3")


def test_no_record_file_holds_a_path_a_host_a_user_or_the_environment(finished):
    folder, _ = finished
    words = [SECRET, "SECRET_OF_THE_TEST", "host-of-the-test", "its-user", "somebody"]
    words += [str(folder.parents[2]), str(Path.home()) + "/", str(Path.cwd())]
    host = socket.gethostname()
    words += [host] if len(host) > 6 and host != "localhost" else []
    for name in RECORD_FILES:
        text = (folder / name).read_text()
        assert not [word for word in words if word in text], name
        assert not re.search(r"(?<![\w.])[/~][\w.-]+", text), name
    content = (folder / "checkpoint.pt").read_bytes()
    assert not [word for word in words if word.encode() in content]


# --- smaller runs, on a part of the digits ----------------------------------------------------------


def small(images, count):
    return Images(images.pixels[:count, :, ::2, ::2], images.labels[:count])


def small_dataset(name, split):
    digits = load_dataset("digits")
    train, test = small(digits.train, 200), small(digits.held_out["test"], 40)
    held_out = {"val": small(digits.train, 20), "test": test} if split == "45k5k" else {"test": test}
    return Dataset(
        name, 10, train, held_out, {"train": train.sha256(), "test": test.sha256()}, ("the images are few",)
    )


@pytest.fixture(autouse=True)
def few_images(request, monkeypatch):
    """200 digits of 8x8 pixels in place of every dataset, except where `finished` is looked at."""
    if "finished" not in request.fixturenames:
        monkeypatch.setattr(feeds, "load_dataset", lambda name, split, folder: small_dataset(name, split))


def short(runs, experiment="digits-resnet8", seed=0, **options):
    """12 updates with 32 images each; sampled every third."""
    settings = {"device": "cpu", "iterations": 12, "batch_size": 32, "eval_every": 3, "lr": 0.05}
    return train(experiment, seed, runs=runs, **settings | options)


def stopped_at(moment, number=signal.SIGTERM):
    return Recorder({moment: lambda: os.kill(os.getpid(), number)})


def interrupted(runs, moment=5, **options):
    """A run stopped after an update; returns its folder."""
    with pytest.raises(Interrupted):
        short(runs, watcher=stopped_at(moment), **options)
    (folder,) = runs.glob("*/seed0")
    return folder


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    """A whole run, another stopped after 5 updates, and one of three updates."""
    top = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(feeds, "load_dataset", lambda name, split, folder: small_dataset(name, split))
        base = short(top / "base", iterations=3)
        return {"whole": short(top / "whole"), "stopped": interrupted(top / "stopped"), "base": base}


@pytest.fixture
def whole(examples):
    """12 updates, not to be changed."""
    return examples["whole"]


@pytest.fixture
def stopped(examples, tmp_path):
    """A copy of the run that was stopped after 5 updates."""
    folder = examples["stopped"]
    return Path(shutil.copytree(folder, tmp_path / folder.parent.name / "seed0"))


def by_hand(seed=0):
    """The same updates by a plain PyTorch loop: final weights, (loss, error) of each batch, test errors."""
    from resrepro.spec import catalogue

    recipe = catalogue.derive(catalogue.find("digits-resnet8"), iterations=12, batch_size=32, lr=0.05).recipe
    data = small_dataset("digits", "all")
    batches = TrainingBatches(recipe, data.train, torch.device("cpu"), seed)
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


def test_a_run_makes_the_updates_of_a_plain_loop_and_records_its_errors(tmp_path):
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


def test_the_seed_decides_the_run_bit_by_bit(tmp_path, whole):
    again, other = short(tmp_path), short(tmp_path, seed=1)
    assert same_weights(whole, again)
    assert rows_of(whole, *TIMES) == rows_of(again, *TIMES)
    assert not same_weights(whole, other)
    assert other == again.with_name("seed1")


def test_where_there_is_nothing_faster_the_fast_mode_is_the_default_and_says_so(tmp_path, monkeypatch, whole):
    monkeypatch.setattr(engine, "fast_precision", lambda device: "float32")
    watcher = Recorder()
    folder = short(tmp_path, fast=True, watcher=watcher)
    assert json_of(folder, "env")["mode"] == "default"
    assert folder.parent.name == whole.parent.name
    assert any("no bf16 arithmetic" in sentence for sentence in watcher.said)


def test_the_scale_of_fp16_is_part_of_the_state(tmp_path, whole):
    begun = torch.amp.GradScaler("cpu").get_scale()
    folder = short(tmp_path, precision="fp16", iterations=3)
    assert load_checkpoint(folder / "checkpoint.pt")["scaler"]["scale"] <= begun
    assert load_checkpoint(whole / "checkpoint.pt")["scaler"] == {}


def test_a_run_goes_on_with_its_engine_and_kind_of_device_or_not_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "fast_precision", lambda device: "bf16")
    interrupted(tmp_path, engine="kernels", fast=True)
    with pytest.raises(UsageError, match="begun with the engine kernels"):
        short(tmp_path, fast=True, engine="eager")
    with pytest.raises(UsageError, match="--fast chooses the precision itself"):
        short(tmp_path, fast=True, precision="bf16")
    with monkeypatch.context() as patch:  # another device would be taken now
        patch.setattr(engine, "choose_device", lambda name: torch.device("mps" if name == "auto" else name))
        with pytest.raises(UsageError, match="begun on cpu, and mps would round differently"):
            short(tmp_path, fast=True, device="mps")
        folder = short(tmp_path, fast=True, device="auto")
    assert [json_of(folder, "env")[key] for key in ("mode", "engine", "device")] == ["fast", "kernels", "cpu"]
    assert "+precision=bf16" in folder.parent.name
    assert any("precision bf16" in departure for departure in result_of(folder)["departures"])


WARM = {"warmup_lr": 0.005, "warmup_window": 4, "warmup_until_err": 99.9}


@pytest.mark.parametrize(
    ("number", "moment", "settings"),
    [
        (signal.SIGTERM, 5, {}),
        (signal.SIGINT, 6, {}),  # a sample is due
        (signal.SIGHUP, 12, {}),  # the last update
        (signal.SIGTERM, 7, {"experiment": "cifar10-resnet8"}),  # crops, flips
        (signal.SIGTERM, 7, {"sampling": "replacement", "momentum_form": "nesterov", "bn_group": 8}),
        (signal.SIGTERM, 2, WARM),
        (signal.SIGTERM, 7, WARM),
        (signal.SIGUSR1, 7, {"engine": "kernels", "fast": True}),
        (signal.SIGUSR2, 7, {"precision": "fp16"}),
    ],
)
def test_an_interrupted_run_goes_on_to_the_very_same_end(tmp_path, number, moment, settings, whole):
    whole = short(tmp_path / "whole", **settings) if settings else whole
    handlers = [signal.getsignal(each) for each in SIGNALS]
    watcher = stopped_at(moment, number)
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
    state = load_checkpoint(folder / "checkpoint.pt")
    assert state["sampled"] == 12  # an owed evaluation enters the last checkpoint too
    assert state["curve"].encode() == (folder / "metrics.csv").read_bytes()


@pytest.fixture
def written_beside(monkeypatch):
    """Checkpoints are written by a thread, as those of a GPU."""
    prepare = checkpoint.CheckpointWriter.__init__

    def prepared(writer, *about):
        prepare(writer, *about)
        writer.thread = ThreadPoolExecutor(1)

    monkeypatch.setattr(checkpoint.CheckpointWriter, "__init__", prepared)


def test_a_checkpoint_written_beside_the_next_updates_holds_nothing_of_them(
    tmp_path, monkeypatch, written_beside, whole
):
    write, later, kept = checkpoint.save_checkpoint, threading.Event(), tmp_path / "kept.pt"

    def write_late(path, state):
        if state["iteration"] == 3:
            assert later.wait(60)
        write(path, state)
        if state["iteration"] == 3:
            shutil.copy(path, kept)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", write_late)
        folder = short(tmp_path / "runs", checkpoint_every="3", watcher=Recorder({5: later.set}))
    assert differences(folder, whole) == []
    assert load_checkpoint(kept)["iteration"] == 3
    (folder / "result.json").unlink()
    shutil.copy(kept, folder / "checkpoint.pt")
    watcher = Recorder()
    short(tmp_path / "runs", watcher=watcher)
    assert watcher.began == [(3, 12)]
    assert differences(folder, whole) == []


@pytest.mark.parametrize(("beside", "end"), [(False, 9), (True, 12)], ids=["here", "beside"])
def test_a_checkpoint_that_could_not_be_written_stops_the_run_and_leaves_no_double_rows(
    tmp_path, monkeypatch, request, whole, beside, end
):
    """One that is written beside the next updates stops it at the next one."""
    write, watcher = checkpoint.save_checkpoint, Recorder()

    def fail_at_9(path, state):
        if state["iteration"] == 9:
            raise RecordError("the disk is full")
        write(path, state)

    if beside:
        request.getfixturevalue("written_beside")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", fail_at_9)
        with pytest.raises(RecordError, match="disk is full"):
            short(tmp_path, checkpoint_every="3", watcher=watcher)
    (folder,) = tmp_path.glob("*/seed0")
    assert (watcher.steps[-1], rows_of(folder)[-1]["iteration"]) == (end, str(end))
    watcher = Recorder()
    short(tmp_path, watcher=watcher)
    assert watcher.began == [(6, 12)]
    assert differences(folder, whole) == []


def test_a_crash_before_the_second_checkpoint_starts_from_the_first(tmp_path, whole):
    def crash():
        raise KeyboardInterrupt

    watcher = Recorder({2: crash})
    with pytest.raises(KeyboardInterrupt):
        short(tmp_path, watcher=watcher)
    assert watcher.ends == 1
    (folder,) = tmp_path.glob("*/seed0")
    assert read_run(folder).status == "partial"
    short(tmp_path)
    assert rows_of(folder, *TIMES) == rows_of(whole, *TIMES)


@pytest.mark.parametrize(("moment", "iteration"), [(1, 3), (4, 12)])
def test_an_evaluation_under_way_is_abandoned_at_a_signal_and_made_anew(
    tmp_path, monkeypatch, moment, iteration, whole
):
    monkeypatch.setattr(feeds, "EVAL_BATCH", 10)  # the 40 test images in four parts
    views = feeds.MemoryFeed.views
    opened = []

    def signalled(feed, name):
        opened.append(0)
        for part in views(feed, name):
            opened[-1] += 1
            if len(opened) == moment and opened[-1] == 2:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield part

    monkeypatch.setattr(feeds.MemoryFeed, "views", signalled)
    with pytest.raises(Interrupted, match=f"Stopped at iteration {iteration} of 12"):
        short(tmp_path)
    assert opened == [4] * (moment - 1) + [2]
    (folder,) = tmp_path.glob("*/seed0")
    assert [int(row["iteration"]) for row in rows_of(folder)[::2]] == list(range(3, iteration, 3))
    short(tmp_path)
    assert opened == [4] * (moment - 1) + [2] + [4] * (5 - moment)
    for row, wanted in zip(rows_of(folder, *TIMES), rows_of(whole, *TIMES), strict=True):
        assert row == wanted | {"loss": row["loss"]}  # summed in other parts


@pytest.mark.parametrize("damage", [None, b"\x00\xff"])
@pytest.mark.parametrize("name", RECORD_FILES)
def test_a_damaged_or_missing_record_is_restored_from_the_checkpoint(tmp_path, damage, name, stopped, whole):
    (stopped / name).unlink() if damage is None else (stopped / name).write_bytes(damage)
    watcher = Recorder()
    assert short(tmp_path, watcher=watcher) == stopped
    told = f"Damaged or missing, and restored from the checkpoint: {name}."
    assert (told in watcher.said) is (name != "result.json")  # which is written anew in any case
    assert differences(stopped, whole) == []
    assert read_run(stopped).finished


@pytest.mark.parametrize("name", RECORD_FILES)
def test_the_damaged_record_of_a_finished_run_is_restored_without_training(tmp_path, name, whole):
    folder = Path(shutil.copytree(whole, tmp_path / whole.parent.name / "seed0"))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    watcher = Recorder()
    short(tmp_path, watcher=watcher)
    assert watcher.steps == []
    assert result_of(folder, *OF_TIMES) == result_of(whole, *OF_TIMES)
    assert read_run(folder).finished


def test_a_session_elsewhere_is_told_and_recorded_beside_the_first(tmp_path, stopped):
    state = load_checkpoint(stopped / "checkpoint.pt")
    other = state["env"] | {"cpu": "an older CPU"}
    save_checkpoint(stopped / "checkpoint.pt", state | {"env": other})
    (stopped / "env.json").write_bytes(json_bytes(other))
    watcher = Recorder()
    short(tmp_path, watcher=watcher, threads=2)
    said = " ".join(watcher.said)
    assert "CPU (an older CPU at the start, now" in said
    assert "CPU threads (1 at the start, now 2)" in said
    env = json_of(stopped, "env")
    (later,) = env["later_sessions"]
    assert (env["cpu"], later["from_iteration"], later["threads"]) == ("an older CPU", 5, 2)


def test_what_cannot_be_gone_on_with_is_refused_and_not_touched(tmp_path, monkeypatch, stopped):
    def refused(sentence):
        before = {path.name: path.read_bytes() for path in stopped.iterdir()}
        with pytest.raises(RecordError, match=sentence):
            short(tmp_path)
        assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before

    data = small_dataset("digits", "all")
    other = Dataset("digits", 10, data.train, data.held_out, data.checksums | {"train": "0" * 64})
    with monkeypatch.context() as patch:
        patch.setattr(feeds, "load_dataset", lambda *_: other)
        refused(r"other data.*--fresh")
    state = load_checkpoint(stopped / "checkpoint.pt")
    save_checkpoint(stopped / "checkpoint.pt", state | {"seed": 1})
    refused("of another run")
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (stopped / name).write_bytes((stopped / name).read_bytes()[:500])
    refused(r"checkpoint\.pt.*no whole one before it: start anew with --fresh")


def test_curves_whose_checkpoint_is_gone_are_set_aside_not_overwritten(tmp_path, stopped):
    for path in stopped.glob("checkpoint*"):
        path.unlink()
    curves = (stopped / "metrics.csv").read_bytes()
    assert short(tmp_path) == stopped
    assert result_of(stopped)["iteration"] == 12
    assert (stopped.with_name("seed0.aside1") / "metrics.csv").read_bytes() == curves


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_trains_to_about_the_same_errors(tmp_path, precision):
    cpu = short(tmp_path / "cpu", device="cpu")
    gpu = short(tmp_path / "gpu", device="cuda", precision=precision)
    first = [float(rows_of(folder, *TIMES)[0]["loss"]) for folder in (cpu, gpu)]
    assert first[1] == pytest.approx(first[0], rel=0.05)  # same weights and order; other augmentation


def test_the_warm_up_ends_at_the_first_look_below_its_bound_and_the_rate_changes_there(tmp_path):
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
    folder = short(tmp_path, warmup_lr=0.001, warmup_window=4, warmup_until_err=0.5)
    assert {float(row["lr"]) for row in rows_of(folder)} == {0.001}
    assert "the warm-up never ended: learning rate 0.001 throughout" in result_of(folder)["departures"]
    assert result_of(folder)["warmup_switch"] is None


def test_a_diverged_run_stops_keeps_its_record_and_is_not_gone_on_with(tmp_path):
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


def test_fresh_sets_the_old_run_aside_whole_and_starts_anew(tmp_path, stopped):
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    watcher = stopped_at(5)
    with pytest.raises(Interrupted, match="The same command without --fresh goes on"):
        short(tmp_path, fresh=True, watcher=watcher)
    assert watcher.began == [(0, 12)]
    short(tmp_path, fresh=True)
    asides = sorted(path.name for path in stopped.parent.iterdir())
    assert asides == ["seed0", "seed0.aside1", "seed0.aside2"]
    aside = stopped.with_name("seed0.aside1")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert same_weights(aside, stopped.with_name("seed0.aside2"))


def test_notices_and_the_validation_set_reach_watcher_record_and_headline(tmp_path):
    watcher = Recorder()
    folder = short(tmp_path, "cifar10-resnet8", split="45k5k", watcher=watcher)
    assert "Note: the images are few." in watcher.said
    result = result_of(folder)
    assert (result["notices"], result["headline"]) == (["the images are few"], "val")
    assert [row["split"] for row in rows_of(folder)[:3]] == ["train", "val", "test"]
    assert json_of(folder, "env")["data"]["notices"] == ["the images are few"]
    best = min(float(row["top1_err"]) for row in rows_of(folder) if row["split"] == "val")
    assert result["best"]["top1_err"] == best


def test_a_damaged_checkpoint_gives_way_to_the_one_before_with_a_notice(tmp_path, whole):
    folder = interrupted(tmp_path, 8, checkpoint_every="3")
    content = (folder / "checkpoint.pt").read_bytes()
    (folder / "checkpoint.pt").write_bytes(content[: len(content) // 2])
    watcher = Recorder()
    short(tmp_path, watcher=watcher)
    assert watcher.began == [(6, 12)]
    assert "is damaged and was moved to checkpoint.damaged.pt" in " ".join(watcher.said)
    assert (folder / "checkpoint.damaged.pt").exists()
    assert differences(folder, whole) == []


def test_a_signal_before_the_first_update_stops_the_run_there(tmp_path, monkeypatch, whole):
    def signalled(*asked):
        os.kill(os.getpid(), signal.SIGUSR1)
        return feeds.open_feed(*asked)

    with monkeypatch.context() as patch:
        patch.setattr(session, "open_feed", signalled)
        with pytest.raises(Interrupted, match=r"Stopped at iteration 0 of 12"):
            short(tmp_path)
    assert differences(short(tmp_path), whole) == []


def test_checkpoints_come_as_often_as_asked_and_at_least_at_both_ends(tmp_path, monkeypatch):
    written = []
    write = checkpoint.save_checkpoint

    def note(path, state):
        written.append(state["iteration"])
        write(path, state)

    monkeypatch.setattr(checkpoint, "save_checkpoint", note)
    for every, wanted in ((None, [0, 12]), ("5", [0, 5, 10, 12]), ("12", [0, 12]), ("10m", [0, 12])):
        written.clear()
        short(tmp_path / str(every), checkpoint_every=every)
        assert written == wanted


# --- requests that cannot be met --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"seed": -1}, "not -1"), ({"iterations": 0}, "iterations must be at least 1"),
        ({"batch_size": 201}, "batch of 201 is larger than the training set"), ({"split": "45k5k"}, "45k/5k"),
        ({"experiment": "digits-resnet9"}, r"8 or 14"),
        ({"experiment": "digits-plain8", "shortcut": "A"}, "exclude each other"), ({"rate": 1.0}, "'rate'"),
        ({"threads": 0}, "--threads must be at least 1"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_met_is_refused_and_leaves_no_record(tmp_path, options, complaint):
    with pytest.raises(UsageError, match=complaint):
        short(tmp_path, **options)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    "changed",
    [
        {"shortcut": "B"}, {"option_a_zeros": "symmetric"}, {"init": "fan_out"}, {"bn_momentum": 0.5},
        {"momentum_form": "nesterov"}, {"decay_bn_bias": False, "weight_decay": 0.1}, {"bn_group": 8},
        {"sampling": "replacement"}, {"pad": 4}, {"pad": 4, "pad_order": "pad_first", "pad_value": 99.0},
        {"flip": True}, {"mean": "per_channel"}, {"precision": "bf16"},
    ],
    ids=str,
)  # fmt: skip
def test_every_open_choice_has_its_own_folder_and_its_own_effect(tmp_path, changed, examples):
    folder, base = short(tmp_path, iterations=3, **changed), examples["base"]
    assert folder.parent.name != base.parent.name
    assert all(key in folder.parent.name for key in changed)
    assert net_of(folder).keys() != net_of(base).keys() or not same_weights(folder, base)


# --- passes, processes of readers, and the rule of the plateau --------------------------------------


def test_gradients_of_several_passes_make_the_update_of_one_with_the_same_bn_groups(tmp_path):
    watcher = Recorder()
    one = short(tmp_path / "one", bn_group=8, lr=0.01)
    several = short(tmp_path / "several", micro_batch=8, lr=0.01, watcher=watcher)
    assert several.parent.name == one.parent.name
    assert watcher.said[-1].endswith("1 process, 4 passes of 8 images; BN over groups of 8.")
    assert json_of(several, "env")["micro_batch"] == 8
    for name, tensor in net_of(one).items():
        if tensor.ndim:
            assert float((net_of(several)[name] - tensor).norm() / tensor.norm()) < 0.02, name
    for row, wanted in zip(rows_of(several), rows_of(one), strict=True):
        assert float(row["loss"]) == pytest.approx(float(wanted["loss"]), rel=2e-3)


@pytest.mark.parametrize(
    ("trouble", "whose"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the GPU's"),
        (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be .."), "the GPU's"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "the GPU's"),
        (MemoryError(), "this machine's"),
        (RuntimeError("[..] DefaultCPUAllocator: can't allocate memory: you tried .."), "this machine's"),
    ],
    ids=["gpu", "cuda", "cudnn", "python", "cpu"],
)
def test_a_full_memory_is_told_with_the_way_out(tmp_path, monkeypatch, trouble, whose):
    def full(*_):
        raise trouble

    monkeypatch.setattr(F, "cross_entropy", full)
    told = rf"{whose} memory does not hold 32 images per pass: try --micro-batch 16"
    with pytest.raises(ResreproError, match=told):
        short(tmp_path)


def on_photographs(runs, photographs, workers=0, **options):
    settings = {"iterations": 6, "batch_size": 8, "image_size": 32, "eval_every": 3, "lr": 0.01}
    return train(
        "folder-resnet18", runs=runs, data=photographs, device="cpu", loading=Loading(workers=workers),
        **settings | options,
    )  # fmt: skip


@pytest.mark.parametrize(("workers", "moments"), [(0, (2,)), (1, (1, 4))])
def test_a_run_on_photographs_goes_on_to_the_very_same_end_whoever_reads_them(
    tmp_path, photographs, whole_photo_run, workers, moments
):
    for moment in moments:
        with pytest.raises(Interrupted, match=f"iteration {moment} of 6"):
            on_photographs(tmp_path, photographs, workers, watcher=stopped_at(moment))
    folder = on_photographs(tmp_path, photographs, workers)
    assert same_weights(folder, whole_photo_run)
    assert rows_of(folder, *TIMES) == rows_of(whole_photo_run, *TIMES)


@pytest.fixture(scope="module")
def whole_photo_run(photographs, tmp_path_factory):
    return on_photographs(tmp_path_factory.mktemp("photos"), photographs)


def test_the_rate_falls_where_the_error_comes_to_a_plateau_also_after_an_interruption(tmp_path, photographs):
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
    tmp_path, photographs, whole_photo_run
):
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
