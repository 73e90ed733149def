"""Work in several processes that are each other's peers, as `torchrun` would start them.

Forked ones share what the test has loaded and need a fraction of a second; whole commands need several.
"""

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


class Failed(NamedTuple):
    """An error by which the work in a process ended; `trace` is for the reader of a failed test."""

    error: Exception
    trace: str


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What `torchrun` tells a process on a machine of its own; the peers meet on the loopback device."""
    told = {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    return told | ({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {})


def in_ranks(count: int, work: Callable[[int], Any], seconds: float = 60) -> list[Any]:
    """What `work(rank)` returns in each of `count` forked processes, a Failed, or None if it was killed.

    Fails the test if one takes longer than `seconds`.
    """
    if sys.platform != "linux":
        pytest.skip("needs processes that may fork with torch loaded")
    context, port = multiprocessing.get_context("fork"), free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(count)]
    processes = [
        context.Process(target=_child, args=(rank, count, port, pipes[rank][1], work))
        for rank in range(count)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        for process in processes:
            process.start()
    for _, sender in pipes:
        sender.close()
    try:
        return [_received(receiver, seconds) for receiver, _ in pipes]
    finally:
        for process in processes:
            process.join(5)
            process.kill()
            process.join()


def _received(receiver: Any, seconds: float) -> Any:
    if not receiver.poll(seconds):
        pytest.fail(f"a process has not answered for {seconds} s")
    try:
        return pickle.loads(receiver.recv_bytes())
    except EOFError:
        return None


def _child(rank: int, count: int, port: int, sender: Any, work: Callable[[int], Any]) -> None:
    from torch import distributed

    os.environ.update(environment(rank, count, port))
    try:
        answer = work(rank)
    except Exception as error:
        answer = Failed(error, traceback.format_exc())
    sender.send_bytes(pickle.dumps(answer))
    if distributed.is_initialized():
        distributed.destroy_process_group()


def start_ranks(count: int, *words: object, **options: Any) -> list[subprocess.Popen[str]]:
    """The processes of `python -m resrepro`, as `torchrun` starts them, but looked after by nobody."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-m", "resrepro", *map(str, words)],
            env=os.environ | environment(rank, count, port) | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
        )
        for rank in range(count)
    ]  # fmt: skip


def torchrun(*words: object) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node 2 -m resrepro ...`, to its end."""
    return subprocess.run(
        [*TORCHRUN, "-m", "resrepro", *map(str, words)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def write_photos(folder: Path, per_class: int = 8, val: int = 5, classes: int = 3) -> Path:
    """A folder of made-up photographs of unequal sizes, each class of a colour of its own."""
    rng = np.random.default_rng(0)
    for split, count in (("train", per_class), ("val", val)):
        for number in range(classes):
            (folder / split / f"class{number}").mkdir(parents=True)
            for index in range(count):
                height, width = (int(side) for side in rng.integers(36, 60, 2))
                pixels = rng.integers(0, 120, (height, width, 3), np.uint8)
                pixels[:, :, number % 3] += 100
                Image.fromarray(pixels).save(folder / split / f"class{number}" / f"{index}.png")
    return folder
