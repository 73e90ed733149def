"""`resrepro reproduce`: an exhibit of the paper, from what is missing to the verdict."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from resrepro.cli import app
from resrepro.cli.options import (
    DeviceOption,
    FastOption,
    IterationsOption,
    JobsOption,
    RunsOption,
    SettingsOption,
    SplitOption,
    ThreadsOption,
    changed_settings,
    precision_of_fast,
    seeds_of,
)
from resrepro.cli.status import LauncherOption, SlurmOption, parse_slurm, tell_jobs
from resrepro.errors import DataError, ResreproError, UsageError
from resrepro.processes import world_size
from resrepro.records.evaluations import LAYER_RESPONSES, OTHER_IMAGES
from resrepro.spec.recipe import FAMILIES

if TYPE_CHECKING:
    from resrepro.launch import Exhibit, Measurement, Plan, Step
    from resrepro.records.collection import Collection
    from resrepro.spec.experiment import Spec
    from resrepro.spec.recipe import Value


class WithGoals(TyperCommand):
    """A command whose help names the exhibits; they are looked up only when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, the names in place of the word NAMES."""
        from resrepro.launch import exhibit_names

        parameter: Any = next(parameter for parameter in self.params if parameter.name == "exhibits")
        parameter.help = parameter.help.replace("NAMES", ", ".join(exhibit_names()))
        super().format_help(ctx, formatter)


@dataclass
class Reproduction:
    """Some exhibits, and the runs that they are to be made of.

    Attributes:
        seeds: of every net; None for those that the paper ran.
        without: experiments that are left out.
        settings: of the recipe, changed.
        data: folders of CIFAR-10 and of photographs.
        jobs: runs at once; None for as many as there is room for.
        failures: what could not be done, with the reason.
    """

    exhibits: "tuple[Exhibit, ...]"
    runs: Path
    seeds: Sequence[int] | None = None
    without: Sequence[str] = ()
    settings: "dict[str, Value]" = field(default_factory=dict)
    data: Sequence[Path] = ()
    device: str = "auto"
    threads: int | None = None
    jobs: int | None = None
    fresh: bool = False
    failures: dict[str, str] = field(default_factory=dict)

    def plan(self) -> "Plan":
        """What there is and what is missing, as the records say now."""
        from resrepro.launch import make_plan

        return make_plan(
            self.exhibits, self.runs, seeds=self.seeds, without=self.without, settings=self.settings
        )

    def data_of(self, spec: "Spec") -> Path | None:
        """The folder of a run's images."""
        from resrepro.launch import data_folder_of

        return data_folder_of(FAMILIES[spec.dataset], self.data)

    def train_words(self, spec: "Spec", seed: int = 0) -> tuple[str, ...]:
        """The command that trains a run."""
        from resrepro.launch import option_words, train_words

        words = option_words(
            self.settings, data=self.data_of(spec), runs=self.runs, device=self.device, threads=self.threads,
            fresh=self.fresh,
        )  # fmt: skip
        return train_words(spec, seed, words)

    def measure_words(self, measurement: "Measurement") -> list[str]:
        """The command that measures something."""
        from resrepro.launch import option_words

        data = self.data_of(measurement.steps[0].spec)
        return measurement.words(self.runs, data, *option_words({}, device=self.device, threads=self.threads))

    def jobs_of(self, missing: "Sequence[Step]") -> dict[str, int]:
        """How many of the missing runs are trained at once, by the family of their nets."""
        from resrepro.launch import PHOTOS, SMALL
        from resrepro.launch.local import choose_jobs

        specs = {f: [step.spec for step in missing if step.family == f] for f in (SMALL, PHOTOS)}
        return {family: choose_jobs(self.jobs, own, self.device) for family, own in specs.items()}

    def train(self) -> None:
        """Train what is missing, nets on small images first; one that fails stops no other.

        Raises:
            Interrupted: after a signal; what was begun has its checkpoint.
        """
        missing = self.plan().steps if self.fresh else self.plan().to_train
        for family, count in self.jobs_of(missing).items():
            steps = [step for step in missing if step.family == family]
            if steps := self._with_images(steps):
                self._train(steps, count)

    def _with_images(self, steps: "list[Step]") -> "list[Step]":
        """The runs whose images are there; the others have failed."""
        from resrepro.launch.local import prepare_images

        try:
            prepare_images([step.spec for step in steps], self.data_of(steps[0].spec) if steps else None)
        except DataError as error:
            lacking = [step for step in steps if step.spec.dataset == "cifar10"]
            self.failures |= {str(step): str(error) for step in lacking}
            return [step for step in steps if step not in lacking]
        return steps

    def _train(self, steps: "Sequence[Step]", count: int) -> None:
        from resrepro.cli.view import RunsView, train_all
        from resrepro.launch.local import Job, RunPool, threads_each

        names = {
            Job(step.spec.experiment, step.seed, self.train_words(step.spec, step.seed)): str(step)
            for step in steps
        }
        pool = RunPool(list(names), count, threads_each(count))
        failed = train_all(pool, RunsView(pool.jobs, onward=False))
        self.failures |= {names[job]: outcome.sentence for job, outcome in failed.items()}

    def measure(self, console: Console) -> None:
        """Measure what the exhibits need of trained nets; what fails, or gives no number of use, is kept."""
        from resrepro.launch.local import run_command

        for measurement in self.plan().to_measure:
            with console.status(f"measuring {measurement}"):
                outcome, _ = run_command(self.measure_words(measurement))
            if outcome.code:
                self.failures[str(measurement)] = outcome.sentence
            elif str(measurement) in map(str, self.plan().to_measure):
                self.failures[str(measurement)] = OTHER_IMAGES


@app.command(rich_help_panel="Run", cls=WithGoals)
def reproduce(
    exhibits: Annotated[
        list[str], typer.Argument(metavar="EXHIBIT...", help="NAMES, or all.", show_default=False)
    ],
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Another than the paper's: digits for CIFAR-10, folder for ImageNet.", show_default=False
        ),
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(
            metavar="N|0-4", help="So many seeds of every net, or these. (default: the paper's)",
            show_default=False,
        ),
    ] = None,
    iterations: IterationsOption = None,
    split: SplitOption = None,
    settings: SettingsOption = None,
    without: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EXPERIMENT", help="Leave a net out; may be repeated.", show_default=False
        ),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data", metavar="DIR", show_default=False,
            help="Folder of CIFAR-10 (default: $RESREPRO_DATA, else ./data, downloaded if missing), or of "
            "photographs: train/<class>/* and val/<class>/*; repeat it for both.",
        ),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fast: FastOption = False,
    jobs: JobsOption = None,
    launcher: LauncherOption = "local",
    slurm: SlurmOption = None,
    runs: RunsOption = Path("runs"),
    tables: Annotated[
        Path, typer.Option("--tables", metavar="DIR", help="Where the tables are written.")
    ] = Path("tables"),
    figures: Annotated[
        Path, typer.Option("--figures", metavar="DIR", help="Where the figures are written.")
    ] = Path("figures"),
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the plan; nothing is written.")
    ] = False,
) -> None:  # fmt: skip
    """Train, measure and show whatever an exhibit of the paper lacks, and judge its claims.

    Example: resrepro reproduce figure1 --dataset digits --seeds 3
    """
    from resrepro.cli.plan import show_plan, speeds_of
    from resrepro.launch import choose_exhibits

    slurm_options = parse_slurm(slurm or [], launcher)
    if world_size() > 1:
        raise UsageError("reproduce starts its own processes: leave torchrun out.")
    changed = changed_settings(settings, fast, iterations=iterations, split=split)
    if fast:
        changed["precision"] = precision_of_fast(device, launcher)
    reproduction = Reproduction(
        choose_exhibits(exhibits, dataset), runs, None if seeds is None else seeds_of(seeds),
        tuple(without or ()), changed, tuple(data or ()), device, threads, jobs,
    )  # fmt: skip
    plan, console = reproduction.plan(), Console(highlight=False)
    counts = reproduction.jobs_of(plan.to_train)
    timed = launcher == "local" and plan.to_train
    speeds = speeds_of(plan, device, counts, reproduction.train_words) if timed else []
    show_plan(plan, speeds, counts, console)
    if dry_run:
        return
    if launcher == "slurm":
        _submit(reproduction, slurm_options, console)
    else:
        reproduction.train()
        reproduction.measure(console)
    _write_all(reproduction, tables, figures, console)
    tell_failures(reproduction, Console(stderr=True, highlight=False))


def _submit(reproduction: Reproduction, slurm_options: dict[str, str], console: Console) -> None:
    """Hand what is missing to the queue; it is not waited for. An ensemble needs a command of its own.

    A run is trained and then measured by one job. CIFAR-10 is looked for first, and so downloaded once.
    """
    from resrepro.launch.local import prepare_images
    from resrepro.launch.slurm import QueuedRun, submit

    plan = reproduction.plan()
    measures: dict[Path, list[tuple[str, list[str]]]] = {}
    for each in plan.measurements:
        if len(each.steps) == 1 and not each.done:
            own = measures.setdefault(each.steps[0].folder, [])
            own.append((each.what, reproduction.measure_words(each)))
    lacking = [s for s in plan.steps if s.to_train or (s.state == "done" and s.folder in measures)]
    for step in lacking:
        prepare_images([step.spec], reproduction.data_of(step.spec))
    runs = [
        QueuedRun(
            step.spec.name, step.seed, reproduction.train_words(step.spec, step.seed),
            tuple(measures.get(step.folder, ())),
        )
        for step in lacking
    ]  # fmt: skip
    if runs:
        tell_jobs(submit(runs, reproduction.runs, slurm_options, reproduction.threads), reproduction.runs)
        console.print("The same command shows what is there when they have ended.", markup=False)
    for each in plan.to_measure:
        if len(each.steps) > 1:
            command = shlex.join(["resrepro", *reproduction.measure_words(each)])
            console.print(f"To measure: {command}", markup=False, soft_wrap=True)


def _write_all(reproduction: Reproduction, tables: Path, figures: Path, console: Console) -> None:
    """Print and write table and figure of every exhibit from what there is, and print the verdicts.

    An exhibit that cannot be shown is kept with its reason and stops no other.
    """
    from resrepro.claims.judging import judge
    from resrepro.claims.listing import to_rich as listed

    plan = reproduction.plan()
    found = plan.records()
    for exhibit in plan.exhibits:
        console.rule(exhibit.stem, align="left")
        try:
            write_exhibit(exhibit, found, tables, figures, console)
        except ResreproError as error:
            reproduction.failures[exhibit.stem] = str(error)
            console.print(f"Not shown: {error}", markup=False)
    if verdicts := tuple(verdict for verdict in judge(found.runs) if verdict.number in plan.claims):
        console.rule("claims", align="left")
        console.print(listed(verdicts, detailed=True))


def write_exhibit(
    exhibit: "Exhibit", found: "Collection", tables: Path, figures: Path, console: Console
) -> None:
    """Print and write the table of an exhibit, and draw its figure, from the records of a plan alone."""
    from resrepro import figures as known
    from resrepro.comparison.table import to_rich, write_table
    from resrepro.records.collection import Collection
    from resrepro.records.evaluations import is_measured

    own = tuple(run for run in found.runs if run.experiment in exhibit.experiments)
    responses = LAYER_RESPONSES in exhibit.measures
    shown = [is_measured(LAYER_RESPONSES, run) if responses else run.finished for run in own]
    if exhibit.dataset and not any(shown):
        what = "measured" if responses else "finished"
        console.print(f"No {what} run for {exhibit.stem} yet: nothing is written.", markup=False)
        return
    paths: list[Path] = []
    if exhibit.name in known.tables():
        table = known.build_table(exhibit.name, Collection(own, (), found.ensembles))
        table = replace(table, name=exhibit.stem)
        console.print(to_rich(table))
        paths += write_table(table, tables)
    if exhibit.name in known.figures():
        paper = exhibit.dataset in ("cifar10", "imagenet")
        drawing = known.draw_figure(exhibit.name, own, figures, paper=paper, stem=exhibit.stem)
        paths += drawing.paths
        for note in drawing.notes:
            console.print(note, markup=False)
    console.print(f"Written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)


def tell_failures(reproduction: Reproduction, console: Console) -> None:
    """Name what failed or is blocked, each with its reason.

    Raises:
        ResreproError: if there is any.
    """
    failed = reproduction.failures | {str(step): step.why for step in reproduction.plan().blocked}
    if not failed:
        return
    console.print("Failed:")
    for name, why in failed.items():
        console.print(f"  {name}: {why}", markup=False, soft_wrap=not console.is_terminal)
    raise ResreproError(f"{len(failed)} could not be done; the same command tries again.")
