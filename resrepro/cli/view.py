"""What is seen of runs: one live in a terminal, several in a table, lines elsewhere, events for a program."""

import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from resrepro.errors import Interrupted, ResreproError, UsageError
from resrepro.launch.local import PAUSE, Event, Job, Outcome, RunPool
from resrepro.records import read_run
from resrepro.spec import default_shortcut, in_folder, net_label
from resrepro.spec.catalogue import Experiment, find
from resrepro.training.progress import Pace, Sample, Watcher, clock, errors_line, sample_line

if TYPE_CHECKING:
    from resrepro.training.measure import Errors

ROOMY = 90  # columns of a terminal in which those of the table may stand apart
STATES = {  # in the order in which rows are left out where there are more than lines, last ones first
    "running": "green", "starting": "green", "failed": "red", "stopped": "yellow", "finished": "dim",
    "waiting": "dim",
}  # fmt: skip


class LiveView(Watcher):
    """Shows iteration, loss, errors, learning rate, images/s and the time left of one run."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.live: Live | None = None
        self.last: Sample | None = None
        self.pace = Pace(0, 0, 0)

    def say(self, text: str) -> None:
        """Print a line (above the live view, while there is one)."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """Open the view."""
        self.pace, self.last = Pace(done, iterations, batch_size), None
        self.console.print(Text.assemble((name, "bold"), f", seed {seed}: {iterations:,} iterations"))
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[rest]}"), console=self.console
        )
        self.task: TaskID = self.progress.add_task("", total=iterations, completed=done, rest="")
        self.live = Live(self._picture(None, 0.0), console=self.console, refresh_per_second=4)
        self.live.start()

    def step(self, done: int, lr: float, read: "Callable[[], Errors]") -> None:
        """Look at the run twice a second, not at every step."""
        if self.live is None or not self.pace.is_due():
            return
        errors = read()
        rest = f"{self.pace.look(done):,.0f} images/s, {clock(self.pace.seconds_left(done))} left"
        self.progress.update(self.task, completed=done, rest=rest)
        self.live.update(self._picture(errors, lr))

    def sample(self, sample: Sample) -> None:
        """Keep the newest sample; without a terminal, print it."""
        self.last = sample
        if self.live is None:
            self.say(sample_line(sample, self.pace))

    def end(self) -> None:
        """Close the view."""
        if self.live is not None:
            self.live.update(Text(""))
            self.live.stop()
            self.live = None

    def finish(self, folder: Path, *, onward: bool = True) -> None:
        """Say what came out, and `onward` how it departs, where its record is, and what to type next."""
        run = read_run(folder)
        names = {"train": "training error", "val": "validation error", "test": "test error"}
        told = ", ".join(
            f"{names[key]} {value['top1_err']:.2f} %" for key, value in run.result["last"].items()
        )
        usual = run.spec["shortcut"] == default_shortcut(run.spec["dataset"], run.spec["depth"])
        label = net_label(run.spec["depth"], run.spec["plain"], None if usual else run.spec["shortcut"])
        self.say(f"{label}, seed {run.seed}: {told} (last iteration).")
        if not onward:
            return
        for departure in run.result["departures"]:
            self.say(f"  departs from the paper: {departure}")
        for line in (f"Record: {folder}", f"Next: {self._next(folder, find(run.experiment))}"):
            self.console.print(line, markup=False, soft_wrap=True)  # whole, so that it can be copied

    @staticmethod
    def _next(folder: Path, experiment: Experiment) -> str:
        """The command that shows the result in its exhibit, or measures it for one."""
        if experiment.family == "imagenet":
            return f"resrepro eval {folder} --protocol ten_crop --data DIR"
        if not experiment.exhibits:
            return f"resrepro eval {folder}"
        return in_folder(f"resrepro compare {experiment.exhibits[-1]}", folder.parent.parent)

    def _picture(self, errors: "Errors | None", lr: float) -> Group:
        lines = [self.progress.get_renderable()]
        if errors is not None:
            now = f"lr {lr:g}   training loss {errors.loss:.4f}, error {errors.top1_err:.2f} %"
            lines.append(Text(f"{now}   (since the last sample)"))
        if self.last is not None:
            lines.append(Text(f"at {self.last.iteration:,}: {errors_line(self.last)}", style="dim"))
        return Group(*lines)


class EventView(Watcher):
    """Tells the process that started this one what happens, as JSON lines; stops the run when that ends."""

    def __init__(self, listener: int) -> None:
        self.listener, self.pace = listener, Pace(0, 0, 0)

    def tell(self, event: str, **details: object) -> None:
        """Print an event."""
        with suppress(BrokenPipeError):
            print(json.dumps({"event": event, **details}), flush=True)

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """Tell that the run starts."""
        self.pace = Pace(done, iterations, batch_size)
        self.tell("begin", done=done, iterations=iterations)

    def step(self, done: int, lr: float, read: "Callable[[], Errors]") -> None:
        """Tell how far it is, twice a second."""
        if os.getppid() != self.listener:
            self.listener = os.getppid()  # asked once
            os.kill(os.getpid(), signal.SIGTERM)
        if self.pace.is_due():
            read()  # waits for the device: the speed is of finished work
            left = clock(self.pace.seconds_left(done))
            self.tell("step", done=done, images_per_s=self.pace.look(done), left=left)

    def sample(self, sample: Sample) -> None:
        """Tell the errors."""
        errors = [each.top1_err for each in sample.errors.values()]
        self.tell("sample", errors=errors, line=sample_line(sample, self.pace))

    def say(self, text: str) -> None:
        """Pass it on."""
        self.tell("say", text=text)

    def finish(self, folder: Path) -> None:
        """Tell where the record is."""
        self.tell("finish", folder=str(folder))


@dataclass
class Row:
    """What is known of a run."""

    state: str = "waiting"
    done: int | None = None
    iterations: int = 0
    speed: str = ""
    left: str = ""
    errors: str = ""


class RunsView:
    """Shows of every run its state, iteration, errors, images/s and the time left.

    `onward`: whether each run that ends is told with its record and what to type next.
    """

    def __init__(self, jobs: Sequence[Job], console: Console | None = None, *, onward: bool = True) -> None:
        self.speaker, self.onward = LiveView(console), onward
        self.console = self.speaker.console
        self.rows = {job: Row() for job in jobs}
        self.drawn = 0.0
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> "RunsView":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.update(self.picture(), refresh=True)
            self.live.stop()

    def hear(self, job: Job, event: Event) -> None:
        """Take note of an event, and print what deserves a line."""
        row, kind, line = self.rows[job], event["event"], ""
        if kind == "start":
            row.state = "starting"
        elif kind == "begin":
            row.state, row.done, row.iterations = "running", event["done"], event["iterations"]
            line = f"{row.iterations:,} iterations"
        elif kind == "step":
            row.done, row.speed, row.left = event["done"], f"{event['images_per_s']:,.0f}", event["left"]
        elif kind == "sample":
            training_and_headline = event["errors"][:2]
            row.errors = " ".join(f"{error:.2f}" for error in training_and_headline)
            line = event["line"]
        elif kind == "say":
            self.say(job, event["text"])
        elif kind == "finish":
            self.speaker.finish(Path(event["folder"]), onward=self.onward)
        if line and self.live is None:
            self.say(job, line)

    def end(self, job: Job, outcome: Outcome) -> None:
        """Take note of how a run ended, and say it where it did not finish."""
        row = self.rows[job]
        row.speed = row.left = ""
        row.state = "finished" if outcome.code == 0 else "stopped" if outcome.code > 128 else "failed"
        if outcome.code == 0:
            row.done = None if row.done is None else row.iterations
        else:
            self.say(job, outcome.sentence)
        if outcome.trace:
            print(outcome.trace, file=sys.stderr)

    def say(self, job: Job, text: str) -> None:
        """Print a line that says whose it is."""
        self.speaker.say(f"{job}: {text}")

    def draw(self) -> None:
        """Draw the table anew, four times a second."""
        now = time.monotonic()
        if self.live is not None and now - self.drawn >= PAUSE:
            self.drawn = now
            self.live.update(self.picture(), refresh=True)

    def picture(self) -> Group:
        """As many rows as fit on the screen, and how many runs there are of each state."""
        gap = 1 if self.console.width < ROOMY else 2
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
        table.add_column("run", no_wrap=True)
        table.add_column("seed", justify="right")
        table.add_column("state", no_wrap=True)
        for name in ("iteration", "images/s", "errors, %", "left"):
            table.add_column(name, justify="right", no_wrap=True)
        for job in self._shown(max(1, self.console.height - 4)):
            row = self.rows[job]
            done = "" if row.done is None else f"{row.done:,}/{row.iterations:,}"
            state = Text(row.state, STATES[row.state])
            table.add_row(job.experiment, str(job.seed), state, done, row.speed, row.errors, row.left)
        return Group(table, Text(self.counts(), style="dim"))

    def _shown(self, most: int) -> list[Job]:
        """The jobs that matter most, in their order."""
        ranks = list(STATES)
        chosen = sorted(self.rows, key=lambda job: ranks.index(self.rows[job].state))[:most]
        return [job for job in self.rows if job in set(chosen)]

    def counts(self) -> str:
        """`3 runs: 2 running, 1 waiting`."""
        states = Counter(row.state for row in self.rows.values())
        told = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
        return f"{len(self.rows)} runs: {told}"


def train_all(pool: RunPool, view: RunsView, way_on: str = "") -> dict[Job, Outcome]:
    """Train all runs of a pool, shown in a view; returns how those ended that did not finish.

    Raises:
        Interrupted: after a signal; what was begun has its checkpoint.
    """
    pool.hear, pool.end, pool.look = view.hear, view.end, view.draw
    with view:
        pool.run()
    failed = {job: outcome for job, outcome in pool.outcomes.items() if outcome.code}
    if not pool.received:
        return failed
    stopped = sum(outcome.code > 128 for outcome in failed.values())
    counts = {
        "finished": len(pool.outcomes) - len(failed), "failed": len(failed) - stopped, "stopped": stopped,
        "not begun": len(pool.jobs) - len(pool.outcomes),
    }  # fmt: skip
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    raise Interrupted(
        f"Stopped (of {len(pool.jobs)} runs {told}): the same command{way_on} goes on.", pool.received
    )


def raise_failures(failed: Mapping[Job, Outcome], count: int, view: RunsView) -> None:
    """One error for all of `count` runs that failed, once each has been named with its reason.

    Raises:
        ResreproError: if any failed; a UsageError if all did, for one reason that lies in what was typed.
    """
    if not failed:
        return
    if len(failed) == count and {outcome.code for outcome in failed.values()} == {UsageError.exit_code}:
        raise UsageError(next(iter(failed.values())).sentence)
    view.speaker.say("Failed:")
    for job, outcome in failed.items():
        view.say(job, outcome.sentence)
    raise ResreproError(f"{len(failed)} of {count} runs failed; the same command tries them again.")
