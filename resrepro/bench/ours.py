"""Our own training loop for the benchmark: the real Trainer on images of CIFAR-10's shape, made up.

Augmentation, errors and watcher are those of a run; evaluations and checkpoints are left out.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from resrepro.bench.contestants import TRAINING_IMAGES, Contestant
from resrepro.data import Dataset, Images
from resrepro.data.feeds import Feed, MemoryFeed
from resrepro.errors import UsageError
from resrepro.records.recording import Onlooker
from resrepro.spec import catalogue
from resrepro.spec.specs import CifarRecipe, Spec
from resrepro.training.device import fast_precision, use_precision
from resrepro.training.engines import Plan, best_engine
from resrepro.training.memory import keep_memory
from resrepro.training.metrics import Errors
from resrepro.training.parallel import BatchSplit, split_batch
from resrepro.training.trainer import LOOK_FOR_DIVERGENCE, Target, Trainer
from resrepro.training.watching import Watcher

SEED = 0
LOOK_EVERY = 0.5  # seconds, as often as the live view of `resrepro train` looks
ENDLESS = 10**9  # updates


class Looker(Watcher):
    """Looks at a run as often as the live view does, and says nothing."""

    def __init__(self) -> None:
        self.looked = 0.0

    def step(self, done: int, lr: float, read: Callable[[], Errors]) -> None:
        """Look now and then; each look waits for the device."""
        now = time.perf_counter()
        if now - self.looked >= LOOK_EVERY:
            read()
            self.looked = now


def made_up_images(count: int, seed: int = SEED) -> Images:
    """Random pixels and labels in the shape of CIFAR-10's."""
    source = np.random.default_rng(seed)
    pixels = source.integers(0, 256, (count, 3, 32, 32), np.uint8)
    return Images(pixels, source.integers(0, 10, count, np.int64))


def made_up_dataset(held_out: int) -> Dataset:
    """As many training images as CIFAR-10 has, and some to measure on."""
    parts = {"test": made_up_images(held_out, SEED + 1)}
    return Dataset("made up", 10, made_up_images(TRAINING_IMAGES), parts, {})


def spec_of(contestant: Contestant, device: torch.device) -> Spec:
    """The paper's experiment for the net, with the benchmark's batch and the mode's precision.

    Raises:
        UsageError: if the mode is fast, and the device has nothing faster than float32.
    """
    experiment = catalogue.experiment_for("cifar10", contestant.depth, contestant.plain)
    precision = contestant.arithmetic.precision
    if precision != "float32":
        precision = fast_precision(device)
        if precision == "float32":
            raise UsageError("this machine has no bf16 arithmetic: leave the mode fast out of --modes.")
    return catalogue.derive(experiment, batch_size=contestant.batch_size, precision=precision)


def our_trainer(
    spec: Spec, engine: str, feed: Feed, device: torch.device, spread: BatchSplit | None = None
) -> Trainer:
    """A run that writes nothing, with an engine by name."""
    spread = spread or split_batch(spec.recipe.batch_size, processes=1)
    return Trainer(spec, SEED, feed, Target(device, spread, engine), Onlooker(Path("nowhere")), Looker())


class OurLoop:
    """Training step after step."""

    def __init__(self, contestant: Contestant, device: torch.device) -> None:
        keep_memory()
        spec = spec_of(contestant, device)
        assert isinstance(spec.recipe, CifarRecipe)
        use_precision(spec.recipe.precision, device)
        feed = MemoryFeed(spec.recipe, made_up_dataset(held_out=1), device, SEED)
        start = time.perf_counter()
        plan = Plan(spec, device, spec.recipe.iterations)
        self.key, self.engine = plan.key, contestant.arithmetic.engine or best_engine(plan)
        self.trainer = our_trainer(spec, self.engine, feed, device)
        self.built_seconds = time.perf_counter() - start
        self.trainer.net.train()
        self.batches = self.trainer.feed.batches(0, ENDLESS)

    def prepare(self) -> None:
        """A batch without a step: what the data pipeline takes alone."""
        next(self.batches)

    def step(self) -> None:
        """One update, with the look for divergence where a run has one."""
        self.trainer.step(*next(self.batches))
        if self.trainer.done % LOOK_FOR_DIVERGENCE == 0:
            self.trainer.since_sample.read()
