"""How fast this machine trains: the usual PyTorch loop and ours, on made-up images; nothing is kept.

Each loop runs in a process of its own. All processes of a net are warm before the first round; in a round
each has its turn, beginning with another one every time, while the others wait idle. A ratio is taken within
a round, so that whatever slows the machine down for a while slows both. `default` and `fast` are `resrepro
train` without and with `--fast`, `eager` and the like the same with that engine. `usual` is written as most
reproductions have it, `usual-fast` with what many change for a GPU, autocast and channels-last maps.
"""

import multiprocessing
import os
import signal
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms
from torchvision.models.resnet import BasicBlock

from resrepro.data import Dataset, Images
from resrepro.data.feeds import MemoryFeed
from resrepro.errors import ResreproError, UsageError
from resrepro.machine import cores, describe_environment
from resrepro.records.storage import Onlooker
from resrepro.spec import catalogue, net_label
from resrepro.training import engine as engines
from resrepro.training.engine import AUTO, EAGER, ENGINES, GRAPH, LANES
from resrepro.training.loop import LOOK_FOR_DIVERGENCE, Target, Trainer
from resrepro.training.parallel import BatchSplit, join
from resrepro.training.progress import Watcher

FAST = "-fast"  # the end of a mode in the arithmetic of --fast
USUAL, USUAL_FAST = USUALS = ("usual", f"usual{FAST}")
MODES = (USUAL, "default", "fast", USUAL_FAST, *(each + end for each in ENGINES for end in ("", FAST)))
WORKERS = (0, 2)  # of the usual loop's DataLoader: both are measured, the better one counts
MOST_ON_GPU = 8  # workers beside a GPU, where more are always better
TRAINING_IMAGES = 50_000  # as many as CIFAR-10 has
ENDLESS, WARM_STEPS = 10**9, 4
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, as everybody writes them
READ_LOSS_EVERY = 100  # steps of the usual loop
DEAF = (signal.SIGINT, signal.SIG_IGN)  # a process that leaves Ctrl-C to its parent
SETTLE = 0.3  # seconds in which workers fill up what was taken, and threads stop to wait for more work


class Loop(NamedTuple):
    """One way to train one net, or several as lanes; `workers` are those of the usual loop's DataLoader."""

    mode: str
    depth: int
    batch_size: int = 128
    workers: int | None = None
    nets: int = 1

    @property
    def name(self) -> str:
        """`lanes-fast x 5`."""
        return self.mode + (f" x {self.nets}" if self.nets > 1 else "")

    def __str__(self) -> str:
        workers = "" if self.workers is None else f" with {self.workers} workers"
        return f"{net_label(self.depth, plain=False)}, {self.name}{workers}"


class Speed(NamedTuple):
    """What a loop reached: images per second by round, and their ratio to the usual loop's in that round."""

    loop: Loop
    images_per_s: tuple[float, ...]
    ratios: tuple[float, ...] = ()
    counted: bool = True  # not so of the usual loop with the worse number of workers


def defaults_on(device: str) -> tuple[str, float, tuple[int, ...]]:
    """The modes, the seconds of a turn, and the usual loop's numbers of workers on a device."""
    chosen = engines.choose_device(device)
    if chosen.type != "cuda":
        return ",".join(MODES[:3]), 3.0, WORKERS
    narrow = engines.fast_precision(chosen) == "bf16"  # fp16 is for older GPUs, and not for every engine
    join(chosen)  # the kernels are tried on the GPU that is current
    modes = [*USUALS, EAGER + FAST, GRAPH, GRAPH + FAST] if narrow else [USUAL, EAGER, GRAPH]
    spec = catalogue.derive(catalogue.find("cifar10-resnet20"), None, precision="bf16")
    modes += [LANES + FAST] if narrow and not engines.trouble_with_kernels(chosen, spec) else []
    return ",".join(modes), 1.0, (min(MOST_ON_GPU, cores()),)


def loops_of(
    modes: str, depth: int, batch_size: int, workers: Sequence[int] = WORKERS, nets: Sequence[int] = (1,)
) -> list[Loop]:
    """`usual,fast` -> the loops of a net, the usual one once for each number of workers, lanes for each of
    `nets` (UsageError if a mode is unknown, named twice, or there is none).
    """
    names = [part.strip() for part in modes.split(",")]
    if len(set(names)) < len(names) or not set(names) <= set(MODES):
        raise UsageError(f"--modes takes modes, each once, of {', '.join(MODES)}, not {modes!r}.")
    return [
        Loop(mode, depth, batch_size, count, side_by_side)
        for mode in names
        for count in (workers if mode in USUALS else (None,))
        for side_by_side in (nets if mode.startswith(LANES) else (1,))
    ]


def measure_speeds(
    loops: Sequence[Loop], rounds: int, seconds: float, device: str, threads: int | None,
    report: Callable[[str], None],
) -> tuple[list[Speed], dict[str, Any]]:  # fmt: skip
    """The speeds of the loops of one net in so many rounds of so many seconds, and the machine in words
    (UsageError if a loop cannot run here, ResreproError if one fails; all others are then ended).
    """
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        turns = []
        for loop in loops:  # they import PyTorch side by side, and warm up one after the other
            process = stack.enter_context(ProcessPoolExecutor(1, context, signal.signal, DEAF))
            process.submit(os.getpid)
            turns.append((loop, process, list[float]()))
        for loop, process, _ in turns:
            report(f"{loop}: starting")
            computing_on = _result(process, loop, prepare, loop, device, threads)
        for number in range(rounds):
            first = number % len(loops)
            for loop, process, reached in turns[first:] + turns[:first]:
                report(f"{loop}: round {number + 1} of {rounds}")
                reached.append(_result(process, loop, take_turn, seconds))
        machine = describe_environment()
        machine |= {"date": machine["started"], **machine["versions"], **computing_on}
    return compare_with_usual(loops, [reached for _, _, reached in turns]), machine


def _result(process: ProcessPoolExecutor, loop: Loop, work: Callable[..., Any], *arguments: object) -> Any:
    try:
        return process.submit(work, *arguments).result()
    except ResreproError:
        raise
    except BrokenProcessPool:
        why = "its process has ended, perhaps for want of memory"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    raise ResreproError(f"{loop} failed: {why}.")


def compare_with_usual(loops: Sequence[Loop], reached: Sequence[Sequence[float]]) -> list[Speed]:
    """Speeds from images per second by round; a usual loop is that of the better number of workers."""
    best: dict[str, Sequence[float]] = {}
    for loop, images in zip(loops, reached, strict=True):
        best[loop.name] = max(best.get(loop.name, images), images, key=statistics.median)
    speeds = []
    for loop, images in zip(loops, reached, strict=True):
        ratios = tuple(one / other for one, other in zip(images, best.get(USUAL, ()), strict=False))
        speeds.append(Speed(loop, tuple(images), ratios, images is best[loop.name]))
    return speeds


# --- in the process of a loop --------------------------------------------------------------------------

ready: tuple[Loop, Iterator[None], torch.device, int | None]  # what this process trains, where, its threads


def prepare(loop: Loop, device_name: str, threads: int | None) -> dict[str, object]:
    """Build a loop and warm it up; on what it computes (UsageError if its mode cannot be had here)."""
    global ready
    device = engines.choose_device(device_name)
    join(device)
    precision = engines.fast_precision(device) if (fast := loop.mode.endswith("fast")) else "float32"
    if fast and precision == "float32":
        raise UsageError(f"this machine has no bf16 arithmetic: leave the mode {loop.mode} out of --modes.")
    hint = f"{loop} beside the others: try a smaller --batch-size, or fewer --modes"
    with engines.threads_used(threads), engines.telling_memory(hint):
        updates = (usual_updates if loop.mode in USUALS else our_updates)(loop, device, precision)
        for _ in range(WARM_STEPS):
            next(updates)
        ready = loop, updates, device, threads
        take_turn(1.0)
        return engines.describe_device(device, loop.batch_size)


def take_turn(seconds: float) -> float:
    """Make updates of this process's loop for so long, at least one; images per second."""
    loop, updates, device, threads = ready
    with engines.threads_used(threads):
        count, start = 0, time.perf_counter()
        while not count or time.perf_counter() - start < seconds:
            next(updates)
            count += 1
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        elapsed = time.perf_counter() - start
    time.sleep(SETTLE)
    return count * loop.batch_size * loop.nets / elapsed


def made_up_images(count: int) -> Images:
    """Random pixels (count, 3, 32, 32) and labels in the form of CIFAR-10's."""
    source = np.random.default_rng(0)
    return Images(source.integers(0, 256, (count, 3, 32, 32), np.uint8), source.integers(0, 10, count))


def our_updates(loop: Loop, device: torch.device, precision: str) -> Iterator[None]:
    """One update of the real trainer at each step, in stretches between two looks for divergence."""
    asked = loop.mode.removesuffix(FAST)
    choice = asked if asked in ENGINES else AUTO
    experiment = catalogue.experiment_for("cifar10", loop.depth, plain=False)
    spec = catalogue.derive(experiment, batch_size=loop.batch_size, precision=precision)
    engines.use_precision(precision, device)
    engine = engines.choose_engine(choice, device, spec, loop.batch_size, ENDLESS, None, lambda text: None)
    if device.type == "cpu":
        engines.keep_memory()
    data = Dataset("made up", 10, made_up_images(TRAINING_IMAGES), {"test": made_up_images(1)}, {})
    target, trainers = Target(device, BatchSplit(loop.batch_size, loop.batch_size), engine), list[Trainer]()
    for seed in range(loop.nets):
        feed = MemoryFeed(spec.recipe, data, device, seed)  # type: ignore[arg-type]
        trainers.append(Trainer(spec, seed, feed, target, Onlooker(Path("nowhere")), Watcher()))
        trainers[-1].net.train()
    updates, rate = trainers[0].updates, spec.recipe.lr
    if engine == LANES:
        from resrepro.training.lanes import LaneUpdates  # imports Triton

        updates = LaneUpdates(trainers)
    with updates.of(0, ENDLESS):
        for start in range(0, ENDLESS, LOOK_FOR_DIVERGENCE):
            for update in updates.stretch(start, start + LOOK_FOR_DIVERGENCE, rate):
                update()
                yield
            trainers[0].since_sample.read()


# --- the loop that everybody writes; nothing in it is slowed down on purpose ---------------------------


class OptionA(nn.Module):
    """A shortcut into a stage of twice the width and half the side."""

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 2C, H / 2, W / 2)."""
        return nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, x.shape[1]))


def usual_net(depth: int) -> nn.Module:
    """The residual net of Section 4.2, of torchvision's blocks, with the names of `resrepro.nets`."""
    stages, channels = [], 16
    for width in (16, 32, 64):
        first = BasicBlock(channels, width, width // channels, OptionA() if width > channels else None)
        stages.append(nn.Sequential(first, *(BasicBlock(width, width) for _ in range((depth - 2) // 6 - 1))))
        channels = width
    net = nn.Sequential(OrderedDict(
        conv1=nn.Conv2d(3, 16, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(16), relu=nn.ReLU(),
        stages=nn.Sequential(*stages), pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(),
        fc=nn.Linear(64, 10),
    ))  # fmt: skip
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
    return net


class UsualImages(datasets.CIFAR10):  # type: ignore[misc]
    """torchvision's CIFAR-10, of other images: turned into PIL images and transformed one at a time."""

    target_transform = None
    steps = transforms.RandomCrop(32, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()
    transform = transforms.Compose([*steps, transforms.Normalize(MEAN, STD)])

    def __init__(self, images: Images) -> None:
        self.data, self.targets = images.pixels.transpose(0, 2, 3, 1).copy(), images.labels.tolist()


def usual_updates(loop: Loop, device: torch.device, precision: str) -> Iterator[None]:
    """One eager update at each step, cuDNN being free; channels-last and autocast where not in float32."""
    workers = loop.workers or 0
    torch.backends.cudnn.benchmark = True
    layout = torch.contiguous_format if precision == "float32" else torch.channels_last
    net = usual_net(loop.depth).to(device).to(memory_format=layout).train()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    loader: DataLoader[Any] = DataLoader(
        UsualImages(made_up_images(TRAINING_IMAGES)), loop.batch_size, shuffle=True, num_workers=workers,
        drop_last=True, pin_memory=device.type == "cuda", persistent_workers=workers > 0,
    )  # fmt: skip
    steps = 0
    while True:
        for batch, labels in loader:
            batch = batch.to(device, non_blocking=True, memory_format=layout)
            labels = labels.to(device, non_blocking=True)
            with engines.arithmetic(precision, device):
                loss = criterion(net(batch), labels)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            steps += 1
            if steps % READ_LOSS_EVERY == 0:
                loss.item()
            yield
