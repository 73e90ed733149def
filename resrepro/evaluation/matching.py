"""Whose tensor is which: sets of weights in other people's files, and their places in our nets.

Modules (tensors whose names differ in their last part) are matched by name where the file has all of ours,
else by order; then all that their names say of blocks, shortcuts and BN must agree with our net.
"""

import contextlib
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from resrepro.errors import RecordError, UsageError

UNUSED = "num_batches_tracked"  # BN's step counter: not a weight, absent from old checkpoints
PART = re.compile(  # the last part of a tensor's name
    r"(?:(?P<module>.*)[._])?(?:(?P<weight>weight|kernel|gamma|scale)|(?P<bias>bias|beta)|"
    r"(?P<running_mean>(?:running|moving)_mean)|(?P<running_var>(?:running|moving)_var(?:iance)?))$"
)
SHORTCUT = re.compile(r"downsample|shortcut|skip|conv_?proj", re.IGNORECASE)
KIND = re.compile(r"(conv(olution)?|batch_?norm(alization)?|bn|norm(alization)?)(2d)?", re.IGNORECASE)
BESIDE = re.compile(r"loss|criterion|metric|acc", re.IGNORECASE)  # of training: their weights are no layers'
DEEPEST = 8  # levels at which sets of weights are looked for

Fit = TypeVar("Fit")
Module = dict[str, tuple[str, Tensor]]  # names and tensors by the groups of PART


class Matched(NamedTuple):
    """Weights under the names of a net, "name" or "order" that told which is which, and what was left out."""

    weights: dict[str, Tensor]
    by: str
    left_out: list[str]


def sets_of(content: Any) -> dict[str, dict[str, Tensor]]:
    """All sets of tensors in a checkpoint by the keys that lead to them; "" at its top. What all names of a
    set begin with (`module.`) is left out.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensors in _dicts(content, (), set()):
        weights = {name: value for name, value in tensors.items() if not name.endswith(UNUSED)}
        while len({name.partition(".")[0] for name in weights}) == 1 and all("." in name for name in weights):
            weights = {name.partition(".")[2]: value for name, value in weights.items()}
        found[key] = weights
    return found


def _dicts(content: Any, path: tuple[str, ...], seen: set[int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if len(path) > DEEPEST or id(content) in seen or not isinstance(content, Mapping | list | tuple):
        return
    seen.add(id(content))
    items = content.items() if isinstance(content, Mapping) else enumerate(content)
    named = {str(key): value for key, value in items}
    if tensors := {key: value for key, value in named.items() if isinstance(value, Tensor)}:
        yield ".".join(path), tensors
    for key, value in named.items():
        yield from _dicts(value, (*path, key), seen)


def choose(
    content: Any, name: str, wanted: str | None, fit: Callable[[dict[str, Tensor]], Fit]
) -> tuple[str, Fit]:
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
        with contextlib.suppress(RecordError):
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


def _listed(keys: Iterable[str]) -> str:
    return ", ".join(key or "'' (the file's top)" for key in keys)


# --- one set on our net -----------------------------------------------------------------------------------


def match(
    outline: Mapping[str, Tensor], tensors: Mapping[str, Tensor], misfit: str, hint: str = ""
) -> Matched:
    """The tensors under the net's own names, which `outline` has. A convolution's bias becomes part of the
    running mean of its BN, which is exact. RecordErrors name the first tensor that does not fit, or both
    orders, after the words `misfit`.
    """
    ours, _ = _modules({key: value for key, value in outline.items() if not key.endswith(UNUSED)})
    theirs, others = _modules(tensors)
    for key in others:
        # What may be left out is of no layer, but of a metric, a loss or a normalisation beside the net.
        top = key.partition(".")[0]
        inside = "." in key and any(layer == top or layer.startswith(f"{top}.") for layer in theirs)
        if inside or (PART.fullmatch(key) and not BESIDE.search(top)):
            raise RecordError(f"{misfit}: {key} is no part of it, and may not be left out.{hint}")
    by_name = ours.keys() <= theirs.keys()
    pairs = list(zip(ours, ours if by_name else _in_order(theirs), strict=False))
    weights: dict[str, Tensor] = {}
    for place, (our_key, their_key) in enumerate(pairs):
        if _kind(ours[our_key]) != _kind(theirs[their_key]):
            raise _contradiction(misfit, pairs, place, hint)
        for part, (name, wanted) in ours[our_key].items():
            their_name, value = theirs[their_key].get(part, (f"{their_key}.{part}", None))
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
    wrong = None if by_name else _wrong_place(pairs)
    if wrong is not None:
        raise _contradiction(misfit, pairs, wrong, hint)
    for (_, convolution), (norm, _) in pairwise(pairs):
        module, mean = theirs[convolution], f"{norm}.running_mean"
        if _kind(module) == "convolution" and "bias" in module and mean in weights:
            weights[mean] = (weights[mean].double() - module["bias"][1].double()).float()
    return Matched(weights, "name" if by_name else "order", others)


def _modules(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Module], list[str]]:
    """The convolutions, BN and linear layers, in the file's order, and the names of all other tensors."""
    groups: dict[str, Module] = {}
    for name, tensor in tensors.items():
        found = PART.fullmatch(name)
        part = found.lastgroup if found else ""
        groups.setdefault(found["module"] or "" if found else name, {})[part or ""] = (name, tensor)
    layers = {key: module for key, module in groups.items() if _kind(module) != "other"}
    rest = [module for key, module in groups.items() if key not in layers]
    return layers, [name for module in rest for name, _ in module.values()]


def _kind(module: Module) -> str:
    if {"running_mean", "running_var"} <= module.keys():
        return "norm"
    dimensions = module["weight"][1].ndim if "weight" in module else 0
    return {4: "convolution", 2: "linear"}.get(dimensions, "other")


def _in_order(modules: Mapping[str, Module]) -> list[str]:
    """Modules in the order of our nets: each shortcut at the end of its block, the classifier at the end. An
    alphabetical file (as `.safetensors` are: each bias before its weight) gets that of the numbers in its
    names.
    """
    names = [[name for name, _ in module.values()] for module in modules.values()]
    keys = [key for key in modules if _kind(modules[key]) != "linear"]
    if all(each == sorted(each) for each in names):
        weights = {key: module["weight"][1] for key, module in modules.items() if "weight" in module}
        stem = next((_steps(key) for key, weight in weights.items() if weight.shape[1:2] == (3,)), ())
        keys.sort(key=lambda key: (_steps(key) != stem, _steps(key), _kind(modules[key])))
    for key in [key for key in keys if SHORTCUT.search(key)]:
        block = re.split(rf"[^.]*(?:{SHORTCUT.pattern})", key, flags=re.IGNORECASE)[0]
        if block:
            keys.remove(key)
            places = [place for place, other in enumerate(keys) if other.startswith(block)]
            keys.insert(max(places, default=-1) + 1, key)
    return keys + [key for key in modules if key not in keys]


def _steps(key: str) -> tuple[Any, ...]:
    """A module's name as it is sorted: numbers as numbers, BN as the convolution of its name."""
    steps = []
    for step in key.split("."):
        parts = re.findall(r"\d+|[^\W\d]+", KIND.sub("", step))
        if parts:
            steps.append((SHORTCUT.search(step) is not None, [(not p.isdigit(), p.zfill(9)) for p in parts]))
    return tuple(steps)


def _wrong_place(pairs: Sequence[tuple[str, str]]) -> int | None:
    """Where the names of two orders of modules contradict each other first, if they do."""
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    named = any(SHORTCUT.search(key) for key in theirs)
    blocks = [span for key, span in _spans(ours, r"\.").items() if key != "stages"]
    wrong = [
        max(start, low)
        for start, end in _spans(theirs, r"[._]").values()
        for low, high in blocks
        if start < low <= end < high or low < start <= high < end
    ]
    for place, (our_key, their_key) in enumerate(pairs):
        if named and ("shortcut" in our_key) != bool(SHORTCUT.search(their_key)):
            wrong.append(place)
        if "bn" in our_key and not _alike(theirs[place - 1], their_key):
            wrong.append(place)
    return min(wrong, default=None)


def _spans(keys: Sequence[str], separator: str) -> dict[str, tuple[int, int]]:
    """The first and last place of what has a common beginning, where nothing else is in between."""
    places: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        for cut in re.finditer(separator, key):
            places.setdefault(key[: cut.start()], []).append(place)
    return {key: (at[0], at[-1]) for key, at in places.items() if at[-1] - at[0] + 1 == len(at)}


def _alike(convolution: str, norm: str) -> bool:
    """Whether the numbers in two last parts of names agree as far as both have some (`conv1_3x3`, `bn1`)."""
    steps = [key.rpartition(".")[2] for key in (convolution, norm)]
    numbers = [re.findall(r"\d+", KIND.sub("", step)) for step in steps]
    return any(step.isdigit() for step in steps) or all(a == b for a, b in zip(*numbers, strict=False))


def _contradiction(misfit: str, pairs: Sequence[tuple[str, str]], place: int, hint: str) -> RecordError:
    ours, theirs = zip(*pairs[max(0, place - 1) : place + 3], strict=True)
    return RecordError(
        f"{misfit}: its layers are {', '.join(theirs)} where those of the net are {', '.join(ours)}, "
        f"so it is another net, or which tensor is which is not known.{hint}"
    )
