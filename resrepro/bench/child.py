"""The process of a calibration: it answers questions on its standard input, one JSON object per line.

The first line says what to build. The answer to it tells that all is warm; then every line
`{"seconds": 3}` is a turn, answered by what was done in it. Between turns it waits for input, idle. An
error that is meant for people is answered as `{"error": sentence, "code": exit code}`.
"""

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

import torch

from resrepro.errors import ResreproError
from resrepro.training.engine import choose_device, fast_precision, telling_memory, threads_used


class Part(Protocol):
    """What a child does: it is built, tells of itself, and takes turns."""

    told: Mapping[str, Any]

    def turn(self, seconds: float) -> Mapping[str, Any]:
        """Work for so long; what was done."""


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
    "calibration": _calibration, "precision": _precision,
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
