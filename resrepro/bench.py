"""How fast this machine trains: the usual PyTorch loop and ours on made-up images of CIFAR-10's shape.

Each loop runs in a process of its own. All processes of a net are warm before the first round; in a round
each has its turn, beginning with another one every time, while the others wait idle. A ratio is taken within
a round, so that whatever slows the machine down for a while slows both. `default` and `fast` are `resrepro
train` without and with `--fast`; `-eager` after a mode leaves its engine out. `usual` is written plainly, as
most reproductions have it, and nothing in it is slowed down on purpose.
"""

import multiprocessing
import signal
import statistics
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset
from torchvision import transforms

from resrepro.data import Images
from resrepro.errors import ResreproError, UsageError
from resrepro.records.write import describe_environment
from resrepro.spec import catalogue, net_label
from resrepro.training.engine import (
    EAGER,
    best_engine,
    choose_device,
    describe_device,
    fast_precision,
    keep_memory,
    telling_memory,
    threads_used,
)
from resrepro.training.loop import LOOK_FOR_DIVERGENCE, Trainer
from resrepro.training.progress import Watcher
from resrepro.training.timing import made_up_images, trainer_on_noise

Step = Callable[[], None]

USUAL, NO_ENGINE = "usual", "-eager"
MODES = (USUAL, "default", "fast", f"default{NO_ENGINE}", f"fast{NO_ENGINE}")
TRAINING_IMAGES = 50_000  # as many as CIFAR-10 has
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10, as everybody writes them
READ_LOSS_EVERY = 100  # steps of the usual loop
ENDLESS, WARM_STEPS = 10**9, 4
PATIENCE = 5.0  # seconds in which a process may end by itself
SETTLE = 0.3  # seconds in which workers fill up what was taken, and threads stop to wait for more work


@dataclass(frozen=True)
class Loop:
    """One way to train one net; `workers` are those of the usual loop's DataLoader."""

    mode: str
    depth: int
    plain: bool = False
    batch_size: int = 128
    workers: int | None = None

    @property
    def label(self) -> str:
        """`ResNet-56, fast`, for sentences."""
        workers = "" if self.workers is None else f" with {self.workers} workers"
        return f"{net_label(self.depth, self.plain)}, {self.mode}{workers}"


@dataclass(frozen=True)
class Speed:
    """What a loop reached: images per second by round, and their ratio to the usual loop's in that round.

    `counted` is false of the usual loop with the worse number of workers.
    """

    loop: Loop
    images_per_s: tuple[float, ...]
    ratios: tuple[float, ...] = ()
    counted: bool = True


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
            processes.append(LoopProcess(loop, device, threads))
            stack.callback(processes[-1].end)
            computing_on = processes[-1].answer()
        reached: list[list[float]] = [[] for _ in loops]
        for number in range(rounds):
            for place in range(len(loops)):
                at = (place + number) % len(loops)
                report(f"{loops[at].label}: round {number + 1} of {rounds}")
                reached[at].append(processes[at].turn(seconds))
        machine = describe_environment()
        machine |= {"date": machine["started"], **machine["versions"], **computing_on}
    return compare_with_usual(loops, reached), machine


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


class LoopProcess:
    """A loop in a process of its own."""

    def __init__(self, loop: Loop, device: str, threads: int | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.loop, (self.connection, theirs) = loop, context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, loop, device, threads))
        self.process.start()
        theirs.close()

    def turn(self, seconds: float) -> float:
        """Let it train for so long; images per second.

        Raises:
            ResreproError: if it fails.
        """
        with suppress(BrokenPipeError):  # the answer says why
            self.connection.send(seconds)
        return float(self.answer())

    def answer(self) -> Any:
        """What it says next: on what it computes once it is warm, then the speed of each turn.

        Raises:
            ResreproError: if it has failed.
        """
        try:
            failure, answer = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            code = self.process.exitcode
            why = "killed, perhaps for want of memory" if code == -signal.SIGKILL else f"exit code {code}"
            raise ResreproError(f"the process that trained {self.loop.label} has ended: {why}.") from None
        if failure:
            raise (UsageError if failure == UsageError.exit_code else ResreproError)(answer)
        return answer

    def end(self) -> None:
        """Let it end by itself, after its turn if it is at work; one that does not is killed."""
        self.connection.close()
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()


def serve(connection: Connection, loop: Loop, device_name: str, threads: int | None) -> None:
    """The process of a loop: warms up, then trains for as many seconds as it is told, again and again.

    Answers are pairs: 0 and a value, or the exit code of a failure and a sentence.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    try:
        with telling_memory(loop.label), threads_used(threads):
            device = choose_device(device_name)
            step = usual_step(loop, device) if loop.mode == USUAL else our_step(loop, device)
            for seconds in (0.0,) * WARM_STEPS + (1.0,):
                train_for(seconds, step, device)
            connection.send((0, describe_device(device, loop.batch_size)))
            while True:
                steps, seconds = train_for(connection.recv(), step, device)
                connection.send((0, steps * loop.batch_size / seconds))
    except EOFError:  # the parent wants no more
        return
    except ResreproError as error:
        connection.send((error.exit_code, str(error)))
    except Exception as error:
        connection.send((1, f"{loop.label} failed: {type(error).__name__}: {error}"))


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


def our_trainer(loop: Loop, device: torch.device) -> Trainer:
    """The real trainer on the paper's recipe, with the mode's precision and engine; it writes nothing.

    Raises:
        UsageError: if the mode is fast, and the device has nothing faster than float32.
    """
    fast = loop.mode.startswith("fast")
    precision = fast_precision(device) if fast else "float32"
    if fast and precision == "float32":
        raise UsageError("this machine has no bf16 arithmetic: leave the mode fast out of --modes.")
    experiment = catalogue.experiment_for("cifar10", loop.depth, loop.plain)
    spec = catalogue.derive(experiment, batch_size=loop.batch_size, precision=precision)
    keep_memory()
    engine = EAGER if loop.mode.endswith(NO_ENGINE) else best_engine(device)
    return trainer_on_noise(spec, device, engine, Watcher())


def our_step(loop: Loop, device: torch.device) -> Step:
    """One update, its batch and augmentation included, with the look for divergence where a run has one."""
    trainer = our_trainer(loop, device)
    batches = trainer.feed.batches(0, ENDLESS)

    def step() -> None:
        trainer.step(*next(batches))
        if trainer.done % LOOK_FOR_DIVERGENCE == 0:
            trainer.since_sample.read()

    return step


class UsualBlock(nn.Module):
    """Two convolutions, each with BN, and a shortcut of option A unless plain."""

    def __init__(self, in_channels: int, channels: int, plain: bool) -> None:
        super().__init__()
        self.plain, self.stride, self.extra = plain, channels // in_channels, channels - in_channels
        self.conv1 = nn.Conv2d(in_channels, channels, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if not self.plain:
            if self.extra:
                x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
            out = out + x
        return F.relu(out)


def usual_net(depth: int, plain: bool) -> nn.Module:
    """The net of Section 4.2, (N, 3, H, W) -> (N, 10); its parameters have the names of `resrepro.nets`."""
    widths = [16, *(width for width in (16, 32, 64) for _ in range((depth - 2) // 6))]
    blocks = [UsualBlock(widths[at], widths[at + 1], plain) for at in range(len(widths) - 1)]
    n = len(blocks) // 3
    stages = [nn.Sequential(*blocks[at : at + n]) for at in (0, n, 2 * n)]
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
    net = usual_net(loop.depth, loop.plain).to(device).train()
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
