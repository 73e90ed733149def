"""Photographs read by worker processes ahead of the net that needs them: training crops and test views.

A training batch depends only on the seed and its number: not on the number of workers or processes, nor on
where an interrupted run was resumed.
"""

import hashlib
import signal
import warnings
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from resrepro.data import ALONE, ProcessGroup, augment
from resrepro.data.photos import BadImage, Photos
from resrepro.errors import DataError, UsageError
from resrepro.machine import cores
from resrepro.spec.catalogue import Protocol
from resrepro.spec.recipe import ImageNetRecipe

T = TypeVar("T")
MOST_WORKERS = 16
GRACE = 30  # seconds that a worker outlives SIGTERM
NAMED = 5  # bad images that a message names
# Images that a worker reads at a time: some 15 MB at crops of 224 (of one, ten have 1.5, five scales 3.5).
CHUNKS = {"center": 32, "ten": 10, "dense": 4}


@dataclass(frozen=True)
class Loading:
    """How image files are read."""

    workers: int | None = None  # processes that decode ahead, 0 for none; by default all that can be spared
    max_bad_images: int = 0  # files that may be no readable image; one more stops the run

    def __post_init__(self) -> None:
        for option, value in (("--workers", self.workers or 0), ("--max-bad-images", self.max_bad_images)):
            if value < 0:
                raise UsageError(f"{option} must be at least 0, not {value}.")

    def workers_beside(self, device: torch.device | None, local_size: int = 1) -> int:
        """The number of workers: the cores of this process's share, few where the net needs them too.
        `device` is where the net computes, None while it does not; `local_size` processes share the machine.
        """
        if self.workers is not None:
            return self.workers
        share = max(1, cores() // local_size)
        needed = device is not None and device.type == "cpu"
        return min(MOST_WORKERS, max(1, share // 4) if needed else share)


def told_bad(bad: Mapping[str, str]) -> str:
    """`2 files are no readable images: a.jpg (truncated), b.txt (not an image)`, of path to reason."""
    listed = [f"{path} ({reason})" for path, reason in list(bad.items())[:NAMED]]
    more = f" and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    files = "1 file is no readable image" if len(bad) == 1 else f"{len(bad)} files are no readable images"
    return f"{files}: {', '.join(listed)}{more}"


def left_out(bad: Mapping[str, str]) -> tuple[str, ...]:
    """What must be said of bad files beside every number, if there are any."""
    return (f"{told_bad(bad)}, left out",) if bad else ()


def check_bad(bad: Mapping[str, str], most: int) -> None:
    """DataError, which names the first, if more files than that are no readable images."""
    if len(bad) > most:
        way_out = f"Mend or convert them, or leave them out with --max-bad-images {len(bad)}."
        raise DataError(f"{told_bad(bad)}. {way_out}")


def read_ahead(
    give: Callable[[int], T], items: Sequence[int], loading: Loading, device: torch.device | None = None,
    group: ProcessGroup = ALONE,
) -> Iterator[T]:  # fmt: skip
    """What `give` returns for each item, in order, called by workers while `device` computes. For a GPU
    tensors (not arrays) come in pinned memory, from which they are copied without waiting. DataError if a
    worker dies.
    """
    # Without PyTorch's handler of SIGCHLD the death of a worker is told where the next item is awaited.
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of more workers than cores, and of forks beside threads
            batches: Iterator[T] = iter(DataLoader(
                items, batch_size=None, collate_fn=give, worker_init_fn=_start_worker,  # type: ignore[arg-type]
                num_workers=min(loading.workers_beside(device, group.local_size), len(items)),
                pin_memory=device is not None and device.type == "cuda",
            ))  # fmt: skip
        with suppress(ValueError):  # not in the main thread, where PyTorch sets no handler
            signal.signal(signal.SIGCHLD, before)
        yield from batches
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        raise DataError(
            "a process that reads images has died, perhaps for want of memory: "
            "try fewer --workers (0 for none), or more shared memory for a container."
        ) from None


def _start_worker(worker: int) -> None:
    """Signals to the whole group reach the workers too: the run stops them when it has finished its step."""
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))


class CropReader:
    """Reads and cuts this process's share of batch `i`."""

    def __init__(
        self, photos: Photos, recipe: ImageNetRecipe, axes: augment.Floats, seed: int,
        group: ProcessGroup = ALONE,
    ) -> None:  # fmt: skip
        self.photos, self.recipe, self.axes, self.seed = photos, recipe, axes, seed
        self.sampler = augment.EpochSampler(recipe, len(photos), seed)
        self.share = group.share(recipe.batch_size)

    def __getitem__(self, iteration: int) -> tuple[Tensor, Tensor, Tensor] | str:
        """Crops (n, 3, S, S) uint8, labels (n,), shifts (n, 3, 1, 1); or which file is bad, and why."""
        indices = self.sampler.indices(iteration)[self.share].tolist()
        choices, colours = augment.crop_choices(self.seed, iteration, self.recipe.batch_size)
        crops = []
        for index, choice in zip(indices, choices[self.share], strict=True):
            try:
                image, _ = self.photos.read(index)
            except BadImage as reason:
                return f"{self.photos.name(index)} ({reason})"
            crops.append(augment.training_crop(image, self.recipe, choice))
        shifts = torch.as_tensor(colours[self.share] @ self.axes.T, dtype=torch.float32)[:, :, None, None]
        return torch.from_numpy(np.stack(crops)), torch.from_numpy(self.photos.labels[indices]), shifts


def photo_batches(
    reader: CropReader, iterations: range, normalisation: augment.Normalisation, loading: Loading,
    group: ProcessGroup = ALONE,
) -> Generator[tuple[Tensor, Tensor]]:  # fmt: skip
    """Images (n, 3, S, S) float32 and labels (n,) of some updates, on the normalisation's device, read ahead.
    DataError if a file that could be read before can be no longer, or a worker dies.
    """
    device = normalisation.mean.device

    def whole() -> Iterator[Sequence[Tensor]]:
        for batch in read_ahead(reader.__getitem__, iterations, loading, device, group):
            if isinstance(batch, str):
                raise DataError(f"an image has changed since the run read them all: {batch}.")
            yield batch

    for crops, labels, shifts in sent_ahead(whole(), device):
        yield normalisation.test(crops + shifts), labels


def sent_ahead(batches: Iterable[Sequence[Tensor]], device: torch.device) -> Iterator[Sequence[Tensor]]:
    """The tensors of each batch on the device; on a GPU the next is on its way while one is in use."""
    if device.type != "cuda":
        for batch in batches:
            yield [part.to(device) for part in batch]
        return
    here = torch.cuda.current_stream(device)
    beside = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ready: Sequence[Tensor] | None = None
    for batch in batches:
        here.wait_stream(beside)  # for what is ready, not for what is sent from here on
        with torch.cuda.stream(beside):
            sent = [part.to(device, non_blocking=True) for part in batch]
        for part in sent:
            part.record_stream(here)
        if ready is not None:
            yield ready
        ready = sent
    if ready is not None:
        here.wait_stream(beside)
        yield ready


class Views(NamedTuple):
    """Some images of a split, of equal sizes, as a protocol shows them."""

    scales: list[Tensor]  # for each scale (n, V, 3, S, S) crops, or (n, 1, 3, h, w) whole images, uint8
    labels: Tensor  # (n,) int64


def read_views(
    photos: Photos, protocol: Protocol, image_size: int, number: int
) -> tuple[list[list[npt.NDArray[Any]]], dict[int, str], dict[str, str], int]:
    """The views of chunk `number` of the images: scales, then labels, of each group of one size. As arrays,
    since tensors would cost a worker a file descriptor each. Then the content digest of each readable file by
    its index, the other files and why, and the bytes of all decoded pixels.
    """
    chunk = CHUNKS[protocol.crops]
    digests, bad, size = {}, {}, 0
    groups = defaultdict[tuple[tuple[int, ...], ...], list[tuple[npt.NDArray[Any], ...]]](list)
    for index in range(number * chunk, min((number + 1) * chunk, len(photos))):
        try:
            image, digests[index] = photos.read(index)
        except BadImage as reason:
            bad[photos.name(index)] = str(reason)
            continue
        size += 3 * image.width * image.height
        views = augment.views_of(image, protocol, image_size)
        groups[tuple(view.shape for view in views)].append((*views, photos.labels[index]))
    stacked = [[np.stack(part) for part in zip(*group, strict=True)] for group in groups.values()]
    return stacked, digests, bad, size


class PhotoViews:
    """This process's share of a split under a protocol; remembers what was read."""

    def __init__(
        self, photos: Photos, protocol: Protocol, image_size: int, loading: Loading,
        group: ProcessGroup = ALONE,
    ) -> None:  # fmt: skip
        self.photos, self.loading, self.group = photos, loading, group
        self.chunks = range(group.rank, -(-len(photos) // CHUNKS[protocol.crops]), group.size)
        self.give = partial(read_views, photos, protocol, image_size)
        self.digests: dict[int, str] = {}  # of the content of each readable file, by its index
        self.bad: dict[str, str] = {}  # the files that are no readable images, and why
        self.size = 0  # bytes of the decoded pixels of what was read

    def read(self, device: torch.device | None) -> Iterator[Views]:
        """Groups of images of one size, while `device` computes (DataError: too many bad, a dead worker)."""
        chunks = read_ahead(self.give, self.chunks, self.loading, device, self.group)
        for groups, digests, bad, size in chunks:
            self.digests |= digests
            self.size += size
            self.bad |= bad
            check_bad(self.bad, self.loading.max_bad_images)
            for group in groups:
                *scales, labels = map(torch.from_numpy, group)
                yield Views(scales, labels)

    def gather(self) -> tuple[Photos, str]:
        """The readable images of the split, once all processes have read their shares, and the SHA-256 (hex)
        over the name and content digest of each, in order. DataError if too many files of all are bad.
        """
        bad: dict[str, str] = {}
        for digests, names in self.group.all_gather((self.digests, self.bad)):
            self.digests |= digests
            bad |= names
        self.bad = dict(sorted(bad.items()))
        check_bad(self.bad, self.loading.max_bad_images)
        readable, total = self.photos.without(bad), hashlib.sha256()
        for path, index in zip(readable.paths, sorted(self.digests), strict=True):
            total.update(b"%s %s\n" % (path, self.digests[index].encode()))
        return readable, total.hexdigest()
