"""`resrepro status`, and what `--launcher slurm` does."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from resrepro.cli import app
from resrepro.cli.options import RunsOption
from resrepro.errors import UsageError
from resrepro.launch.sbatch import sbatch_parameters

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from resrepro.launch.progress import Progress
    from resrepro.launch.queueing import Ticket
    from resrepro.spec.experiment import Spec

LAUNCHERS = ("local", "slurm")
STYLES = {
    "running": "green", "starting": "green", "waiting": "cyan", "interrupted": "yellow", "failed": "red",
    "diverged": "red", "finished": "dim",
}  # fmt: skip
QUEUE = "Cluster"
LauncherOption = Annotated[
    str,
    typer.Option(
        "--launcher", metavar="local|slurm", rich_help_panel=QUEUE,
        help="Train here, or submit the runs to a Slurm cluster's queue.",
    ),
]  # fmt: skip
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm", metavar="KEY=VALUE", rich_help_panel=QUEUE, show_default=False,
        help="time, cpus, gpus, parallel, or any option of sbatch (partition, account, mem, ..); may be "
        "repeated.",
    ),
]  # fmt: skip


@app.command(rich_help_panel="Read")
def status(
    records: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...", show_default=False,
            help="With --check: runs, folders of runs, or files that eval wrote. (default: those of --runs)",
        ),
    ] = None,
    runs: RunsOption = Path("runs"),
    check: Annotated[
        bool, typer.Option("--check", help="Check records and checkpoints: seals, checksums, nets.")
    ] = False,
) -> None:  # fmt: skip
    """Show how far every run is, here and in the cluster's queue, or what of their records is broken."""
    if records and not check:
        raise UsageError("runs are named for --check; --runs DIR names the folder to show.")
    if check:
        _check(records or [runs])
        return
    from rich.console import Console
    from rich.text import Text

    from resrepro.launch.progress import look

    console = Console(highlight=False)
    found, notices = look(runs)
    if found:
        _show(found, console)
        _sum_up(found, console)
    else:
        console.print(f"No runs in {runs}.", markup=False)
    for notice in notices:
        _print(console, Text(f"Note: {notice}"), 0)


def _check(paths: Sequence[Path]) -> None:
    """One line for each record that is whole, one for each thing that is broken; exits with 1 if any is."""
    from resrepro.records.files import shown
    from resrepro.records.verify import Identity, verify

    def read_checkpoint(path: Path) -> Identity:
        from resrepro.evaluation.sources import read_net  # imports torch

        net = read_net(path)
        return Identity(net.spec.digest, net.seed, net.iteration)

    whole = broken = 0
    for path, summary, troubles in verify(paths, read_checkpoint):
        whole, broken = whole + (not troubles), broken + bool(troubles)
        for text in [f"broken: {trouble}" for trouble in troubles] or [f"whole ({summary})"]:
            typer.echo(shown(f"{path}: {text.replace(f'{path}/', '')}"))
    typer.echo(f"{whole} whole, {broken} broken.")
    if broken:
        typer.echo("The command that started a run restores of it what its checkpoint holds.")
        raise typer.Exit(1)


def _show(found: Sequence["Progress"], console: "Console") -> None:
    """The runs, those of one name below it, in columns that are as wide in all of them."""
    from rich.text import Text

    rows = [_cells(progress) for progress in found]
    widths = [max((len(row[k]) for row in rows), default=0) for k in range(4)]
    name = ""
    for progress, (seed, state, done, errors) in zip(found, rows, strict=True):
        if progress.run != name:
            name = progress.run
            console.print(Text(name, "bold"), soft_wrap=True)
        line = Text(f"  {seed:<{widths[0]}}  ")
        line.append(f"{state:<{widths[1]}}", STYLES[progress.state])
        line.append(f"  {done:>{widths[2]}}  {errors:>{widths[3]}}  {progress.where}")
        line.rstrip()
        _print(console, line, widths[0] + widths[1] + 6)
        if progress.why:
            _print(console, Text(f"{progress.why.rstrip('.')}.", "red"), 4, lead=4)
        if progress.log:
            console.print(f"    log: {progress.log}", soft_wrap=True, markup=False)


def _sum_up(found: Sequence["Progress"], console: "Console") -> None:
    """How many runs there are of each state, and what the columns mean."""
    from resrepro.launch.progress import STATES

    states = Counter(progress.state for progress in found)
    told = ", ".join(f"{states[state]} {state}" for state in STATES if states[state])
    if any(progress.errors for progress in found):
        console.print("Errors: training, then test or validation, as last measured.")
    console.print(f"{len(found)} run{'s' * (len(found) != 1)}: {told}.")
    if states["interrupted"] or any(progress.why for progress in found):
        console.print("The command that started a run goes on with it.")


def _cells(progress: "Progress") -> tuple[str, str, str, str]:
    """Seed, state, iterations and errors of a run."""
    done = f"{progress.done:,}/{progress.iterations:,}" if progress.iterations else ""
    errors = " ".join(f"{error:.2f} %" for error in progress.errors)
    return f"seed {progress.seed}", progress.state, done, errors


def _print(console: "Console", text: "Text", indent: int, lead: int = 0) -> None:
    """Print a line that begins at `lead`, wrapped under `indent` in a terminal and left whole in a pipe."""
    from rich.padding import Padding
    from rich.text import Text

    if not console.is_terminal:
        console.print(Text(" " * lead) + text, soft_wrap=True)
        return
    first = text.wrap(console, console.width - lead)[0]
    rest = text[len(first) :]
    first.rstrip()
    console.print(Padding(first, (0, 0, 0, lead), expand=False))
    if rest.plain.strip():
        console.print(Padding(Text(rest.plain.strip(), text.style), (0, 0, 0, indent), expand=False))


def parse_slurm(pairs: Sequence[str], launcher: str) -> dict[str, str]:
    """`["partition=gpu", "time=90"]` -> `{"partition": "gpu", "time": "90"}`.

    Raises:
        UsageError: if one is not key=value, is nothing that a job may be given, or is given where nothing
            is submitted; if there is no such launcher.
    """
    if launcher not in LAUNCHERS:
        raise UsageError(f"--launcher takes {' or '.join(LAUNCHERS)}, not {launcher!r}.")
    if pairs and launcher != "slurm":
        raise UsageError("--slurm is for --launcher slurm, which submits the runs to a cluster's queue.")
    split = [pair.partition("=") for pair in pairs]
    for pair, (key, equals, _) in zip(pairs, split, strict=True):
        if not equals or not key:
            raise UsageError(f"--slurm takes key=value, such as partition=gpu, not {pair!r}.")
    told = {key.strip().replace("-", "_"): value for key, _, value in split}
    sbatch_parameters(told)  # refused here, before anything is shown or read
    return told


def submit_runs(
    specs: Sequence["Spec"],
    seeds: Sequence[int],
    at_once: int | None,
    reading: tuple[Any, ...],
    slurm: Mapping[str, str],
    options: Mapping[str, Any],
) -> None:
    """Submit every spec with every seed, `at_once` to run together, and say how to look after them.

    Raises:
        DataError: if the images are missing or damaged; nothing is submitted then.
        ResreproError: as `resrepro.launch.cluster.submit`.
    """
    from resrepro.launch.cluster import submit
    from resrepro.launch.job import Job, Order
    from resrepro.launch.jobs import load_shared

    runs = Path(options["runs"])
    jobs = [Job.of(spec, seed) for spec in specs for seed in seeds]
    load_shared(specs, options["data"])  # downloaded once, not by every job
    tell_jobs(submit(jobs, Order(dict(options), reading), runs, slurm, at_once=at_once), runs)


def tell_jobs(tickets: Sequence["Ticket"], runs: Path) -> None:
    """Print the job of each run, whether it was in the queue already, and how to look after them."""
    from resrepro.launch.progress import COMING
    from resrepro.spec.experiment import in_folder

    for ticket in tickets:
        there = "" if ticket.queued is None else "running" if ticket.queued.state in COMING else "waiting"
        typer.echo(f"{ticket}: job {ticket.job}" + (f" ({there} already)" if there else ""))
    if tickets:
        typer.echo(f"Next: {in_folder('resrepro status', runs)}")
