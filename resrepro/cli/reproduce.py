"""`resrepro reproduce` and `demo`: an exhibit of the paper, from what is missing to the verdict."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from resrepro.cli import (
    DeviceOption,
    FastOption,
    FiguresOption,
    IterationsOption,
    JobsOption,
    LauncherOption,
    RunsOption,
    SettingsOption,
    SlurmOption,
    SplitOption,
    TablesOption,
    ThreadsOption,
    WithExhibits,
    app,
    changed_settings,
    option,
    parse_seeds,
    parse_slurm,
    precision_of_fast,
)
from resrepro.cli.show import write_exhibit
from resrepro.cli.status import show_plan
from resrepro.cli.train import tell_jobs
from resrepro.errors import DataError, ResreproError, UsageError
from resrepro.records.evaluations import OTHER_IMAGES
from resrepro.spec.recipe import FAMILIES
from resrepro.training import world_size

if TYPE_CHECKING:
    from resrepro.launch import Exhibit, Measurement, Plan, Step
    from resrepro.records.collection import Collection
    from resrepro.spec import Spec
    from resrepro.spec.recipe import Value

DEMO = ("digits-plain20", "digits-plain56", "digits-resnet20", "digits-resnet56")


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

    def train_words(self, step: "Step") -> tuple[str, ...]:
        """The command that trains a run."""
        from resrepro.launch import option_words, train_words

        words = option_words(
            self.settings, data=self.data_of(step.spec), runs=self.runs, device=self.device,
            threads=self.threads, fresh=self.fresh,
        )  # fmt: skip
        return train_words(step.spec, step.seed, words)

    def measure_words(self, measurement: "Measurement") -> list[str]:
        """The command that measures something."""
        data = self.data_of(measurement.steps[0].spec)
        return measurement.words(self.runs, data=data, device=self.device, threads=self.threads)

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
            self._train(self._with_images(steps), count)

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

        names = {Job(step.spec.experiment, step.seed, self.train_words(step)): str(step) for step in steps}
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


@app.command(rich_help_panel="Run", cls=WithExhibits)
def reproduce(
    exhibits: Annotated[
        list[str], typer.Argument(metavar="EXHIBIT...", help="NAMES, or all.", show_default=False)
    ],
    dataset: Annotated[
        str | None, option("Another than the paper's: digits for CIFAR-10, folder for ImageNet.")
    ] = None,
    seeds: Annotated[
        str | None, option("So many seeds of every net, or these. (default: the paper's)", metavar="N|0-4")
    ] = None,
    iterations: IterationsOption = None,
    split: SplitOption = None,
    settings: SettingsOption = None,
    without: Annotated[
        list[str] | None, option("Leave a net out; may be repeated.", metavar="EXPERIMENT")
    ] = None,
    data: Annotated[
        list[Path] | None,
        option(
            "Folder of CIFAR-10 (default: $RESREPRO_DATA, else ./data, downloaded if missing), or of "
            "photographs: train/<class>/* and val/<class>/*; repeat it for both.",
            "--data", metavar="DIR",
        ),
    ] = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fast: FastOption = False,
    jobs: JobsOption = None,
    launcher: LauncherOption = "local",
    slurm: SlurmOption = None,
    runs: RunsOption = Path("runs"),
    tables: TablesOption = Path("tables"),
    figures: FiguresOption = Path("figures"),
    dry_run: Annotated[bool, option("Only show the plan; nothing is written.", "--dry-run")] = False,
) -> None:  # fmt: skip
    """Train, measure and show whatever an exhibit of the paper lacks, and judge its claims.

    Example: resrepro reproduce figure1 --dataset digits --seeds 3
    """
    from resrepro.launch import choose_exhibits

    slurm_options = parse_slurm(slurm, launcher)
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
    show_plan(plan, device if launcher == "local" else None, console)
    if dry_run:
        return
    if launcher == "slurm":
        _submit(reproduction, slurm_options, console)
    else:
        reproduction.train()
        reproduction.measure(console)
    _write_all(reproduction, tables, figures, console)
    tell_failures(reproduction, Console(stderr=True, highlight=False))


def seeds_of(text: str) -> list[int]:
    """`3` -> [0, 1, 2]; else as `--seeds` of train: `0-4` -> [0, 1, 2, 3, 4], `0,3` -> [0, 3].

    Raises:
        UsageError: if it is none of them.
    """
    if not text.isdecimal():
        return parse_seeds(text)
    if int(text) < 1:
        raise UsageError(f"--seeds takes how many, from 1 on, or which, such as 0-4, not {text!r}.")
    return parse_seeds(f"0-{int(text) - 1}")


def _submit(reproduction: Reproduction, slurm_options: dict[str, str], console: Console) -> None:
    """Hand what is missing to the queue; it is not waited for. An ensemble needs a command of its own.

    A run is trained and then measured by one job. CIFAR-10 is looked for first, and so downloaded once.
    """
    from resrepro.launch.local import prepare_images
    from resrepro.launch.slurm import QueuedRun, submit

    plan = reproduction.plan()
    measures: dict[Path, list[list[str]]] = {}
    for each in plan.measurements:
        if len(each.steps) == 1 and not each.done:
            measures.setdefault(each.steps[0].folder, []).append(reproduction.measure_words(each))
    lacking = [s for s in plan.steps if s.to_train or (s.state == "done" and s.folder in measures)]
    for step in lacking:
        prepare_images([step.spec], reproduction.data_of(step.spec))
    queued = [
        QueuedRun(
            step.spec.name, step.seed, reproduction.train_words(step), tuple(measures.get(step.folder, ()))
        )
        for step in lacking
    ]
    if queued:
        tell_jobs(submit(queued, reproduction.runs, slurm_options, reproduction.threads), reproduction.runs)
        console.print("The same command shows what is there when they have ended.", markup=False)
    for each in plan.to_measure:
        if len(each.steps) > 1:
            command = shlex.join(["resrepro", *reproduction.measure_words(each)])
            console.print(f"To measure: {command}", markup=False, soft_wrap=True)


def _write_all(reproduction: Reproduction, tables: Path, figures: Path, console: Console) -> None:
    """Print and write table and figure of every exhibit from what there is, and print the verdicts.

    An exhibit that cannot be shown is kept with its reason and stops no other.
    """
    from resrepro.claims import to_rich as listed
    from resrepro.claims.judging import judge

    plan = reproduction.plan()
    found = plan.records()
    for exhibit in plan.exhibits:
        console.rule(exhibit.stem, align="left")
        try:
            write_exhibit(exhibit, found, tables, figures, console)
        except ResreproError as error:
            reproduction.failures[exhibit.stem] = str(error)
            console.print(f"Not shown: {error}", markup=False)
    if verdicts := tuple(verdict for verdict in judge(found.runs) if verdict.claim.number in plan.claims):
        console.rule("claims", align="left")
        console.print(listed(verdicts, detailed=True))


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


@app.command(rich_help_panel="Run")
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for the runs, the table and the figure.")
    ] = Path("demo"),
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    fresh: Annotated[bool, option("Set earlier demo runs aside and train anew.", "--fresh")] = False,
) -> None:
    """Train plain and residual nets of 20 and 56 layers on bundled digits and show what happens.

    It is `resrepro reproduce demo`, in a folder of its own.
    """
    from resrepro.launch import choose_exhibits

    exhibits, console = choose_exhibits(["demo"]), Console(highlight=False)
    reproduction = Reproduction(exhibits, out / "runs", device=device, threads=threads, fresh=fresh)
    reproduction.train()
    found = reproduction.plan().records()
    write_exhibit(exhibits[0], found, out, out, console)
    console.print(f"\n{demo_verdict(found)}", style="bold", markup=False)
    console.print("Next: resrepro train --depth 20        (CIFAR-10, as in the paper)", markup=False)
    tell_failures(reproduction, Console(stderr=True, highlight=False))


def demo_verdict(found: "Collection") -> str:
    """What the demo's runs show about degradation (the paper's Figure 1), computed from their records.

    Only the paper's contrast is looked at: training error of 20 against 56 layers, plain and residual.
    """
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
