"""How fast this machine trains: the usual PyTorch loop and ours, on made-up images; nothing is kept.

Each loop runs in a process of its own. All processes of a net are warm before the first round; in a round
each has its turn, beginning with another one every time, while the others wait idle. A ratio is taken within
a round, so that whatever slows the machine down for a while slows both. `default` and `fast` are `resrepro
train` without and with `--fast`. `usual` is written plainly, as most reproductions have it, and nothing in it
is slowed down on purpose.
"""

import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms
from torchvision.models.resnet import BasicBlock

from resrepro.data import Dataset, Images
from resrepro.data.feeds import MemoryFeed
from resrepro.errors import ResreproError, UsageError
from resrepro.records.write import Onlooker, describe_environment
from resrepro.spec import catalogue, net_label
from resrepro.training.engine import (
    choose_device,
    choose_engine,
    describe_device,
    fast_precision,
    keep_memory,
    telling_memory,
    threads_used,
    use_precision,
)
from resrepro.training.loop import LOOK_FOR_DIVERGENCE, Target, Trainer
from resrepro.training.parallel import BatchSplit
from resrepro.training.progress import Watcher

Step = Callable[[], None]

USUAL = "usual"
MODES = (USUAL, "default", "fast")
USUAL_WORKERS = (0, 2)  # of the usual loop's DataLoader: both are measured, the better one counts
TRAINING_IMAGES = 50_000  # as many as CIFAR-10 has
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, as everybody writes them
READ_LOSS_EVERY = 100  # steps of the usual loop
ENDLESS, WARM_STEPS = 10**9, 4
SETTLE = 0.3  # seconds in which workers fill up what was taken, and threads stop to wait for more work


@dataclass(frozen=True)
class Loop:
    """One way to train one net; `workers` are those of the usual loop's DataLoader."""

    mode: str
    depth: int
    batch_size: int = 128
    workers: int | None = None

    @property
    def label(self) -> str:
        """`ResNet-56, fast`, for sentences."""
        workers = "" if self.workers is None else f" with {self.workers} workers"
        return f"{net_label(self.depth, plain=False)}, {self.mode}{workers}"


@dataclass(frozen=True)
class Speed:
    """What a loop reached: images per second by round, and their ratio to the usual loop's in that round.

    `counted` is false of the usual loop with the worse number of workers.
    """

    loop: Loop
    images_per_s: tuple[float, ...]
    ratios: tuple[float, ...] = ()
    counted: bool = True


def loops_of(modes: str, depth: int, batch_size: int) -> list[Loop]:
    """`usual,fast` -> the loops of a net, the usual one once for each number of workers.

    Raises:
        UsageError: if a mode is unknown, named twice, or there is none.
    """
    names = [part.strip() for part in modes.split(",")]
    if len(set(names)) < len(names) or not set(names) <= set(MODES):
        raise UsageError(f"--modes takes modes, each once, such as {','.join(MODES)}, not {modes!r}.")
    return [
        Loop(mode, depth, batch_size, workers)
        for mode in names
        for workers in (USUAL_WORKERS if mode == USUAL else (None,))
    ]


def measure_speeds(
    loops: Sequence[Loop], rounds: int, seconds: float, device: str, threads: int | None,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[list[Speed], dict[str, Any]]:  # fmt: skip
    """The speeds of the loops of one net in so many rounds of so many seconds, and the machine in words.

    Raises:
        UsageError: if a loop cannot run here.
        ResreproError: if one fails; all others are then ended.
    """
    with ExitStack() as stack:
        processes = []
        for loop in loops:
            report(f"{loop.label}: starting")
            process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), follow_parent)
            processes.append(stack.enter_context(process))
            computing_on = _result(process.submit(prepare, loop, device, threads), loop)
        reached: list[list[float]] = [[] for _ in loops]
        for number in range(rounds):
            for place in range(len(loops)):
                at = (place + number) % len(loops)
                report(f"{loops[at].label}: round {number + 1} of {rounds}")
                reached[at].append(_result(processes[at].submit(take_turn, seconds), loops[at]))
        machine = describe_environment()
        machine |= {"date": machine["started"], **machine["versions"], **computing_on}
    return compare_with_usual(loops, reached), machine


def _result(future: "Future[Any]", loop: Loop) -> Any:
    try:
        return future.result()
    except ResreproError:
        raise
    except BrokenProcessPool:
        why = "its process has ended, perhaps for want of memory"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    raise ResreproError(f"{loop.label} failed: {why}.")


def compare_with_usual(loops: Sequence[Loop], reached: Sequence[Sequence[float]]) -> list[Speed]:
    """Speeds from images per second by round; the usual loop is that of the better number of workers."""
    usual = [images for loop, images in zip(loops, reached, strict=True) if loop.mode == USUAL]
    best = max(usual, key=statistics.median, default=None)
    return [
        Speed(
            loop,
            tuple(images),
            tuple(one / other for one, other in zip(images, best or (), strict=best is not None)),
            loop.mode != USUAL or images is best,
        )
        for loop, images in zip(loops, reached, strict=True)
    ]


# --- in the process of a loop --------------------------------------------------------------------------

turn: Callable[[float], float]  # of this process: trains for so many seconds; images per second


def follow_parent() -> None:
    """Leave Ctrl-C to the parent, and end when it ends, however it does."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def prepare(loop: Loop, device_name: str, threads: int | None) -> dict[str, object]:
    """Build a loop and warm it up; on what it computes."""
    global turn
    device = choose_device(device_name)
    with threads_used(threads), telling_memory(loop.label):
        step = usual_step(loop, device) if loop.mode == USUAL else our_step(loop, device)
        for _ in range(WARM_STEPS):
            step()
        train_for(1.0, step, device)
        computing_on = describe_device(device, loop.batch_size)

    def take(seconds: float) -> float:
        with threads_used(threads):
            steps, elapsed = train_for(seconds, step, device)
        return steps * loop.batch_size / elapsed

    turn = take
    return computing_on


def take_turn(seconds: float) -> float:
    """Let the loop of this process train for so long; images per second."""
    return turn(seconds)


def train_for(seconds: float, step: Step, device: torch.device) -> tuple[int, float]:
    """Make steps for so long, at least one; how many, and the seconds until the device had finished them."""
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        step()
        count += 1
    if device.type != "cpu":
        (torch.cuda if device.type == "cuda" else torch.mps).synchronize()
    elapsed = time.perf_counter() - start
    time.sleep(SETTLE)
    return count, elapsed


def our_step(loop: Loop, device: torch.device) -> Step:
    """One update of the real trainer, its batch included, with the look for divergence where a run has one.

    Raises:
        UsageError: if the mode is fast, and the device has nothing faster than float32.
    """
    fast = loop.mode == "fast"
    precision = fast_precision(device) if fast else "float32"
    if fast and precision == "float32":
        raise UsageError("this machine has no bf16 arithmetic: leave the mode fast out of --modes.")
    experiment = catalogue.experiment_for("cifar10", loop.depth, plain=False)
    spec = catalogue.derive(experiment, batch_size=loop.batch_size, precision=precision)
    keep_memory()
    use_precision(precision, device)
    data = Dataset("made up", 10, made_up_images(TRAINING_IMAGES), {"test": made_up_images(1)}, {})
    feed = MemoryFeed(spec.recipe, data, device, seed=0)  # type: ignore[arg-type]
    engine = choose_engine("auto", device, precision, ENDLESS, None, lambda text: None)
    target = Target(device, BatchSplit(loop.batch_size, loop.batch_size), engine)
    trainer = Trainer(spec, 0, feed, target, Onlooker(Path("nowhere")), Watcher())
    trainer.net.train()
    steps = endless_updates(trainer)
    return lambda: next(steps)


def endless_updates(trainer: Trainer) -> Iterator[None]:
    """An update at each step, in stretches between two looks for divergence, as a run makes them."""
    with trainer.updates.of(0, ENDLESS):
        for start in range(0, ENDLESS, LOOK_FOR_DIVERGENCE):
            for update in trainer.updates.stretch(start, start + LOOK_FOR_DIVERGENCE, trainer.recipe.lr):
                update()
                yield
            trainer.since_sample.read()


def made_up_images(count: int) -> Images:
    """Random pixels (count, 3, 32, 32) and labels in the form of CIFAR-10's."""
    source = np.random.default_rng(0)
    pixels = source.integers(0, 256, (count, 3, 32, 32), np.uint8)
    return Images(pixels, source.integers(0, 10, count, np.int64))


# --- the usual loop --------------------------------------------------------------------------------------


class OptionA(nn.Module):
    """A shortcut into a stage of twice the width and half the side."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2C, H / 2, W / 2)."""
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def usual_net(depth: int) -> nn.Module:
    """The residual net of Section 4.2, of torchvision's blocks, with the names of `resrepro.nets`."""
    stages, channels = [], 16
    for width in (16, 32, 64):
        first = BasicBlock(channels, width, width // channels, OptionA() if width > channels else None)
        rest = [BasicBlock(width, width) for _ in range((depth - 2) // 6 - 1)]
        stages.append(nn.Sequential(first, *rest))
        channels = width
    net = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(),
            stages=nn.Sequential(*stages), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
            fc=nn.Linear(64, 10),
        )
    )  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net


class UsualImages(TorchDataset[tuple[Tensor, int]]):
    """Images in memory, turned into PIL images and transformed one at a time, as torchvision's CIFAR10."""

    def __init__(self, images: Images) -> None:
        self.pixels, self.labels = images.pixels.transpose(0, 2, 3, 1).copy(), images.labels.tolist()
        crop, flip = transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip()
        tensor, normalise = transforms.ToTensor(), transforms.Normalize(MEAN, STD)
        self.transform = transforms.Compose([crop, flip, tensor, normalise])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def usual_step(loop: Loop, device: torch.device) -> Step:
    """One update as everybody writes it: float32, NCHW, eager; cuDNN may try algorithms and take TF32."""
    torch.backends.cudnn.benchmark = True
    net = usual_net(loop.depth).to(device).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    workers = loop.workers or 0
    loader = DataLoader(
        UsualImages(made_up_images(TRAINING_IMAGES)), loop.batch_size, shuffle=True, num_workers=workers,
        drop_last=True, pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip

    def updates() -> Iterator[None]:
        steps = 0
        while True:
            for images, labels in loader:
                images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
                loss = criterion(net(images), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
                if steps % READ_LOSS_EVERY == 0:
                    loss.item()
                yield

    made = updates()
    return lambda: next(made)
