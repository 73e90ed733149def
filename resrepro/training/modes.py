"""The two modes of training: float32 as the paper's time had it, and `--fast`."""

from collections.abc import Callable

import torch

from resrepro.errors import UsageError
from resrepro.spec.recipe import Recipe
from resrepro.training.device import NARROW, fast_precision


def mode_of(recipe: Recipe) -> str:
    """ "default" or "fast", as the record and the tables call it; it follows from the arithmetic."""
    return "fast" if recipe.precision in NARROW else "default"


def fast_settings(device: torch.device, given: object, say: Callable[[str], None]) -> dict[str, str]:
    """The settings that `--fast` stands for on a device; told if that has nothing faster than float32.

    Raises:
        UsageError: if a precision is given besides.
    """
    if given is not None:
        raise UsageError("--fast chooses the precision itself: leave one of the two out.")
    precision = fast_precision(device)
    if precision == "float32":
        say("Note: this machine has no bf16 arithmetic, so --fast computes in float32 like the default.")
    return {"precision": precision}
