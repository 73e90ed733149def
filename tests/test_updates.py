"""The loop, and its updates recorded: bit by bit those of the plain loop on a CPU, which records nothing."""

import gc
import os
import signal
import sys
import traceback
import weakref
from pathlib import Path

import pytest
import torch
from ranks import write_photos
from runs import differences, json_of, trainer_of
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from resrepro.cli import main
from resrepro.data.augment import TrainingBatches
from resrepro.errors import Diverged, Interrupted
from resrepro.training import measure
from resrepro.training.engine import EAGER, GRAPH
from resrepro.training.progress import Interrupts, Watcher
from resrepro.training.session import train
from resrepro.training.updates import recorded, without_garbage

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHORT = {"iterations": 11, "eval_every": 4, "lr_drops": (5, 9), "batch_size": 16}
NETS = {
    "plain": {"experiment": "digits-plain8"},
    "option A": {},
    "option B": {"shortcut": "B"},
    "option C": {"shortcut": "C"},
    "BN groups": {"bn_group": 4},
    "passes": {"micro": 8, "bn_group": 8},
    "replacement": {"sampling": "replacement"},
    "neither crop nor flip": {"pad": 0, "flip": False},
    "nesterov": {"momentum_form": "nesterov"},
    "bf16": {"precision": "bf16"},
    "tf32": {"precision": "tf32"},
    "warm-up": {"warmup_lr": 0.01, "warmup_window": 3, "warmup_until_err": 95.0},
}


class Curve(Watcher):
    """Keeps the samples of a run."""

    def __init__(self):
        self.samples = []

    def sample(self, sample):
        self.samples.append(sample)


def trained(device, engine, experiment="digits-resnet8", **what):
    """The state of a net after a short run, and what was sampled on the way."""
    trainer = trainer_of(experiment, device, engine, watcher=Curve(), **SHORT | what)
    with Interrupts() as interrupts:
        trainer.run(interrupts)
    curve = [(sample.iteration, sample.lr, sample.errors) for sample in trainer.watcher.samples]
    return {name: tensor.cpu() for name, tensor in trainer.net.state_dict().items()}, curve


@pytest.fixture
def same_algorithms(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


class Reached(Exception):
    """The loss is about to be computed."""


def test_the_loss_is_few_frames_below_the_command(tmp_path, monkeypatch):
    frames, package = [], Path(sys.modules["resrepro"].__file__).parent

    def note(*_, **__):
        frames.extend(frame for frame in traceback.extract_stack() if package in Path(frame.filename).parents)
        raise Reached

    monkeypatch.setattr(F, "cross_entropy", note)
    words = "train --dataset digits --depth 8 --plain --iterations 2 --device cpu --runs"
    monkeypatch.setattr(sys, "argv", ["resrepro", *words.split(), str(tmp_path)])
    with pytest.raises(Reached):
        main()
    told = [f"{Path(frame.filename).relative_to(package)}:{frame.name}" for frame in frames]
    assert len(told) <= 7, told
    assert len({frame.filename for frame in frames}) <= 4, told


def test_a_stretch_ends_at_the_next_sample_look_or_end():
    settings = {"iterations": 250, "eval_every": 60, "batch_size": 8, "lr_drops": (125, 188)}
    trainer = trainer_of("digits-resnet8", "cpu", EAGER, **settings, warmup_lr=0.01, warmup_window=40)
    events = []
    while trainer.done < 250:
        trainer.done = trainer.next_event()
        events.append(trainer.done)
        if trainer.done == 80:
            trainer.warmup_switch = 80
    assert events == [40, 60, 80, 100, 120, 125, 180, 188, 200, 240, 250]


@pytest.mark.parametrize(
    ("net", "device"),
    [
        pytest.param(net, device, marks=[pytest.mark.gpu] * (device == "cuda"))
        for net in NETS
        for device in ("cpu", "cuda")
        if (net, device) != ("tf32", "cpu")
    ],
)
@pytest.mark.usefixtures("same_algorithms")
def test_replayed_updates_are_those_of_the_plain_loop(net, device):
    """Order, crops, flips, rates, sums, warm-up: stretches of 1 to 4 updates, of two rates in one sample."""
    (plain, curve), (replayed, same) = (
        trained(device, EAGER, **NETS[net]),
        trained(device, GRAPH, **NETS[net]),
    )
    exact = device == "cpu"
    for name, tensor in plain.items():
        torch.testing.assert_close(
            replayed[name], tensor, rtol=0 if exact else 1e-3, atol=0 if exact else 1e-4, msg=name
        )
    assert [sample[:2] for sample in same] == [sample[:2] for sample in curve]
    if exact:
        assert str(same) == str(curve)


def test_tables_of_a_few_rows_give_the_same(monkeypatch):
    """Rows are drawn ahead, over the end of the tables, and not again where a stretch goes on."""
    monkeypatch.setattr("resrepro.data.feeds.ROWS", 6)
    drawn = []
    choices = TrainingBatches.choices
    monkeypatch.setattr(
        TrainingBatches, "choices", lambda self, update: drawn.append(update) or choices(self, update)
    )
    plain, curve = trained("cpu", EAGER)
    drawn.clear()
    replayed, same = trained("cpu", GRAPH)
    assert str(same) == str(curve)
    assert all(torch.equal(tensor, replayed[name]) for name, tensor in plain.items())
    assert drawn == list(range(max(drawn) + 1))


@pytest.mark.parametrize(
    ("net", "device"),
    [
        ("resnet18", "cpu"),
        pytest.param("plain34", "cuda", marks=pytest.mark.gpu),
        pytest.param("resnet50", "cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.usefixtures("same_algorithms")
def test_photographs_and_a_plateau(tmp_path, net, device):
    settings = {"iterations": 6, "eval_every": 1, "batch_size": 4, "image_size": 32, "bn_group": 4}
    settings |= {"lr_policy": "plateau", "plateau_patience": 2, "plateau_gain": 100.0, "lr_drops": (2, 4)}
    settings |= {"data": write_photos(tmp_path, per_class=4, val=4, classes=2)}
    (plain, curve), (replayed, same) = (
        trained(device, engine, f"folder-{net}", **settings) for engine in (EAGER, GRAPH)
    )
    assert len({sample[1] for sample in curve}) > 1  # the rate fell on the way
    exact = device == "cpu"
    assert [sample[:2] for sample in same] == [sample[:2] for sample in curve]
    for name, tensor in plain.items():
        torch.testing.assert_close(
            replayed[name], tensor, rtol=0 if exact else 1e-2, atol=0 if exact else 1e-3, msg=name
        )


@pytest.mark.parametrize("device", DEVICES)
def test_a_divergence_is_found_at_the_next_look(device):
    with pytest.raises(Diverged, match="by iteration 4"):
        trained(device, GRAPH, lr=1e30, lr_drops=())


class Unwaiting(TorchDispatchMode):
    """Refuses what would wait for a GPU: numbers read from tensors, and shapes that depend on values."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func._schema.name not in {
            "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
        }, func  # fmt: skip
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("net", ["option A", "BN groups", "passes", "bf16"])
def test_an_update_waits_for_nothing(net, monkeypatch):
    """What the GPU would record runs under a watch on the CPU; so does the table of choices before it."""
    calls = []

    def watched(work, changed):
        return lambda: calls.append(watched_work(work)())

    monkeypatch.setattr("resrepro.training.updates.recorded", watched)
    trained("cpu", GRAPH, **NETS[net])
    assert len(calls) == SHORT["iterations"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_measurement_follows_the_net_and_waits_for_nothing(device, monkeypatch):
    """It gives what the plain one gives, also once the parameters have changed where they lie."""
    if device == "cpu":
        monkeypatch.setattr(measure, "recorded", lambda work, changed: watched_work(work))
    trainer, where = trainer_of("digits-resnet8", device, EAGER, **SHORT), torch.device(device)
    feed, net = trainer.feed, trainer.net.train()
    recording = measure.RecordedErrors(feed, net, where)
    for factor in (1.0, 0.5):
        with torch.no_grad():
            net.fc.weight.mul_(factor)
            net.bn1.running_var.mul_(factor)
        wanted, found = measure.measure_held_out(feed, net, where), recording.measure()
        assert wanted.keys() == found.keys()
        for name, errors in wanted.items():
            assert vars(found[name]) == pytest.approx(vars(errors), rel=1e-4 if device == "cuda" else 0)


def watched_work(work):
    def replay():
        with Unwaiting():
            work()

    return replay


@pytest.mark.parametrize("device", DEVICES)
def test_recording_leaves_everything_as_it_was(device):
    number = torch.zeros(1, device=device)

    def work():
        number.add_(1)

    replay = recorded(work, [number])
    assert number.item() == 0
    replay()
    replay()
    assert number.item() == 2


class Owner:
    """Of a recording, and in a cycle, as a run's trainer is."""

    def __init__(self, replay=None):
        self.replay, self.itself = replay, self


def test_garbage_is_dropped_before_a_recording_and_not_within():
    first, second = Owner(), Owner()
    gone, stays = weakref.ref(first), weakref.ref(second)
    del first
    with without_garbage():
        assert gone() is None
        del second
        several = [[[] for _ in range(2_000)] for _ in range(100)]  # enough for Python to collect by itself
        assert stays() is not None
    assert gc.isenabled()
    assert len(several) == 100


@pytest.mark.gpu
def test_a_recording_outlives_those_of_earlier_runs():
    number = torch.zeros(1, device="cuda")
    for runs in range(1, 4):
        owner = Owner(recorded(lambda: number.add_(torch.ones(1, device="cuda")), [number]))
        owner.replay()
        assert number.item() == runs


@pytest.mark.gpu
def test_each_gpu_records_on_streams_of_its_own():
    for device in map(torch.device, range(torch.cuda.device_count())):
        with torch.cuda.device(device):
            number = torch.zeros(1, device=device)
            recorded(lambda number=number: number.add_(1), [number])()
            assert number.item() == 1


@pytest.mark.parametrize("device", DEVICES)
def test_an_update_that_overflows_in_fp16_leaves_no_trace(device):
    """The first of all: no momentum out of memory that nobody has set, and the update is counted."""
    trainer = trainer_of("digits-resnet8", device, EAGER, **SHORT, precision="fp16")
    trainer.scaler = torch.amp.GradScaler(device, init_scale=2.0**100)
    parameters = list(trainer.net.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    with trainer.updates.of(0, 11):
        next(trainer.updates.stretch(0, 11, 0.1))()
    assert trainer.skipped.item() == 1
    assert all(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    buffers = [state["momentum_buffer"] for state in trainer.optimizer.state.values()]
    assert len(buffers) == len(before)
    assert not any(buffer.any() for buffer in buffers)


class Stop(Watcher):
    """Sends itself a signal at an update within a stretch."""

    def step(self, done, lr, read):
        if done == 6:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("same_algorithms")
def test_a_recorded_run_that_was_stopped_goes_on_bit_by_bit(tmp_path, device):
    options = {"device": device, "engine": GRAPH} | SHORT
    whole = train("digits-resnet8", runs=tmp_path / "whole", **options)
    with pytest.raises(Interrupted, match="Stopped at iteration 6 of 11"):
        train("digits-resnet8", runs=tmp_path / "parts", watcher=Stop(), **options)
    parts = train("digits-resnet8", runs=tmp_path / "parts", **options)
    assert differences(parts, whole) == []
    assert json_of(parts, "env")["engine"] == GRAPH
