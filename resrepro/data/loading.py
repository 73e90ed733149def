"""Reading photographs in worker processes, ahead of the step that needs them."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from resrepro.errors import DataError, UsageError
from resrepro.processes import local_world_size

MOST_WORKERS = 16
NAMED = 5  # bad images that a message names


@dataclass(frozen=True)
class Loading:
    """How image files are read.

    Attributes:
        workers: processes that decode ahead; by default as many as the machine has to spare, 0 for none.
        prefetch: batches that each worker holds ready.
        max_bad_images: files that may be no readable image; one more stops the run.
    """

    workers: int | None = None
    prefetch: int = 2
    max_bad_images: int = 0

    def __post_init__(self) -> None:
        """Check the numbers (UsageError)."""
        for option, value, least in (
            ("--workers", self.workers or 0, 0),
            ("--prefetch", self.prefetch, 1),
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
        listed = [f"{path} ({reason})" for path, reason in list(self.found.items())[:NAMED]]
        more = f" and {count - NAMED} more" if count > NAMED else ""
        files = "1 file is no readable image" if count == 1 else f"{count} files are no readable images"
        return f"{files}: {', '.join(listed)}{more}"

    def notices(self) -> tuple[str, ...]:
        """What must be said of them beside every number, if there are any."""
        return (f"{self.told()}, left out",) if self.found else ()


def read_ahead(
    reader: Dataset[Any], items: Sequence[int], loading: Loading, device: torch.device | None = None
) -> Iterator[Any]:
    """What `reader` gives for each item, in order, read by workers while `device` computes.

    Raises:
        DataError: if a worker dies.
    """
    workers = min(loading.workers_beside(device), len(items))
    loader = DataLoader(
        reader,
        batch_size=None,
        sampler=items,
        num_workers=workers,
        prefetch_factor=loading.prefetch if workers else None,
        pin_memory=device is not None and device.type == "cuda",
        worker_init_fn=_leave_signals_to_the_run,
    )
    with _told_as_dead_worker():
        yield from loader


def _leave_signals_to_the_run(worker: int) -> None:
    """Ctrl-C reaches the workers too; the run stops them when it has finished its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def _told_as_dead_worker() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise DataError(
            "a process that reads images has died, perhaps for want of memory: "
            "try fewer --workers, or a smaller --prefetch."
        ) from None
