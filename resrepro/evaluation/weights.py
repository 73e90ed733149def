"""Weights in files: those of a state dict on our nets, and what we publish of a run.

`weights.safetensors` beside a published record holds the net's tensors in float32 under `net.<name>`, the
mean image as `mean`, and as sealed JSON in its metadata what else a checkpoint says of its run.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from resrepro.data import load_dataset
from resrepro.errors import RecordError, UsageError
from resrepro.evaluation.matching import Matched, match
from resrepro.nets import Net, net_of
from resrepro.nets.layers import norms_of
from resrepro.records import Run
from resrepro.records.reading import CHECKPOINT, SEAL, WEIGHTS
from resrepro.records.storage import write_out
from resrepro.spec import Spec
from resrepro.spec.recipe import FAMILIES
from resrepro.training.checkpoint import HEAD, load_checkpoint, sign_of

PER_PIXEL = "per_pixel"  # the mean image of the training set
HEADER = "resrepro"  # the one key of the metadata, so that equal weights give equal files
FACTS = ("digest", "spec", "num_classes", "classes", "seed", "data", "iteration")


def fitted(
    spec: Spec, num_classes: int, tensors: Mapping[str, Tensor], name: str, label: str = "", hint: str = ""
) -> Matched:
    """The weights of a file for the net of a specification, of which no memory is taken; `tensors` come
    without BN's step counters. `name` of the file, `label` of the net and `hint` are for messages:
    RecordErrors, which name the first tensor that does not fit, or is no finite number in float32.
    """
    layers = len({tensor.data_ptr() for tensor in tensors.values() if tensor.ndim >= 2})
    if layers < spec.depth:  # told apart by their memory
        raise RecordError(
            f"{name} does not fit a net of {spec.depth} layers: it has weights for {layers} at most."
        )
    with torch.device("meta"):
        outline = net_of(spec, num_classes).state_dict()
    found = match(outline, tensors, f"{name} does not fit {label or spec.label}", hint)
    for key, tensor in tensors.items():
        if key in found.left_out:
            continue
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RecordError(f"{name} has numbers of kind {kind} in {key}, where weights belong.")
        if not torch.isfinite(tensor.float()).all():
            raise RecordError(
                f"{name} has NaN or infinite numbers in {key}, so its errors would mean nothing: "
                "take another checkpoint."
            )
    return found


def fill(spec: Spec, num_classes: int, found: Matched, name: str) -> Net:
    """The net with weights that are known to fill it, so no file asks for more memory than it brings."""
    net = net_of(spec, num_classes)
    net.load_state_dict(found.weights, strict=False)
    if any(norm.running_var is not None and bool((norm.running_var < 0).any()) for norm in norms_of(net)):
        raise RecordError(
            f"{name} has negative variances in a BN layer, so its errors would mean nothing: "
            "take another checkpoint."
        )
    return net


# --- the mean that is subtracted -----------------------------------------------


def in_range(numbers: Sequence[float], least: float = 1e-6) -> tuple[float, ...]:
    """Three numbers of `--mean` or `--std`, checked (UsageError)."""
    if len(numbers) != 3 or not all(least <= number <= 1 for number in numbers):
        raise UsageError(
            "--mean and --std take three numbers each, of pixels scaled to 0..1, every --std above 0: "
            "divide those of 0..255 by 255."
        )
    return tuple(numbers)


def mean_of(
    mean: Sequence[float] | str | Path, dataset: str, data: str | Path | None, split: str | None
) -> tuple[Tensor, Any]:
    """The mean to subtract, (3, 1, 1) or (3, H, W) in 0..255, and what the record calls it. A `.npy` file has
    a mean image of 0..1 or 0..255, channels first or last. UsageError if it is out of range, or of
    photographs per pixel; RecordError if its file is no mean image.
    """
    if not isinstance(mean, str | Path):
        numbers = in_range(mean, 0)
        return torch.tensor(numbers, dtype=torch.float32).reshape(3, 1, 1) * 255, list(numbers)
    if str(mean) == PER_PIXEL:
        if FAMILIES[dataset] == "imagenet":
            raise UsageError(
                "--mean per_pixel is of CIFAR-10 and the digits: for photographs name the mean image's .npy "
                "file."
            )
        pixels = load_dataset(dataset, split or "all", data).train.pixels
        image = pixels.mean(axis=0, dtype=np.float64)
        return torch.from_numpy(image).float(), f"{PER_PIXEL}, {dataset}-{split or 'all'}"
    path = Path(mean)
    try:
        image = np.load(path, allow_pickle=False).astype(np.float32)
    except FileNotFoundError:
        raise RecordError(
            f"there is no file {path} (--mean takes R,G,B, per_pixel or a .npy file)."
        ) from None
    except (OSError, ValueError, TypeError, EOFError, AttributeError):
        raise RecordError(f"{path} is no array of numbers of numpy (.npy), or is damaged.") from None
    if image.ndim == 3 and image.shape[0] != 3 and image.shape[2] == 3:
        image = image.transpose(2, 0, 1)
    if image.ndim != 3 or len(image) != 3 or not (image.min() >= 0 and image.max() <= 255):
        raise RecordError(f"{path} is no mean image: expected (3, height, width), numbers of 0..1 or 0..255.")
    image = np.ascontiguousarray(image * (255 if image.max() <= 1 else 1))
    return torch.from_numpy(image), f"{path.name}, sha256 {hashlib.sha256(image.data).hexdigest()[:8]}"


# --- what we publish of a run --------------------------------------------------


def write_weights(run: Run, folder: Path) -> Path | None:
    """Write the weights of a finished run of full length beside its published record; None if it is
    shortened, or its checkpoint not at hand. RecordError if that is damaged or not of the last iteration, or
    other weights lie there.
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


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as `.safetensors` files do, or is called one and is none that we know better."""
    if not path.is_file():
        return path.suffix == ".safetensors"
    with path.open("rb") as file:
        head = file.read(HEAD)
    return head[8:9] == b"{" or (path.suffix == ".safetensors" and sign_of(head) is None)


def read_weights(path: Path) -> dict[str, Any]:
    """What a `.safetensors` file holds: of ours the entries of a checkpoint, of others their tensors
    (RecordError if it cannot be read, is no such file, or does not match its seal).
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
