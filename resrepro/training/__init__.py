"""How a net is trained; here, without torch, which process of a run this is, as `torchrun` says in the
environment, and which runs can be trained side by side by one program.
"""

import os
from collections.abc import Hashable

from resrepro.spec import Spec
from resrepro.spec.recipe import FAMILIES

LARGEST_BATCH = 2048  # of a lane
# Where lanes are taken unasked: float32 does without the matrix units, and nobody has measured how fast.
LANES_BY_DEFAULT = ("bf16", "tf32")
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")


def world_size() -> int:
    """The number of processes of the run, on all its machines; 1 without `torchrun`."""
    return int(os.environ["WORLD_SIZE"]) if all(key in os.environ for key in LAUNCHED) else 1


def rank() -> int:
    """The number of this process among all of the run, from 0."""
    return int(os.environ["RANK"]) if world_size() > 1 else 0


def local_rank() -> int:
    """The number of this process among those of this machine, which is the number of its GPU."""
    return int(os.environ["LOCAL_RANK"]) if world_size() > 1 else 0


def local_world_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def lane_group(spec: Spec) -> Hashable | None:
    """What lanes of one program share, of any seed, plain or residual; None of a run that cannot be one."""
    recipe = spec.recipe
    fits = (
        FAMILIES[spec.dataset] == "cifar"
        and spec.shortcut in (None, "A")
        and recipe.precision != "fp16"
        and recipe.bn_group in (0, recipe.batch_size)
        and recipe.batch_size <= LARGEST_BATCH
    )
    return (spec.dataset, spec.depth, recipe) if fits else None
