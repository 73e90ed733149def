"""Weights in files: whose tensor is which on our nets, and what we publish of a run.

A tensor's place is what its name says: which block, whether in the shortcut, which kind of layer and how
manyth of it there; so `layer1.0.bn2`, `res2.0.conv2.norm` and `stages.0.0.bn2` are one.

`weights.safetensors` beside a published record holds the net's tensors in float32 under `net.<name>`, the
mean image as `mean`, and as sealed JSON in its metadata what else a checkpoint says of its run.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from resrepro.errors import RecordError, UsageError
from resrepro.nets import Net, net_of
from resrepro.records import Run
from resrepro.records.reading import CHECKPOINT, SEAL, WEIGHTS
from resrepro.records.storage import write_out
from resrepro.spec import Spec
from resrepro.training.checkpoint import HEAD, load_checkpoint, sign_of

HEADER = "resrepro"  # the one key of the metadata, so that equal weights give equal files
FACTS = ("digest", "spec", "num_classes", "classes", "seed", "data", "iteration")

COUNTER = "num_batches_tracked"  # BN's: not a weight, absent from old checkpoints
PART = re.compile(r"(.*)\.(weight|bias|running_mean|running_var)")
BLOCK = re.compile(  # the numbers of a stage and of a block in it, and what is in the block
    r"(?:layer|stages?|res|group|block|conv)[._]?(\d{1,4})(?:_x)?[._](?:layers?|unit|block)?[._]?(\d{1,4})[._](.+)"
)
SHORTCUT = re.compile(r"downsample|shortcut|skip|identity|conv_?proj", re.IGNORECASE)
BESIDE = re.compile(r"loss|criterion|metric|acc", re.IGNORECASE)  # of training: their weights are no layers'

Fit = TypeVar("Fit")
Weights = Mapping[str, Tensor]
Place = tuple[int, bool, str, int]  # number of the block (0 outside), in its shortcut, kind, how manyth
Found = tuple[dict[str, Tensor], list[str]]  # weights under the names of a net, and what was left out


def choose(content: Any, name: str, wanted: str | None, fit: Callable[[Weights], Fit]) -> tuple[str, Fit]:
    """The key of the set of weights to take, the one wanted or else the only one that fits, and what `fit`
    makes of it. UsageError if there is none of that name, or several fit and differ; RecordError if there is
    none at all, and what `fit` raises of the largest if none fits.
    """
    sets = sets_of(content)
    if wanted is not None:
        if wanted not in sets:
            layered = [key for key, each in sets.items() if any(tensor.ndim == 4 for tensor in each.values())]
            raise UsageError(f"{name} has no weights under {wanted!r}; it has {_listed(layered)}.")
        return wanted, fit(sets[wanted])
    if not sets:
        raise RecordError(f"{name} holds no state dict: there are no weights in it.")
    fitting: dict[str, Fit] = {}
    for key, tensors in sets.items():
        with suppress(RecordError):
            fitting[key] = fit(tensors)
    if not fitting:
        fit(max(sets.values(), key=len))
    first = sets[next(iter(fitting))]
    for other in (sets[key] for key in fitting):
        if first.keys() != other.keys() or not all(torch.equal(first[key], other[key]) for key in first):
            raise UsageError(
                f"{name} holds several sets of weights that fit, {_listed(fitting)}: choose one with "
                f"--weights, such as --weights {shlex.quote(list(fitting)[-1])}."
            )
    return next(iter(fitting.items()))


def sets_of(content: Any) -> dict[str, Weights]:
    """All sets of tensors in a checkpoint by the keys that lead to them; "" at its top."""
    found: dict[str, Weights] = {}
    seen: set[int] = set()
    waiting = [("", content)]
    while waiting:
        path, inner = waiting.pop(0)
        if not isinstance(inner, Mapping) or id(inner) in seen:
            continue
        seen.add(id(inner))
        named = {str(key): value for key, value in inner.items() if not str(key).endswith(COUNTER)}
        if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
            found[path] = tensors
        waiting += [(f"{path}.{key}".lstrip("."), value) for key, value in named.items()]
    return found


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(key or "'' (the file's top)" for key in keys)


def fitted(
    spec: Spec, num_classes: int, tensors: Weights, name: str, label: str = "", hint: str = ""
) -> Found:
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
    weights, left_out = match(outline, tensors, f"{name} does not fit {label or spec.label}", hint)
    for key, tensor in tensors.items():
        if key in left_out:
            continue
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RecordError(f"{name} has numbers of kind {kind} in {key}, where weights belong.")
        if not torch.isfinite(tensor.float()).all():
            raise RecordError(
                f"{name} has NaN or infinite numbers in {key}, so its errors would mean nothing: "
                "take another checkpoint."
            )
    return weights, left_out


def match(outline: Weights, tensors: Weights, misfit: str, hint: str = "") -> Found:
    """The tensors under the net's own names, which `outline` has. A convolution's bias becomes part of the
    running mean of its BN, which is exact. RecordErrors name the first tensor that does not fit after the
    words `misfit`.
    """
    ours, theirs = _places(outline), _places(tensors)
    layers = set(theirs.values())
    left_out = [key for key in tensors if key.rpartition(".")[0] not in layers]
    for key in left_out:
        # What may be left out is of no layer, but of a metric, a loss or a normalisation beside the net.
        if BLOCK.search(key) or (PART.fullmatch(key) and not BESIDE.search(key)):
            raise RecordError(f"{misfit}: {key} is no part of it, and may not be left out.{hint}")
    weights: dict[str, Tensor] = {}
    place_of = {key: place for place, key in ours.items()}
    for name, wanted in outline.items():
        if name.endswith(COUNTER):
            continue
        key, _, part = name.rpartition(".")
        their_name = f"{theirs.get(place_of[key], key)}.{part}"
        value = tensors.get(their_name)
        if value is None:
            raise RecordError(f"{misfit}: it has no {their_name}.{hint}")
        if value.shape != wanted.shape:
            raise RecordError(
                f"{misfit}: its {their_name} has shape {tuple(value.shape)} "
                f"where {name} has {tuple(wanted.shape)}.{hint}"
            )
        weights[name] = value
    if len(theirs) != len(ours):
        raise RecordError(f"{misfit}: it has {len(theirs)} layers and BN instead of {len(ours)}.{hint}")
    for (block, within, kind, number), key in theirs.items():
        if kind == "convolution" and (bias := tensors.get(f"{key}.bias")) is not None:
            mean = f"{ours[block, within, 'norm', number]}.running_mean"
            weights[mean] = (weights[mean].double() - bias.double()).float()
    return weights, left_out


def _places(tensors: Weights) -> dict[Place, str]:
    """The convolutions, BN and linear layers (their names without the last part) by their places."""
    parts: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if found := PART.fullmatch(name):
            parts.setdefault(found[1], {})[found[2]] = tensor
    layers = []
    for key, module in parts.items():
        kind = {4: "convolution", 2: "linear"}.get(module["weight"].ndim if "weight" in module else 0)
        if {"running_mean", "running_var"} <= module.keys():
            kind = "norm"
        if kind:
            found = BLOCK.search(key)
            block = (int(found[1]), int(found[2])) if found else (-1, -1)
            inside = found[3] if found else key
            layers.append((block, bool(found and SHORTCUT.search(inside)), kind, inside, key))
    blocks = sorted({block for block, *_ in layers})
    return {
        (blocks.index(block), within, kind, number): key
        for (block, within, kind), alike in groupby(sorted(layers), lambda layer: layer[:3])
        for number, (*_, key) in enumerate(alike)
    }


def fill(spec: Spec, num_classes: int, weights: Weights) -> Net:
    """The net with weights known to fill it, so no file asks for more memory than it brings."""
    net = net_of(spec, num_classes)
    net.load_state_dict(weights, strict=False)
    return net


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
        with path.open("rb") as begun:
            what = sign_of(begun.read(HEAD)) or "is not a safetensors file, or is damaged"
        raise RecordError(f"{path} {what}.") from None
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
