"""The process of one contestant: it answers questions on its standard input, one JSON object per line.

The first line says what to build. The answer to it tells that all is warm; then every line
`{"seconds": 3}` is a turn, answered by what was done in it. Between turns it waits for input, idle. An
error that is meant for people is answered as `{"error": sentence, "code": exit code}`.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

import torch

from resrepro.bench.contestants import TRAINING_IMAGES, USUAL, Contestant
from resrepro.bench.timing import finish, memory_used_mib, timed
from resrepro.errors import ResreproError
from resrepro.training.engine import choose_device, fast_precision, telling_memory, threads_used

WARM_STEPS = 3
# Seconds in which a DataLoader's workers fill up what was taken, and threads stop to wait for more work
# (up to 0.2 s with the OpenMP of LLVM and Intel).
SETTLE = 0.3


class Part(Protocol):
    """What a child does: it is built, tells of itself, and takes turns."""

    told: Mapping[str, Any]

    def turn(self, seconds: float) -> Mapping[str, Any]:
        """Work for so long; what was done."""


class Loop(Protocol):
    """A training loop; what computes in it, and the seconds of building it."""

    engine: str
    built_seconds: float

    def prepare(self) -> None:
        """Make a batch."""

    def step(self) -> None:
        """Make an update, its batch included."""


class Runner:
    """A contestant that is warm."""

    def __init__(self, asked: Mapping[str, Any], device: torch.device) -> None:
        self.contestant, self.device = Contestant(**asked["contestant"]), device
        self.loop = _loop(self.contestant, device)
        _, first = timed(self.loop.step, 0.0, device)
        count, elapsed = timed(self.loop.step, min(1.0, asked["seconds"]), device)
        while count < WARM_STEPS:
            more = timed(self.loop.step, 0.0, device)
            count, elapsed = count + more[0], elapsed + more[1]
        self.settle()
        batches, spent = timed(self.loop.prepare, min(1.0, asked["seconds"]), device)
        self.settle()
        self.told: Mapping[str, Any] = {
            "engine": self.loop.engine,
            "data_seconds": spent / batches,
            "compile_seconds": self._compile_seconds(first - elapsed / count),
        }

    def _compile_seconds(self, first_step: float) -> float:
        """What the engine took, some before the first step and some within it; PyTorch's own takes none."""
        if self.loop.engine == "eager":
            return 0.0
        return self.loop.built_seconds + max(0.0, first_step)

    def settle(self) -> None:
        """Let threads and workers come to rest, so that they take nothing from the next one's turn."""
        finish(self.device)
        time.sleep(SETTLE)

    def turn(self, seconds: float) -> dict[str, Any]:
        """Train for so long."""
        count, elapsed = timed(self.loop.step, seconds, self.device)
        self.settle()
        return {
            "images": count * self.contestant.batch_size,
            "seconds": elapsed,
            "memory_mib": memory_used_mib(self.device),
        }


def _loop(contestant: Contestant, device: torch.device) -> Loop:
    from resrepro.bench.ours import OurLoop, made_up_images

    if contestant.mode != USUAL:
        return OurLoop(contestant, device)
    from resrepro.bench.usual import UsualLoop

    images = made_up_images(TRAINING_IMAGES)
    shape = (contestant.depth, contestant.plain, contestant.batch_size, contestant.workers or 0)
    return UsualLoop(*shape, images, device)


def _peak(asked: Mapping[str, Any], device: torch.device) -> Part:
    from resrepro.bench.peak import Peak

    peak = Peak(asked["seconds"], device)
    told = {
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "device": device.type,
        "threads": torch.get_num_threads(),
    }
    return _Told(told, peak.turn)


def _calibration(asked: Mapping[str, Any], device: torch.device) -> Part:
    from resrepro.bench.calibration import calibrate

    return _Told(calibrate(asked, device), lambda seconds: {})


def _precision(asked: Mapping[str, Any], device: torch.device) -> Part:
    return _Told({"precision": fast_precision(device)}, lambda seconds: {})


class _Told:
    """A part of which only the turn matters, or only what it tells."""

    def __init__(self, told: Mapping[str, Any], turn: Callable[[float], Mapping[str, Any]]) -> None:
        self.told, self.turn = told, turn


PARTS: Mapping[str, Callable[[Mapping[str, Any], torch.device], Part]] = {
    "contestant": Runner, "peak": _peak, "calibration": _calibration,
    "precision": _precision,
}  # fmt: skip


def serve(questions: TextIO, tell: Callable[[Mapping[str, Any]], None]) -> int:
    """Answer until there are no more questions; returns the exit code."""
    try:
        asked = json.loads(questions.readline())
        with telling_memory(asked["what"]), threads_used(asked["threads"]):
            part = PARTS[asked["part"]](asked, choose_device(asked["device"]))
            tell(part.told)
            while line := questions.readline():
                tell(part.turn(json.loads(line)["seconds"]))
    except ResreproError as error:
        tell({"error": str(error), "code": error.exit_code})
        return 1
    return 0


def main() -> int:
    """Serve the process that started this one; whatever else is printed goes to stderr."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def tell(answer: Mapping[str, Any]) -> None:
        answers.write(json.dumps(dict(answer)) + "\n")
        answers.flush()

    return serve(sys.stdin, tell)


if __name__ == "__main__":
    sys.exit(main())
