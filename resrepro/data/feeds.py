"""What a run needs of its data: batches to train on, and views of the held-out sets to measure on.

There are two kinds: images held in memory on the device (CIFAR-10, digits), and photographs read from
files as they are needed (ImageNet, any folder of classes).
"""

import contextlib
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from resrepro.data import ALONE, Dataset, DatasetInfo, ProcessGroup, data_folder, load_dataset
from resrepro.data.augment import Normalisation, TrainingBatches, colour_axes, normalisation_by, on_device
from resrepro.data.loader import CropReader, Loading, PhotoViews, Views, check_bad, left_out, photo_batches
from resrepro.data.photos import PhotoSet, imagenet_classes, scan_both
from resrepro.data.statistics import decoded_once, statistics_of
from resrepro.spec import IMAGENET_IMAGES, Spec
from resrepro.spec.catalogue import Protocol, protocol_for
from resrepro.spec.recipe import CifarRecipe, ImageNetRecipe, Recipe

ROWS = 200  # updates whose choices lie on the device: one half is made while the other is drawn
EVAL_BATCH, EVAL_BATCH_GPU = 500, 2500  # images at most; large enough to keep cores, or a GPU, busy
TOLD_WAITING, TELL_AFTER = 0.05, 100  # of the time; updates
PRECISE_BATCHES = 50  # training batches, or one epoch if that is less, that plain BN averages are taken over


class Feed(ABC):
    """The data of one run, on a device."""

    recipe: Recipe
    about: DatasetInfo
    normalisation: Normalisation
    protocol: Protocol
    waited: float | None = None  # seconds that whoever took the batches waited for images to be read

    @abstractmethod
    def batches(self, start: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
        """Images (n, 3, H, W) float32 and labels (n,) of updates start..stop-1, this process's share."""

    def slots(self, batches: Iterator[tuple[Tensor, Tensor]]) -> "Slots":
        """Where a recorded update finds its batch; `batches` are those of the updates to come."""
        return Slots(batches)

    @abstractmethod
    def views(self, name: str) -> Iterator[Views]:
        """This process's share of a held-out set, as the protocol shows it."""

    def first_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches that plain BN averages are taken over; the same at any point of a run."""
        return self.batches(0, self.precise_batches)

    @property
    def precise_batches(self) -> int:
        """How many those are."""
        return min(PRECISE_BATCHES, -(-self.about.sizes["train"] // self.recipe.batch_size))


class Slots:
    """Tensors that do not move, in which a recorded update finds what it needs: here one batch at a time."""

    changed: Sequence[Tensor] = ()  # those that `batch` writes to

    def __init__(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        self.coming, self.place = batches, list[Tensor]()

    def fill(self, start: int, stop: int) -> Iterator[None]:
        """At each step what `batch` needs for the next of updates start..stop-1 is in place."""
        for batch in itertools.islice(self.coming, stop - start):
            self.place = self.place or [torch.empty_like(part) for part in batch]
            for slot, part in zip(self.place, batch, strict=True):
                slot.copy_(part)
            yield

    def batch(self) -> tuple[Tensor, Tensor]:
        """Images and labels of the next update; work of the device alone."""
        images, labels = self.place
        return images, labels


class MemorySlots(Slots):
    """Tables of the choices of many updates, a row each, and the number of the next row."""

    def __init__(self, batches: TrainingBatches) -> None:
        self.batches, self.tables = batches, list[Tensor]()
        self.drawn: dict[int, int] = {}  # by row, the update whose choices lie there
        self.row = torch.zeros(1, dtype=torch.int64, device=batches.labels.device)
        self.changed = [self.row]

    def fill(self, start: int, stop: int) -> Iterator[None]:
        """Draw the choices of the updates to come, and of as many more while the device makes those."""
        self.row.fill_(start % ROWS)
        for first in range(start, stop, ROWS // 2):
            end = min(first + ROWS // 2, stop)
            self._draw(range(first, end))
            for _ in range(first, end):
                yield
            self._draw(range(end, 2 * end - first))

    def _draw(self, updates: range) -> None:
        for update in (update for update in updates if self.drawn.get(update % ROWS) != update):
            parts = self.batches.choices(update)
            self.tables = self.tables or [part.new_zeros(ROWS, *part.shape) for part in parts]
            for table, part in zip(self.tables, parts, strict=True):
                table[update % ROWS].copy_(part)
            self.drawn[update % ROWS] = update

    def batch(self) -> tuple[Tensor, Tensor]:
        """Gather and augment the images of a row, and go to the next."""
        choices = [table.index_select(0, self.row)[0] for table in self.tables]
        self.advance()
        return self.batches.made(*choices)

    def advance(self) -> None:
        """Go to the next row, after the last one to the first."""
        self.row.add_(1).remainder_(ROWS)


class MemoryFeed(Feed):
    """Images that stay on the device as uint8."""

    def __init__(
        self, recipe: CifarRecipe, dataset: Dataset, device: torch.device, seed: int,
        group: ProcessGroup = ALONE,
    ) -> None:  # fmt: skip
        self.recipe, self.about, self.group = recipe, dataset.info, group
        self.protocol = protocol_for(recipe.test_view, "cifar")
        self.training_batches = TrainingBatches(recipe, dataset.train, device, seed, group)
        self.normalisation = self.training_batches.normalisation
        self._held_out = {name: on_device(part, device) for name, part in dataset.held_out.items()}

    def batches(self, start: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
        """This process's share of updates start..stop-1, made on the device."""
        return (self.training_batches[iteration] for iteration in range(start, stop))

    def slots(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Slots:
        """Tables of the choices; the batches are made from them."""
        return MemorySlots(self.training_batches)

    def views(self, name: str) -> Iterator[Views]:
        """The single view of a held-out set."""
        return memory_views(*self._held_out[name], self.group)


def memory_views(pixels: Tensor, labels: Tensor, group: ProcessGroup = ALONE) -> Iterator[Views]:
    """The single view of this process's share of some images, in large parts."""
    pixels, labels = pixels[group.rank :: group.size, None], labels[group.rank :: group.size]
    size = EVAL_BATCH_GPU if pixels.is_cuda else EVAL_BATCH
    parts = zip(torch.split(pixels, size), torch.split(labels, size), strict=True)
    return (Views([part], truth) for part, truth in parts)


def notices_of(dataset: str, photos: PhotoSet) -> tuple[str, ...]:
    """What must be said of the images beside every number."""
    train, val = photos
    sizes = {"train": len(train), "val": len(val)}
    if dataset == "imagenet" and train.classes == imagenet_classes() and sizes == IMAGENET_IMAGES:
        return ()
    told = f"{len(train.classes):,} classes, {len(train):,} training and {len(val):,} validation images"
    if dataset == "imagenet":
        told = f"the images are not those of ImageNet: {told} instead of 1,000, 1,281,167 and 50,000"
    else:
        told = f"the folder {train.root.resolve().name} has {told}"
    unseen = len(train.classes) - len(set(val.labels.tolist()))
    return (told, f"val has no images of {unseen} of the classes") if unseen else (told,)


class PhotoFeed(Feed):
    """Photographs that workers read and cut while the net computes."""

    waited: float = 0.0

    def __init__(
        self, spec: Spec, photos: PhotoSet, device: torch.device, seed: int, loading: Loading,
        say: Callable[[str], None], group: ProcessGroup = ALONE,
    ) -> None:  # fmt: skip
        recipe = spec.recipe
        assert isinstance(recipe, ImageNetRecipe)
        self.recipe, self.device, self.loading, self.say, self.group = recipe, device, loading, say, group
        self.protocol = protocol_for(recipe.test_view, "imagenet")
        statistics = statistics_of(photos, recipe.image_size, loading, say, group)
        bad = statistics.bad
        group.on_first(lambda: check_bad(bad, loading.max_bad_images))
        train, val = photos = PhotoSet(*(part.without(bad) for part in photos))
        notices = notices_of(spec.dataset, photos) + left_out(bad)
        sizes = {"train": len(train), "val": len(val)}
        self.about = DatasetInfo(
            spec.dataset, train.classes, len(train.classes), sizes, statistics.checksums, notices, ("val",)
        )
        self.normalisation = normalisation_by(recipe, statistics.mean, device)
        axes = colour_axes(recipe, statistics.components, statistics.variances)
        train, val = decoded_once(photos, statistics.size, loading, say, group)
        self._reader = CropReader(train, recipe, axes, seed, group)
        self._views = PhotoViews(val, self.protocol, recipe.image_size, loading, group)

    def batches(self, start: int, stop: int) -> Generator[tuple[Tensor, Tensor]]:
        """This process's share of updates start..stop-1, read ahead; much waiting is told once."""
        updates = range(start, stop)
        read = photo_batches(self._reader, updates, self.normalisation, self.loading, self.group)
        with contextlib.closing(read) as batches:
            for made in range(len(updates)):
                asked = time.perf_counter()
                batch = next(batches)
                now = time.perf_counter()
                self.waited += now - asked
                if made == 0:  # until here workers had to start
                    before, begun = self.waited, now
                elif made % TELL_AFTER == 0:
                    share = (self.waited - before) / (now - begun)
                    if share > TOLD_WAITING:
                        self.say(f"So far {share:.0%} of the time goes by waiting for images: see --workers.")
                        self.say = lambda text: None
                yield batch

    def views(self, name: str) -> Iterator[Views]:
        """The recipe's view of `val`, read anew each time."""
        return self._views.read(self.device)


def open_feed(
    spec: Spec, data: str | Path | None, device: torch.device, seed: int, loading: Loading,
    say: Callable[[str], None] = lambda text: None, group: ProcessGroup = ALONE,
) -> Feed:  # fmt: skip
    """The data of a run. DataError if missing or damaged, UsageError for a split that they do not have."""
    recipe = spec.recipe
    if not isinstance(recipe, CifarRecipe):
        photos = group.on_first(lambda: scan_both(data_folder(data)))
        return PhotoFeed(spec, photos, device, seed, loading, say, group)
    if group.size > 1:  # the first process downloads what is missing, and tells of errors once
        group.on_first(lambda: load_dataset(spec.dataset, recipe.split, data).name)
    return MemoryFeed(recipe, load_dataset(spec.dataset, recipe.split, data), device, seed, group)
