"""The state of a run as its checkpoint keeps it, and the way back to it.

A checkpoint holds all that the rest of the run depends on, and besides what the record says so far, so
that a record that was damaged or fell behind is brought back with it.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Protocol

import torch
from torch import Tensor

from resrepro.data.feeds import Feed
from resrepro.errors import RecordError
from resrepro.nets import Net
from resrepro.processes import rank, world_size
from resrepro.records.durable import json_bytes
from resrepro.records.recording import RunWriter
from resrepro.spec.specs import Spec
from resrepro.training.checkpoint import load_newest
from resrepro.training.engines import EAGER, ENGINES
from resrepro.training.metrics import Errors, ErrorSums
from resrepro.training.plateau import Plateau

TYPES: dict[str, type | tuple[type, ...]] = {
    "spec": dict, "data": dict, "mean": Tensor, "iteration": int, "sampled": int, "net": dict,
    "optimizer": dict, "scaler": dict, "shares": list, "warmup_switch": (int, NoneType),
    "plateau": (list, NoneType), "best": (dict, NoneType), "last": dict, "seconds": (int, float),
    "env": dict, "curve": str,
}  # fmt: skip
MOST_THREADS = 1024  # that anybody begins a run with
Shares = list[list[tuple[Tensor, int]]]  # of each process: its sums since the last sample, and since a look


class Resumable(Protocol):
    """What of a run its checkpoint keeps."""

    spec: Spec
    seed: int
    feed: Feed
    writer: RunWriter
    device: torch.device
    net: Net
    optimizer: torch.optim.SGD
    scaler: torch.amp.GradScaler
    since_sample: ErrorSums
    since_look: ErrorSums
    done: int
    sampled: int
    warmup_switch: int | None
    plateau: Plateau | None
    best: dict[str, Any] | None
    last: dict[str, Errors]
    seconds_before: float

    def seconds(self) -> float:
        """Wall time of all sessions."""


def state_of(run: Resumable, shares: Shares) -> dict[str, Any]:
    """The content of a checkpoint."""
    about = run.feed.about
    return {
        "digest": run.spec.digest,
        "spec": run.spec.to_json(),
        "num_classes": about.num_classes,
        "classes": None if about.classes is None else list(about.classes),
        "seed": run.seed,
        "data": dict(about.checksums),
        "mean": run.feed.normalisation.mean.cpu(),
        "iteration": run.done,
        "sampled": run.sampled,
        "net": run.net.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "scaler": run.scaler.state_dict(),
        "warmup_switch": run.warmup_switch,
        "plateau": None if run.plateau is None else run.plateau.state(),
        "shares": shares,
        "best": run.best,
        "last": {name: list(vars(errors).values()) for name, errors in run.last.items()},
        "seconds": run.seconds(),
        "env": run.writer.env,
        "curve": run.writer.curve.decode(),
    }


def find_state(folder: Path, spec: Spec, seed: int) -> tuple[dict[str, Any], str] | None:
    """The state that a run goes on from, and a notice if it is not the newest; None if it has none yet.

    Raises:
        RecordError: if it is damaged, or of another run.
    """
    found = load_newest(folder)
    if found is None:
        return None
    state, notice = found
    if (state.get("digest"), state.get("seed")) != (spec.digest, seed):
        raise RecordError(f"the checkpoint in {folder} is of another run: start anew with --fresh.")
    if "curve" not in state:
        raise RecordError(
            f"the checkpoint in {folder} is of an earlier version, which kept less: start anew with --fresh."
        )
    with telling_misfit(folder):
        state = {"scaler": {}} | state | {"env": {"engine": EAGER} | state["env"]}  # all there was before
        _check_types(state, spec.recipe.iterations)
    return state, notice


def _check_types(state: Mapping[str, Any], iterations: int) -> None:
    """Look at a state before anything is built on it (ValueError, KeyError)."""
    for key, kind in TYPES.items():
        if not isinstance(state[key], kind) or isinstance(state[key], bool):
            raise ValueError(key)
    if not 0 <= state["sampled"] <= state["iteration"] <= iterations:
        raise ValueError("iteration")
    if not 0 <= state["seconds"] < float("inf"):
        raise ValueError("seconds")
    env = state["env"]
    json_bytes(env)  # it is written down again
    if type(env["threads"]) is not int or not 1 <= env["threads"] <= MOST_THREADS:
        raise ValueError("threads")
    if not isinstance(env["device"], str) or not isinstance(env["versions"], dict):
        raise ValueError("env")
    if env["engine"] not in ENGINES:
        raise ValueError("engine")


def check_same_data(folder: Path, told: Mapping[str, str], here: Mapping[str, str]) -> None:
    """Refuse to go on with other images than a run began with.

    Raises:
        RecordError: if a checksum differs.
    """
    if dict(told) != dict(here):
        raise RecordError(
            f"{folder} was trained on other data (checksum differs): "
            "name the same data folder, or start anew with --fresh."
        )


def go_back(run: Resumable, state: Mapping[str, Any]) -> None:
    """Take up the state of a checkpoint.

    Raises:
        RecordError: if it does not fit the run.
    """
    with telling_misfit(run.writer.folder):
        run.net.load_state_dict(state["net"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scaler.load_state_dict(state["scaler"])
        _take_up(run, state["shares"])
        run.done, run.sampled = state["iteration"], state["sampled"]
        run.warmup_switch = state["warmup_switch"]
        if run.plateau is not None:
            run.plateau.drops, run.plateau.best, run.plateau.waited = state["plateau"]
        run.best = state["best"]
        run.last = {name: Errors(*values) for name, values in state["last"].items()}
        run.seconds_before = state["seconds"]


def _take_up(run: Resumable, shares: Shares) -> None:
    """Take this process's sums, or its part of them if the number of processes is another."""
    for share in shares[rank() :: world_size()]:
        for part, (sums, count) in zip((run.since_sample, run.since_look), share, strict=True):
            part.sums += sums.to(run.device)
            part.count += count


@contextlib.contextmanager
def telling_misfit(folder: Path) -> Iterator[None]:
    """Tell in a sentence that a checkpoint does not hold what it should.

    Raises:
        RecordError: then.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RecordError(
            f"the checkpoint in {folder} does not fit its run ({type(error).__name__}): "
            "start anew with --fresh."
        ) from None
