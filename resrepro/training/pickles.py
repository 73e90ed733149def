"""What `torch.save` wrote, whoever it was: read by `torch.load(weights_only=True)`, nothing of it executed.

Tensors, plain values and what is in HARMLESS are built, and nothing else.
"""

import argparse
import datetime
import pickle
import re
import types
import warnings
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from resrepro.errors import RecordError


class Damaged(RecordError):
    """A checkpoint that is not what once was written."""


def _plain_dict(*_: Any, **__: Any) -> dict[Any, Any]:
    """In a defaultdict's place, which torch's reader builds but does not fill."""
    return {}


NUMPY_FUNCTIONS = (("multiarray", "scalar"), ("multiarray", "_reconstruct"), ("numeric", "_frombuffer"))
# What other people keep beside the weights (options, "best_acc", paths), under the names in their files; none
# of it does more than hold values.
HARMLESS: list[Any] = [
    argparse.Namespace, types.SimpleNamespace, (_plain_dict, "collections.defaultdict"), list, dict,
    tuple, frozenset, str, int, float, bool, datetime.datetime, datetime.date, datetime.timedelta,
    np.ndarray, np.dtype,
    *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdUSMO"},
    *(
        (getattr(getattr(np._core, module), name), f"numpy.{core}.{module}.{name}")  # type: ignore[attr-defined]
        for module, name in NUMPY_FUNCTIONS
        for core in ("_core", "core")
    ),
    *(
        (pure, f"{module}.{name}")
        for module in ("pathlib", "pathlib._local")
        for pure, names in (
            (PurePosixPath, ("Path", "PosixPath", "PurePosixPath")),
            (PureWindowsPath, ("WindowsPath", "PureWindowsPath")),
        )
        for name in names
    ),
]  # fmt: skip
# How torch's weights-only reader words its refusal of a pickled object.
REFUSALS = (
    "GLOBAL ", "Unsupported class", "Trying to call reduce", "Trying to instantiate", "Can only build",
)  # fmt: skip
REASONS = {  # what else it says of files that are whole
    "TorchScript": "is a TorchScript archive: save `torch.jit.load(...).state_dict()` with torch.save",
    "Unsupported operand 149": "is written in a pickle protocol that PyTorch's safe reader does not know: "
    "save it anew by `torch.save` without `pickle_protocol`",
}
HEAD = 64  # bytes of a file that tell what it is
SIGNS = (  # how files begin that are often taken for checkpoints, and what to do about them
    (rb"$", "is empty: download or copy it again"),
    (
        rb"version https://git-lfs",
        "is a pointer of Git LFS, not the file it stands for: fetch that, `git lfs pull`",
    ),
    (rb"(\xef\xbb\xbf)?\s*<", "is a web page (HTML or XML), not the file it tells of: download that itself"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ", "is compressed: unpack it, and name the file within"),
    (rb"\x89HDF", "is an HDF5 file, of Keras or the like: save its weights from PyTorch, or as .safetensors"),
)


def read_pickled(path: Path) -> Any:
    """What a file of `torch.save` holds, on the CPU.

    Raises:
        Damaged: if it is no such file, damaged, or holds objects of other kinds.
        OSError: if it cannot be read.
    """
    try:
        return _load(path)
    except MemoryError:
        raise
    except Exception as error:  # on bytes that are damaged PyTorch raises whatever comes of them
        if isinstance(error, pickle.UnpicklingError) and any(sign in str(error) for sign in REFUSALS):
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            which = f" ({named[1]})" if named else ""
            raise Damaged(
                f"{path} holds a pickled object that is no tensor{which}, so it is not opened: "
                "save the state dict alone (`torch.save(net.state_dict(), ...)`)."
            ) from None
        with path.open("rb") as file:
            what = sign_of(file.read(HEAD))
        what = what or next((words for sign, words in REASONS.items() if sign in str(error)), None)
        raise Damaged(f"{path} {what or 'is not a PyTorch checkpoint, or is damaged'}.") from None


def sign_of(head: bytes) -> str | None:
    """What a file is that begins so, with a way out, if it is often taken for a checkpoint."""
    return next((words for sign, words in SIGNS if re.match(sign, head)), None)


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd pickle protocols and TorchScript archives
        return torch.load(path, map_location="cpu", weights_only=True)
