"""Runs side by side: images, events, checkpoints, ends; `test_nets_gpu` has the kernels' arithmetic."""

import json
import os

import numpy as np
import pytest
import torch
from commands import call
from runs import differences, trainer_of
from torch.nn import functional as F

from resrepro.data import Dataset, Images, load_dataset
from resrepro.errors import Diverged, Interrupted
from resrepro.training.engine import EAGER, LANES
from resrepro.training.progress import Interrupts, Watcher
from resrepro.training.session import Session, train, train_side_by_side

pytest.importorskip("triton")
from resrepro.nets.gpu import STEM, Lanes
from resrepro.nets.gpu.forward import INTERPRETED
from resrepro.training import lanes, updates

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
SHORT = {"iterations": 6, "eval_every": 4, "lr_drops": (3, 5), "batch_size": 8}
WHERE = {
    "shortcut": None, "data": None, "device": DEVICE.type, "fast": False, "engine": LANES, "fresh": False,
    "micro_batch": None, "loading": None, "checkpoint_every": None, "break_lock": False,
}  # fmt: skip


class Autograd(Lanes):
    """Lanes whose updates PyTorch makes, net by net, on the parameters where they lie."""

    def __init__(self, nets, optimizers, *sizes):
        super().__init__(nets, optimizers, *sizes)
        self.nets, self.optimizers = nets, optimizers

    def update(self):
        for lane, (net, optimizer) in enumerate(zip(self.nets, self.optimizers, strict=True)):
            images = self.x[lane].view(self.images, self.side, self.side, STEM)[..., :3].permute(0, 3, 1, 2)
            logits, truth = net(images), self.truth[lane]
            loss = F.cross_entropy(logits, truth)
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for p, gradient in zip(net.parameters(), gradients, strict=True):
                    v = optimizer.state[p]["momentum_buffer"].mul_(0.9).add_(gradient + 1e-4 * p)
                    p -= self.rates[lane] * v
                ranks = (logits > logits.gather(1, truth[:, None])).sum(1)
                told = [loss * len(truth), (ranks >= 1).sum(), (ranks >= 5).sum(), torch.tensor(len(truth))]
                for sums in (self.since_sample, self.since_look):
                    sums[lane] += torch.stack(told)


@pytest.fixture
def quick(monkeypatch):
    """Our kernels where there is a GPU; the interpreter would take minutes."""
    if INTERPRETED:
        monkeypatch.setattr(lanes, "Lanes", Autograd)
        monkeypatch.setattr(updates, "BEFORE_RECORDING", 1)


def trainer(net, seed=0, engine=LANES, data=None, **settings):
    return trainer_of(net, DEVICE, engine, seed=seed, data=data, **SHORT | settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"pad": 4, "flip": True, "pad_value": 0.25}, {"sampling": "replacement"},
        {"pad": 2, "flip": True, "pad_order": "pad_first", "mean": "per_channel"},
    ],
)  # fmt: skip
def test_a_kernel_draws_the_images_of_the_plain_loop(settings):
    """Bit by bit, each lane its own, from update 5 on."""
    runs = [trainer("digits-resnet8", 0, **settings), trainer("digits-plain8", 3, **settings)]
    together = lanes.LaneUpdates(runs)
    with together.of(5, 8):
        together.replay = lambda: None
        for update, _ in enumerate(together.stretch(5, 8, [0.1, 0.1]), 5):
            x, truth = together.draw_images()
            together.slots[0].advance()
            for lane, run in enumerate(runs):
                images, labels = run.feed.training_batches[update]
                found = x[lane].view(8, 16, 16, STEM).permute(0, 3, 1, 2)
                assert torch.equal(found[:, :3], images)
                assert not found[:, 3:].any()
                assert torch.equal(truth[lane], labels)


@pytest.mark.usefixtures("quick")
def test_lanes_have_the_rates_samples_and_warm_up_of_the_plain_loop():
    settings = {"warmup_lr": 0.01, "warmup_window": 2, "warmup_until_err": 99.0, "lr": 0.02}
    kinds = [("digits-plain8", 0), ("digits-resnet8", 1)]
    wanted, found = ([trainer(*kind, engine, **settings) for kind in kinds] for engine in (EAGER, LANES))
    with Interrupts() as interrupts:
        for run in wanted:
            run.run(interrupts)
        assert lanes.run_side_by_side(found, interrupts) == {}
    for one, other in zip(wanted, found, strict=True):
        assert (one.done, one.sampled, one.warmup_switch) == (other.done, other.sampled, other.warmup_switch)
        for name, tensor in one.net.state_dict().items():
            torch.testing.assert_close(other.net.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=name)
        for key, errors in one.last.items():
            assert other.last[key].top1_err == pytest.approx(errors.top1_err, abs=0.6), key
            assert other.last[key].loss == pytest.approx(errors.loss, rel=1e-3), key


@pytest.mark.usefixtures("quick")
def test_a_run_that_diverges_stops_alone():
    runs = [trainer("digits-resnet8", seed) for seed in (0, 1)]
    with torch.no_grad():
        runs[0].net.fc.weight.fill_(torch.nan)
    with Interrupts() as interrupts:
        failed = lanes.run_side_by_side(runs, interrupts)
    assert {run: type(error) for run, error in failed.items()} == {runs[0]: Diverged}
    assert (runs[0].done, runs[1].done) == (4, 6)
    assert runs[1].last["test"].loss < 10


class Stop(Watcher):
    """Sends a signal to this process after some update."""

    def __init__(self, at):
        self.at = at

    def step(self, done, lr, read):
        if done == self.at:
            os.kill(os.getpid(), 15)


def side_by_side(folder, runs, watcher=None):
    """Train runs of digits, as a command that they share does; the errors by run."""
    sessions = {
        Session(net, seed, runs=folder, watcher=watcher, **WHERE, **SHORT): f"{net}/{seed}"
        for net, seed in runs
    }
    ended = train_side_by_side(list(sessions))
    return {sessions[session]: error for session, error in ended if error}


@pytest.mark.usefixtures("quick")
def test_runs_are_the_same_alone_and_stopped_and_carried_on(tmp_path):
    """Bit by bit; and a checkpoint holds no more than the run's own numbers."""
    runs = [("digits-plain8", 0), ("digits-resnet8", 0), ("digits-resnet8", 1)]
    assert side_by_side(tmp_path / "whole", runs) == {}
    errors = side_by_side(tmp_path / "parts", runs, Stop(2))
    assert [type(error) for error in errors.values()] == [Interrupted] * 3
    assert side_by_side(tmp_path / "parts", runs[1:]) == {}  # of two the third is left
    assert side_by_side(tmp_path / "parts", runs) == {}
    train("digits-resnet8", 1, runs=tmp_path / "alone", engine=LANES, device=DEVICE.type, **SHORT)
    whole, parts, alone = (sorted((tmp_path / each).glob("*/seed*")) for each in ("whole", "parts", "alone"))
    assert [differences(*pair) for pair in zip(whole, parts, strict=True)] == [[], [], []]
    assert differences(whole[2], alone[0]) == []
    eager = train("digits-resnet8", 1, runs=tmp_path / "eager", engine=EAGER, device=DEVICE.type, **SHORT)
    sizes = [(each / "checkpoint.pt").stat().st_size for each in (whole[0], alone[0], eager)]
    assert max(sizes) < 1.1 * min(sizes)
    assert json.loads((alone[0] / "env.json").read_text())["engine"] == LANES


@pytest.mark.usefixtures("quick")
def test_a_command_tells_of_each_of_its_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("RESREPRO_EVENTS", str(os.getppid()))
    words = "digits-plain8 digits-resnet8 --seeds 0,2 --iterations 2 --engine lanes --batch-size 8"
    code, told, error = call("train", words, "--runs", tmp_path)
    assert code == 0, told + error
    events = [json.loads(line) for line in told.splitlines()]
    finished = [event["run"] for event in events if event["event"] == "finish"]
    assert finished == [f"digits-{net}, seed {seed}" for net in ("plain8", "resnet8") for seed in (0, 2)]
    assert len(list(tmp_path.glob("*/seed*/checkpoint.pt"))) == 4


@pytest.mark.slow
def test_our_kernels_train_a_net_as_pytorch_does(monkeypatch):
    """20 updates of a plain and a residual net on digits of 8 x 8, in float32, within rounding."""
    monkeypatch.setattr(updates, "BEFORE_RECORDING", 1)
    digits = load_dataset("digits", "all", None)
    small = {
        name: Images(np.ascontiguousarray(part.pixels[:100, :, ::2, ::2]), part.labels[:100])
        for name, part in (("train", digits.train), *digits.held_out.items())
    }
    data = Dataset("digits", 10, small.pop("train"), small, {})
    settings = {"iterations": 20, "eval_every": 20, "lr_drops": (10,), "lr": 0.005, "batch_size": 4}
    kinds = [("digits-plain8", 0), ("digits-resnet8", 1)]
    wanted, found = (
        [trainer(*kind, engine, data, **settings) for kind in kinds] for engine in (EAGER, LANES)
    )
    with Interrupts() as interrupts:
        for run in wanted:
            run.run(interrupts)
        assert lanes.run_side_by_side(found, interrupts) == {}
    for one, other in zip(wanted, found, strict=True):
        assert other.last["train"].loss == pytest.approx(one.last["train"].loss, rel=1e-3)
        for name, tensor in one.net.state_dict().items():
            torch.testing.assert_close(other.net.state_dict()[name], tensor, rtol=2e-2, atol=2e-3, msg=name)
