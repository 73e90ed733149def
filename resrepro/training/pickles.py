"""What `torch.save` wrote, whoever it was: read by `torch.load(weights_only=True)`, nothing of it executed.

Tensors, plain values and what is in HARMLESS are built, and nothing else.
"""

import argparse
import datetime
import io
import pickle
import pickletools
import re
import shutil
import struct
import types
import warnings
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any

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
LONGEST_REPEATED = 1000  # bytes of a string; two in a file may stand for each
REASONS = {  # what else it says of files that are whole
    "TorchScript": "is a TorchScript archive: save `torch.jit.load(...).state_dict()` with torch.save",
    "Unsupported operand": "holds pickled objects that are no tensors: save the state dict alone",
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
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if "Unsupported operand" not in str(error):
                raise
            return torch.load(_in_protocol_2(path), map_location="cpu", weights_only=True)


def _in_protocol_2(path: Path) -> IO[bytes]:
    """The file with its pickles in the protocol that torch's weights-only reader knows; none is executed."""
    new = io.BytesIO()
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(new, "w") as archive:
            if any(info.compress_type for info in old.infolist()):
                raise ValueError("torch.save compresses nothing, and what does may need any memory")
            for name in old.namelist():
                content = old.read(name)
                is_pickle = name.endswith("/data.pkl")
                archive.writestr(name, _older_pickle(io.BytesIO(content)) if is_pickle else content)
    else:
        with path.open("rb") as file:
            for _ in range(5):  # magic number, version, machine, content, names of storages
                new.write(_older_pickle(file))
            shutil.copyfileobj(file, new)
    new.seek(0)
    return new


def _older_pickle(file: IO[bytes]) -> bytes:
    """The next pickle of a file in protocol 2. Strings are repeated, so globals find them."""
    out: list[bytes] = []
    texts: dict[int, str] = {}  # those among what the pickle remembers
    remembered, start = 0, file.tell()
    operations: list[tuple[str, Any, int]] = [
        (opcode.name, given, place or 0) for opcode, given, place in pickletools.genops(file)
    ]
    ends = [*(place for *_, place in operations[1:]), file.tell()]
    file.seek(start)
    for (name, given, place), end in zip(operations, ends, strict=True):
        as_it_is = file.read(end - place)
        if name == "MEMOIZE":
            if out[-1][:1] == pickle.BINUNICODE and len(out[-1]) < LONGEST_REPEATED:
                texts[remembered] = out[-1][5:].decode("utf-8", "surrogatepass")
            else:
                out.append(pickle.LONG_BINPUT + struct.pack("<I", remembered))
            remembered += 1
        elif name in ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"):
            out.append(_text(given))
        elif name in ("BINGET", "LONG_BINGET"):
            known = given in texts
            out.append(_text(texts[given]) if known else pickle.LONG_BINGET + struct.pack("<I", given))
        elif name == "STACK_GLOBAL":
            module, attribute = out[-2][5:], out[-1][5:]
            out[-2:] = [pickle.GLOBAL + module + b"\n" + attribute + b"\n"]
        elif name.endswith(("BINBYTES", "BINBYTES8", "BYTEARRAY8")):
            parts = _text(given.decode("latin1")) + _text("latin1")
            out.append(pickle.GLOBAL + b"_codecs\nencode\n" + parts + pickle.TUPLE2 + pickle.REDUCE)
        elif name == "PROTO":
            out.append(pickle.PROTO + b"\2")
        elif name != "FRAME":
            out.append(as_it_is)
    return b"".join(out)


def _text(text: str) -> bytes:
    content = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(content)) + content
