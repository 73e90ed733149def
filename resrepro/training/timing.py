"""Trainers on made-up images, to see how fast an update is; nothing is kept."""

from pathlib import Path

import numpy as np
import torch

from resrepro.data import Dataset, Images
from resrepro.data.feeds import MemoryFeed
from resrepro.records.write import Onlooker
from resrepro.spec import Spec
from resrepro.spec.recipe import CifarRecipe
from resrepro.training.engine import use_precision
from resrepro.training.loop import Target, Trainer
from resrepro.training.parallel import split_batch
from resrepro.training.progress import Watcher


def trainer_on_noise(
    spec: Spec, device: torch.device, engine: str, watcher: Watcher, micro_batch: int | None = None
) -> Trainer:
    """The real trainer of a net of CIFAR-10 on made-up images; it writes nothing.

    Raises:
        UsageError: if the arithmetic is not to be had, or the batch does not divide so.
    """
    assert isinstance(spec.recipe, CifarRecipe)
    use_precision(spec.recipe.precision, device)
    dataset = Dataset(
        "made up", 10, made_up_images(max(50_000, spec.recipe.batch_size)), {"test": made_up_images(1)}, {}
    )
    feed = MemoryFeed(spec.recipe, dataset, device, seed=0)
    target = Target(device, split_batch(spec.recipe.batch_size, 1, micro_batch), engine)
    trainer = Trainer(spec, 0, feed, target, Onlooker(Path("nowhere")), watcher)
    trainer.net.train()
    return trainer


def made_up_images(count: int) -> Images:
    """Random pixels (count, 3, 32, 32) and labels in the form of CIFAR-10's."""
    source = np.random.default_rng(0)
    pixels = source.integers(0, 256, (count, 3, 32, 32), np.uint8)
    return Images(pixels, source.integers(0, 10, count, np.int64))
