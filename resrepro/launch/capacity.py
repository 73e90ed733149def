"""How many runs a machine has room for at once, and how many of its CPU threads each of them gets."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from resrepro.errors import UsageError
from resrepro.processes import world_size
from resrepro.spec.experiment import Spec
from resrepro.spec.recipe import CifarRecipe

ON_GPU = 2  # small nets side by side on one GPU, which neither of them fills
BASE_BYTES = 900 * 2**20  # of a process that trains a net of a few layers (measured, rounded up)
LAYER_BYTES = 100 * 2**10  # more for each weighted layer and image of a pass (measured, rounded up)
LARGE_ON_GPU = 8 * 2**30  # bytes of a net that has its GPU for itself
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA's, AMD's, and Windows' under its Linux


@dataclass(frozen=True)
class Machine:
    """What a machine has to share out: CPU cores, bytes of memory, and the kind of its fastest device."""

    cores: int
    memory: int
    device: str


def this_machine() -> Machine:
    """This machine, as far as it can be known without PyTorch."""
    affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if affinity else os.cpu_count() or 1
    gpu = any(Path(driver).exists() for driver in GPU_DRIVERS)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    kind = "cuda" if gpu and not hidden else "mps" if sys.platform == "darwin" else "cpu"
    return Machine(cores, _free_memory(), kind)


def _free_memory() -> int:
    """Bytes that new processes may take; all of the memory where the system does not tell what is free."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")) * 1024
    except (OSError, StopIteration, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:  # a container may have less
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / f"memory.{name}").read_text(encoding="ascii") for name in ("max", "current"))
        return min(free, max(0, int(limit) - int(used)))
    except (OSError, ValueError):
        return free


def bytes_of(spec: Spec, micro_batch: int | None = None) -> int:
    """The memory that training a CIFAR net takes, estimated high: the process, and the activations."""
    images = min(micro_batch or spec.recipe.batch_size, spec.recipe.batch_size)
    return BASE_BYTES + LAYER_BYTES * images * spec.depth


def choose_jobs(
    asked: int | None, specs: Sequence[Spec], device: str, micro_batch: int | None, machine: Machine
) -> int:
    """How many of these runs, one spec for each, to train at once.

    Raises:
        UsageError: if the number asked for is none, or several processes share a run already.
    """
    if asked is not None and asked < 1:
        raise UsageError(f"--jobs must be at least 1, not {asked}.")
    if world_size() > 1:
        if (asked or 1) > 1:
            raise UsageError(f"--jobs {asked}: under torchrun all processes share one run; leave --jobs out.")
        return 1
    if asked is None:
        return jobs_for(specs, device, micro_batch, machine)
    return max(1, min(asked, len(specs)))


def jobs_for(specs: Sequence[Spec], device: str, micro_batch: int | None, machine: Machine) -> int:
    """How many of these runs to train at once where nobody says.

    On a CPU as many as there are cores and memory: on a thread of its own each is slower than on all of
    them, but together they are faster. On an NVIDIA or AMD GPU two. One at a time on Apple's GPU, and of
    nets on photographs, whose workers keep the cores busy.
    """
    if len(specs) < 2 or not all(isinstance(spec.recipe, CifarRecipe) for spec in specs):
        return 1
    kind = (machine.device if device == "auto" else device).partition(":")[0]
    largest = max(bytes_of(spec, micro_batch) for spec in specs)
    most = min(len(specs), machine.cores, machine.memory // largest)
    if kind == "cuda":
        return max(1, min(most, 1 if largest > LARGE_ON_GPU else ON_GPU))
    return max(1, most) if kind == "cpu" else 1


def threads_each(jobs: int, machine: Machine) -> int:
    """The CPU threads of each of several jobs."""
    return max(1, machine.cores // jobs)
