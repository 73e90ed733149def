"""Counting what is done in a stretch of time, with finished work only; and the memory it took."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch


def finish(device: torch.device) -> None:
    """Wait until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def timed(work: Callable[[], object], seconds: float, device: torch.device) -> tuple[int, float]:
    """Do something again and again for so long, at least once; how often, and the seconds it took."""
    finish(device)
    count, start = 0, time.perf_counter()
    while not count or time.perf_counter() - start < seconds:
        work()
        count += 1
    finish(device)
    return count, time.perf_counter() - start


def peak_memory_mib() -> float:
    """The most memory that this process has held, in MiB.

    Linux starts `ru_maxrss` of a new program from what the process that started it held, hence its own
    count where there is one.
    """
    try:
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 1024


def memory_used_mib(device: torch.device) -> float:
    """The most that was held: of the GPU's memory where the work is done there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return peak_memory_mib()
