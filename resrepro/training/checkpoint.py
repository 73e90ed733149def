"""Checkpoints: what a run keeps of itself, written with a checksum, read as weights only.

A checkpoint is a file of `torch.save` with a line behind it, the SHA-256 of all that comes before. Of files
of strangers `torch.load(weights_only=True)` builds tensors, plain values and numpy scalars alone. Of a run
it holds all that the rest depends on, and the record so far, which is restored with it where it was damaged.
"""

import hashlib
import itertools
import os
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from resrepro.errors import RecordError, UsageError
from resrepro.records.reading import CHECKPOINT, FORMAT, PREVIOUS, RESULT
from resrepro.records.storage import json_bytes, not_written, replacing
from resrepro.spec import Spec
from resrepro.training.engine import EAGER, ENGINES, choose_device
from resrepro.training.measure import Errors
from resrepro.training.processes import rank, world_size

if TYPE_CHECKING:
    from resrepro.training.loop import Trainer

# Other people's checkpoints keep numpy scalars ("best_acc") beside the weights.
NUMPY_SCALARS = [
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]
LARGEST_FILE = 4 * 2**30  # bytes; a ResNet-152 with all that Adam keeps of it has 0.72 GB
MARK = b"\nsha256 "
TRAILER_BYTES = len(MARK) + 64 + 1  # the mark, the checksum in hex, the end of the line
DAMAGED = "checkpoint.damaged.pt"  # where a damaged one is moved, so that no other takes its place

# How torch's weights-only reader words its refusal of a pickled object.
REFUSALS = (
    "GLOBAL ", "Unsupported class", "Trying to call reduce", "Trying to instantiate", "Can only build",
)  # fmt: skip
TYPES: dict[str, type | tuple[type, ...]] = {
    "spec": dict, "data": dict, "mean": Tensor, "iteration": int, "sampled": int, "net": dict,
    "optimizer": dict, "scaler": dict, "shares": list, "warmup_switch": (int, NoneType),
    "plateau": (list, NoneType), "best": (dict, NoneType), "last": dict, "seconds": (int, float),
    "env": dict, "curve": str,
}  # of what a run's own checkpoint holds  # fmt: skip
MOST_THREADS = 1024  # that anybody begins a run with
Shares = list[list[tuple[Tensor, int]]]  # of each process: its sums since the last sample, and since a look


class Damaged(RecordError):
    """A checkpoint that is not what `save_checkpoint` once wrote."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint with its checksum beside its place, then move it there; keep the one before.

    Raises:
        RecordError: if it cannot be written; the newest that was there is then untouched.
    """
    before = path.with_name(PREVIOUS) if path.name == CHECKPOINT else None
    try:
        with replacing(path, keep=before) as sink:
            torch.save({"format": FORMAT, **state}, sink)  # type: ignore[arg-type]
            sink.write(MARK + sink.sha256().encode() + b"\n")
    except RuntimeError as error:
        raise RecordError(f"cannot write the checkpoint {path}: {str(error).splitlines()[0]}") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; of ours the checksum is verified first.

    Raises:
        RecordError: if the file is missing, no checkpoint, too large, damaged, or holds pickled objects
            other than tensors, plain values and numpy scalars.
    """
    try:
        sealed = _verify(path)  # first: of a damaged file of ours that is what should be said
        content = _read(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from None
    except MemoryError:
        raise RecordError(f"this machine's memory does not hold {path}.") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path} holds no state dict but a {type(content).__name__}.")
    if content.get("format") == FORMAT and not sealed:
        raise Damaged(f"{path} is damaged: its checksum is missing.")
    content.pop("format", None)
    return content


def load_newest(folder: Path) -> tuple[dict[str, Any], str] | None:
    """The newest checkpoint of a run that is whole, and a notice if it is not the newest; None without any.

    A damaged newest one is moved aside.

    Raises:
        RecordError: if there are some, and none is whole.
    """
    newest, before = folder / CHECKPOINT, folder / PREVIOUS
    if not newest.exists():
        notice = f"{newest} is missing; the checkpoint before it is whole."
        return (load_checkpoint(before), notice) if before.exists() else None
    try:
        return load_checkpoint(newest), ""
    except Damaged as trouble:
        try:
            content = load_checkpoint(before)
        except RecordError:
            raise RecordError(
                f"{str(trouble).rstrip('.')}, and there is no whole one before it: start anew with --fresh."
            ) from None
    aside = _free(folder / DAMAGED)
    try:
        newest.replace(aside)
    except OSError as error:  # left there, the next one would push the whole one out
        raise not_written(aside, error) from None
    return content, f"{newest} is damaged and was moved to {aside.name}; the checkpoint before it is whole."


def _free(path: Path) -> Path:
    """The path, or one like it that is not taken."""
    others = (path.with_name(f"{path.stem}{number}{path.suffix}") for number in itertools.count(2))
    return next(place for place in itertools.chain([path], others) if not place.exists())


def _verify(path: Path) -> bool:
    """Whether the file ends with a checksum, which then matches; reads it once."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size > LARGEST_FILE:
            raise Damaged(f"{path} has {size:,} bytes, more than the {LARGEST_FILE:,} that are read.")
        file.seek(max(0, size - TRAILER_BYTES))
        trailer = file.read()
        if not trailer.startswith(MARK) or not trailer.endswith(b"\n"):
            return False
        file.seek(0)
        digest, rest = hashlib.sha256(), size - TRAILER_BYTES
        while rest and (piece := file.read(min(rest, 2**20))):
            digest.update(piece)
            rest -= len(piece)
    if digest.hexdigest().encode() != trailer[len(MARK) : -1]:
        raise Damaged(f"{path} is damaged: its checksum does not match its content.")
    return True


def _read(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols and TorchScript archives
            return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # on bytes that are damaged PyTorch raises whatever comes of them
        if isinstance(error, pickle.UnpicklingError) and any(sign in str(error) for sign in REFUSALS):
            raise Damaged(
                f"{path} holds a pickled object that is no tensor, so it is not opened: "
                "save the state dict alone (`torch.save(net.state_dict(), ...)`)."
            ) from None
        raise Damaged(f"{path} is not a PyTorch checkpoint, or is damaged.") from None


def _missing(path: Path) -> RecordError:
    seeds = sorted(folder.name for folder in path.parent.glob("seed*") if folder.is_dir())
    hint = f" Name a seed's own folder, such as {path.parent / seeds[0]}." if seeds else ""
    if path.with_name(RESULT).exists():
        hint = " Records that were published have none: name the folder of the run itself."
    return RecordError(f"there is no checkpoint {path}.{hint}")


# --- what a run keeps of itself ------------------------------------------------------------------------


def state_of(run: "Trainer", shares: Shares) -> dict[str, Any]:
    """The content of a checkpoint."""
    about = run.feed.about
    return {
        "digest": run.spec.digest, "spec": run.spec.to_json(), "num_classes": about.num_classes,
        "classes": None if about.classes is None else list(about.classes), "seed": run.seed,
        "data": dict(about.checksums), "mean": run.feed.normalisation.mean.cpu(),
        "iteration": run.done, "sampled": run.sampled, "net": run.net.state_dict(),
        "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
        "warmup_switch": run.warmup_switch, "plateau": None if run.plateau is None else run.plateau.state(),
        "shares": shares, "best": run.best,
        "last": {name: list(vars(errors).values()) for name, errors in run.last.items()},
        "seconds": run.seconds(), "env": run.writer.env, "curve": run.writer.curve.decode(),
    }  # fmt: skip


def load_state(folder: Path, spec: Spec, seed: int) -> tuple[dict[str, Any] | None, str]:
    """The state that a run goes on from (None if it has none yet), and a notice if it is not the newest.

    Raises:
        RecordError: if it is damaged, or of another run.
    """
    state, notice = load_newest(folder) or (None, "")
    if state is None:
        return None, ""
    if (state.get("digest"), state.get("seed")) != (spec.digest, seed):
        raise RecordError(f"the checkpoint in {folder} is of another run: start anew with --fresh.")
    if "curve" not in state:
        raise RecordError(
            f"the checkpoint in {folder} is of an earlier version, which kept less: start anew with --fresh."
        )
    with _telling_misfit(folder):
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


def restore(run: "Trainer", state: Mapping[str, Any]) -> None:
    """Take up the state of a checkpoint.

    Raises:
        RecordError: if it does not fit the run.
    """
    with _telling_misfit(run.writer.folder):
        run.net.load_state_dict(state["net"])
        run.optimizer.load_state_dict(state["optimizer"])
        run.scaler.load_state_dict(state["scaler"])
        for share in state["shares"][rank() :: world_size()]:  # this process's, or its part of others'
            for part, (sums, count) in zip((run.since_sample, run.since_look), share, strict=True):
                part.sums += sums.to(run.device)
                part.count += count
        run.done, run.sampled = state["iteration"], state["sampled"]
        run.warmup_switch = state["warmup_switch"]
        if run.plateau is not None:
            run.plateau.drops, run.plateau.best, run.plateau.waited = state["plateau"]
        run.best = state["best"]
        run.last = {name: Errors(*values) for name, values in state["last"].items()}
        run.seconds_before = state["seconds"]


@contextmanager
def _telling_misfit(folder: Path) -> Iterator[None]:
    """Tell in a sentence that a checkpoint does not hold what it should."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise RecordError(
            f"the checkpoint in {folder} does not fit its run ({type(error).__name__}): "
            "start anew with --fresh."
        ) from None


# --- what holds from a run's first start on --------------------------------------------------------------

# Sums are rounded differently by other devices and other numbers of threads: a run that goes on repeats them.
ROUNDING = {  # entries of env.json that change the rounding where they differ, and that nobody can repeat
    "cpu": "CPU", "gpu": "GPU", "processes": "number of processes", "micro_batch": "images per pass",
    "kernels": "compiled kernels",
}  # fmt: skip


def frozen_device(name: str, requested: torch.device, env: Mapping[str, Any] | None) -> torch.device:
    """The device that a run goes on on: the kind it began on. `requested` is what `name` stands for here.

    Raises:
        UsageError: if it is not there, or another one was asked for.
    """
    kind = requested.type if env is None else env["device"]
    if requested.type == kind:
        return requested
    if name == "auto" and world_size() == 1:
        return choose_device(kind)
    raise UsageError(
        f"this run was begun on {kind}, and {requested.type} would round differently: say --device {kind}, "
        "or start anew with --fresh."
    )


def frozen_threads(threads: int | None, device: torch.device, env: Mapping[str, Any] | None) -> int | None:
    """The CPU threads that a run goes on with: as many as it began with.

    Raises:
        UsageError: if another number was asked for.
    """
    if env is None or device.type != "cpu":
        return threads
    begun = int(env["threads"])
    if threads not in (None, begun):
        count = f"{begun} thread{'s' * (begun != 1)}"
        raise UsageError(
            f"this run was begun with {count}, and {threads} would round differently: say --threads {begun}, "
            "or start anew with --fresh."
        )
    return begun


def differences(env: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine differs from the first start and may change the rounding, in words."""
    pairs = {words: (env.get(key), now.get(key)) for key, words in ROUNDING.items()}
    pairs["torch"] = (env.get("versions", {}).get("torch"), now.get("versions", {}).get("torch"))
    return [
        f"{words} ({before} at the start, now {here})"
        for words, (before, here) in pairs.items()
        if before != here
    ]
