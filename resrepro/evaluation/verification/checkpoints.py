"""Whether a checkpoint is whole, its net fits and is finite, and it belongs to the run that it lies in."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from resrepro.errors import RecordError
from resrepro.nets import net_of
from resrepro.records import MALFORMED
from resrepro.spec import catalogue
from resrepro.spec.specs import digest_of, recipe_from_json
from resrepro.training.checkpoint import MARK, TRAILER_BYTES, Damaged, load_checkpoint

MEASURED_BY = {"digest": str, "spec": dict, "num_classes": int, "seed": int, "iteration": int, "mean": Tensor}
TRAINED_BY = {"optimizer": dict, "shares": list, "data": dict, "env": dict, "curve": str}
TOLD = ("digest", "spec", "seed", "iteration", "data", "env", "curve")
BESIDES = ("sampled", "warmup_switch", "plateau", "best", "last", "seconds")  # of whichever type
UNFIT = (*MALFORMED, RuntimeError, MemoryError)  # what tensors and nets that do not fit raise
NAMED = 2  # tensors that a sentence names


@dataclass(frozen=True)
class Checkpoint:
    """One of the checkpoints of a run.

    Attributes:
        told: what it says of its run, without the tensors; empty if it cannot be read.
        trouble: a sentence on what is wrong with it, empty if nothing is.
        damaged: whether `train` sees that and takes the one before by itself.
        sealed: whether it has a checksum.
        finite: whether net and momenta are.
        measures: whether `eval` can use it.
        trains: whether `train` can go on from it.
    """

    name: str
    there: bool = True
    told: Mapping[str, Any] | None = None
    trouble: str = ""
    damaged: bool = False
    sealed: bool = False
    finite: bool = True
    measures: bool = False
    trains: bool = False

    @property
    def iteration(self) -> int:
        """Updates made, 0 if unknown."""
        return int(self.told["iteration"]) if self.told else 0

    def unfit(self, trouble: str) -> "Checkpoint":
        """The same, of no use for the reason given."""
        return replace(self, trouble=trouble, measures=False, trains=False)


def look_at_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint whole, by itself; nothing is moved or changed."""
    if not path.exists() and not path.is_symlink():
        return Checkpoint(path.name, there=False)
    try:
        state = load_checkpoint(path)
    except RecordError as error:
        return Checkpoint(path.name, trouble=str(error), damaged=isinstance(error, Damaged))
    try:
        return _judge(Checkpoint(path.name, sealed=_is_sealed(path)), state)
    except UNFIT as error:
        return Checkpoint(path.name, trouble=f"{path} does not fit its own net ({type(error).__name__}).")


def _is_sealed(path: Path) -> bool:
    """Whether a file ends as one with a checksum does."""
    with path.open("rb") as file:
        file.seek(-TRAILER_BYTES, os.SEEK_END)
        return file.read().startswith(MARK)


def _judge(found: Checkpoint, state: Mapping[str, Any]) -> Checkpoint:
    """A checkpoint that was read, judged by what it holds."""
    lacking = [key for key, kind in MEASURED_BY.items() if not isinstance(state.get(key), kind)]
    if lacking or not isinstance(state.get("net"), Mapping):
        listed = ", ".join(lacking) or "net"
        return found.unfit(f"{found.name} is not a checkpoint of a run: it does not hold {listed}.")
    found = replace(found, told={key: state.get(key) for key in TOLD})
    if digest_of(state["spec"]) != state["digest"]:
        return found.unfit(f"{found.name} is broken: its digest does not match its specification.")
    if not _is_known(state["spec"]):
        return found.unfit(f"{found.name} is of a specification that this version cannot make.")
    end = state["spec"]["recipe"]["iterations"]
    if not 0 <= state["iteration"] <= end:
        return found.unfit(f"{found.name} is broken: iteration {state['iteration']} of {end:,} is none.")
    if not _holds_its_net(state):
        return found.unfit(f"{found.name} is broken: its weights are not those of its net.")
    complete = all(isinstance(state.get(key), kind) for key, kind in TRAINED_BY.items())
    trains = complete and all(key in state for key in BESIDES)
    if found.sealed and not trains:  # those of format 1 lacked some
        return replace(
            found, measures=True, trouble=f"{found.name} is broken: it is no whole state of a run."
        )
    return _judge_numbers(replace(found, measures=True, trains=trains), state)


def _judge_numbers(found: Checkpoint, state: Mapping[str, Any]) -> Checkpoint:
    weights = list(_not_finite(state["net"]))
    momenta = list(_not_finite(state.get("optimizer", {}).get("state", {}), "momentum of parameter "))
    if not weights and not momenta:
        return found
    first, more = ", ".join([*weights, *momenta][:NAMED]), len(weights) + len(momenta) - NAMED
    listed = f"{first} and {more} more" if more > 0 else first
    sentence = f"{found.name} holds numbers that are not finite ({listed}): the net has diverged."
    return replace(found, trouble=sentence, finite=False, trains=False, measures=not weights)


def _not_finite(tensors: object, name: str = "") -> Iterator[str]:
    """The names of the tensors, however nested, that hold a NaN or an infinity."""
    if isinstance(tensors, Tensor):
        if not bool(torch.isfinite(tensors).all()):
            yield name.removesuffix(".momentum_buffer")
    elif isinstance(tensors, Mapping):
        for key, value in tensors.items():
            yield from _not_finite(
                value, f"{name}.{key}" if name and not name.endswith(" ") else f"{name}{key}"
            )


def _is_known(spec: Mapping[str, Any]) -> bool:
    """Whether this version makes just such a specification."""
    try:
        recipe, experiment = recipe_from_json(spec["recipe"]), catalogue.find(spec["experiment"])
        return catalogue.derive(experiment, spec["shortcut"], **vars(recipe)).to_json() == spec
    except MALFORMED:
        return False


def _holds_its_net(state: Mapping[str, Any]) -> bool:
    """Whether the weights have the names and shapes of the net that the checkpoint claims to hold."""
    spec, classes = state["spec"], state["num_classes"]
    shapes = {name: tensor.shape for name, tensor in state["net"].items()}
    # A net has a tensor per layer and a row per class: what claims more is not built to be compared.
    if spec["depth"] > len(shapes) or not any(classes == shape[0] for shape in shapes.values() if shape):
        return False
    shape = (spec["dataset"], spec["depth"], spec["plain"], spec["shortcut"], classes)
    net = net_of(recipe_from_json(spec["recipe"]), *shape, torch.Generator())
    return shapes == {name: tensor.shape for name, tensor in net.state_dict().items()}


def is_of(found: Checkpoint, spec: Mapping[str, Any] | None) -> bool:
    """Whether a checkpoint is of the run whose spec.json this is, as far as either can be read.

    A spec.json that contradicts itself tells of no run.
    """
    if found.told is None or spec is None or spec.get("digest") != digest_of(spec.get("spec", {})):
        return True
    return (spec["digest"], spec.get("seed")) == (found.told["digest"], found.told["seed"])


def same_data(found: Checkpoint, env: Mapping[str, Any] | None) -> bool:
    """Whether env.json tells of the data that a checkpoint was trained on, as far as either can be read."""
    trained_on = (found.told or {}).get("data")
    told = None if env is None else env.get("data")
    if not isinstance(trained_on, Mapping) or not isinstance(told, Mapping):
        return True
    return told.get("sha256") == trained_on


def strays(found: Checkpoint, rows: bytes | None) -> bool:
    """Whether the curve in a checkpoint and the rows of metrics.csv are not the one the other's beginning."""
    curve = (found.told or {}).get("curve")
    if rows is None or not isinstance(curve, str):
        return False
    begun = curve.encode()
    return not rows.startswith(begun) and not begun.startswith(rows)
