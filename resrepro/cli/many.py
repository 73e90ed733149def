"""Several runs at once: a table of them in a terminal, plain lines elsewhere, and how it all ended."""

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resrepro.cli.live import LiveView
from resrepro.errors import Diverged, Interrupted, ResreproError, UsageError
from resrepro.launch.capacity import Machine, threads_each
from resrepro.launch.job import (
    Began,
    Event,
    Failed,
    Finished,
    Job,
    Order,
    Outcome,
    Said,
    Sampled,
    Stepped,
    Stopped,
)
from resrepro.launch.jobs import Crew, load_shared
from resrepro.spec.experiment import Spec
from resrepro.training.progress import clock

DRAW_EVERY = 0.25  # seconds
ROOMY = 90  # columns of a terminal in which those of the table may stand apart
STATES = {  # in the order in which rows are left out where there are more than lines, last ones first
    "running": "green", "starting": "green", "failed": "red", "stopped": "yellow", "finished": "dim",
    "waiting": "dim",
}  # fmt: skip


@dataclass
class Row:
    """What is known of a run."""

    state: str = "waiting"
    done: int | None = None
    iterations: int = 0
    speed: str = ""
    left: str = ""
    errors: str = ""


class JobsView:
    """Shows of every run its state, iteration, errors, images/s and the time left.

    `onward`: whether each run that ends is told with its record and what to type next.
    """

    def __init__(self, jobs: Sequence[Job], console: Console | None = None, *, onward: bool = True) -> None:
        self.speaker, self.onward = LiveView(console), onward
        self.console = self.speaker.console
        self.rows = {job: Row() for job in jobs}
        self.drawn = 0.0
        # Drawn when there is time: a thread that draws would be lost in every forked process.
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None

    def __enter__(self) -> "JobsView":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.update(self.picture(), refresh=True)
            self.live.stop()

    def hear(self, job: Job, told: Event | Outcome | None) -> None:
        """Take note of an event, and print what deserves a line."""
        row = self.rows[job]
        if told is None:
            row.state = "starting"
        elif isinstance(told, Began):
            row.state, row.done, row.iterations = "running", told.done, told.iterations
            if self.live is None:
                self.say(job, f"{told.iterations:,} iterations")
        elif isinstance(told, Stepped):
            row.done, row.speed, row.left = told.done, f"{told.images_per_s:,.0f}", clock(told.seconds_left)
        elif isinstance(told, Sampled):
            shown = list(told.errors.values())[:2]  # training, and the set that counts
            row.errors = " ".join(f"{error:.2f}" for error in shown)
            if self.live is None:
                self.say(job, told.line)
        elif isinstance(told, Said):
            self.say(job, told.text)
        else:
            self._end(job, row, told)

    def _end(self, job: Job, row: Row, outcome: Outcome) -> None:
        row.speed = row.left = ""
        if isinstance(outcome, Finished):
            row.state, row.done = "finished", None if row.done is None else row.iterations
            self.speaker.finish(outcome.folder, onward=self.onward)
            return
        row.state = "stopped" if isinstance(outcome, Stopped) else "failed"
        self.say(job, outcome.sentence)
        if isinstance(outcome, Failed) and outcome.trace:
            print(outcome.trace, file=sys.stderr)

    def say(self, job: Job, text: str) -> None:
        """Print a line that says whose it is."""
        self.speaker.say(f"{job}: {text}")

    def draw(self) -> None:
        """Draw the table anew, four times a second."""
        now = time.monotonic()
        if self.live is not None and now - self.drawn >= DRAW_EVERY:
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


def train_at_once(
    specs: Sequence[Spec],
    seeds: Sequence[int],
    count: int,
    machine: Machine,
    reading: tuple[Any, ...],
    options: dict[str, Any],
) -> None:
    """Train every spec with every seed, `count` runs at a time.

    Raises:
        DataError: if the images are missing or damaged; nothing has begun then.
        ResreproError: as `train_many`.
    """
    jobs = [Job.of(spec, seed) for spec in specs for seed in seeds]
    shared = load_shared(specs, options["data"])
    told = {**options, "threads_if_new": threads_each(count, machine)}
    order = Order(told, reading, looks=Console().is_terminal)
    train_many(Crew(jobs, count, order, shared))


def train_many(crew: Crew) -> None:
    """Train all jobs of a crew under the eyes of whoever looks on.

    Raises:
        UsageError: if the machine cannot do what is asked.
        Interrupted: after a signal; what was begun has its checkpoint.
        ResreproError: if some failed; those after them were trained all the same.
    """
    view = JobsView(crew.jobs)
    failed = train_watched(crew, view)
    if failed:
        raise _as_error(failed, len(crew.jobs), view)


def train_watched(crew: Crew, view: JobsView) -> dict[Job, Outcome]:
    """Train all jobs of a crew, shown in a view; returns how those ended that did not finish.

    Raises:
        UsageError: if the machine cannot do what is asked.
        Interrupted: after a signal; what was begun has its checkpoint.
    """
    with view:
        crew.hear, crew.look = view.hear, view.draw
        crew.train()
    if crew.received:
        raise Interrupted(_told_of_the_stop(crew, bool(crew.order.options.get("fresh"))), crew.received)
    return {job: end for job, end in crew.outcomes.items() if not isinstance(end, Finished)}


def _told_of_the_stop(crew: Crew, fresh: bool) -> str:
    """What became of all runs when a signal came, and the way on."""
    ends = list(crew.outcomes.values())
    counts = {
        "finished": sum(isinstance(end, Finished) for end in ends),
        "failed": sum(isinstance(end, Failed) for end in ends),
        "stopped": sum(isinstance(end, Stopped) for end in ends),
        "not begun": len(crew.waiting),
    }
    told = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    way = " without --fresh" if fresh else ""
    return f"Stopped (of {len(crew.jobs)} runs {told}): the same command{way} goes on."


def _as_error(failed: Mapping[Job, Outcome], count: int, view: JobsView) -> ResreproError:
    """One error for all that failed, once each has been named with its reason."""
    kinds = {end.kind if isinstance(end, Failed) else ResreproError for end in failed.values()}
    if kinds == {Diverged}:
        return Diverged(f"{len(failed)} of {count} runs diverged; their records are kept.")
    view.speaker.say("Failed:")
    for job, end in failed.items():
        if not isinstance(end, Finished):
            view.say(job, f"{end.sentence}")
    kind = UsageError if kinds == {UsageError} and len(failed) == count else ResreproError
    return kind(f"{len(failed)} of {count} runs failed; the same command tries them again.")
