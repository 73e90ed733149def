"""stdout and stderr, which may end before the work does; stdout is also silenced, or given JSON alone."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from resrepro.errors import ResreproError
from resrepro.training import is_first


class Screen:
    """A standard stream that may end at any time, as a pipe into `head`, a full disk, or a closed terminal.

    What is written after that is dropped, and the work goes on; `lost` is told of the first error, once.
    """

    def __init__(self, stream: Any, lost: Callable[[OSError], None]) -> None:
        self.stream, self.lost = stream, lost
        self.error: OSError | None = None
        self.silent = False
        self.told: list[Mapping[str, object]] | None = None  # for --json

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        """Show a text; returns its length."""
        if not self.silent:
            self._attempt(self.stream.write, text)
        return len(text)

    def isatty(self) -> bool:
        """Whether somebody looks on."""
        return not self.silent and bool(self.stream.isatty())

    def flush(self) -> None:
        """Show what is waiting."""
        self._attempt(self.stream.flush)

    def _attempt(self, call: Callable[..., object], *text: str) -> None:
        try:
            call(*text)
        except OSError as error:
            with suppress(OSError, ValueError):  # where it is no file; what waits in it is dropped as well
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())
                os.close(nowhere)
            if self.error is None:
                self.error = error
                self.lost(error)


def print_json(content: object) -> None:
    """Print JSON as --json does."""
    print(json.dumps(content, indent=2, ensure_ascii=False), flush=True)


@contextmanager
def screens(lost: Callable[[OSError], None]) -> Iterator[Screen]:
    """While active, neither stdout, whose end is told to `lost`, nor stderr ends the process."""
    before = sys.stdout, sys.stderr
    screen = Screen(sys.stdout or io.StringIO(), lost)  # None: it was closed before the start
    sys.stdout, sys.stderr = screen, Screen(sys.stderr or io.StringIO(), lambda error: None)
    try:
        yield screen
    finally:
        if screen.told is not None and is_first():
            screen.silent = False
            print_json(screen.told)
        sys.stdout, sys.stderr = before


def silence(wanted: bool) -> bool:
    """Show nothing on stdout, if that is wanted."""
    if wanted and isinstance(sys.stdout, Screen):
        sys.stdout.silent = True
    return wanted


def want_json(wanted: bool) -> bool:
    """Show on stdout what `tell` is given, as a JSON list at the end, and nothing else, if that is wanted."""
    if silence(wanted) and isinstance(sys.stdout, Screen):
        sys.stdout.told = []
    return wanted


def tell(**content: object) -> None:
    """Add an object to what --json shows."""
    if isinstance(sys.stdout, Screen) and sys.stdout.told is not None:
        sys.stdout.told.append(content)


def raise_failures(failed: Mapping[str, str], of: str = "") -> None:
    """Name what could not be done, each with its reason; raises a ResreproError if there is anything."""
    if not failed:
        return
    console = Console(stderr=True, highlight=False)
    console.print("Failed:")
    for name, why in failed.items():
        console.print(f"  {name}: {why}", markup=False, soft_wrap=not console.is_terminal)
    raise ResreproError(f"{len(failed)}{of} could not be done; the same command tries again.")
