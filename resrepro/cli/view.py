"""What is seen: stdout and stderr, which may end before the work does, and runs under way, as a table in a
terminal, as lines elsewhere, as events for the process that started one.
"""

import io
import json
import os
import shlex
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from resrepro.comparison.groups import SET_NAMES
from resrepro.comparison.table import Grid
from resrepro.errors import Interrupted, ResreproError
from resrepro.launch.local import Event, Job, Outcome, RunPool
from resrepro.records import read_run
from resrepro.spec import default_shortcut, in_folder, net_label
from resrepro.spec.catalogue import find
from resrepro.training import is_first
from resrepro.training.progress import Pace, Sample, Watcher, clock, sample_line

STATES = ("running", "finished", "failed", "stopped", "waiting")


class Screen:
    """A standard stream that may end at any time, as a pipe into `head`, a full disk, or a closed terminal:
    what is written after that is dropped, and the work goes on; `lost` is told of the error.
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

    def flush(self) -> None:
        """Show what is waiting."""
        self._attempt(self.stream.flush)

    def _attempt(self, call: Callable[..., object], *text: str) -> None:
        try:
            call(*text)
        except OSError as error:
            self.silent, self.error = True, error
            # What waits in it is dropped as well; it may be no file.
            with suppress(OSError, ValueError), Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())
            self.lost(error)


def print_json(content: object) -> None:
    """Print JSON as --json does."""
    print(json.dumps(content, indent=2, ensure_ascii=False), flush=True)


@contextmanager
def screens(lost: Callable[[OSError], None]) -> Iterator[Screen]:
    """While active, neither stdout, whose end is told to `lost`, nor stderr ends the process."""
    screen = Screen(sys.stdout or io.StringIO(), lost)  # None: it was closed before the start
    spare = Screen(sys.stderr or io.StringIO(), lambda error: None)
    with redirect_stdout(screen), redirect_stderr(spare):
        try:
            yield screen
        finally:
            if screen.told is not None and is_first():
                screen.silent = False
                print_json(screen.told)


def silence(option: typer.CallbackParam, wanted: bool) -> bool:
    """Show nothing on stdout, by --json what `tell` is given, as a list at the end, if that is wanted."""
    if wanted and isinstance(sys.stdout, Screen):
        sys.stdout.silent = True
        if "--json" in option.opts:
            sys.stdout.told = []
    return wanted


def tell(**content: object) -> None:
    """Add an object to what --json shows."""
    if isinstance(sys.stdout, Screen) and sys.stdout.told is not None:
        sys.stdout.told.append(content)


def to_stderr(text: str | Text) -> None:
    """Print a text to stderr, outside a terminal as one line."""
    console = Console(stderr=True, highlight=False)
    console.print(text, markup=False, soft_wrap=not console.is_terminal)


def raise_failures(failed: Mapping[str, str], of: str = "") -> None:
    """Name what could not be done, each with its reason; raises a ResreproError if there is anything."""
    if failed:
        to_stderr("Failed:")
        for name, why in failed.items():
            to_stderr(f"  {name}: {why}")
        raise ResreproError(f"{len(failed)}{of} could not be done; the same command tries again.")


# --- runs under way -------------------------------------------------------------------------------------


class EventView(Watcher):
    """Makes events of a run, for `hear` or printed for the process `parent`, with which the run ends; `run`
    names it among those that share this process.
    """

    def __init__(
        self, hear: Callable[[Event], None] | None = None, parent: int | None = None, run: str | None = None
    ) -> None:
        self.hear = hear or (lambda event: print(json.dumps({**event, "run": run}), flush=True))
        self.parent, self.pace = parent, Pace(0, 0, 0)

    def tell(self, event: str, **details: object) -> None:
        """Hand on an event."""
        self.hear({"event": event, **details})

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """Tell that the run starts."""
        self.pace = Pace(done, iterations, batch_size)
        self.tell("begin", done=done, iterations=iterations)

    def step(self, done: int, lr: float, read: Callable[[], Any]) -> None:
        """Tell how far it is, twice a second."""
        if self.parent is not None and os.getppid() != self.parent:
            self.parent = None  # asked once
            os.kill(os.getpid(), signal.SIGTERM)
        if self.pace.is_due():
            loss = read().loss  # waits for the device: the speed is of finished work
            left = clock(self.pace.seconds_left(done))
            self.tell("step", done=done, images_per_s=self.pace.look(done), loss=loss, left=left)

    def sample(self, sample: Sample) -> None:
        """Tell the errors."""
        errors = [each.top1_err for each in sample.errors.values()]
        self.tell("sample", errors=errors, line=sample_line(sample, self.pace))

    def say(self, text: str) -> None:
        """Pass it on."""
        self.tell("say", text=text)


class RunsView:
    """Shows of every run under way its iteration, images/s, training loss, errors and the time left; without
    a terminal each sample is a line. `onward`: whether a run that ends is told with its record and what to
    type next, and with the departures that no run before it had.
    """

    def __init__(self, jobs: Sequence[Job], console: Console | None = None, *, onward: bool = True) -> None:
        self.console, self.onward = console or Console(highlight=False), onward
        self.states = dict.fromkeys(jobs, "waiting")
        self.departures = set[str]()  # that were told
        self.rows: dict[Job, dict[str, Any]] = {job: {} for job in jobs}  # the newest of each event
        self.live = Live(
            console=self.console, get_renderable=self.picture, refresh_per_second=4, transient=True,
            auto_refresh=self.console.is_terminal,
        )  # fmt: skip

    def hear(self, job: Job, event: Event) -> None:
        """Take note of an event, and print what deserves a line."""
        kind, shown = event["event"], self.console.is_terminal
        self.states[job] = "finished" if kind == "finish" else "running"
        self.rows[job] |= event
        if kind == "finish":
            self.finish(Path(event["folder"]))
        elif kind == "begin" and not shown:
            self.console.print(f"{job}: {event['iterations']:,} iterations")
        elif kind == "say" or (kind == "sample" and not shown):
            self.say(job, event["text" if kind == "say" else "line"])

    def end(self, job: Job, outcome: Outcome) -> None:
        """Take note of how a run ended, and say it where it did not finish."""
        self.states[job] = "stopped" if outcome.code > 128 else "failed" if outcome.code else "finished"
        if outcome.code:
            self.say(job, outcome.sentence)
        if outcome.trace:
            print(outcome.trace, file=sys.stderr)

    def say(self, job: Job, text: str) -> None:
        """Print a line that says whose it is, if there are several."""
        text = f"{job}: {text}" if len(self.rows) > 1 else text
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def finish(self, folder: Path) -> None:
        """Say what came out, and `onward` how it departs, where its record is, and what to type next."""
        run = read_run(folder)
        dataset, depth, shortcut = (run.spec[key] for key in ("dataset", "depth", "shortcut"))
        usual = shortcut == default_shortcut(dataset, depth)
        label = net_label(depth, run.spec["plain"], None if usual else shortcut)
        errors = {key: value["top1_err"] for key, value in run.result["last"].items()}
        told = ", ".join(f"{SET_NAMES[key]} error {error:.2f} %" for key, error in errors.items())
        lines = [f"{label}, seed {run.seed}: {told} (last iteration)."]
        departures = run.result["departures"]
        tell(record=str(folder), seed=run.seed, status=run.status, top1_err=errors, departures=departures)
        if self.onward:
            new = [each for each in departures if each not in self.departures]
            self.departures.update(new)
            lines[:0] = [f"Departs from the paper: {'; '.join(new)}."] if new else []
            exhibits, way_on = find(run.experiment).exhibits, f"resrepro eval {shlex.quote(str(folder))}"
            if run.family == "imagenet":
                way_on += " --protocol ten_crop --data DIR"
            elif exhibits:
                way_on = in_folder(f"resrepro compare {exhibits[-1]}", folder.parent.parent)
            lines += [f"Record: {folder}", f"Next: {way_on}"]
        for line in lines:  # whole, so that it can be copied
            self.console.print(line, markup=False, soft_wrap=True)

    def picture(self) -> Group:
        """The runs under way, and how many there are of each state."""
        table = Grid(("run", "seed", "iteration", "images/s", "loss", "errors, %", "left"))
        for job, row in self.rows.items():
            if self.states[job] == "running":
                done = f"{row['done']:,}/{row['iterations']:,}" if "done" in row else "starting"
                speed = f"{row['images_per_s']:,.0f}" if "loss" in row else ""
                loss = f"{row['loss']:.4f}" if "loss" in row else ""
                errors = " ".join(f"{error:.2f}" for error in row.get("errors", ())[:2])  # and the headline's
                table.add(job.run, str(job.seed), done, speed, loss, errors, row.get("left", ""))
        told = f"{len(self.rows)} runs: {self.count()}" if len(self.rows) > 1 else ""
        return Group(table, Text(told, "dim"))

    def count(self) -> str:
        """How many runs there are of each state."""
        states = Counter(self.states.values())
        return ", ".join(f"{states[state]} {state}" for state in STATES if states[state])


def train_all(pool: RunPool, view: RunsView, way_on: str = "") -> dict[Job, Outcome]:
    """Train all runs of a pool, shown in a view; returns the ends of those that failed (or Interrupted)."""
    pool.hear, pool.end = view.hear, view.end
    with view.live:
        pool.run()
    if pool.received:
        told = f"of {len(pool.jobs)} runs {view.count().replace('waiting', 'not begun')}"
        raise Interrupted(f"Stopped ({told}): the same command{way_on} goes on.", pool.received)
    return {job: outcome for job, outcome in pool.outcomes.items() if outcome.code}
