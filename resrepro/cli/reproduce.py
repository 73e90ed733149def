"""`resrepro reproduce`: an exhibit of the paper, from what is missing to the verdict."""

import shlex
from collections.abc import Mapping
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
    parse_seeds,
    parse_settings,
)
from resrepro.cli.queue import LauncherOption, SlurmOption, parse_slurm, tell_jobs
from resrepro.errors import ResreproError, UsageError
from resrepro.records.evaluations import LAYER_RESPONSES
from resrepro.spec.recipe import FAMILIES, Value

if TYPE_CHECKING:
    from resrepro.launch.costs import Seen
    from resrepro.launch.goals import Exhibit
    from resrepro.launch.planning import Measurement, Plan
    from resrepro.launch.reproducing import Reproduction
    from resrepro.records.collection import Collection


class WithGoals(TyperCommand):
    """A command whose help names the exhibits; they are looked up only when the help is asked for."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, the names in place of the word NAMES."""
        from resrepro.launch.goals import names

        parameter: Any = next(parameter for parameter in self.params if parameter.name == "exhibits")
        parameter.help = parameter.help.replace("NAMES", ", ".join(names()))
        super().format_help(ctx, formatter)


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
    from resrepro.launch.goals import choose_exhibits
    from resrepro.launch.reproducing import Reproduction
    from resrepro.processes import world_size

    sbatch = parse_slurm(slurm or [], launcher)
    if world_size() > 1:
        raise UsageError("reproduce starts its own processes: leave torchrun out.")
    changed = _changed(settings or [], iterations=iterations, split=split)
    if fast:
        changed["precision"] = _fast(changed, device, launcher)
    reproduction = Reproduction(
        choose_exhibits(exhibits, dataset), runs, None if seeds is None else seeds_of(seeds),
        tuple(without or ()), changed, tuple(data or ()), device, threads,
    )  # fmt: skip
    plan = reproduction.plan()
    counts = reproduction.jobs(jobs, plan)
    console = Console(highlight=False)
    show_all(reproduction, plan, counts, console, timed=launcher == "local")
    if dry_run:
        return
    if launcher == "slurm":
        _submit(reproduction, jobs, sbatch, console)
    else:
        reproduction.train(jobs, looks=console.is_terminal)
        for each in reproduction.plan().to_measure:
            with console.status(f"measuring {each}"):
                reproduction.measure(each)
    write_all(reproduction, tables, figures, console)
    _tell_failures(reproduction, Console(stderr=True, highlight=False))


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


def _changed(pairs: list[str], **named: Value | None) -> dict[str, Value]:
    """The settings of the recipe that options change, each given once."""
    own = {key: value for key, value in named.items() if value is not None}
    extra = parse_settings(pairs)
    if twice := own.keys() & extra.keys():
        raise UsageError(f"{', '.join(sorted(twice))} is given twice, by its own option and by --set.")
    return own | extra


def _fast(changed: dict[str, Value], device: str, launcher: str) -> str:
    """The arithmetic that --fast stands for: here that of this machine, in a queue that of newer hardware."""
    from resrepro.launch.costs import precision_here

    if "precision" in changed:
        raise UsageError("--fast chooses the precision itself: leave one of the two out.")
    return "bf16" if launcher == "slurm" else precision_here(device)


def show_all(
    reproduction: "Reproduction", plan: "Plan", jobs: Mapping[str, int], console: Console, *, timed: bool
) -> None:
    """Show the plan, with times as far as they are known or `timed` here in a moment."""
    from resrepro.cli.plan import show_plan
    from resrepro.launch.costs import seen_in
    from resrepro.records.collection import collect

    seen: list[Seen] = []
    if timed and plan.to_train:
        seen = seen_in(collect([reproduction.runs]).runs, reproduction.device)
        for family, count in jobs.items():
            seen += _measured(reproduction, plan, family, count, seen)
    show_plan(plan, seen, jobs, console)


def _measured(
    reproduction: "Reproduction", plan: "Plan", family: str, jobs: int, seen: "list[Seen]"
) -> "list[Seen]":
    """What a moment's measurement tells of a family's nets; where it fails their time stays unknown."""
    from resrepro.launch.capacity import this_machine, threads_each
    from resrepro.launch.costs import measure_missing
    from resrepro.launch.reproducing import folder_of, of_family

    specs = list(dict.fromkeys(step.spec for step in of_family(plan.to_train, family)))
    data = folder_of(family, reproduction.data)
    stderr = Console(stderr=True, highlight=False)
    with stderr.status("measuring a few steps"):
        try:
            return measure_missing(
                specs, seen, data=None if data is None else str(data),
                device=reproduction.device, loading=(None, 0),
                threads=reproduction.threads or threads_each(jobs, this_machine()),
            )  # fmt: skip
        except UsageError:
            raise
        except ResreproError as error:
            stderr.print(f"No time is told: {error}", markup=False)
    return []


def _submit(
    reproduction: "Reproduction", asked: int | None, sbatch: Mapping[str, str], console: Console
) -> None:
    """Hand what is missing to the queue; it is not waited for. An ensemble needs a command of its own."""
    if tickets := reproduction.submit(asked, sbatch):
        tell_jobs(tickets, reproduction.runs)
        console.print("The same command shows what is there when they have ended.", markup=False)
    for each in reproduction.plan().to_measure:
        if len(each.steps) > 1:
            console.print(f"To measure: {_command_for(each, reproduction)}", markup=False, soft_wrap=True)


def _command_for(ensemble: "Measurement", reproduction: "Reproduction") -> str:
    """The command that measures an ensemble."""
    from resrepro.launch.reproducing import folder_of
    from resrepro.spec.experiment import in_folder

    data = folder_of(FAMILIES[ensemble.steps[0].spec.dataset], reproduction.data)
    words = ["resrepro", "eval", *(str(step.folder) for step in ensemble.steps)]
    words += ["--ensemble", "--protocol", ensemble.what]
    words += [] if data is None else ["--data", str(data)]
    words += [] if reproduction.device == "auto" else ["--device", reproduction.device]
    return in_folder(shlex.join(words), reproduction.runs)


def write_all(reproduction: "Reproduction", tables: Path, figures: Path, console: Console) -> None:
    """Print and write table and figure of every exhibit from what there is, and print the verdicts.

    An exhibit that cannot be shown is kept with its reason and stops no other.
    """
    from resrepro.claims.listing import to_rich as listed
    from resrepro.launch.reproducing import verdicts_on

    plan = reproduction.plan()
    found = plan.records()
    for exhibit in plan.exhibits:
        console.rule(exhibit.stem, align="left")
        try:
            _write(exhibit, found, tables, figures, console)
        except ResreproError as error:
            reproduction.failures[exhibit.stem] = str(error)
            console.print(f"Not shown: {error}", markup=False)
    if verdicts := verdicts_on(plan.claims, found):
        console.rule("claims", align="left")
        console.print(listed(verdicts, detailed=True))


def _write(exhibit: "Exhibit", found: "Collection", tables: Path, figures: Path, console: Console) -> None:
    from resrepro.comparison.tables import to_rich, write_table
    from resrepro.launch.reproducing import show_exhibit

    table, drawing = show_exhibit(exhibit, found, figures)
    if table is None and drawing is None:
        what = "measured" if LAYER_RESPONSES in exhibit.measures else "finished"
        console.print(f"No {what} run for {exhibit.stem} yet: nothing is written.", markup=False)
        return
    paths: list[Path] = []
    if table is not None:
        console.print(to_rich(table))
        paths += write_table(table, tables)
    if drawing is not None:
        paths += drawing.paths
        for note in drawing.notes:
            console.print(note, markup=False)
    console.print(f"Written: {', '.join(map(str, paths))}", markup=False, soft_wrap=True)


def _tell_failures(reproduction: "Reproduction", console: Console) -> None:
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
