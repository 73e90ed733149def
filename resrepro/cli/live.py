"""The view of a run: live in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from resrepro.catalogue import Experiment, find
from resrepro.metrics import Errors
from resrepro.records import read_run
from resrepro.specs import default_shortcut, net_label
from resrepro.watching import Sample, Watcher

LOOK_EVERY = 0.5  # seconds between looks at the device; each one waits for it


class LiveView(Watcher):
    """Shows iteration, loss, errors, learning rate, images/s and the time left."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.live: Live | None = None
        self.last: Sample | None = None
        self.looked = self.started = 0.0
        self.looked_at = self.done_before = 0
        self.batch_size = 0
        self.iterations = 0

    def say(self, text: str) -> None:
        """Print a line (above the live view, while there is one)."""
        self.console.print(text, markup=False, soft_wrap=not self.console.is_terminal)

    def begin(self, name: str, seed: int, done: int, iterations: int, batch_size: int) -> None:
        """Open the view."""
        self.batch_size, self.iterations, self.done_before = batch_size, iterations, done
        self.looked = self.started = time.perf_counter()
        self.looked_at, self.last = done, None
        self.console.print(Text.assemble((name, "bold"), f", seed {seed}: {iterations:,} iterations"))
        if not self.console.is_terminal:
            return
        self.progress = Progress(
            BarColumn(None), MofNCompleteColumn(), TextColumn("{task.fields[rest]}"), console=self.console
        )
        self.task: TaskID = self.progress.add_task("", total=iterations, completed=done, rest="")
        self.live = Live(self._picture(None, 0.0), console=self.console, refresh_per_second=4)
        self.live.start()

    def step(self, done: int, lr: float, read: Callable[[], Errors]) -> None:
        """Look at the run twice a second, not at every step."""
        now = time.perf_counter()
        if self.live is None or now - self.looked < LOOK_EVERY:
            return
        errors = read()
        speed = (done - self.looked_at) * self.batch_size / (now - self.looked)
        self.looked, self.looked_at = now, done
        rest = f"{speed:,.0f} images/s, {self._time_left(done)} left"
        self.progress.update(self.task, completed=done, rest=rest)
        self.live.update(self._picture(errors, lr))

    def sample(self, sample: Sample) -> None:
        """Keep the newest sample; without a terminal, print it."""
        self.last = sample
        if self.live is None:
            self.say(
                f"iteration {sample.iteration:>6,}  lr {sample.lr:<7g} {_told(sample.errors)}  "
                f"{sample.images_per_s:,.0f} images/s  {self._time_left(sample.iteration)} left"
            )

    def end(self) -> None:
        """Close the view."""
        if self.live is not None:
            self.live.update(Text(""))
            self.live.stop()
            self.live = None

    def finish(self, folder: Path) -> None:
        """Say what came out, where its record is, and what to type next."""
        run = read_run(folder)
        names = {"train": "training error", "val": "validation error", "test": "test error"}
        told = ", ".join(
            f"{names[key]} {value['top1_err']:.2f} %" for key, value in run.result["last"].items()
        )
        usual = run.spec["shortcut"] == default_shortcut(run.spec["dataset"], run.spec["depth"])
        label = net_label(run.spec["depth"], run.spec["plain"], None if usual else run.spec["shortcut"])
        self.say(f"{label}, seed {run.seed}: {told} (last iteration).")
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
        where = "" if folder.parent.parent == Path("runs") else f" --runs {folder.parent.parent}"
        return f"resrepro compare {experiment.exhibits[-1]}{where}"

    def _time_left(self, done: int) -> str:
        """By the speed of this session so far, evaluations included."""
        each = (time.perf_counter() - self.started) / max(done - self.done_before, 1)
        minutes, seconds = divmod(round(each * (self.iterations - done)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"

    def _picture(self, errors: Errors | None, lr: float) -> Group:
        lines = [self.progress.get_renderable()]
        if errors is not None:
            now = f"lr {lr:g}   training loss {errors.loss:.4f}, error {errors.top1_err:.2f} %"
            lines.append(Text(f"{now}   (since the last sample)"))
        if self.last is not None:
            lines.append(Text(f"at {self.last.iteration:,}: {_told(self.last.errors)}", style="dim"))
        return Group(*lines)


def _told(errors: dict[str, Errors]) -> str:
    """`loss 0.1234  train 1.20 %  test 9.30 %`."""
    parts = [f"{name} {error.top1_err:.2f} %" for name, error in errors.items()]
    return "  ".join([f"loss {errors['train'].loss:.4f}", *parts])
