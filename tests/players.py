"""A loop for the benchmark's processes that needs no torch: it tells a speed, fails or dies."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace


def player(folder, mode, speed=100.0):
    """A loop that `play` takes; it leaves its turns and process ids in a folder."""
    return SimpleNamespace(mode=mode, label=f"ResNet-20, {mode}", speed=speed, folder=str(folder))


def play(connection, loop, device, threads):
    """In place of `resrepro.bench.serve`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = Path(loop.folder)
    (folder / f"{os.getpid()}.pid").touch()
    connection.send((0, {"device": device, "gpu": None, "threads": threads}))
    while True:
        try:
            connection.recv()
        except EOFError:
            return
        with (folder / "turns").open("a") as file:
            file.write(f"{loop.mode} ")
        if loop.mode == "failing":
            connection.send((1, "the lights went out."))
        elif loop.mode == "dying":
            os.kill(os.getpid(), signal.SIGKILL)
        else:
            connection.send((0, loop.speed))


def is_gone(pid):
    """Whether a process has ended, waiting a moment; one that nobody has collected yet has ended too."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False
