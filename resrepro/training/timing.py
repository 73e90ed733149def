"""What an update of a net takes on this machine, from some real ones on made-up images; nothing is kept."""

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from resrepro.data import Dataset, Images
from resrepro.data.feeds import MemoryFeed
from resrepro.records.write import Onlooker
from resrepro.spec import IMAGENET_IMAGES, Spec, catalogue
from resrepro.spec.recipe import FAMILIES, CifarRecipe, setting_rules
from resrepro.training.engine import choose_device, choose_engine, threads_used, use_precision
from resrepro.training.loop import Target, Trainer
from resrepro.training.parallel import split_batch
from resrepro.training.progress import Watcher
from resrepro.training.session import train

if TYPE_CHECKING:
    from resrepro.training.measure import Errors

UPDATES, LONGEST = 20, 10.0  # that are timed, and seconds after which fewer will do
PHOTOS = 32  # of a batch, since one of ImageNet's may take minutes and gigabytes
FORWARD = 1 / 3  # of the time of an update, that evaluating as many images takes
HELD_OUT = {"cifar10": 10_000, "digits": 360, "imagenet": IMAGENET_IMAGES["val"], "folder": 0}


class Enough(Exception):
    """The updates that were wanted are made."""


class Stopwatch(Watcher):
    """Times updates after the first, in which an engine may have to start, and ends the run."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def step(self, done: int, lr: float, read: "Callable[[], Errors]") -> None:
        """Note the time; `read` waits for the device."""
        read()
        self.times.append(time.perf_counter())
        if len(self.times) > UPDATES or (len(self.times) > 1 and self.times[-1] - self.times[0] > LONGEST):
            raise Enough

    @property
    def seconds(self) -> float:
        """Of an update."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def seconds_per_iteration(experiment: str, options: dict[str, Any]) -> float:
    """Seconds that an iteration of a run takes, its share of the evaluations included.

    `options` are those of `resrepro.training.session.train`, settings of the recipe among them.

    Raises:
        UsageError: if the run could not be started either.
    """
    settings = {key: value for key, value in options.items() if key in setting_rules()}
    spec = catalogue.derive(catalogue.find(experiment), options.get("shortcut"), **settings)
    watch, batch = Stopwatch(), spec.recipe.batch_size
    with tempfile.TemporaryDirectory() as place:
        options = options | {"runs": place, "fresh": False, "watcher": watch}
        if FAMILIES[spec.dataset] == "imagenet":
            batch = min(batch, PHOTOS)
            options |= {"data": _made_up_photos(Path(place), batch), "batch_size": batch, "micro_batch": None}
            os.environ["XDG_CACHE_HOME"] = place  # for what is known of these images
        with suppress(Enough):
            if spec.dataset == "cifar10":
                device, iterations = choose_device(options["device"]), spec.recipe.iterations
                compiling = options.get("compiling", "auto")
                engine = choose_engine(compiling, device, iterations, None, watch.say)
                with threads_used(options.get("threads")):
                    trainer = trainer_on_noise(spec, device, engine, watch, options.get("micro_batch"))
                    for images, labels in trainer.feed.batches(0, iterations):
                        trainer.step(images, labels)
            else:
                train(experiment, **options)
    update = watch.seconds * spec.recipe.batch_size / batch
    return update * (1 + FORWARD * HELD_OUT[spec.dataset] / spec.recipe.batch_size / spec.recipe.eval_every)


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


def _made_up_photos(place: Path, count: int) -> Path:
    """A folder of one photograph of noise under many names."""
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    for part in ("train", "val"):
        for name in ("one", "two"):
            folder = place / "photos" / part / name
            folder.mkdir(parents=True)
            Image.fromarray(pixels).save(folder / "0.jpg")
            for number in range(1, count):
                os.link(folder / "0.jpg", folder / f"{number}.jpg")
    return place / "photos"
