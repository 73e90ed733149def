"""What a plan will take: the time as this machine was seen to need it, and the disk by counting.

The time of a net is that of the closest net of the same recipe whose record this machine wrote; where there
is none, that of the smallest is measured for a moment in a child process. Other depths follow by their
multiply-adds. Nothing here imports torch.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from resrepro.bench.children import Child
from resrepro.errors import UsageError
from resrepro.launch.estimates import CHECKPOINTS, MIB, ROW_BYTES, estimate
from resrepro.records import Run
from resrepro.records.write import cpu_model
from resrepro.spec import catalogue
from resrepro.spec.architecture import architectures
from resrepro.spec.experiment import Spec
from resrepro.spec.recipe import FAMILIES, Value

BYTES = 4 * 2  # of a parameter in a checkpoint: float32, and its momentum
SETS = 2  # that are measured at every sample


@dataclass(frozen=True)
class Seen:
    """Seconds that a net needed for an iteration, samples included.

    Attributes:
        key: what nets must share for the time of one to tell that of another.
        multiply_adds: of one image.
        seconds: for an iteration.
    """

    key: tuple[object, ...]
    multiply_adds: int
    seconds: float


def precision_here(device: str) -> str:
    """The arithmetic of `--fast` on a device of this machine, as a child process finds it.

    Raises:
        UsageError: if there is no such device.
        ResreproError: if the child fails.
    """
    asked = {"part": "precision", "what": "the arithmetic of --fast", "device": device, "threads": None}
    with Child("the arithmetic of --fast", asked) as child:
        return str(child.told["precision"])


def multiply_adds(spec: Spec) -> int:
    """Of one image of the size that the paper trains the net at.

    Raises:
        KeyError: if the net is none that the catalogue trains for the paper.
    """
    return architectures()[_in_the_paper(spec)].multiply_adds


def disk_mib(spec: Spec) -> float:
    """Of a run's folder: two checkpoints and the curves."""
    samples = math.ceil(spec.recipe.iterations / spec.recipe.eval_every)
    parameters = architectures()[_in_the_paper(spec)].parameters
    return (CHECKPOINTS * BYTES * parameters + SETS * samples * ROW_BYTES) / MIB


def _in_the_paper(spec: Spec) -> str:
    """The experiment of the paper with the same net: digits take those of CIFAR-10, folders ImageNet's."""
    own = {"cifar": "cifar10", "imagenet": "imagenet"}[FAMILIES[spec.dataset]]
    return spec.experiment.replace(spec.dataset, own, 1)


def _key(dataset: str, recipe: Mapping[str, Any]) -> tuple[object, ...]:
    """What nets must share for the time of one to tell that of another."""
    return dataset, recipe["batch_size"], recipe.get("image_size"), recipe["precision"]


def seen_in(runs: Iterable[Run], device: str) -> list[Seen]:
    """What the records that this machine wrote tell of the time that the catalogue's nets take."""
    here = cpu_model()
    found = []
    for run in runs:
        made, same = int(run.result["iteration"]), run.env.get("cpu") == here
        if not made or not same or device not in ("auto", run.env.get("device")):
            continue
        with suppress(KeyError, UsageError):  # of a depth that is not the paper's, or of another version
            work = multiply_adds(catalogue.find(run.experiment).spec())
            key = _key(run.spec["dataset"], run.spec["recipe"])
            found.append(Seen(key, work, float(run.result["seconds"]) / made))
    return found


def measure_missing(specs: Sequence[Spec], seen: Sequence[Seen], **means: Any) -> list[Seen]:
    """Measure the smallest net of each kind of which nothing was seen, each in a child process.

    `means` are those of `resrepro.launch.estimates.estimate`.

    Raises:
        UsageError: if the run could not be started either.
        ResreproError: if the measurement fails.
    """
    known = {each.key for each in seen}
    smallest: dict[tuple[object, ...], Spec] = {}
    for spec in sorted(specs, key=multiply_adds):
        smallest.setdefault(_key(spec.dataset, spec.to_json()["recipe"]), spec)
    found = []
    for key, spec in smallest.items():
        if key not in known:
            settings: dict[str, Value | None] = dict(spec.changes)
            told = estimate(spec.experiment, settings=settings, **means)
            found.append(Seen(key, multiply_adds(spec), told.seconds / spec.recipe.iterations))
    return found


def seconds_of(spec: Spec, done: int, seen: Sequence[Seen]) -> float | None:
    """What a run takes from an iteration on; None if nothing was seen that tells it."""
    own, key = multiply_adds(spec), _key(spec.dataset, spec.to_json()["recipe"])
    fitting = [each for each in seen if each.key == key]
    if not fitting:
        return None
    closest = min(fitting, key=lambda each: abs(math.log(each.multiply_adds / own)))
    return (spec.recipe.iterations - done) * closest.seconds * own / closest.multiply_adds


def wall_seconds(each: Sequence[float], jobs: int) -> float:
    """Of runs of which `jobs` are trained at once: no shorter than the longest of them."""
    return max(sum(each) / jobs, max(each, default=0.0))
