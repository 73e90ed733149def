"""Child processes that measure: started, asked, ended; nothing of them is left behind.

Each is the leader of a process group of its own, so that Ctrl-C reaches this process alone, which then ends
them and the workers that they started. One whose parent is killed finds its input closed, and ends too.
Nothing here imports torch.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from resrepro.errors import ResreproError, UsageError

COMMAND = (sys.executable, "-m", "resrepro.bench.child")
PATIENCE = 5.0  # seconds in which a child may end by itself
LOOK_EVERY = 0.5  # seconds between looks at whether a child that says nothing is still there
MOST_TOLD = 200  # characters of what a child said last


def _with_this_package() -> dict[str, str]:
    """The environment, in which Python finds the package that this module is of, from whatever folder."""
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Child:
    """A process that is asked one thing after the other; `what` is what it measures, for sentences."""

    def __init__(self, what: str, asked: Mapping[str, Any], command: Sequence[str] | None = None) -> None:
        self.what = what
        self.stderr = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command or COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, text=True,
            start_new_session=True, env=_with_this_package(),
        )  # fmt: skip
        try:
            self.told = self._ask({"what": what, **asked})
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> "Child":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(patient=kind is None)

    def turn(self, seconds: float) -> dict[str, Any]:
        """Let it work for so long, and wait for what it tells.

        Raises:
            ResreproError: if it fails.
        """
        return self._ask({"seconds": seconds})

    def _ask(self, question: Mapping[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise self._death() from None
        # What a dead child had started may hold its end of the pipe open, hence the look at the child itself.
        while not select.select([self.process.stdout], [], [], LOOK_EVERY)[0]:
            if self.process.poll() is not None:
                raise self._death()
        line = self.process.stdout.readline()
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise (UsageError if answer["code"] == 2 else ResreproError)(answer["error"])
        return answer

    def _death(self) -> ResreproError:
        """A sentence on a child that ended without an answer."""
        code = self.process.wait()
        if code == -signal.SIGKILL:
            why = "it was killed, perhaps for want of memory"
        elif code < 0:
            why = f"it was ended by {signal.Signals(-code).name}"
        else:
            self.stderr.seek(0)
            said = self.stderr.read().strip().splitlines()
            why = said[-1][:MOST_TOLD].rstrip(".") if said else f"exit code {code}"
        return ResreproError(f"the process that measured {self.what} failed: {why}.")

    def end(self, *, patient: bool = False) -> None:
        """Let it end by itself if there is time, then end it and all that it started."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        if patient:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(PATIENCE)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.stderr.close()
