"""A loop for the benchmark's processes that needs no torch: it tells a speed, fails or dies."""

import os
import signal
from pathlib import Path
from types import SimpleNamespace

loop = None


def player(folder, mode, speed=100.0):
    """A loop that `prepare` takes; it leaves its turns in a folder."""
    return SimpleNamespace(mode=mode, name=mode, label=f"ResNet-20, {mode}", speed=speed, folder=str(folder))


def begin():
    """In place of `resrepro.bench.follow_parent`."""


def prepare(own, device, threads):
    """In place of `resrepro.bench.prepare`."""
    global loop
    loop = own
    return {"device": device, "gpu": None, "threads": threads}


def take_turn(seconds):
    """In place of `resrepro.bench.take_turn`."""
    with (Path(loop.folder) / "turns").open("a") as file:
        file.write(f"{loop.mode} ")
    if loop.mode == "failing":
        raise RuntimeError("the lights went out")
    if loop.mode == "dying":
        os.kill(os.getpid(), signal.SIGKILL)
    return loop.speed
