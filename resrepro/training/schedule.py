"""The learning rate as a pure function of the iteration and of where the warm-up ended (Section 4.2)."""

from collections.abc import Sequence

from resrepro.spec.recipe import Recipe


def learning_rate(
    recipe: Recipe, iteration: int, warmup_switch: int | None = None, drops: Sequence[int] | None = None
) -> float:
    """The rate of update `iteration` (counted from 0).

    Args:
        recipe: the schedule; with `warmup_lr` 0 there is no warm-up.
        iteration: the update about to be made. Iteration 32,000 (the 32,001st) is the first after a
            drop at 32,000.
        warmup_switch: the iteration at which the warm-up ended, None while it lasts.
        drops: where the rate drops if that is found on the way (see `plateau`); the recipe's by default.
    """
    if recipe.warmup_lr and (warmup_switch is None or iteration < warmup_switch):
        return recipe.warmup_lr
    fallen = recipe.lr_drops if drops is None else drops
    return float(recipe.lr / recipe.lr_divisor ** sum(iteration >= drop for drop in fallen))


def warmup_is_due(recipe: Recipe, iteration: int, warmup_switch: int | None) -> bool:
    """Whether, after `iteration` updates, the warm-up's training error is to be looked at."""
    return bool(recipe.warmup_lr) and warmup_switch is None and iteration % recipe.warmup_window == 0
