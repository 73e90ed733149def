"""`resrepro reproduce` and `demo`: an exhibit of the paper, from what is missing to the verdict."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from resrepro import cli, launch
from resrepro.claims import to_rich
from resrepro.claims.judging import judge
from resrepro.cli import argument, option
from resrepro.cli.show import write_exhibit
from resrepro.cli.status import show_plan
from resrepro.cli.train import FreshOption, submit_runs
from resrepro.cli.view import RunsView, raise_failures, train_all
from resrepro.errors import DataError, ResreproError, UsageError
from resrepro.launch.local import prepare_images, run_command
from resrepro.records.collection import Collection
from resrepro.records.reading import LAYER_RESPONSES, OTHER_IMAGES
from resrepro.spec.recipe import Value
from resrepro.training import world_size

DATASET = "Another than the paper's: digits for CIFAR-10, folder for ImageNet."
SEEDS = "So many seeds of every net, or these. (default: the paper's)"
WITHOUT = "Leave a net out; may be repeated."
DEMO = ("digits-plain20", "digits-plain56", "digits-resnet20", "digits-resnet56")


@dataclass
class Reproduction:
    """Some exhibits, and the runs that they are to be made of."""

    plan: Callable[[], launch.Plan]  # what there is and what is missing, as the records say now
    runs: Path
    options: dict[str, Any]  # of every command: device and threads
    settings: Mapping[str, Value] = field(default_factory=dict)  # of the recipe, changed
    data: Sequence[Path] = ()  # folders of CIFAR-10 and of photographs
    jobs: int | None = None  # runs at once; None for as many as there is room for
    fresh: bool = False
    failures: dict[str, str] = field(default_factory=dict)  # what could not be done, with the reason

    def data_of(self, family: str) -> Path | None:
        """The folder of the images of a family of nets."""
        return launch.data_folder_of(family, self.data)

    def words(self, family: str) -> list[str]:
        """The options of the commands that train nets of a family."""
        own = {"data": self.data_of(family), "runs": self.runs, "fresh": self.fresh}
        return launch.option_words(self.settings, **own, **self.options)

    def measure_words(self, measurement: launch.Measurement) -> list[str]:
        """The command that measures something, without `resrepro`."""
        what, steps = measurement.what, measurement.steps
        own = {"responses": True} if what == LAYER_RESPONSES else {"protocol": what, "runs": self.runs}
        own |= {"ensemble": len(steps) > 1, "data": self.data_of(steps[0].family)} | self.options
        return ["eval", *(str(step.folder) for step in steps), *launch.option_words({}, **own)]

    def train(self) -> None:
        """Train what is missing, nets on small images first; one that fails stops no other."""
        missing = [step for step in self.plan().steps if self.fresh or step.to_train]
        if on_cifar := [step for step in missing if step.spec.dataset == "cifar10"]:
            try:
                prepare_images([step.spec for step in on_cifar], self.data_of(launch.SMALL))
            except DataError as error:
                self.failures |= {str(step): str(error) for step in on_cifar}
                missing = [step for step in missing if step not in on_cifar]
        for family in (launch.SMALL, launch.PHOTOS):
            steps = {(s.spec.experiment, s.seed): s for s in missing if s.family == family}
            if steps:
                wanted = [(step.spec, step.seed) for step in steps.values()]
                pool = launch.pool_for(wanted, self.words(family), self.jobs, self.options["device"])
                failed = train_all(pool, RunsView(pool.jobs, onward=False))
                self.failures |= {str(steps[job.run, job.seed]): failed[job].sentence for job in failed}

    def measure(self, console: Console) -> None:
        """Measure what the exhibits need of trained nets; what fails, or gives no number of use, is kept."""
        for measurement in self.plan().to_measure:
            with console.status(f"measuring {measurement}"):
                outcome = run_command(self.measure_words(measurement))
            if outcome.code:
                self.failures[str(measurement)] = outcome.sentence
            elif str(measurement) in map(str, self.plan().to_measure):
                self.failures[str(measurement)] = OTHER_IMAGES

    def submit(self, slurm: dict[str, str], console: Console) -> None:
        """Hand what is missing to the queue, a job for each run; tell how to measure ensembles."""
        plan, runs = self.plan(), []
        for step in plan.steps:
            own = [each for each in plan.measurements if each.steps == (step,) and not each.done]
            if step.to_train or (step.state == "done" and own):
                prepare_images([step.spec], self.data_of(step.family))
                measures = tuple(self.measure_words(each) for each in own)
                words = launch.train_words(step.spec, step.seed, self.words(step.family))
                runs.append((step.spec.name, step.seed, words, measures))
        if runs:
            submit_runs(runs, self.runs, slurm, self.options["threads"])
            console.print("The same command shows what is there when they have ended.", markup=False)
        for each in plan.to_measure:
            if len(each.steps) > 1:
                command = shlex.join(["resrepro", *self.measure_words(each)])
                console.print(f"To measure: {command}", markup=False, soft_wrap=True)

    def show(self, tables: Path, figures: Path, console: Console) -> None:
        """Print and write every exhibit from what there is, and print the verdicts; one fails alone."""
        plan = self.plan()
        found = plan.records()
        for exhibit in plan.exhibits:
            console.rule(exhibit.stem, align="left")
            try:
                write_exhibit(exhibit, found, tables, figures)
            except ResreproError as error:
                self.failures[exhibit.stem] = str(error)
                console.print(f"Not shown: {error}", markup=False)
        if verdicts := tuple(verdict for verdict in judge(found.runs) if verdict.claim.number in plan.claims):
            console.rule("claims", align="left")
            console.print(to_rich(verdicts))

    def raise_failures(self) -> None:
        """Name what failed or is blocked, each with its reason; raises a ResreproError if there is any."""
        blocked = {str(step): step.why for step in self.plan().steps if step.state == "blocked"}
        raise_failures(self.failures | blocked)


@cli.app.command(rich_help_panel="Run")
def reproduce(
    ctx: typer.Context,
    exhibits: Annotated[list[str], argument(f"{', '.join(launch.FACTS)}, or all.", "EXHIBIT...")],
    dataset: Annotated[str | None, option(DATASET)] = None,
    seeds: Annotated[str | None, option(SEEDS, metavar="N|0-4")] = None,
    iterations: cli.IterationsOption = None,
    split: cli.SplitOption = None,
    settings: cli.SettingsOption = None,
    without: Annotated[list[str] | None, option(WITHOUT, metavar="EXPERIMENT")] = None,
    data: Annotated[list[Path] | None, option(f"{cli.IMAGES}; repeat it for both.", metavar="DIR")] = None,
    device: cli.DeviceOption = "auto",
    threads: cli.ThreadsOption = None,
    fast: cli.FastOption = False,
    jobs: cli.JobsOption = None,
    launcher: cli.LauncherOption = "local",
    slurm: cli.SlurmOption = None,
    runs: cli.RunsOption = Path("runs"),
    tables: cli.TablesOption = Path("tables"),
    figures: cli.FiguresOption = Path("figures"),
    dry_run: Annotated[bool, option("Only show the plan; nothing is written.", "--dry-run")] = False,
) -> None:
    """Train, measure and show whatever an exhibit of the paper lacks, and judge its claims.

    Example: resrepro reproduce figure1 --dataset digits --seeds 3
    """
    slurm_options = cli.parse_slurm(slurm, launcher)
    if world_size() > 1:
        raise UsageError("reproduce starts its own processes: leave torchrun out.")
    changed = cli.changed_settings(ctx.params)
    if fast:
        changed["precision"] = cli.precision_of_fast(device, launcher)
    chosen = launch.choose_exhibits(exhibits, dataset)
    which = None if seeds is None else cli.parse_seeds(seeds)
    plan = partial(launch.make_plan, chosen, runs, which, without or (), changed)
    options, console = {"device": device, "threads": threads}, Console(highlight=False)
    show_plan(plan(), device if launcher == "local" else None, console)
    if dry_run:
        return
    reproduction = Reproduction(plan, runs, options, changed, data or (), jobs)
    if launcher == "slurm":
        reproduction.submit(slurm_options, console)
    else:
        reproduction.train()
        reproduction.measure(console)
    reproduction.show(tables, figures, console)
    reproduction.raise_failures()


@cli.app.command(rich_help_panel="Run")
def demo(
    out: Annotated[Path, cli.folder_option(help="For the runs, the table and the figure.")] = Path("demo"),
    device: cli.DeviceOption = "auto",
    threads: cli.ThreadsOption = None,
    fresh: FreshOption = False,
) -> None:
    """Train plain and residual nets of 20 and 56 layers on bundled digits and show what happens.

    It is `resrepro reproduce demo`, in a folder of its own.
    """
    exhibits, runs, console = launch.choose_exhibits(["demo"]), out / "runs", Console(highlight=False)
    plan, options = partial(launch.make_plan, exhibits, runs), {"device": device, "threads": threads}
    reproduction = Reproduction(plan, runs, options, fresh=fresh)
    reproduction.train()
    found = plan().records()
    write_exhibit(exhibits[0], found, out, out)
    console.print(f"\n{demo_verdict(found)}", style="bold", markup=False)
    console.print("Next: resrepro train --depth 20        (CIFAR-10, as in the paper)", markup=False)
    reproduction.raise_failures()


def demo_verdict(found: Collection) -> str:
    """What the demo's runs show of Figure 1's contrast: training errors of 20 and 56 layers, plain or not."""
    errors = {run.experiment: run.last("train") for run in found.runs if run.finished}
    if missing := [name for name in DEMO if errors.get(name) is None]:
        return f"No verdict: {', '.join(missing)} did not finish."
    plain20, plain56, resnet20, resnet56 = (errors[name] or 0.0 for name in DEMO)
    plain = f"the plain net goes from {plain20:.1f} % training error at 20 layers to {plain56:.1f} % at 56"
    residual = f"the residual net from {resnet20:.1f} % to {resnet56:.1f} %"
    if plain56 > plain20 and plain56 - plain20 > resnet56 - resnet20:
        cured = "and shortcuts cure it" if resnet56 <= resnet20 + 1 else "and shortcuts lessen it"
        return f"Depth degrades the plain net {cured}: {plain}, {residual} (one seed, digits)."
    return f"These runs do not show the paper's degradation: {plain}, {residual} (one seed, digits)."
