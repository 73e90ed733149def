"""Weights in files: the state dicts of other people, and what we publish of a run.

`weights.safetensors` beside a published record holds the net's tensors in float32 under `net.<name>`, the
mean image as `mean`, and what else a checkpoint says of its run as JSON in the file's metadata, sealed
together with the tensors.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from resrepro.errors import RecordError
from resrepro.nets import Net, net_of
from resrepro.nets.layers import norms_of
from resrepro.records import Run
from resrepro.records.reading import CHECKPOINT, WEIGHTS
from resrepro.records.storage import SEAL, write_out
from resrepro.spec import Spec
from resrepro.training.checkpoint import load_checkpoint

WRAPPERS = ("state_dict", "model", "net", "model_state_dict")
UNUSED = "num_batches_tracked"  # BN's step counter: not a weight, absent from old checkpoints
HEADER = "resrepro"  # the one key of the metadata, so that equal weights give equal files
FACTS = ("digest", "spec", "num_classes", "classes", "seed", "data", "iteration")


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

    It is made only when they are known to fill it, so no file asks for more memory than it brings. `tensors`
    come without BN's step counters; `name` of the file, `label` of the net and `hint` are for messages.

    Raises:
        RecordError: naming the first tensor that does not fit, or is no finite number in float32.
    """
    layers = len({tensor.data_ptr() for tensor in tensors.values() if tensor.ndim >= 2})
    if layers < spec.depth:  # told apart by their memory
        raise RecordError(
            f"{name} does not fit a net of {spec.depth} layers: it has weights for {layers} at most."
        )
    with torch.device("meta"):  # without memory for its weights
        outline = net_of(spec, num_classes).state_dict()
    weights, matched_by = match(outline, tensors, f"{name} does not fit {label or spec.label}", hint)
    check_finite(tensors, name)
    net = net_of(spec, num_classes)
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
                f"{misfit}: its {their_key} has shape {tuple(value.shape)} "
                f"where {key} has {tuple(shape)}.{hint}"
            )
    if len(theirs) != len(ours):
        raise RecordError(f"{misfit}: it has {len(theirs)} tensors instead of {len(ours)}.{hint}")
    weights = {key: value for key, (_, value) in zip(ours, theirs, strict=True)}
    return weights, "name" if by_name else "order"


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse (RecordError) weights that are no finite numbers in float32, naming the first tensor."""
    for key, tensor in tensors.items():
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RecordError(f"{name} has numbers of kind {kind} in {key}, where weights belong.")
        if not torch.isfinite(tensor.float()).all():
            raise RecordError(
                f"{name} has NaN or infinite numbers in {key}, so its errors would mean nothing: "
                "take another checkpoint."
            )


# --- what we publish of a run --------------------------------------------------


def write_weights(run: Run, folder: Path) -> Path | None:
    """Write the weights of a finished run of full length beside its published record.

    None if the run is shortened, or its checkpoint is not at hand.

    Raises:
        RecordError: if the checkpoint is damaged or not of the last iteration, or other weights lie there.
    """
    checkpoint, path = run.folder / CHECKPOINT, folder / WEIGHTS
    if run.status != "complete" or not checkpoint.exists():
        return None
    content = load_checkpoint(checkpoint)
    if (content["digest"], content["iteration"]) != (run.digest, run.result["iteration"]):
        raise RecordError(f"{checkpoint} is not of the run's last iteration: no weights are published.")
    tensors = {f"net.{name}": tensor for name, tensor in content["net"].items()} | {"mean": content["mean"]}
    for name, tensor in tensors.items():  # in memory order and float32; BN's counters stay integers
        tensors[name] = (tensor.float() if tensor.is_floating_point() else tensor).contiguous()
    facts = {key: content[key] for key in FACTS}
    header = json.dumps({**facts, SEAL: _seal(facts, tensors)}, sort_keys=True)
    weights = save(tensors, {HEADER: header})
    if path.exists() and path.read_bytes() != weights:
        raise RecordError(f"{path} holds other weights already: move it away first, nothing is overwritten.")
    write_out(path, weights)
    return path


def read_weights(path: Path) -> dict[str, Any]:
    """What a `.safetensors` file holds: of ours the entries of a checkpoint, of others their tensors.

    Raises:
        RecordError: if it cannot be read, is no such file, or does not match its seal.
    """
    try:
        tensors: dict[str, Any] = dict(load_file(path))
        with safe_open(path, "pt") as file:
            header = (file.metadata() or {}).get(HEADER)
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror or error}.") from None
    except SafetensorError:
        raise RecordError(f"{path} is not a safetensors file, or is damaged.") from None
    if header is None:
        return tensors
    try:
        facts = json.loads(header)
        sealed = facts.pop(SEAL) == _seal(facts, tensors)
    except (ValueError, AttributeError, KeyError):
        sealed = False
    if not sealed:
        raise RecordError(f"{path} is damaged: its checksum does not match its content.")
    net = {name.removeprefix("net."): each for name, each in tensors.items() if name.startswith("net.")}
    return {**facts, "net": net, "mean": tensors["mean"]}


def _seal(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex) of what the weights say of their run and of all tensors, by name."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
