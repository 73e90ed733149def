"""Recorded updates against the plain loop: bit by bit on a CPU, which records nothing; graphs on a GPU."""

import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from resrepro.data import Dataset, load_dataset
from resrepro.data.augment import TrainingBatches
from resrepro.data.feeds import MemoryFeed, open_feed
from resrepro.data.loader import Loading
from resrepro.errors import Diverged, Interrupted
from resrepro.records.storage import Onlooker
from resrepro.spec import catalogue
from resrepro.training import measure
from resrepro.training.checkpoint import load_checkpoint
from resrepro.training.engine import EAGER, GRAPH, use_precision
from resrepro.training.loop import Target, Trainer, initial_net
from resrepro.training.parallel import split_batch
from resrepro.training.progress import Interrupts, Sample, Watcher
from resrepro.training.session import train
from resrepro.training.updates import recorded

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHORT = {"iterations": 11, "eval_every": 4, "lr_drops": (5, 9), "batch_size": 16}
NETS: dict[str, dict[str, Any]] = {
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

    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def sample(self, sample: Sample) -> None:
        self.samples.append(sample)


@functools.cache
def digits() -> Dataset:
    return load_dataset("digits", "all", None)


def trained(
    device: str, engine: str, *, experiment: str = "digits-resnet8", shortcut: str | None = None,
    micro: int | None = None, **settings: Any,
) -> tuple[dict[str, Tensor], list[Any]]:  # fmt: skip
    """The state of a net after a short run, and what was sampled on the way."""
    spec = catalogue.derive(catalogue.find(experiment), shortcut, **SHORT | settings)
    use_precision(spec.recipe.precision, torch.device(device))
    feed = MemoryFeed(spec.recipe, digits(), torch.device(device), seed=0)
    target = Target(torch.device(device), split_batch(spec.recipe.batch_size, 1, micro), engine)
    return run(Trainer(spec, 0, feed, target, Onlooker(Path("nowhere")), Curve()))


def run(trainer: Trainer) -> tuple[dict[str, Tensor], list[Any]]:
    trainer.save = lambda: None  # type: ignore[method-assign]
    with Interrupts() as interrupts:
        trainer.run(interrupts)
    assert isinstance(trainer.watcher, Curve)
    curve = [(sample.iteration, sample.lr, sample.errors) for sample in trainer.watcher.samples]
    return {name: tensor.cpu() for name, tensor in trainer.net.state_dict().items()}, curve


@pytest.fixture
def same_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)


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
def test_replayed_updates_are_those_of_the_plain_loop(net: str, device: str) -> None:
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
    drawn: list[int] = []
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


def photographs(folder: Path) -> Path:
    source = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            for number in range(4):
                pixels = source.integers(0, 256, (40, 48, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("net", "device"),
    [
        ("resnet18", "cpu"),
        pytest.param("plain34", "cuda", marks=pytest.mark.gpu),
        pytest.param("resnet50", "cuda", marks=pytest.mark.gpu),
    ],
)
@pytest.mark.usefixtures("same_algorithms")
def test_photographs_and_a_plateau(tmp_path: Path, net: str, device: str) -> None:
    settings = {"iterations": 6, "eval_every": 1, "batch_size": 4, "image_size": 32, "bn_group": 4}
    plateau = {"lr_policy": "plateau", "plateau_patience": 2, "plateau_gain": 100.0}
    spec = catalogue.derive(catalogue.find(f"folder-{net}"), None, **settings, **plateau)
    data, both = photographs(tmp_path), []
    for engine in (EAGER, GRAPH):
        feed = open_feed(spec, data, torch.device(device), 0, Loading(workers=0))
        target = Target(torch.device(device), split_batch(4, 1), engine)
        both.append(run(Trainer(spec, 0, feed, target, Onlooker(tmp_path), Curve())))
    (plain, curve), (replayed, same) = both
    assert len({sample[1] for sample in curve}) > 1  # the rate fell on the way
    exact = device == "cpu"
    assert [sample[:2] for sample in same] == [sample[:2] for sample in curve]
    for name, tensor in plain.items():
        torch.testing.assert_close(
            replayed[name], tensor, rtol=0 if exact else 1e-2, atol=0 if exact else 1e-3, msg=name
        )


@pytest.mark.parametrize("device", DEVICES)
def test_a_divergence_is_found_at_the_next_look(device: str) -> None:
    with pytest.raises(Diverged, match="by iteration 4"):
        trained(device, GRAPH, lr=1e30, lr_drops=())


class Unwaiting(TorchDispatchMode):
    """Refuses what would wait for a GPU: numbers read from tensors, and shapes that depend on values."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func._schema.name not in {
            "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal",
        }, func  # fmt: skip
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("net", ["option A", "BN groups", "passes", "bf16"])
def test_an_update_waits_for_nothing(net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the GPU would record runs under a watch on the CPU; so does the table of choices before it."""
    calls: list[int] = []

    def watched(work: Any, changed: Any) -> Any:
        def replay() -> None:
            with Unwaiting():
                work()
            calls.append(1)

        return replay

    monkeypatch.setattr("resrepro.training.updates.recorded", watched)
    trained("cpu", GRAPH, **NETS[net])
    assert len(calls) == SHORT["iterations"]


@pytest.mark.parametrize("device", DEVICES)
def test_a_recorded_measurement_follows_the_net_and_waits_for_nothing(device, monkeypatch):
    """It gives what the plain one gives, also once the parameters have changed where they lie."""
    if device == "cpu":
        monkeypatch.setattr(measure, "recorded", lambda work, changed: watched_work(work))
    spec = catalogue.derive(catalogue.find("digits-resnet8"), None, **SHORT)
    where = torch.device(device)
    feed = MemoryFeed(spec.recipe, digits(), where, seed=0)
    net = initial_net(spec, 0, 10).to(where).train()
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
def test_recording_leaves_everything_as_it_was(device: str) -> None:
    number = torch.zeros(1, device=device)

    def work() -> None:
        number.add_(1)

    replay = recorded(work, [number])
    assert number.item() == 0
    replay()
    replay()
    assert number.item() == 2


@pytest.mark.parametrize("device", DEVICES)
def test_an_update_that_overflows_in_fp16_leaves_no_trace(device: str) -> None:
    """The first of all: no momentum out of memory that nobody has set, and the update is counted."""
    spec = catalogue.derive(catalogue.find("digits-resnet8"), None, **SHORT, precision="fp16")
    feed = MemoryFeed(spec.recipe, digits(), torch.device(device), seed=0)
    target = Target(torch.device(device), split_batch(16, 1), EAGER)
    trainer = Trainer(spec, 0, feed, target, Onlooker(Path("nowhere")), Curve())
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

    def step(self, done: int, lr: float, read: Any) -> None:
        if done == 6:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("same_algorithms")
def test_a_recorded_run_that_was_stopped_goes_on_bit_by_bit(tmp_path: Path, device: str) -> None:
    options: dict[str, Any] = {"device": device, "engine": GRAPH} | SHORT
    whole = train("digits-resnet8", runs=tmp_path / "whole", **options)
    with pytest.raises(Interrupted, match="Stopped at iteration 6 of 11"):
        train("digits-resnet8", runs=tmp_path / "parts", watcher=Stop(), **options)
    parts = train("digits-resnet8", runs=tmp_path / "parts", **options)
    one, other = (load_checkpoint(folder / "checkpoint.pt") for folder in (whole, parts))
    assert all(torch.equal(tensor, other["net"][name]) for name, tensor in one["net"].items())
    curves = [[row.split(",")[:6] for row in read(folder)] for folder in (whole, parts)]
    assert curves[0] == curves[1]
    assert json.loads((parts / "env.json").read_text())["engine"] == GRAPH


def read(folder: Path) -> list[str]:
    return (folder / "metrics.csv").read_text().splitlines()
