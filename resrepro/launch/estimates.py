"""What training will take, before it is begun: time, memory and disk of each run that was asked for.

A child process makes a few real steps and evaluates for a moment; the rest is multiplication. Nothing is
written. Nothing here imports torch.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resrepro.bench.children import Child
from resrepro.spec.recipe import Value

SECONDS = 2.0  # of training steps per net
ROW_BYTES = 75  # of a line of metrics.csv
CHECKPOINTS = 2  # the newest and the one before
MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """What one run takes.

    Attributes:
        seconds: of the start, training and evaluations.
        memory_mib: of the process; `gpu_mib` of the GPU, None without one.
        disk_mib: of its folder.
        reads: whether reading the data is part of the time.
    """

    name: str
    iterations: int
    seconds: float
    memory_mib: float
    gpu_mib: float | None
    disk_mib: float
    reads: bool


def estimate(
    experiment: str,
    *,
    shortcut: str | None = None,
    data: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    fast: bool = False,
    compiling: str = "auto",
    micro_batch: int | None = None,
    loading: Sequence[Any] = (),
    seconds: float | None = None,
    settings: Mapping[str, Value | None] | None = None,
) -> Estimate:
    """Measure a net for a moment, and tell what a run of it takes.

    Args:
        experiment: its name; the other options are those of `resrepro.training.session.train`.
        shortcut: "A", "B" or "C".
        data: folder of photographs; without one they are made up. CIFAR-10 always is.
        device: where to compute.
        threads: CPU threads.
        fast: as for a run.
        compiling: as for a run.
        micro_batch: images per pass.
        loading: the values of `resrepro.data.loader.Loading`, in order.
        seconds: how long to measure; SECONDS by default.
        settings: settings of the recipe to change.

    Raises:
        UsageError: if the run could not be started either.
        ResreproError: if the measurement fails.
    """
    asked = {
        "part": "calibration", "what": f"a batch of {experiment}: try a smaller --micro-batch",
        "experiment": experiment, "shortcut": shortcut, "data": data, "device": device,
        "threads": threads, "fast": fast, "compiling": compiling,
        "micro_batch": micro_batch,
        "loading": list(loading), "seconds": seconds or SECONDS, "settings": dict(settings or {}),
    }  # fmt: skip
    with Child(experiment, asked) as child:
        return estimate_from(child.told)


def estimate_from(told: Mapping[str, Any]) -> Estimate:
    """The estimate from what the child measured."""
    evaluations = math.ceil(told["iterations"] / told["eval_every"])
    training = told["start_seconds"] + told["iterations"] * told["step_seconds"]
    rows = evaluations * told["sets"] * ROW_BYTES
    return Estimate(
        told["name"],
        told["iterations"],
        training + evaluations * told["evaluation_seconds"],
        told["memory_mib"],
        told["gpu_mib"],
        (CHECKPOINTS * told["checkpoint_bytes"] + rows) / MIB,
        told["reads"],
    )


def notes_on(estimates: Sequence[Estimate], at_once: int = 1) -> list[str]:
    """What the numbers do not include."""
    notes = ["Measured in a moment on this machine as it is now; nothing was written."]
    if at_once > 1:
        notes.append("Each net was measured alone: side by side they slow each other down somewhat.")
    if not all(each.reads for each in estimates):
        notes.append("Reading photographs is not included: --data names them. Taken are as many as ImageNet.")
    return notes
