"""The view of a run: live in a terminal, plain lines elsewhere."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from resrepro.records import read_run
from resrepro.spec.catalogue import Experiment, find
from resrepro.spec.experiment import default_shortcut, in_folder, net_label
from resrepro.training.progress import Pace, Sample, Watcher, clock, errors_line, sample_line

if TYPE_CHECKING:
    from resrepro.training.measure import Errors


class LiveView(Watcher):
    """Shows iteration, loss, errors, learning rate, images/s and the time left."""

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
        self._print_whole(f"Record: {folder}")
        self._print_whole(f"Next: {self._next(folder, find(run.experiment))}")

    def _print_whole(self, text: str) -> None:
        """Print a line without breaking it, so that it can be copied."""
        self.console.print(text, markup=False, soft_wrap=True)

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
