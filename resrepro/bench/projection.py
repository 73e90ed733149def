"""How long the paper's CIFAR-10 experiments would take here, from the measured speeds.

A run is its updates and its evaluations. What measuring an image costs is a forward pass, a third of a
training step. A net that was not measured takes the speed of the measured net of the nearest depth, scaled
by multiply-adds. Nothing here imports torch.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from resrepro.bench.results import Entry, Outcome
from resrepro.bench.work import FORWARD_SHARE, multiply_adds
from resrepro.spec import catalogue
from resrepro.spec.specs import CifarRecipe, Spec

HELD_OUT = {"all": 10_000, "45k5k": 15_000}  # images of the held-out sets of a split, Section 4.2
IMAGENET = (
    "ImageNet's experiments are left out: photographs have other shapes, and must be read. "
    "`resrepro train .. --dry-run` measures them."
)


@dataclass(frozen=True)
class Projection:
    """The time of one run; `scaled_from` is the depth that was measured, None if it was the net itself."""

    experiment: str
    label: str
    runs: int
    mode: str
    seconds: float
    scaled_from: int | None


def project(outcome: Outcome) -> tuple[Projection, ...]:
    """Every experiment of a CIFAR-10 exhibit, in each mode of ours that was measured."""
    found = catalogue.experiments().values()
    wanted = [one for one in found if one.dataset == "cifar10" and one.exhibits]
    modes = [mode for mode in ("default", "fast") if mode in outcome.plan.modes]
    return tuple(
        _project(outcome, experiment, mode, entry)
        for experiment in wanted
        for mode in modes
        for entry in _nearest(outcome, experiment.depth, mode)
    )


def _nearest(outcome: Outcome, depth: int, mode: str) -> Iterator[Entry]:
    """The entry of the measured depth that is the nearest by ratio, if there is one."""
    near = min(outcome.plan.depths, key=lambda other: abs(math.log(other / depth)))
    entry = outcome.find(near, mode)
    if entry is not None:
        yield entry


def _project(outcome: Outcome, experiment: catalogue.Experiment, mode: str, entry: Entry) -> Projection:
    measured = entry.contestant.depth
    exact = (experiment.depth, experiment.plain) == (measured, outcome.plan.plain)
    speed = entry.speed.median * multiply_adds(measured) / multiply_adds(experiment.depth)
    return Projection(
        experiment.name, experiment.label, len(experiment.seeds), mode,
        run_seconds(experiment.spec(), speed), None if exact else measured,
    )  # fmt: skip


def run_seconds(spec: Spec, images_per_s: float) -> float:
    """The time of a run at a training speed, evaluations included."""
    recipe = spec.recipe
    assert isinstance(recipe, CifarRecipe)
    evaluations = math.ceil(recipe.iterations / recipe.eval_every)
    shown = recipe.iterations * recipe.batch_size
    return (shown + evaluations * HELD_OUT[recipe.split] * FORWARD_SHARE) / images_per_s


def tell_time(seconds: float) -> str:
    """A duration with two figures or so: `45 s`, `12 min`, `5.3 h`, `3.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
