"""What a run needs of its data: batches to train on, and views of the held-out sets to measure on.

There are two kinds: images held in memory on the device (CIFAR-10, digits), and photographs read from
files as they are needed (ImageNet, any folder of classes).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from resrepro.data import Dataset, Images, data_folder, load_dataset
from resrepro.data.batches import Normalisation, Preparation, TrainingBatches, mean_over
from resrepro.data.crops import CropReader, Lighting, PhotoBatches
from resrepro.data.folder import PhotoSet, notices_of, scan_both
from resrepro.data.loading import Loading
from resrepro.data.statistics import statistics_of
from resrepro.data.views import PhotoViews, Views
from resrepro.errors import UsageError
from resrepro.nets import Net
from resrepro.processes import rank, world_size
from resrepro.spec.catalogue import Protocol, protocol_for
from resrepro.spec.experiment import Spec
from resrepro.spec.recipe import CifarRecipe, ImageNetRecipe, Recipe
from resrepro.training.measure import (
    EVAL_BATCH,
    PRECISE_BATCHES,
    Errors,
    Member,
    measure_errors,
    never,
    with_precise_statistics,
)
from resrepro.training.parallel import on_first


@dataclass(frozen=True)
class About:
    """What is known of the data before the first batch; `held_out` has the headline set first."""

    name: str
    classes: tuple[str, ...] | None
    num_classes: int
    sizes: dict[str, int]
    checksums: dict[str, str]
    notices: tuple[str, ...]
    held_out: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """What the run record keeps; no paths."""
        return {
            "name": self.name,
            "images": self.sizes,
            **({} if self.classes is None else {"classes": self.num_classes}),
            "sha256": self.checksums,
            "notices": list(self.notices),
        }


class Feed(ABC):
    """The data of one run, on a device."""

    about: About
    normalisation: Normalisation
    protocol: Protocol

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def batches(self, start: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
        """Images (n, 3, H, W) float32 and labels (n,) of updates start..stop-1.

        n is the batch size, or this process's share of it.
        """

    @abstractmethod
    def views(self, name: str) -> Iterator[Views]:
        """This process's share of a held-out set, as the protocol shows it."""

    def member(self, net: Net) -> Member:
        """The net as an evaluation takes it."""
        return Member(net, self.normalisation, self.recipe.precision, window_of(self.recipe))

    def measure(self, net: Net, device: torch.device, stop: Callable[[], bool] = never) -> dict[str, Errors]:
        """Errors on every held-out set, with the BN statistics that the recipe names.

        Once `stop()` holds the rest is left out, and what comes out is to be thrown away.
        """
        if getattr(self.recipe, "bn_stats", "running") == "precise":
            net = with_precise_statistics(net, self.first_batches(), self.recipe, stop)
        dense, member = self.protocol.crops == "dense", self.member(net)
        return {
            name: measure_errors([member], self.views(name), dense, device, stop)
            for name in self.about.held_out
        }

    def first_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that plain BN averages are taken over; the same at any point of a run."""
        return self.batches(0, self.precise_batches)

    @property
    def precise_batches(self) -> int:
        """How many those are."""
        epoch = -(-self.about.sizes["train"] // self.recipe.batch_size)
        return min(PRECISE_BATCHES, epoch)


def window_of(recipe: Recipe) -> int:
    """The side of the last feature map at the training size; ImageNet nets reduce images 32 times."""
    return -(-recipe.image_size // 32) if isinstance(recipe, ImageNetRecipe) else 8


class MemoryFeed(Feed):
    """Images that stay on the device as uint8."""

    def __init__(self, recipe: CifarRecipe, dataset: Dataset, device: torch.device, seed: int) -> None:
        super().__init__(recipe)
        self.about = about_memory(dataset)
        self.protocol = protocol_for(recipe.test_view, "cifar")
        preparation = Preparation.from_training_images(recipe, dataset.train, device)
        self.normalisation = preparation
        self._batches = TrainingBatches(recipe, dataset.train, preparation, seed)
        self._held_out = {name: on_device(part, device) for name, part in dataset.held_out.items()}

    def batches(self, start: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
        """This process's share of updates start..stop-1, made on the device."""
        return (self._batches[iteration] for iteration in range(start, stop))

    def views(self, name: str) -> Iterator[Views]:
        """The single view of a held-out set."""
        return memory_views(*self._held_out[name])


def about_memory(dataset: Dataset) -> About:
    """What is known of a data set in memory."""
    sizes = {"train": len(dataset.train)} | {name: len(part) for name, part in dataset.held_out.items()}
    return About(
        dataset.name, None, dataset.num_classes, sizes, dict(dataset.checksums), dataset.notices,
        tuple(dataset.held_out),
    )  # fmt: skip


def on_device(images: Images, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, H, W) uint8 and labels (N,) int64 as tensors on the device."""
    pixels = torch.from_numpy(np.ascontiguousarray(images.pixels)).to(device)
    return pixels, torch.from_numpy(np.ascontiguousarray(images.labels)).to(device)


def memory_views(pixels: Tensor, labels: Tensor) -> Iterator[Views]:
    """The single view of this process's share of some images, in large parts."""
    pixels, labels = pixels[rank() :: world_size(), None], labels[rank() :: world_size()]
    parts = zip(torch.split(pixels, EVAL_BATCH), torch.split(labels, EVAL_BATCH), strict=True)
    return (Views([part], truth) for part, truth in parts)


class PhotoFeed(Feed):
    """Photographs that workers read and cut while the net computes."""

    def __init__(
        self,
        spec: Spec,
        photos: PhotoSet,
        device: torch.device,
        seed: int,
        loading: Loading,
        say: Callable[[str], None],
    ) -> None:
        recipe = spec.recipe
        assert isinstance(recipe, ImageNetRecipe)
        super().__init__(recipe)
        self.device, self.loading = device, loading
        self.protocol = protocol_for(recipe.test_view, "imagenet")
        found = statistics_of(photos, recipe.image_size, loading, say)
        bad = on_first(lambda: found.bad_images(loading.max_bad_images))
        self.photos = PhotoSet(
            photos.train.without(tuple(found.bad["train"])), photos.val.without(tuple(found.bad["val"]))
        )
        self.about = About(
            name=spec.dataset,
            classes=photos.train.classes,
            num_classes=len(photos.train.classes),
            sizes={"train": len(self.photos.train), "val": len(self.photos.val)},
            checksums=found.checksums,
            notices=notices_of(spec.dataset, self.photos) + bad.notices(),
            held_out=("val",),
        )
        self.normalisation = Normalisation(recipe, mean_over(recipe.mean, found.mean)).to(device)
        reader = CropReader(self.photos.train, recipe, Lighting(recipe, found), seed)
        self._batches = PhotoBatches(reader, self.normalisation, loading, device)

    def batches(self, start: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
        """This process's share of updates start..stop-1, read ahead."""
        return self._batches.between(start, stop)

    def views(self, name: str) -> Iterator[Views]:
        """The recipe's view of `val`, read anew each time."""
        assert isinstance(self.recipe, ImageNetRecipe)
        views = PhotoViews(self.photos.val, self.protocol, self.recipe.image_size, self.loading)
        return views.read(self.device)


def open_feed(
    spec: Spec,
    data: str | Path | None,
    device: torch.device,
    seed: int,
    loading: Loading,
    say: Callable[[str], None] = lambda text: None,
    dataset: Dataset | None = None,
) -> Feed:
    """The data of a run: those of `dataset`, if they are in memory already.

    Raises:
        DataError: if they are missing or damaged.
        UsageError: for a split that the dataset does not have, or a `dataset` that is not the run's.
    """
    if dataset is not None:
        _check_is_of(dataset, spec)
        assert isinstance(spec.recipe, CifarRecipe)
        return MemoryFeed(spec.recipe, dataset, device, seed)
    if isinstance(spec.recipe, CifarRecipe):
        split = spec.recipe.split
        if world_size() > 1:  # the first process downloads what is missing, and tells of errors once
            on_first(lambda: load_dataset(spec.dataset, split, data).name)
        return MemoryFeed(spec.recipe, load_dataset(spec.dataset, split, data), device, seed)
    return PhotoFeed(spec, on_first(lambda: scan_both(data_folder(data))), device, seed, loading, say)


def _check_is_of(dataset: Dataset, spec: Spec) -> None:
    """Refuse data in memory that are another set than the run's, or split otherwise."""
    split = "45k5k" if "val" in dataset.held_out else "all"
    if (dataset.name, split) != (spec.dataset, getattr(spec.recipe, "split", None)):
        raise UsageError(f"{spec.name} is not trained on {dataset.name}, split {split}: leave `dataset` out.")
