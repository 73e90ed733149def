"""Checkpoints: all that the rest of a run depends on, and the record so far, which is restored with it.

A checkpoint is a file of `torch.save` with a line behind it, the SHA-256 of all that comes before. Of it, and
of the files of others, nothing is executed: tensors, plain values and what is in HARMLESS are built.
"""

import argparse
import datetime
import hashlib
import io
import re
import types
import warnings
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from resrepro.errors import RecordError
from resrepro.records.reading import CHECKPOINT, FORMAT, PREVIOUS, RESULT
from resrepro.records.storage import write_whole
from resrepro.training import rank, world_size
from resrepro.training.measure import Errors

if TYPE_CHECKING:
    from resrepro.training.loop import Trainer

LARGEST_FILE = 4 * 2**30  # bytes; a ResNet-152 with all that Adam keeps of it has 0.72 GB
MARK = b"\nsha256 "
TRAILER_BYTES = len(MARK) + 64 + 1  # the mark, the checksum in hex, the end of the line
DAMAGED = "checkpoint.damaged.pt"  # where a damaged one is moved

OF_NUMPY = {"scalar": "multiarray", "_reconstruct": "multiarray", "_frombuffer": "numeric"}
PATHS = [f"{kind}Path" for kind in ("", "Posix", "PurePosix", "Windows", "PureWindows")]
# What other people keep beside the weights (options, "best_acc", paths), under the names in their files; none
# of it does more than hold values.
HARMLESS: list[Any] = [
    argparse.Namespace, types.SimpleNamespace, list, dict, tuple, frozenset, str, int, float, bool,
    datetime.datetime, datetime.date, datetime.timedelta,
    (lambda *_: {}, "collections.defaultdict"),  # which torch's reader builds but does not fill
    np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in "?bBhHiIlLqQefdUSMO"},
    *((getattr(getattr(np._core, module), name), f"numpy.{core}.{module}.{name}")  # type: ignore[attr-defined]
      for name, module in OF_NUMPY.items() for core in ("_core", "core")),
    *((PureWindowsPath if "Windows" in name else PurePosixPath, f"{module}.{name}")
      for module in ("pathlib", "pathlib._local") for name in PATHS),
]  # fmt: skip
# How torch's weights-only reader words its refusal of a pickled object.
REFUSAL = r"GLOBAL ([\w.]+)|Unsupported class|Trying to (call reduce|instantiate)|Can only build"
HEAD = 64  # bytes of a file that tell what it is
SIGNS = (  # how files begin that are often taken for checkpoints, and what to do about them
    (rb"$", "is empty: download or copy it again"),
    (rb"version https", "is a pointer of Git LFS, not the file it stands for: fetch that, `git lfs pull`"),
    (rb"(\xef\xbb\xbf)?\s*<", "is a web page (HTML or XML), not the file it tells of: download that itself"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ", "is compressed: unpack it, and name the file within"),
)

Shares = list[list[tuple[Tensor, int]]]  # of each process: its sums since the last sample, and since a look


class Damaged(RecordError):
    """A checkpoint that is not what once was written."""


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint with its checksum beside its place, then move it there; keep the one before
    (RecordError if it cannot be written; what was there is then untouched).
    """

    def apart(tensor: Tensor) -> Tensor:  # of a view PyTorch saves all that it is a view of
        return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()

    buffer = io.BytesIO()
    torch.save(tree_map_only(Tensor, apart, {"format": FORMAT, **state}), buffer)
    sha256 = hashlib.sha256(buffer.getbuffer()).hexdigest()
    buffer.write(MARK + sha256.encode() + b"\n")
    write_whole(path, [buffer.getbuffer()], keep=path.with_name(PREVIOUS))


class CheckpointWriter:
    """Writes the checkpoints of a run, on a GPU while it makes the next updates: its queue copies the state
    off between the updates before and those after.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.path = path
        self.queue = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self.thread = None if self.queue is None else ThreadPoolExecutor(1)
        self.under_way: Future[None] | None = None

    def write(self, state: dict[str, Any]) -> None:
        """Write a state, or begin to. RecordError if it, or the one before, cannot be written."""
        self.finish()
        if self.thread is None:
            save_checkpoint(self.path, state)
            return
        state = tree_map_only(Tensor, _copied_off, state)
        copied = None if self.queue is None else self.queue.record_event()

        def write_copied() -> None:
            if copied is not None:
                with torch.cuda.device(copied.device):  # a thread would begin on, and occupy, the first
                    copied.synchronize()
            save_checkpoint(self.path, state)

        self.under_way = self.thread.submit(write_copied)

    def finish(self) -> None:
        """Wait until the last one is on the disk. RecordError if it cannot be written."""
        under_way, self.under_way = self.under_way, None
        if under_way is not None:
            under_way.result()


def _copied_off(part: Tensor) -> Tensor:
    # The clone is dense. Lanes' first filters have gaps, and would be copied to memory that is not pinned.
    return part.clone().to("cpu", non_blocking=True, copy=True)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; of ours the checksum is verified first. RecordError if the file is
    missing, no checkpoint, too large, damaged, or holds pickled objects that are not HARMLESS.
    """
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise Damaged(f"{path} has {size:,} bytes, more than the {LARGEST_FILE:,} that are read.")
        whole = path.read_bytes()
    except FileNotFoundError:
        seeds = sorted(folder.name for folder in path.parent.glob("seed*") if folder.is_dir())
        hint = f" Name a seed's own folder, such as {path.parent / seeds[0]}." if seeds else ""
        if path.with_name(RESULT).exists():
            hint = " Records that were published have none: name the folder of the run itself."
        raise RecordError(f"there is no checkpoint {path}.{hint}") from None
    except OSError as error:
        raise RecordError(f"{path} cannot be read: {error.strerror}.") from None
    trailer, sealed = whole[-TRAILER_BYTES:], False
    if trailer.startswith(MARK) and trailer.endswith(b"\n"):
        sha256, sealed = hashlib.sha256(memoryview(whole)[:-TRAILER_BYTES]).hexdigest(), True
        if sha256.encode() != trailer[len(MARK) : -1]:
            raise Damaged(f"{path} is damaged: its checksum does not match its content.")
    content = _unpickled(path, whole)
    if not isinstance(content, dict):
        raise RecordError(f"{path} holds no state dict but a {type(content).__name__}.")
    if content.get("format") == FORMAT and not sealed:
        raise Damaged(f"{path} is damaged: its checksum is missing.")
    content.pop("format", None)
    return content


def load_newest(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The newest checkpoint of a run that is whole, None without any, and a notice if it is not the newest: a
    damaged one is moved aside, for it would push the whole one out (RecordError if none of some is whole).
    """
    newest, before = folder / CHECKPOINT, folder / PREVIOUS
    if not newest.exists():
        if not before.exists():
            return None, ""
        return load_checkpoint(before), f"{newest} is missing; the checkpoint before it is whole."
    try:
        return load_checkpoint(newest), ""
    except Damaged as trouble:
        try:
            content = load_checkpoint(before)
        except RecordError:
            raise RecordError(
                f"{str(trouble).rstrip('.')}, and there is no whole one before it: start anew with --fresh."
            ) from None
    newest.replace(folder / DAMAGED)
    return content, f"{newest} is damaged and was moved to {DAMAGED}; the checkpoint before it is whole."


def _unpickled(path: Path, whole: bytes) -> Any:
    """What a file of `torch.save` holds, on the CPU."""
    try:
        with torch.serialization.safe_globals(HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickle protocols and TorchScript archives
            return torch.load(io.BytesIO(whole), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # on bytes that are damaged PyTorch raises whatever comes of them
        trouble = str(error)
    if refused := re.search(REFUSAL, trouble):
        which = f" ({refused[1]})" if refused[1] else ""
        raise Damaged(
            f"{path} holds a pickled object that is no tensor{which}, so it is not opened: "
            "save the state dict alone (`torch.save(net.state_dict(), ...)`)."
        )
    if "Unsupported operand 149" in trouble:
        raise Damaged(f"{path} is in a pickle protocol that is not read: save it without `pickle_protocol`.")
    raise Damaged(f"{path} {sign_of(whole[:HEAD]) or 'is not a PyTorch checkpoint, or is damaged'}.")


def sign_of(head: bytes) -> str | None:
    """What a file is that begins so, with a way out, if it is often taken for a checkpoint."""
    return next((words for sign, words in SIGNS if re.match(sign, head)), None)


def state_of(run: "Trainer", shares: Shares) -> dict[str, Any]:
    """The content of a checkpoint."""
    about, plateau = run.feed.about, run.plateau
    return {
        "digest": run.spec.digest, "spec": run.spec.to_json(), "num_classes": about.num_classes,
        "classes": None if about.classes is None else list(about.classes), "seed": run.seed,
        "data": dict(about.checksums), "mean": run.feed.normalisation.mean.cpu(),
        "iteration": run.done, "sampled": run.sampled, "net": run.net.state_dict(),
        "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
        "skipped": run.skipped.item(), "warmup_switch": run.warmup_switch, "shares": shares, "best": run.best,
        "plateau": None if plateau is None else [plateau.drops, plateau.best, plateau.waited],
        "last": {name: list(vars(errors).values()) for name, errors in run.last.items()},
        "seconds": run.seconds(), "waited": run.feed.waited, "env": run.writer.env,
        "curve": run.writer.curve.decode(),
    }  # fmt: skip


def restore(run: "Trainer", state: Mapping[str, Any]) -> None:
    """Take up the state of a checkpoint that fits the run."""
    run.net.load_state_dict(state["net"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.scaler.load_state_dict(state["scaler"])
    run.skipped.fill_(state.get("skipped", 0))
    for share in state["shares"][rank() :: world_size()]:  # this process's, or its part of others'
        for part, (sums, count) in zip((run.since_sample, run.since_look), share, strict=True):
            part.sums += torch.cat([sums, sums.new_tensor([count])]).to(run.device)
    run.done, run.sampled = run.saved = state["iteration"], state["sampled"]
    run.warmup_switch = state["warmup_switch"]
    if run.plateau is not None:
        run.plateau.drops, run.plateau.best, run.plateau.waited = state["plateau"]
    run.best, run.feed.waited = state["best"], state.get("waited", run.feed.waited)
    run.last = {name: Errors(*values) for name, values in state["last"].items()}
    run.seconds_before = state["seconds"]


# What of env.json changes the rounding where it differs; a run keeps its kind of device and its engine.
ROUNDING = {
    "cpu": "CPU", "gpu": "GPU", "engine": "engine", "threads": "CPU threads",
    "processes": "number of processes", "micro_batch": "images per pass", "kernels": "compiled kernels",
    "torch": "torch",
}  # fmt: skip


def differences(env: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What of the machine differs from the first start and may change the rounding, in words."""
    env, now = ({**each, **each.get("versions", {})} for each in (env, now))
    return [
        f"{words} ({env.get(key)} at the start, now {now.get(key)})"
        for key, words in ROUNDING.items()
        if env.get(key) != now.get(key)
    ]
