"""Checkpoints: written atomically with a checksum, the one before kept, read as weights only.

A checkpoint is a file of `torch.save` with a line behind it, the SHA-256 of all that comes before. Of files
of strangers `torch.load(weights_only=True)` builds tensors, plain values and numpy scalars alone.
"""

import hashlib
import itertools
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resrepro.errors import RecordError
from resrepro.records import disk
from resrepro.records.durable import not_written, replacing
from resrepro.records.files import NotPlain, open_plain
from resrepro.records.record_files import CHECKPOINT, FORMAT, PREVIOUS, RESULT

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
    "GLOBAL ",
    "Unsupported class",
    "Trying to call reduce",
    "Trying to instantiate",
    "Can only build",
)


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
    except NotPlain:
        raise RecordError(f"{path} is a pipe or device, not a file: name a checkpoint.") from None
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
        told = f"{newest} is missing; the checkpoint before it is whole."
        return (load_checkpoint(before), told) if before.exists() else None
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
        disk.move(newest, aside)
    except OSError as error:  # left there, the next one would push the whole one out
        raise not_written(aside, error) from None
    return content, f"{newest} is damaged and was moved to {aside.name}; the checkpoint before it is whole."


def _free(path: Path) -> Path:
    """The path, or one like it that is not taken."""
    others = (path.with_name(f"{path.stem}{number}{path.suffix}") for number in itertools.count(2))
    return next(each for each in itertools.chain([path], others) if not each.exists())


def _verify(path: Path) -> bool:
    """Whether the file ends with a checksum, which then matches; reads it once.

    Raises:
        Damaged: if it does not match, or the file is larger than any checkpoint of a net.
    """
    with open_plain(path) as file:
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
