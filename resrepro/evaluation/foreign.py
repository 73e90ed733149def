"""Other people's checkpoints: finding the state dict and fitting it onto one of our nets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from resrepro.errors import RecordError
from resrepro.nets.normalisation import norms_of
from resrepro.records.files import open_plain, printable

WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
UNUSED = "num_batches_tracked"  # BN's step counter: not a weight, absent from old checkpoints


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, by name, on the CPU.

    Raises:
        RecordError: if the file is missing, cannot be read, or is none.
    """
    try:
        open_plain(path).close()  # a pipe would keep the reader waiting
        return load_file(path)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}.") from None
    except SafetensorError:
        raise RecordError(f"{path} is not a safetensors file, or is damaged.") from None


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
    by_name, pairs = _paired(net, tensors, name, net_name)
    with torch.no_grad():
        for wanted, value in pairs:
            wanted.copy_(value)  # a state dict shares its memory with the net
    return "name" if by_name else "order"


def check_fit(net: nn.Module, tensors: dict[str, Tensor], name: str, net_name: str) -> None:
    """Check that the tensors fit the net, which may be a mere outline on the meta device.

    Raises:
        RecordError: naming the first tensor that does not fit.
    """
    _paired(net, tensors, name, net_name)


def check_depth_of(tensors: Mapping[str, Tensor], depth: int, name: str) -> None:
    """Check that a file has weights for so many layers, before a net of them is made.

    Raises:
        RecordError: if it has fewer weights (told apart by their memory) than layers.
    """
    layers = len({tensor.data_ptr() for tensor in tensors.values() if tensor.ndim >= 2})
    if layers < depth:
        raise RecordError(
            f"{name} does not fit a net of {depth} layers: it has weights for {layers} at most."
        )


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Check that weights are numbers: of others, a net makes errors that mean nothing.

    Raises:
        RecordError: naming the first tensor with another kind of number, or one that is NaN or infinite
            in float32.
    """
    for key, tensor in tensors.items():
        if key.endswith(UNUSED):
            continue
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RecordError(f"{name} has numbers of kind {kind} in {printable(key)}, where weights belong.")
        if not torch.isfinite(tensor.float()).all():
            raise RecordError(
                f"{name} has NaN or infinite numbers in {printable(key)}, so its errors would mean nothing: "
                "take another checkpoint."
            )


def check_variances(net: nn.Module, name: str) -> None:
    """Check that no running variance of BN is negative, which has no square root.

    Raises:
        RecordError: if one is.
    """
    for norm in norms_of(net):
        if norm.running_var is not None and bool((norm.running_var < 0).any()):
            raise RecordError(
                f"{name} has negative variances in a BN layer, so its errors would mean nothing: "
                "take another checkpoint."
            )


def _paired(
    net: nn.Module, tensors: dict[str, Tensor], name: str, net_name: str
) -> tuple[bool, list[tuple[Tensor, Tensor]]]:
    """Whether all names agree, and each tensor of the net with the one that belongs into it."""
    ours = {key: value for key, value in net.state_dict().items() if not key.endswith(UNUSED)}
    by_name = tensors.keys() == ours.keys()
    theirs = [(key, tensors[key]) for key in ours] if by_name else list(tensors.items())
    for (key, wanted), (their_key, value) in zip(ours.items(), theirs, strict=False):
        if wanted.shape != value.shape:
            raise RecordError(
                f"{name} does not fit {net_name}: its {printable(their_key)} has shape {tuple(value.shape)} "
                f"where {key} has {tuple(wanted.shape)}. Check --depth, --plain and --shortcut."
            )
    if len(theirs) != len(ours):
        extra = theirs[len(ours)][0] if len(theirs) > len(ours) else list(ours)[len(theirs)]
        which = "has one tensor too many" if len(theirs) > len(ours) else "lacks"
        raise RecordError(
            f"{name} does not fit {net_name}: {len(theirs)} tensors instead of {len(ours)}; it {which}, "
            f"{printable(extra)}. Check --depth, --plain and --shortcut."
        )
    return by_name, [(wanted, value) for wanted, (_, value) in zip(ours.values(), theirs, strict=True)]
