"""How a batch is spread over processes and passes, and what that means for batch normalisation.

The batch size is that of all processes together. BN takes its statistics over the images that one
process has in one pass, or over smaller groups; the recipe's `bn_group` says so, hence a run spread over
two GPUs is the run that one GPU makes with `--bn-group`.
"""

from dataclasses import dataclass

from resrepro.errors import UsageError
from resrepro.spec.specs import Recipe


@dataclass(frozen=True)
class Spread:
    """Images per update on each process, and per forward and backward pass."""

    local: int
    micro: int


def spread_batch(batch_size: int, processes: int, micro_batch: int | None = None) -> Spread:
    """The share of each process and of each pass.

    Raises:
        UsageError: if the batch does not divide.
    """
    if batch_size % processes:
        raise UsageError(
            f"a batch of {batch_size} does not divide among {processes} processes: choose a --batch-size "
            "that does, or another number of processes."
        )
    local = batch_size // processes
    micro = local if micro_batch is None else micro_batch
    if micro < 1 or local % micro:
        raise UsageError(
            f"--micro-batch {micro} does not divide the {local} images that a process has of each batch."
        )
    return Spread(local, micro)


def bn_group_for(recipe: Recipe, spread: Spread, *, given: bool) -> int:
    """The images that share BN statistics when a batch is spread so; 0 for the whole batch.

    Args:
        recipe: the recipe as asked for.
        spread: how its batch is spread.
        given: whether `bn_group` was asked for, so that another will not do.

    Raises:
        UsageError: if what was asked for cannot be had.
    """
    group = recipe.bn_group
    if spread.micro % (group or recipe.batch_size) == 0:
        return group
    if given and not group:
        raise UsageError(
            "BN over the whole batch needs the batch in one process and one pass: leave torchrun and "
            "--micro-batch out, or name a --bn-group."
        )
    if given:
        raise UsageError(
            f"BN groups of {group} images do not divide the {spread.micro} that a process has in one pass: "
            "choose a smaller --bn-group, or fewer processes."
        )
    return spread.micro
