"""Reading photographs in worker processes, ahead of the step that needs them."""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from resrepro.errors import DataError, UsageError
from resrepro.processes import local_world_size
from resrepro.records.storage import printable

MOST_WORKERS = 16
MOST_AHEAD = 4  # batches that a worker holds ready by default
GRACE = 30  # seconds that a worker outlives SIGTERM
NAMED = 5  # bad images that a message names


@dataclass(frozen=True)
class Loading:
    """How image files are read.

    Attributes:
        workers: processes that decode ahead; by default as many as the machine has to spare, 0 for none.
        prefetch: batches that each worker holds ready; by default as many as shared memory has room for,
            up to MOST_AHEAD.
        max_bad_images: files that may be no readable image; one more stops the run.
        pin_memory: read into pinned memory, from which a GPU copies without waiting; by default where the
            net computes on a GPU.
    """

    workers: int | None = None
    prefetch: int | None = None
    max_bad_images: int = 0
    pin_memory: bool | None = None

    def __post_init__(self) -> None:
        """Check the numbers (UsageError)."""
        for option, value, least in (
            ("--workers", self.workers or 0, 0),
            ("--prefetch", 1 if self.prefetch is None else self.prefetch, 1),
            ("--max-bad-images", self.max_bad_images, 0),
        ):
            if value < least:
                raise UsageError(f"{option} must be at least {least}, not {value}.")

    def workers_beside(self, device: torch.device | None) -> int:
        """The number of workers: the cores of this process's share, few where the net needs them too.

        `device` is where the net computes, None while it does not.
        """
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = max(1, cores // local_world_size())
        needed = device is not None and device.type == "cpu"
        return min(MOST_WORKERS, max(1, share // 4) if needed else share)

    def prefetch_beside(self, workers: int, item_bytes: int) -> int:
        """The batches that each worker holds ready: together at most half of the free shared memory."""
        if self.prefetch is not None:
            return self.prefetch
        room = free_shared_memory() // 2 // local_world_size()
        return max(1, min(MOST_AHEAD, room // (workers * item_bytes)))

    def pins_for(self, device: torch.device | None) -> bool:
        """Whether batches are read into pinned memory; only a GPU has any use for it."""
        on_gpu = device is not None and device.type == "cuda"
        return on_gpu if self.pin_memory is None else self.pin_memory and on_gpu


@dataclass
class BadImages:
    """The files that are no readable images, each counted once, and the bound on their number."""

    most: int
    found: dict[str, str] = field(default_factory=dict)

    def add(self, reasons: dict[str, str]) -> None:
        """Take note of bad files, path to reason.

        Raises:
            DataError: if there are now more than may be; the first are named.
        """
        self.found |= reasons
        if len(self.found) > self.most:
            raise DataError(
                f"{self.told()}. Remove or replace them, or allow them with "
                f"--max-bad-images {len(self.found)} (they are then left out)."
            )

    def told(self) -> str:
        """`2 files are no readable images: a.jpg (truncated), b.txt (not an image)`."""
        count = len(self.found)
        listed = [f"{printable(path)} ({reason})" for path, reason in list(self.found.items())[:NAMED]]
        more = f" and {count - NAMED} more" if count > NAMED else ""
        files = "1 file is no readable image" if count == 1 else f"{count} files are no readable images"
        return f"{files}: {', '.join(listed)}{more}"

    def notices(self) -> tuple[str, ...]:
        """What must be said of them beside every number, if there are any."""
        return (f"{self.told()}, left out",) if self.found else ()


def free_shared_memory() -> int:
    """Bytes of shared memory that are free; where the system does not say, a guess of 1 GiB."""
    try:
        found = os.statvfs("/dev/shm")
    except (OSError, AttributeError):
        return 2**30
    return found.f_bavail * found.f_frsize


def read_ahead(
    reader: Dataset[Any],
    items: Sequence[int],
    loading: Loading,
    device: torch.device | None = None,
    item_bytes: int = 2**20,
) -> Iterator[Any]:
    """What `reader` gives for each item, in order, read by workers while `device` computes.

    `item_bytes` is about the memory that an item takes.

    Raises:
        DataError: if a worker dies.
    """
    workers = min(loading.workers_beside(device), len(items))
    with _told_as_dead_worker():
        with _quiet_start():
            found = iter(
                DataLoader(
                    reader,
                    batch_size=None,
                    sampler=items,
                    num_workers=workers,
                    prefetch_factor=loading.prefetch_beside(workers, item_bytes) if workers else None,
                    pin_memory=loading.pins_for(device),
                    worker_init_fn=_start_worker,
                )
            )
        yield from found


def _start_worker(worker: int) -> None:
    """Leave it to the run to end this worker, and to tell of what it meets.

    Signals to the whole group reach the workers too; the run stops them when it has finished its step.
    Where the run was killed while it took over a batch, the thread that hands batches over meets a closed
    connection: the worker then ends without a word.
    """
    told = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not issubclass(kind, EOFError | ConnectionError):
            told(kind, error, trace)

    sys.excepthook = tell
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Start workers without PyTorch's advice on their number and Python's on forking beside threads.

    PyTorch would also raise the death of a worker wherever the run happens to be, in a handler of SIGCHLD;
    without that it tells of it where the next item is awaited. Where workers are forked by a server
    (Python 3.14), that imports PyTorch once for all of them.
    """
    multiprocessing.set_forkserver_preload([__name__])
    before = signal.getsignal(signal.SIGCHLD)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")
        warnings.filterwarnings("ignore", "This process .* is multi-threaded")
        yield
    if before is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, before)


@contextmanager
def _told_as_dead_worker() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker (pid"):
            raise
        raise DataError(
            "a process that reads images has died, perhaps for want of memory: "
            "try a smaller --prefetch, fewer --workers (0 for none), or more shared memory for a container."
        ) from None
