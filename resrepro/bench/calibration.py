"""What a run will take, from a few real steps of the real Trainer: time, memory, the size of a checkpoint.

CIFAR-10 is made up, so that nothing is downloaded; photographs are read if they are there, else made up.
Nothing is written: what a checkpoint takes is counted, not stored.
"""

import resource
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resrepro.bench.ours import SEED, made_up_dataset, our_trainer
from resrepro.bench.timing import finish, memory_used_mib, peak_memory_mib, timed
from resrepro.bench.work import FORWARD_SHARE
from resrepro.data import ALONE, DatasetInfo, data_folder, load_dataset
from resrepro.data.augment import Lighting, Normalisation, laid_out, mean_over
from resrepro.data.feeds import Feed, MemoryFeed, PhotoFeed
from resrepro.data.folder import PhotoSet, scan_both
from resrepro.data.loader import Loading
from resrepro.data.photos import CropReader, PhotoViews, Views
from resrepro.records.reading import FORMAT
from resrepro.spec.catalogue import protocol_for
from resrepro.spec.experiment import IMAGENET_CLASSES, IMAGENET_IMAGES, Spec
from resrepro.spec.recipe import CifarRecipe, ImageNetRecipe
from resrepro.training.checkpoint import state_of
from resrepro.training.engine import EAGER, choose_engine, fast_settings, keep_memory, use_precision
from resrepro.training.loop import Trainer
from resrepro.training.measure import Member, measure_errors
from resrepro.training.parallel import collected, plan

TEST_IMAGES = 10_000  # of CIFAR-10
LONG = 5  # times the seconds of a calibration; what a first step has to prepare is little beside that
SHARE = 0.9  # of the free memory, that a calibration may take
MADE_UP = 32  # photographs that are measured on over and over


class MadeUpPhotos(Feed):
    """Crops of noise, ready in memory: what a net costs without reading photographs."""

    def __init__(self, spec: Spec, device: torch.device) -> None:
        super().__init__(spec.recipe)
        assert isinstance(spec.recipe, ImageNetRecipe)
        self.protocol, self.device = protocol_for(spec.recipe.test_view, "imagenet"), device
        self.size = spec.recipe.image_size
        sizes = dict(IMAGENET_IMAGES)
        self.about = DatasetInfo(spec.dataset, None, IMAGENET_CLASSES, sizes, {}, (), ("val",))
        self.normalisation = Normalisation(spec.recipe, mean_over(spec.recipe.mean, _grey(self.size)))
        self.normalisation.to(device)

    def batches(self, start: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
        """The same noise again and again, prepared each time."""
        shape = (self.recipe.batch_size, 3, self.size, self.size)
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=self.device)
        labels = torch.randint(0, self.about.num_classes, shape[:1], device=self.device)
        for _ in range(start, stop):
            yield laid_out((pixels.float() - self.normalisation.mean) / self.normalisation.divisor), labels

    def views(self, name: str) -> Iterator[Views]:
        """A centre crop, which is what runs are measured on, of as many images as ImageNet has."""
        shape = (MADE_UP, 1, 3, self.size, self.size)
        pixels, labels = torch.randint(0, 256, shape, dtype=torch.uint8), torch.zeros(MADE_UP).long()
        for _ in range(self.about.sizes[name] // MADE_UP):
            yield Views([pixels], labels)


class UnknownPhotos(PhotoFeed):
    """Photographs of a folder, whose mean and colours nobody has taken yet: grey will do for the time."""

    def __init__(self, spec: Spec, photos: PhotoSet, device: torch.device, loading: Loading) -> None:
        Feed.__init__(self, spec.recipe)
        recipe = spec.recipe
        assert isinstance(recipe, ImageNetRecipe)
        self.device, self.loading, self.group = device, loading, ALONE
        self.protocol = protocol_for(recipe.test_view, "imagenet")
        sizes = {"train": len(photos.train), "val": len(photos.val)}
        classes = photos.train.classes
        self.about = DatasetInfo(spec.dataset, classes, len(classes), sizes, {}, (), ("val",))
        mean = mean_over(recipe.mean, _grey(recipe.image_size))
        self.normalisation = Normalisation(recipe, mean).to(device)
        self._reader = CropReader(photos.train, recipe, Lighting(recipe, np.eye(3), np.full(3, 0.05)), SEED)
        self._views = PhotoViews(photos.val, self.protocol, recipe.image_size, loading)


def _grey(size: int) -> "np.ndarray[Any, np.dtype[np.float64]]":
    return np.full((3, size, size), 127.0)


class Counter:
    """A file that only counts what is written to it."""

    def __init__(self) -> None:
        self.size = 0

    def write(self, content: bytes) -> int:
        """Take some bytes; returns how many."""
        self.size += len(content)
        return len(content)

    def flush(self) -> None:
        """Nothing is waiting."""


def calibrate(asked: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Time, memory and disk of one run, as `resrepro.launch.estimates` reads them.

    Raises:
        UsageError: if the run could not be started either.
        DataError: if its data are damaged.
    """
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in asked["settings"].items()}
    if asked["fast"]:
        settings |= fast_settings(device, settings.get("precision"), lambda text: None)
    spec, spread = plan(asked["experiment"], asked["shortcut"], asked["micro_batch"], settings)
    use_precision(spec.recipe.precision, device)
    if device.type == "cpu":
        stay_within_memory()
        keep_memory()
    updates = spec.recipe.iterations
    engine = choose_engine(asked["compiling"], device, updates, None, lambda text: None)
    feed, reads = _open(spec, asked["data"], device, Loading(*asked["loading"]))
    trainer = our_trainer(spec, engine, feed, device, spread)
    trainer.net.train()
    seconds = float(asked["seconds"])
    step, first = _step_seconds(trainer, seconds)
    evaluation = _evaluation_seconds(trainer, seconds / 2, step)
    return {
        "name": spec.name,
        "iterations": spec.recipe.iterations,
        "eval_every": spec.recipe.eval_every,
        "sets": 1 + len(feed.about.held_out),
        "step_seconds": step,
        "start_seconds": max(0.0, first - step),
        "evaluation_seconds": evaluation,
        "reads": reads,
        "memory_mib": peak_memory_mib(),
        "gpu_mib": memory_used_mib(device) if device.type == "cuda" else None,
        "checkpoint_bytes": _checkpoint_bytes(trainer),
    }


def stay_within_memory() -> None:
    """Let allocations fail where the memory ends, on Linux, so that nobody else's process is ended for it."""
    try:
        told = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return
    free = next((line.split()[1] for line in told.splitlines() if line.startswith("MemAvailable:")), None)
    if free is not None:
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        most = int(SHARE * int(free) * 1024)
        resource.setrlimit(resource.RLIMIT_DATA, (most if hard < 0 else min(most, hard), hard))


def _open(spec: Spec, data: str | None, device: torch.device, loading: Loading) -> tuple[Feed, bool]:
    """The data of a run, and whether reading them is part of what is measured."""
    recipe = spec.recipe
    if isinstance(recipe, CifarRecipe):
        made_up = spec.dataset == "cifar10"
        dataset = made_up_dataset(TEST_IMAGES) if made_up else load_dataset(spec.dataset, recipe.split)
        return MemoryFeed(recipe, dataset, device, SEED), True
    if data is not None:
        return UnknownPhotos(spec, scan_both(data_folder(Path(data))), device, loading), True
    return MadeUpPhotos(spec, device), False


def _step_seconds(trainer: Trainer, seconds: float) -> tuple[float, float]:
    """For a training step, its batch included, and for the first, in which an engine may have to start.

    Without an engine a first step that takes very long is like all others: no second one is made.
    """
    eager = trainer.target.engine == EAGER
    batches = trainer.feed.batches(0, 10**9)
    try:
        _, first = timed(lambda: trainer.step(*next(batches)), 0.0, trainer.device)
        if eager and first > LONG * seconds:
            return first, first
        count, elapsed = timed(lambda: trainer.step(*next(batches)), seconds, trainer.device)
    finally:
        batches.close()
    return max(elapsed / count, _reading_seconds(trainer, seconds / 2)), first


def _reading_seconds(trainer: Trainer, seconds: float) -> float:
    """For a batch alone: steps may live for a while on what was read ahead."""
    if not isinstance(trainer.feed, PhotoFeed):
        return 0.0
    batches = trainer.feed.batches(0, 10**9)
    try:
        next(batches)
        count, elapsed = timed(lambda: next(batches), seconds, trainer.device)
    finally:
        batches.close()
    return elapsed / count


def _evaluation_seconds(trainer: Trainer, seconds: float, step: float) -> float:
    """For one evaluation of all held-out sets."""
    feed, device = trainer.feed, trainer.device
    member, dense, total = (
        Member.of(trainer.net, feed.normalisation, feed.recipe),
        feed.protocol.crops == "dense",
        0.0,
    )
    for name in feed.about.held_out:
        done, start = 0, time.perf_counter()
        for group in feed.views(name):
            measure_errors([member], [group], dense, device)
            done += len(group.labels)
            if time.perf_counter() - start > seconds:
                break
        finish(device)
        total += (time.perf_counter() - start) * feed.about.sizes[name] / max(done, 1)
    if getattr(feed.recipe, "bn_stats", "running") == "precise":
        total += feed.precise_batches * step * FORWARD_SHARE
    return total


def _checkpoint_bytes(trainer: Trainer) -> int:
    """The size of a checkpoint."""
    counter = Counter()
    own = [(part.sums.cpu(), part.count) for part in (trainer.since_sample, trainer.since_look)]
    torch.save({"format": FORMAT, **state_of(trainer, collected(own))}, counter)  # type: ignore[arg-type]
    return counter.size
