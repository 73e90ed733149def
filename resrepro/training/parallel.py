"""One run on several processes, as `torchrun` starts them: how its batch is split, and what they say to each
other. Each trains on its share of each batch, and the first one alone writes. BN takes its statistics over
the images that one process has in one pass, or over smaller groups (`bn_group`).
"""

import atexit
import gc
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from importlib import import_module
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from resrepro.data import ProcessGroup
from resrepro.errors import PeerLost, ResreproError, UsageError
from resrepro.nets.layers import running_statistics
from resrepro.spec import Spec, catalogue
from resrepro.spec.recipe import Recipe, Value
from resrepro.training import is_first, local_world_size, rank, world_size

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=1)  # while the first process downloads a data set, or looks at a large folder
OF_THE_CONNECTION = ("gloo", "nccl", "connection", "socket", "tcpstore", "process group")


class BatchSplit(NamedTuple):
    """How a batch is split."""

    local: int  # images per update on each process
    micro: int  # images per forward and backward pass

    def describe(self, recipe: Recipe) -> str:
        """In a sentence; empty where one process has the whole batch in one pass."""
        processes, passes, group = world_size(), self.local // self.micro, recipe.bn_group
        if processes == passes == 1:
            return ""
        bn = f"groups of {group}" if group else "the whole batch"
        return (
            f"Each batch of {recipe.batch_size}: {processes} process{'es' * (processes > 1)}, "
            f"{passes} pass{'es' * (passes > 1)} of {self.micro} images; BN over {bn}."
        )


def split_batch(batch_size: int, processes: int, micro_batch: int | None = None) -> BatchSplit:
    """The share of each process and of each pass (UsageError if the batch does not divide)."""
    if batch_size % processes:
        raise UsageError(
            f"a batch of {batch_size} does not divide among {processes} processes: choose a --batch-size "
            "that does, or another number of processes."
        )
    local = batch_size // processes
    micro = local if micro_batch is None else micro_batch
    if micro < 1 or local % micro:
        raise UsageError(
            f"--micro-batch {micro} does not divide the {local} images that a process has of each batch."
        )
    return BatchSplit(local, micro)


def bn_group_for(recipe: Recipe, split: BatchSplit, *, given: bool) -> int:
    """The images that share BN statistics when a batch is split so, 0 for the whole batch (UsageError if that
    was asked for, `given`, and cannot be had).
    """
    group = recipe.bn_group
    if split.micro % (group or recipe.batch_size) == 0:
        return group
    if not given:
        return split.micro
    raise UsageError(
        f"BN groups of {group} images do not divide the {split.micro} that a process has in one pass: "
        "choose a smaller --bn-group, or fewer processes."
        if group
        else "BN over the whole batch needs the batch in one process and one pass: leave torchrun and "
        "--micro-batch out, or name a --bn-group."
    )


def plan(
    experiment: str, shortcut: str | None, micro_batch: int | None, settings: Mapping[str, Value | None]
) -> tuple[Spec, BatchSplit]:
    """The run that these options ask for on these processes, and how its batch is split (UsageError)."""
    entry = catalogue.find(experiment)
    spec = catalogue.derive(entry, shortcut, **settings)
    split = split_batch(spec.recipe.batch_size, world_size(), micro_batch)
    group = bn_group_for(spec.recipe, split, given=settings.get("bn_group") is not None)
    return catalogue.derive(entry, shortcut, **dict(settings) | {"bn_group": group}), split


def join(device: torch.device) -> None:
    """Meet the other processes of the run, if there are any; GPUs talk over NCCL, all else goes over gloo."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # what memory is pinned for
    if world_size() == 1 or distributed.is_initialized():
        return
    import_module("torch.distributed.nn")  # before there is a group, which its functions keep as a default
    backend, own = ("cpu:gloo,cuda:nccl", device) if device.type == "cuda" else ("gloo", None)
    with told_as_lost():
        distributed.init_process_group(backend, timeout=LONGEST_WAIT, device_id=own)
    atexit.register(leave)


def leave() -> None:
    """Part from the other processes. Nothing of gloo's is left, whose threads stop a process with SIGABRT if
    they still hold a tensor when Python ends.
    """
    gc.collect()  # DistributedDataParallel, which holds the group, is in a cycle
    distributed.destroy_process_group()


@contextmanager
def told_as_lost() -> Iterator[None]:
    """Raise PeerLost instead of the RuntimeError by which PyTorch reports a lost connection."""
    try:
        yield
    except RuntimeError as error:
        # By the kind that PyTorch has for this, or its words: gloo has no kind of its own.
        worded_so = any(word in str(error).lower() for word in OF_THE_CONNECTION)
        if world_size() == 1 or not (worded_so or isinstance(error, distributed.DistError)):
            raise
        atexit.unregister(leave)  # there is nobody to wait for
        raise PeerLost(
            f"another process of this run has ended or cannot be reached ({str(error).splitlines()[0]}): "
            "look for its own message; the same command (without --fresh) goes on from the last checkpoint."
        ) from None


def in_parallel(net: nn.Module, device: torch.device) -> nn.Module:
    """The net as one whose gradients are averaged over all processes; itself where there is one."""
    if world_size() == 1:
        return net
    # BN's running averages are averaged after each update, not copied from the first process.
    known = inspect.signature(DistributedDataParallel).parameters
    option = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {option: False, "device_ids": [device] if device.type == "cuda" else None}
    return DistributedDataParallel(net, **options)


def exchanging(model: nn.Module, last: bool) -> AbstractContextManager[object]:
    """The context of one of the passes of an update: gradients are exchanged in the last one only."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) and not last else nullcontext()


def total(tensor: Tensor) -> Tensor:
    """The tensor summed over all processes, in place."""
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def average_statistics(net: nn.Module) -> None:
    """Make the running BN averages of all processes their mean, in place."""
    if world_size() == 1:
        return
    buffers = running_statistics(net)
    flat = total(torch.cat(buffers)) / world_size()
    torch._foreach_copy_(buffers, list(torch.split(flat, list(map(len, buffers)))))


def collected(part: T) -> list[T]:
    """The parts of all processes, in the order of their ranks."""
    if world_size() == 1:
        return [part]
    parts: list[Any] = [None] * world_size()
    distributed.all_gather_object(parts, part)
    return parts


def on_first(work: Callable[[], T]) -> T:
    """Do something in the first process alone; all get its result, or its error."""
    if world_size() == 1:
        return work()
    outcome: list[Any] = [None]
    if is_first():
        try:
            outcome = [work()]
        except ResreproError as trouble:
            outcome = [trouble]
    distributed.broadcast_object_list(outcome, src=0)
    if isinstance(outcome[0], ResreproError):
        outcome[0].told = not is_first()
        raise outcome[0]
    return outcome[0]  # type: ignore[no-any-return]


def agreed(*numbers: int) -> list[int]:
    """The largest of each number over all processes, such as that of a signal which only one has received."""
    return [max(each) for each in zip(*collected(numbers), strict=True)]


def process_group() -> ProcessGroup:
    """The processes of this run, as the data need them."""
    return ProcessGroup(rank(), world_size(), local_world_size(), collected, on_first)
