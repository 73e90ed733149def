"""How fast this machine trains: the usual PyTorch loop and ours, on made-up images; nothing is kept.

Each loop runs in a process of its own. All processes of a net are warm before the first round; in a round
each has its turn, beginning with another one every time, while the others wait idle. A ratio is taken within
a round, so that whatever slows the machine down for a while slows both. `default` and `fast` are `resrepro
train` without and with `--fast`, `eager`, `eager-fast` and the like the same with that engine. `usual` is
written plainly, as most reproductions have it, `usual-fast` with the two changes that many make for a GPU,
autocast and channels-last maps.
"""

import multiprocessing
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resrepro.bench.usual import usual_net, usual_updates
from resrepro.data import Dataset, Images
from resrepro.data.feeds import MemoryFeed
from resrepro.errors import ResreproError, UsageError
from resrepro.machine import cores
from resrepro.records.write import Onlooker, describe_environment
from resrepro.spec import catalogue, net_label
from resrepro.training.engine import (
    AUTO,
    EAGER,
    ENGINES,
    choose_device,
    choose_engine,
    describe_device,
    fast_precision,
    fastest_engine,
    keep_memory,
    telling_memory,
    threads_used,
    use_precision,
)
from resrepro.training.loop import LOOK_FOR_DIVERGENCE, Target, Trainer
from resrepro.training.parallel import BatchSplit, join
from resrepro.training.progress import Watcher

Step = Callable[[], None]

FAST = "-fast"  # the end of a mode in the arithmetic of --fast
USUAL, USUAL_FAST = USUALS = ("usual", f"usual{FAST}")
MODES = (USUAL, "default", "fast", USUAL_FAST, *(each + end for each in ENGINES for end in ("", FAST)))
USUAL_WORKERS = (0, 2)  # of the usual loop's DataLoader: both are measured, the better one counts
MOST_ON_GPU = 8  # workers beside a GPU, where more are always better
TRAINING_IMAGES = 50_000  # as many as CIFAR-10 has
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


def defaults_on(device: str) -> tuple[str, float, tuple[int, ...]]:
    """The modes, the seconds of a turn, and the usual loop's numbers of workers on a device."""
    chosen = choose_device(device)
    if chosen.type != "cuda":
        return ",".join(MODES[:3]), 3.0, USUAL_WORKERS
    engine = fastest_engine(chosen, ENDLESS)
    narrow = fast_precision(chosen) == "bf16"  # fp16 is for older GPUs, and not for every engine
    modes = (*USUALS, EAGER + FAST, engine, engine + FAST) if narrow else (USUAL, EAGER, engine)
    return ",".join(modes), 1.0, (min(MOST_ON_GPU, cores()),)


def loops_of(
    modes: str, depth: int, batch_size: int, usual_workers: Sequence[int] = USUAL_WORKERS
) -> list[Loop]:
    """`usual,fast` -> the loops of a net, the usual one once for each number of workers.

    Raises:
        UsageError: if a mode is unknown, named twice, or there is none.
    """
    names = [part.strip() for part in modes.split(",")]
    if len(set(names)) < len(names) or not set(names) <= set(MODES):
        raise UsageError(f"--modes takes modes, each once, of {', '.join(MODES)}, not {modes!r}.")
    return [
        Loop(mode, depth, batch_size, workers)
        for mode in names
        for workers in (usual_workers if mode in USUALS else (None,))
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
        context = multiprocessing.get_context("spawn")
        executors = [ProcessPoolExecutor(1, context, follow_parent) for _ in loops]
        processes = [stack.enter_context(each) for each in executors]
        for process in processes:  # they import PyTorch side by side, and warm up one after the other
            process.submit(os.getpid)
        for loop, process in zip(loops, processes, strict=True):
            report(f"{loop.label}: starting")
            computing_on = _result(process, loop, prepare, loop, device, threads)
        reached: list[list[float]] = [[] for _ in loops]
        for number in range(rounds):
            for place in range(len(loops)):
                at = (place + number) % len(loops)
                report(f"{loops[at].label}: round {number + 1} of {rounds}")
                reached[at].append(_result(processes[at], loops[at], take_turn, seconds))
        machine = describe_environment()
        machine |= {"date": machine["started"], **machine["versions"], **computing_on}
    return compare_with_usual(loops, reached), machine


def _result(process: ProcessPoolExecutor, loop: Loop, work: Callable[..., Any], *arguments: object) -> Any:
    try:
        return process.submit(work, *arguments).result()
    except ResreproError:
        raise
    except BrokenProcessPool:
        why = "its process has ended, perhaps for want of memory"
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
    raise ResreproError(f"{loop.label} failed: {why}.")


def compare_with_usual(loops: Sequence[Loop], reached: Sequence[Sequence[float]]) -> list[Speed]:
    """Speeds from images per second by round; a usual loop is that of the better number of workers."""
    best: dict[str, Sequence[float]] = {}
    for loop, images in zip(loops, reached, strict=True):
        best[loop.mode] = max(best.get(loop.mode, images), images, key=statistics.median)
    usual = best.get(USUAL)
    return [
        Speed(
            loop,
            tuple(images),
            tuple(one / other for one, other in zip(images, usual or (), strict=usual is not None)),
            images is best[loop.mode],
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
    join(device)
    hint = f"{loop.label} beside the others: try a smaller --batch-size, or fewer --modes"
    with threads_used(threads), telling_memory(hint):
        step = usual_step(loop, device) if loop.mode in USUALS else our_step(loop, device)
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
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elapsed = time.perf_counter() - start
    time.sleep(SETTLE)
    return count, elapsed


def precision_of(loop: Loop, device: torch.device) -> str:
    """The arithmetic of a loop.

    Raises:
        UsageError: if the mode is a fast one, and the device has nothing faster than float32.
    """
    if not loop.mode.endswith("fast"):
        return "float32"
    precision = fast_precision(device)
    if precision == "float32":
        raise UsageError(f"this machine has no bf16 arithmetic: leave the mode {loop.mode} out of --modes.")
    return precision


def engine_of(loop: Loop, device: torch.device, precision: str) -> str:
    """The engine of a loop of ours: that in its mode, else what `train` takes by itself.

    Raises:
        UsageError: if it cannot be had here.
    """
    asked = loop.mode.removesuffix(FAST)
    choice = asked if asked in ENGINES else AUTO
    return choose_engine(choice, device, precision, ENDLESS, None, lambda text: None)


def usual_step(loop: Loop, device: torch.device) -> Step:
    """One update of the usual loop."""
    net, images = usual_net(loop.depth), made_up_images(TRAINING_IMAGES)
    precision = precision_of(loop, device)
    return partial(next, usual_updates(net, images, loop.batch_size, loop.workers or 0, precision, device))


def our_step(loop: Loop, device: torch.device) -> Step:
    """One update of the real trainer, its batch included."""
    precision = precision_of(loop, device)
    engine = engine_of(loop, device, precision)
    experiment = catalogue.experiment_for("cifar10", loop.depth, plain=False)
    spec = catalogue.derive(experiment, batch_size=loop.batch_size, precision=precision)
    if device.type == "cpu":
        keep_memory()
    use_precision(precision, device)
    data = Dataset("made up", 10, made_up_images(TRAINING_IMAGES), {"test": made_up_images(1)}, {})
    feed = MemoryFeed(spec.recipe, data, device, seed=0)  # type: ignore[arg-type]
    target = Target(device, BatchSplit(loop.batch_size, loop.batch_size), engine)
    trainer = Trainer(spec, 0, feed, target, Onlooker(Path("nowhere")), Watcher())
    trainer.net.train()
    return partial(next, endless_updates(trainer))


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
