"""Signals as requests: the step under way is finished before the run stops."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from resrepro.processes import world_size

# Ctrl-C; what a machine that shuts down or a scheduler sends; what Slurm's --signal may be told to send.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
ECHO = 3.0  # seconds in which a scheduler, its job and torchrun may each pass on one signal


class StoppedEarly(BaseException):
    """A signal came while there was no step to finish; no `except Exception` is to hold it up."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class Interrupts:
    """While active, one of the SIGNALS raises StoppedEarly; in `patiently` it is only noted in `received`.

    A second one acts at once, unless it is but the echo of the first. Python delivers signals to the
    main thread alone; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self.patient = False
        self._at = 0.0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """While active, and to the end, a signal waits until somebody asks what was received."""
        self.patient = True
        yield

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._at = number, time.monotonic()
            if not self.patient:
                raise StoppedEarly(number)
        elif not self._is_echo(number):
            self._restore()
            os.kill(os.getpid(), number)

    def _is_echo(self, number: int) -> bool:
        """Whether a later signal is but the first one, passed on by somebody else.

        Nobody passes on Ctrl-C to a process alone: that is a person who presses it again. One of several
        jobs hears it from the terminal and from the process that started it. A cluster's queue may send
        several kinds of signals at once.
        """
        passed_on = world_size() > 1 or multiprocessing.parent_process() is not None
        passed_on |= "SUBMITIT_EXECUTOR" in os.environ
        alike = passed_on or (number == self.received and number != signal.SIGINT)
        return alike and time.monotonic() - self._at < ECHO

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}
