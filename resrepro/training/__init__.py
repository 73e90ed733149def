"""How a net is trained; here, what can be told without torch.

That is which process of a run this is, as `torchrun` says in the environment, and which runs can be trained
side by side by one program.
"""

import os
from collections.abc import Hashable

from resrepro.spec import Spec
from resrepro.spec.recipe import FAMILIES

LARGEST_BATCH = 2048  # of a lane
# Where lanes are taken unasked: float32 does without the matrix units, and nobody has measured how fast.
LANES_BY_DEFAULT = ("bf16", "tf32")
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")


def _number(name: str, alone: int) -> int:
    return int(os.environ[name]) if all(key in os.environ for key in LAUNCHED) else alone


def rank() -> int:
    """The number of this process among all of the run, from 0; it is alone without `torchrun`."""
    return _number("RANK", 0)


def world_size() -> int:
    """The number of processes of the run, on all its machines."""
    return _number("WORLD_SIZE", 1)


def local_rank() -> int:
    """The number of this process among those of this machine, which is the number of its GPU."""
    return _number("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if world_size() > 1 else 1


def is_first() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def lane_group(spec: Spec) -> Hashable | None:
    """What runs that are lanes of one program have in common; None of a run that cannot be one.

    They may differ in seed, and in whether they are plain or residual.
    """
    recipe = spec.recipe
    fits = (
        FAMILIES[spec.dataset] == "cifar"
        and spec.shortcut in (None, "A")
        and recipe.precision != "fp16"
        and recipe.bn_group in (0, recipe.batch_size)
        and recipe.batch_size <= LARGEST_BATCH
    )
    return (spec.dataset, spec.depth, recipe) if fits else None
