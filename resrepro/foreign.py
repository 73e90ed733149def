"""Other people's checkpoints: finding the state dict and fitting it onto one of our nets."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from resrepro.errors import RecordError

WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
UNUSED = "num_batches_tracked"  # BN's step counter: not a weight, absent from old checkpoints


def find_state_dict(content: dict[str, Any], name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint: bare, or under `state_dict`, `model` or the like; `module.` dropped.

    Raises:
        RecordError: if there is no state dict in it.
    """
    for wrapper in WRAPPERS:
        if isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    tensors = {key.removeprefix("module."): value for key, value in content.items() if _is_weight(key, value)}
    if not tensors:
        raise RecordError(f"{name} holds no state dict (looked at the top and under {', '.join(WRAPPERS)}).")
    return tensors


def _is_weight(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor) and not key.endswith(UNUSED)


def fit(net: nn.Module, tensors: dict[str, Tensor], name: str, net_name: str) -> Literal["name", "order"]:
    """Copy the tensors into the net, by name if all names agree, else by order and shape.

    Returns:
        How they were matched.

    Raises:
        RecordError: naming the first tensor that does not fit.
    """
    ours = {key: value for key, value in net.state_dict().items() if not key.endswith(UNUSED)}
    by_name = tensors.keys() == ours.keys()
    theirs = [(key, tensors[key]) for key in ours] if by_name else list(tensors.items())
    for (key, wanted), (their_key, value) in zip(ours.items(), theirs, strict=False):
        if wanted.shape != value.shape:
            raise RecordError(
                f"{name} does not fit {net_name}: its {their_key} has shape {tuple(value.shape)} where "
                f"{key} has {tuple(wanted.shape)}. Check --depth, --plain and --shortcut."
            )
    if len(theirs) != len(ours):
        extra = theirs[len(ours)][0] if len(theirs) > len(ours) else list(ours)[len(theirs)]
        which = "has one tensor too many" if len(theirs) > len(ours) else "lacks"
        raise RecordError(
            f"{name} does not fit {net_name}: {len(theirs)} tensors instead of {len(ours)}; it {which}, "
            f"{extra}. Check --depth, --plain and --shortcut."
        )
    with torch.no_grad():
        for wanted, (_, value) in zip(ours.values(), theirs, strict=True):
            wanted.copy_(value)  # a state dict shares its memory with the net
    return "name" if by_name else "order"
