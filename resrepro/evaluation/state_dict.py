"""From the tensors of a file to a net: found wherever people put them, matched to the net, checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from resrepro.errors import RecordError
from resrepro.nets import Net, net_of
from resrepro.nets.layers import norms_of
from resrepro.records.files import open_plain, printable
from resrepro.spec.experiment import Spec

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
    wrapped = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    tensors = {
        key.removeprefix("module."): value
        for key, value in wrapped.items()
        if isinstance(key, str) and isinstance(value, Tensor) and not key.endswith(UNUSED)
    }
    if not tensors:
        raise RecordError(f"{name} holds no state dict (looked at the top and under {', '.join(WRAPPERS)}).")
    return tensors


def fill(
    spec: Spec, num_classes: int, tensors: Mapping[str, Tensor], name: str, label: str = "", hint: str = ""
) -> tuple[Net, Literal["name", "order"]]:
    """The net of a specification with the weights of a file, and how these were matched to it.

    It is made only when they are known to fill it, so no file asks for more memory than it brings.

    Args:
        spec: the net's.
        num_classes: its outputs.
        tensors: weights and BN statistics by name, without BN's step counters.
        name: of the file, for messages.
        label: of the net, for messages.
        hint: what to tell besides if they do not fit.

    Raises:
        RecordError: naming the first tensor that does not fit, or is no finite number in float32.
    """
    layers = len({tensor.data_ptr() for tensor in tensors.values() if tensor.ndim >= 2})
    if layers < spec.depth:  # told apart by their memory
        raise RecordError(
            f"{name} does not fit a net of {spec.depth} layers: it has weights for {layers} at most."
        )
    shape = (spec.dataset, spec.depth, spec.plain, spec.shortcut, num_classes)
    with torch.device("meta"):  # without memory for its weights
        outline = net_of(spec.recipe, *shape).state_dict()
    weights, matched_by = match(outline, tensors, f"{name} does not fit {label or spec.label}", hint)
    check_finite(tensors, name)
    net = net_of(spec.recipe, *shape)
    net.load_state_dict(weights, strict=False)
    if any(norm.running_var is not None and bool((norm.running_var < 0).any()) for norm in norms_of(net)):
        raise RecordError(
            f"{name} has negative variances in a BN layer, so its errors would mean nothing: "
            "take another checkpoint."
        )
    return net, matched_by


def match(
    outline: Mapping[str, Tensor], tensors: Mapping[str, Tensor], misfit: str, hint: str = ""
) -> tuple[dict[str, Tensor], Literal["name", "order"]]:
    """The tensors under the net's own names: matched by name if all names agree, else by order and shape.

    Raises:
        RecordError: naming the first tensor that does not fit, after the words `misfit`.
    """
    ours = {key: value.shape for key, value in outline.items() if not key.endswith(UNUSED)}
    by_name = tensors.keys() == ours.keys()
    theirs = [(key, tensors[key]) for key in ours] if by_name else list(tensors.items())
    for (key, shape), (their_key, value) in zip(ours.items(), theirs, strict=False):
        if shape != value.shape:
            raise RecordError(
                f"{misfit}: its {printable(their_key)} has shape {tuple(value.shape)} "
                f"where {key} has {tuple(shape)}.{hint}"
            )
    if len(theirs) != len(ours):
        extra = theirs[len(ours)][0] if len(theirs) > len(ours) else list(ours)[len(theirs)]
        which = "has one tensor too many" if len(theirs) > len(ours) else "lacks"
        raise RecordError(
            f"{misfit}: {len(theirs)} tensors instead of {len(ours)}; it {which}, {printable(extra)}.{hint}"
        )
    weights = {key: value for key, (_, value) in zip(ours, theirs, strict=True)}
    return weights, "name" if by_name else "order"


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Check that weights are numbers: of others, a net makes errors that mean nothing.

    Raises:
        RecordError: naming the first tensor with another kind of number, or one that is NaN or infinite
            in float32.
    """
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RecordError(f"{name} has numbers of kind {kind} in {printable(key)}, where weights belong.")
        if not torch.isfinite(tensor.float()).all():
            raise RecordError(
                f"{name} has NaN or infinite numbers in {printable(key)}, so its errors would mean nothing: "
                "take another checkpoint."
            )
