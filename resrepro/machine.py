"""What this machine, or the container on it, lends to our processes (cores, memory, GPUs), and what it is."""

import csv
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

SYSTEM = Path("/")  # where proc and sys are
CPU_FILES = (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us"))  # of control groups, versions 2 and 1
MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
QUERY = ("nvidia-smi", "--query-gpu=index,uuid,memory.total,memory.free", "--format=csv,noheader,nounits")
GPU_NAME = re.compile(r"\d+|(GPU|MIG)-\S+")  # in CUDA_VISIBLE_DEVICES; what follows another word is hidden


def cores() -> int:
    """The CPU cores that this process may use: bound to it, and of its container's share."""
    shares = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for group in _control_groups("cpu"):
        for files in CPU_FILES:
            with suppress(OSError, ValueError):  # no such file; `max`
                quota, period = _numbers(group, *files)
                shares += [math.ceil(quota / period)] if quota > 0 else []
    return min(shares)


def free_memory() -> int:
    """Bytes that new processes may take; all of the memory where the system does not tell what is free."""
    free = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    with suppress(OSError, StopIteration, ValueError):
        lines = (SYSTEM / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free += [next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024]
    for group in _control_groups("memory"):
        for limit, used, cache in MEMORY_FILES:
            with suppress(OSError, ValueError, KeyError):
                most, now = _numbers(group, limit, used)
                kinds = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                free += [most - now + int(kinds[cache])]  # the files' pages are given back when needed
    return max(0, min(free))


def _control_groups(controller: str) -> Iterator[Path]:
    """The folders of this process's control group and of those around it, as far as they are seen."""
    with suppress(OSError):
        for line in (SYSTEM / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                top = SYSTEM / "sys/fs/cgroup" / (controllers and controller)
                own = top / path.strip("/")
                yield from (group for group in (own, *own.parents) if group.is_relative_to(top))


def _numbers(folder: Path, *names: str) -> list[int]:
    return [int(word) for name in names for word in (folder / name).read_text().split()]


def gpus() -> dict[str, int | None]:
    """The NVIDIA GPUs, or parts of one, that this process may use, as CUDA_VISIBLE_DEVICES calls them: those
    that it names, else all by their UUIDs, which do not depend on an order; none without nvidia-smi. With
    each the bytes that are free, None where that is not told.
    """
    told = ""
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(QUERY, capture_output=True, text=True, timeout=30, check=False).stdout
    rows = [row for row in csv.reader(told.splitlines(), skipinitialspace=True) if len(row) == 4]
    free = {uuid: int(mib) * 2**20 if mib.isdecimal() else None for _, uuid, _, mib in rows}
    if (named := named_gpus()) is None:
        return free
    uuids = {index: uuid for index, uuid, _, _ in rows}
    found: dict[str, int | None] = {}
    for name in named:
        known = [uuid for uuid in free if uuid.startswith(uuids.get(name, name))]  # it may be shortened
        if rows and not known and not name.startswith("MIG-"):
            break
        found[name] = free[known[0]] if known else None
    return found


def named_gpus() -> list[str] | None:
    """What CUDA_VISIBLE_DEVICES names; None where it is not set."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if names is None else list(takewhile(GPU_NAME.fullmatch, map(str.strip, names.split(","))))


def gpus_are_shared() -> bool:
    """Whether NVIDIA's MPS is running, which lets several processes compute on a GPU at the same time."""
    folder = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY") or "/tmp/nvidia-mps")
    with suppress(OSError, ValueError):
        pid = int((folder / "nvidia-cuda-mps-control.pid").read_text())
        return (folder / "control").exists() and Path(f"/proc/{pid}").exists()
    return False


def describe_environment() -> dict[str, Any]:
    """Versions, commit and machine, without paths, host or user names."""
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("resrepro", "torch", "torchvision", "numpy", "scikit-learn"):
        versions[package] = None
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    here = Path(__file__).parent  # the package
    commit, modified = None, None  # outside a git checkout

    def git(*words: str) -> str:
        call = subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True)
        return call.stdout.strip()

    with suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", "__init__.py")
        commit, modified = git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--", str(here)))
    return {
        "versions": versions, "commit": commit, "modified": modified,  # since that commit
        "system": f"{platform.system()} {platform.machine()}", "cpu": cpu_model(),
        "cores": os.cpu_count(), "started": f"{datetime.now(UTC):%Y-%m-%d}",
    }  # fmt: skip


def cpu_model() -> str:
    """The model name of the processor, as far as the system tells it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cache_folder() -> Path:
    """Where what can be made anew is kept between runs: `resrepro` in XDG_CACHE_HOME, else in ~/.cache."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "resrepro"
    except RuntimeError:  # a user without a home: nothing can be kept
        return Path(os.devnull)
