"""What runs will take: the time as this machine was seen to need it, and the disk by counting.

The time of a net is that of the closest net of the same recipe whose record this machine wrote; where there
is none, some updates of the smallest are timed. Other depths follow by their multiply-adds.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from resrepro.errors import UsageError
from resrepro.launch import Step
from resrepro.launch.local import run_command
from resrepro.records import Run
from resrepro.records.write import cpu_model
from resrepro.spec import Spec, catalogue
from resrepro.spec.architecture import architectures
from resrepro.spec.recipe import FAMILIES

ROW_BYTES = 75  # of a line of metrics.csv
CHECKPOINT_BYTES = 2 * 4 * 2  # of a parameter: float32 and its momentum, the newest and the one before


@dataclass(frozen=True)
class Speed:
    """What a net was seen to need on this machine.

    Attributes:
        key: what nets must share for the time of one to tell that of another.
        multiply_adds: of one image.
        seconds: for an iteration, samples included.
    """

    key: tuple[object, ...]
    multiply_adds: float
    seconds: float


def _key(spec: Mapping[str, Any]) -> tuple[object, ...]:
    """Of a specification as records hold it."""
    recipe = spec["recipe"]
    return spec["dataset"], recipe["batch_size"], recipe.get("image_size"), recipe["precision"]


def _size_of(spec: Spec) -> tuple[float, float]:
    """Multiply-adds of an image and parameters; of a depth 6n+2 that the paper lacks both grow with n."""
    own = "cifar10" if FAMILIES[spec.dataset] == "cifar" else "imagenet"
    net = architectures().get(spec.experiment.replace(spec.dataset, own, 1))
    if net is not None:
        return net.multiply_adds, net.parameters
    near = architectures()["cifar10-resnet20"]
    return near.multiply_adds * (spec.depth - 2) / 18, near.parameters * (spec.depth - 2) / 18


def disk_mib(spec: Spec) -> float:
    """Of a run's folder: two checkpoints and the curves, of two sets at every sample."""
    samples = math.ceil(spec.recipe.iterations / spec.recipe.eval_every)
    return (CHECKPOINT_BYTES * _size_of(spec)[1] + 2 * samples * ROW_BYTES) / 2**20


def speeds_in(runs: Iterable[Run], device: str) -> list[Speed]:
    """What the records that this machine wrote tell of the time that nets take on a device."""
    here, speeds = cpu_model(), []
    for run in runs:
        iterations, is_here = int(run.result["iteration"]), run.env.get("cpu") == here
        if not iterations or not is_here or device not in ("auto", run.env.get("device")):
            continue
        with suppress(UsageError):  # an experiment of another version
            work, _ = _size_of(catalogue.find(run.experiment).spec())
            speeds.append(Speed(_key(run.spec), work, float(run.result["seconds"]) / iterations))
    return speeds


def time_missing(
    steps: Iterable[Step],
    speeds: Sequence[Speed],
    words_for: Callable[[Step], Sequence[str]],
    threads: int | None,
) -> tuple[list[Speed], list[str]]:
    """Time the smallest net of each kind of which nothing was seen, by some updates in its own process.

    Returns:
        What was seen, and a sentence on each net that could not be timed.

    Raises:
        UsageError: if the run could not be started either.
    """
    smallest: dict[tuple[object, ...], Step] = {}
    for step in sorted(steps, key=lambda step: step.spec.depth):
        smallest.setdefault(_key(step.spec.to_json()), step)
    timed, sentences = [], []
    for key in [key for key in smallest if key not in {speed.key for speed in speeds}]:
        outcome, events = run_command([*words_for(smallest[key]), "--dry-run"], threads)
        if outcome.code == UsageError.exit_code:
            raise UsageError(outcome.sentence)
        if outcome.code:
            sentences.append(outcome.sentence)
        else:
            timed.append(Speed(key, _size_of(smallest[key].spec)[0], float(events[-1]["seconds"])))
    return timed, sentences


def seconds_of(spec: Spec, done: int, speeds: Sequence[Speed]) -> float | None:
    """What a run takes from an iteration on; None if nothing was seen that tells it."""
    key, (work, _) = _key(spec.to_json()), _size_of(spec)
    fitting = [speed for speed in speeds if speed.key == key]
    if not fitting:
        return None
    closest = min(fitting, key=lambda speed: abs(math.log(speed.multiply_adds / work)))
    return (spec.recipe.iterations - done) * closest.seconds * work / closest.multiply_adds


def total_seconds(steps: Sequence[Step], speeds: Sequence[Speed], jobs: Mapping[str, int]) -> float | None:
    """Of runs of which `jobs` of a family are trained at once, families one by one; None if unknown."""
    total = 0.0
    for family, count in jobs.items():
        each = [seconds_of(step.spec, step.done, speeds) for step in steps if step.family == family]
        known = [seconds for seconds in each if seconds is not None]
        if len(known) < len(each):
            return None
        total += max(sum(known) / count, max(known, default=0.0))  # no shorter than the longest of them
    return total


def duration(seconds: float | None) -> str:
    """A duration with two figures or so: `45 s`, `12 min`, `5.3 h`, `3.1 days`; `?` where it is not known."""
    if seconds is None:
        return "?"
    for unit, size, most in (("s", 1, 90), ("min", 60, 90 * 60)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
