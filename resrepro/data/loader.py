"""Reading photographs in worker processes, ahead of the step that needs them."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from resrepro.data import ALONE, ProcessGroup
from resrepro.errors import DataError, UsageError

T = TypeVar("T")
MOST_WORKERS = 16
GRACE = 30  # seconds that a worker outlives SIGTERM
NAMED = 5  # bad images that a message names


@dataclass(frozen=True)
class Loading:
    """How image files are read.

    Attributes:
        workers: processes that decode ahead; by default as many as the machine has to spare, 0 for none.
        max_bad_images: files that may be no readable image; one more stops the run.
    """

    workers: int | None = None
    max_bad_images: int = 0

    def __post_init__(self) -> None:
        """Check the numbers (UsageError)."""
        for option, value in (("--workers", self.workers or 0), ("--max-bad-images", self.max_bad_images)):
            if value < 0:
                raise UsageError(f"{option} must be at least 0, not {value}.")

    def workers_beside(self, device: torch.device | None, local_size: int = 1) -> int:
        """The number of workers: the cores of this process's share, few where the net needs them too.

        `device` is where the net computes, None while it does not; `local_size` processes share the machine.
        """
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        share = max(1, cores // local_size)
        needed = device is not None and device.type == "cpu"
        return min(MOST_WORKERS, max(1, share // 4) if needed else share)


@dataclass
class BadImages:
    """The files that are no readable images, each counted once, and the bound on their number."""

    most: int
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, more: dict[str, str]) -> None:
        """Take note of bad files, path to reason.

        Raises:
            DataError: if there are now more than may be; the first are named.
        """
        self.reasons |= more
        if len(self.reasons) > self.most:
            raise DataError(
                f"{self.describe()}. Remove or replace them, or allow them with "
                f"--max-bad-images {len(self.reasons)} (they are then left out)."
            )

    def describe(self) -> str:
        """`2 files are no readable images: a.jpg (truncated), b.txt (not an image)`."""
        count = len(self.reasons)
        listed = [f"{path} ({reason})" for path, reason in list(self.reasons.items())[:NAMED]]
        more = f" and {count - NAMED} more" if count > NAMED else ""
        files = "1 file is no readable image" if count == 1 else f"{count} files are no readable images"
        return f"{files}: {', '.join(listed)}{more}"

    def notices(self) -> tuple[str, ...]:
        """What must be said of them beside every number, if there are any."""
        return (f"{self.describe()}, left out",) if self.reasons else ()


def read_ahead(
    reader: Dataset[T],
    items: Sequence[int],
    loading: Loading,
    device: torch.device | None = None,
    group: ProcessGroup = ALONE,
) -> Iterator[T]:
    """What `reader` gives for each item, in order, read by workers while `device` computes.

    For a GPU it comes in pinned memory, from which it is copied without waiting.

    Raises:
        DataError: if a worker dies.
    """
    workers = min(loading.workers_beside(device, group.local_size), len(items))
    with _told_as_dead_worker():
        with _quiet_start():
            batches = iter(
                DataLoader(
                    reader,
                    batch_size=None,
                    sampler=items,
                    num_workers=workers,
                    pin_memory=device is not None and device.type == "cuda",
                    worker_init_fn=_start_worker,
                )
            )
        yield from batches


def _start_worker(worker: int) -> None:
    """Signals to the whole group reach the workers too: the run stops them when it has finished its step."""
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
            "try fewer --workers (0 for none), or more shared memory for a container."
        ) from None
