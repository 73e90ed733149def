"""Our own training loop for a calibration: the real Trainer on images of CIFAR-10's shape, made up.

Augmentation, errors and watcher are those of a run; evaluations and checkpoints are left out.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from resrepro.data import Dataset, Images
from resrepro.data.feeds import Feed
from resrepro.records.write import Onlooker
from resrepro.spec.experiment import Spec
from resrepro.training.loop import Target, Trainer
from resrepro.training.measure import Errors
from resrepro.training.parallel import BatchSplit, split_batch
from resrepro.training.progress import Watcher

TRAINING_IMAGES = 50_000  # as many as CIFAR-10 has
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


def our_trainer(
    spec: Spec, engine: str, feed: Feed, device: torch.device, spread: BatchSplit | None = None
) -> Trainer:
    """A run that writes nothing, with an engine by name."""
    spread = spread or split_batch(spec.recipe.batch_size, processes=1)
    return Trainer(spec, SEED, feed, Target(device, spread, engine), Onlooker(Path("nowhere")), Looker())
