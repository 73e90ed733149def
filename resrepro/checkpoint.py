"""Checkpoints: written atomically, read as weights only, never as pickled code."""

import contextlib
import os
import pickle
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resrepro.errors import RecordError

# Other people's checkpoints keep numpy scalars ("best_acc") beside the weights.
NUMPY_SCALARS = [
    np._core.multiarray.scalar,  # type: ignore[attr-defined]
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefd"},
]
MAGIC = (b"PK", b"\x80")  # a zip archive, or a pickle of the years before it

# How torch's weights-only reader words its refusal of a pickled object, and what it raises on bytes
# that are damaged.
REFUSALS = (
    "GLOBAL ",
    "Unsupported class",
    "Trying to call reduce",
    "Trying to instantiate",
    "Can only build",
)
DAMAGE = (
    RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError,
    OverflowError, MemoryError, struct.error, zipfile.BadZipFile,
)  # fmt: skip


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, force it to disk, then move it there in one step.

    Raises:
        RecordError: if it cannot be written; the previous checkpoint is then untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except (OSError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise RecordError(f"cannot write the checkpoint {path}: {error}.") from None


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        RecordError: if the file is missing, no checkpoint, damaged, or holds pickled objects other
            than tensors, plain values and numpy scalars.
    """
    damaged = RecordError(f"{path} is not a PyTorch checkpoint, or is damaged.")
    try:
        with path.open("rb") as file:
            if not file.read(4).startswith(MAGIC):
                raise damaged
        with torch.serialization.safe_globals(NUMPY_SCALARS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols and TorchScript archives
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        seeds = sorted(folder.name for folder in path.parent.glob("seed*") if folder.is_dir())
        hint = f" Name a seed's own folder, such as {path.parent / seeds[0]}." if seeds else ""
        raise RecordError(f"there is no checkpoint {path}.{hint}") from None
    except pickle.UnpicklingError as error:
        if any(sign in str(error) for sign in REFUSALS):
            raise RecordError(
                f"{path} holds a pickled object that is no tensor, so it is not opened: "
                "save the state dict alone (`torch.save(net.state_dict(), ...)`)."
            ) from None
        raise damaged from None
    except DAMAGE:
        raise damaged from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path} holds no state dict but a {type(content).__name__}.")
    return content
